/* Tries, from inside an instance, what its disks' nodes are not for.
 *
 * `probe_disks NODE` says one line of each attempt: "POSSIBLE: WHAT" or "refused: WHAT: ERRNO".
 * Attempts change nothing when they succeed: what is written is what was read there, and devices
 * are only opened. `probe_disks NODE MAJOR MINOR` tries as well to make a node of that device.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static void say(const char *what, int possible)
{
    if (possible)
        printf("POSSIBLE: %s\n", what);
    else
        printf("refused: %s: %s\n", what, strerrorname_np(errno));
}

/* Opens it by another way for writing, and closes it again. */
static void reopen(const char *what, const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC);
    say(what, fd >= 0);
    if (fd >= 0)
        close(fd);
}

static void rewrite(const char *node)
{
    static char block[4096];
    int fd = open(node, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        say("write", 0);
        return;
    }
    if (pread(fd, block, sizeof block, 0) != sizeof block)
        exit(2);
    say("write", pwrite(fd, block, sizeof block, 0) == sizeof block);
    close(fd);
}

static void of_reader(const char *node)
{
    char path[64];
    int fd = open(node, O_RDONLY | O_CLOEXEC);
    say("read", fd >= 0);
    if (fd < 0)
        return;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    reopen("write by proc's link", path, O_WRONLY);
    void *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    say("map to write", mapped != MAP_FAILED);
    mapped = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED)
        exit(2);
    say("let a mapping be written", mprotect(mapped, 4096, PROT_READ | PROT_WRITE) == 0);
    unsigned long long range[2] = {0, 4096};
    say("discard", ioctl(fd, BLKDISCARD, range) == 0);
    say("write zeroes", ioctl(fd, BLKZEROOUT, range) == 0);
    say("drop what is cached", ioctl(fd, BLKFLSBUF, 0) == 0);
    int off = 0, size = 4096;
    say("set read-only", ioctl(fd, BLKROSET, &off) == 0);
    say("set the block size", ioctl(fd, BLKBSZSET, &size) == 0);
    say("read partitions", ioctl(fd, BLKRRPART, 0) == 0);
    /* What a loop device is beside. */
    int other = open("/bin/sh", O_RDONLY | O_CLOEXEC);
    say("change its file", ioctl(fd, LOOP_CHANGE_FD, other) == 0);
    say("set its file", ioctl(fd, LOOP_SET_FD, other) == 0);
    struct loop_info64 info = {0};
    say("set its status", ioctl(fd, LOOP_SET_STATUS64, &info) == 0);
    say("set its capacity", ioctl(fd, LOOP_SET_CAPACITY, 0) == 0);
    say("set direct I/O", ioctl(fd, LOOP_SET_DIRECT_IO, 0) == 0);
    if (ioctl(fd, LOOP_GET_STATUS64, &info) == 0 && info.lo_file_name[0])
        say("learn its file's name", 1);
    /* Of one that is in use it only says that it is to end with its last user, as it does. */
    ioctl(fd, LOOP_CLR_FD, 0);
    say("read after it was cleared", pread(fd, &size, sizeof size, 0) == sizeof size);
}

static void make(const char *where, dev_t device)
{
    char what[96], path[96];
    snprintf(what, sizeof what, "make a node in %s", where);
    snprintf(path, sizeof path, "%s/made", where);
    int made = mknod(path, S_IFBLK | 0600, device);
    say(what, made == 0);
    if (made == 0) {
        reopen("open what was made", path, O_RDONLY);
        unlink(path);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2 && argc != 4)
        return 2;
    rewrite(argv[1]);
    reopen("open to write", argv[1], O_WRONLY);
    reopen("open to write alone", argv[1], O_WRONLY | O_EXCL);
    if (argc == 4) {
        dev_t device = makedev(atoi(argv[2]), atoi(argv[3]));
        make("/dev", device);
        make("/tmp", device);
        make("/dev/shm", device);
    }
    of_reader(argv[1]);
    puts("done");
    return 0;
}
