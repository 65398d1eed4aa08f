/* Tries, from inside an instance, to keep a volume that is taken away.
 *
 * `probe_volumes hold NODE HOW SIGN` gets hold of the node, HOW it says:
 *
 *   sent    in a message between two of its own sockets, in no table of descriptors
 *   thread  in a thread with a table of its own, whose process's first thread has ended
 *   mapped  as memory alone
 *
 * says "holding", waits for the file SIGN, and then says one line of each attempt at the volume:
 * "POSSIBLE: WHAT" or "refused: WHAT: ERRNO", and "done".
 *
 * `probe_volumes ask NODE` asks the device of a volume that is there for what is not the instance's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define SIZE 4096

static const char *node, *sign;

static void say(const char *what, int possible)
{
    if (possible)
        printf("POSSIBLE: %s\n", what);
    else
        printf("refused: %s: %s\n", what, strerrorname_np(errno) ? strerrorname_np(errno) : "nothing");
    fflush(stdout);
}

static int opened(void)
{
    int fd = open(node, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        perror(node);
        exit(2);
    }
    return fd;
}

static void wait_for_the_sign(void)
{
    puts("holding");
    fflush(stdout);
    while (access(sign, F_OK) < 0)
        usleep(10000);
}

static void try_all(int fd)
{
    static char block[SIZE] __attribute__((aligned(SIZE)));
    char path[64];
    memset(block, 'X', SIZE);
    errno = 0;
    say("write", pwrite(fd, block, SIZE, 0) > 0 && fsync(fd) == 0);
    errno = 0;
    say("read", pread(fd, block, SIZE, 0) > 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = open(path, O_RDWR | O_CLOEXEC);
    say("open it again", again >= 0);
    memset(block, 'X', SIZE);
    fcntl(fd, F_SETFL, O_DIRECT);
    errno = 0;
    say("write directly", pwrite(fd, block, SIZE, 0) > 0);
    fcntl(fd, F_SETFL, 0);
    unsigned long long range[2] = {0, SIZE}, bytes = 0;
    say("discard", ioctl(fd, BLKDISCARD, range) == 0);
    say("write zeroes", ioctl(fd, BLKZEROOUT, range) == 0);
    errno = 0;
    say("learn its size", ioctl(fd, BLKGETSIZE64, &bytes) == 0 && bytes > 0);
    struct loop_info64 info = {0};
    say("set its status", ioctl(fd, LOOP_SET_STATUS64, &info) == 0);
    say("set its capacity", ioctl(fd, LOOP_SET_CAPACITY, 0) == 0);
    errno = 0;
    say("write after that", pwrite(fd, block, SIZE, 0) > 0 && fsync(fd) == 0);
    struct stat found;
    if (fstat(fd, &found) == 0) {
        int made = mknod("/dev/made", S_IFBLK | 0600, found.st_rdev);
        say("make its node", made == 0);
        unlink("/dev/made");
    }
    puts("done");
    fflush(stdout);
}

static void hold_sent(void)
{
    int pair[2], fd = opened();
    char byte = 'x', space[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        exit(2);
    struct cmsghdr *control = CMSG_FIRSTHDR(&message);
    control->cmsg_level = SOL_SOCKET;
    control->cmsg_type = SCM_RIGHTS;
    control->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(control), &fd, sizeof fd);
    if (sendmsg(pair[0], &message, 0) != 1)
        exit(2);
    close(fd);
    wait_for_the_sign();
    message.msg_controllen = sizeof space;
    if (recvmsg(pair[1], &message, 0) != 1)
        exit(2);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    try_all(fd);
    exit(0);
}

static void *in_thread(void *unused)
{
    if (unshare(CLONE_FILES) < 0)
        exit(2);
    int fd = opened();
    /* The first thread has gone by then. */
    usleep(100000);
    wait_for_the_sign();
    try_all(fd);
    exit(0);
    return unused;
}

static void hold_in_thread(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, in_thread, NULL))
        exit(2);
    pthread_exit(NULL);
}

static void hold_mapped(void)
{
    int fd = opened();
    char *map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        exit(2);
    map[0] = map[0];
    close(fd);
    wait_for_the_sign();
    map[0] = 'X';
    /* Whether that is the volume's, its file says. */
    msync(map, SIZE, MS_SYNC);
    puts("done");
    exit(0);
}

static void ask(void)
{
    int fd = opened(), other = open("/bin/sh", O_RDONLY | O_CLOEXEC), size = 4096, off = 0;
    struct loop_info64 info = {0};
    struct loop_config config = {.fd = other};
    say("write", pwrite(fd, "x", 1, 0) == 1);
    say("learn its file's name", ioctl(fd, LOOP_GET_STATUS64, &info) == 0);
    memset(&info, 0, sizeof info);
    info.lo_offset = 4096;
    say("set its status", ioctl(fd, LOOP_SET_STATUS64, &info) == 0);
    say("set its status, the old way", ioctl(fd, LOOP_SET_STATUS, &info) == 0);
    say("set its capacity", ioctl(fd, LOOP_SET_CAPACITY, 0) == 0);
    say("set direct I/O", ioctl(fd, LOOP_SET_DIRECT_IO, 0) == 0);
    say("set its block size", ioctl(fd, LOOP_SET_BLOCK_SIZE, 4096) == 0);
    say("change its file", ioctl(fd, LOOP_CHANGE_FD, other) == 0);
    say("set its file", ioctl(fd, LOOP_SET_FD, other) == 0);
    say("configure it", ioctl(fd, LOOP_CONFIGURE, &config) == 0);
    say("clear it", ioctl(fd, LOOP_CLR_FD, 0) == 0);
    say("set read-only", ioctl(fd, BLKROSET, &off) == 0);
    say("set the block size", ioctl(fd, BLKBSZSET, &size) == 0);
    say("read partitions", ioctl(fd, BLKRRPART, 0) == 0);
    puts("done");
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "ask")) {
        node = argv[2];
        ask();
        return 0;
    }
    if (argc != 5 || strcmp(argv[1], "hold"))
        return 2;
    node = argv[2];
    sign = argv[4];
    if (!strcmp(argv[3], "sent"))
        hold_sent();
    if (!strcmp(argv[3], "thread"))
        hold_in_thread();
    if (!strcmp(argv[3], "mapped"))
        hold_mapped();
    return 2;
}
