/* Takes, from inside an instance, all it can get of what the kernel has once for everybody.
 *
 * `take KIND [MOST]` goes on until the kernel refuses or MOST are taken, prints "took N: REASON" and
 * leaves a process behind that holds them. `one KIND` takes one and gives it back: it prints "one" and
 * exits with 0, or "none: REASON" and exits with 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/memfd.h>
#include <mqueue.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Each takes one more and tells how much that is (0 or more), or -1 with errno. */
static long inotify(void) { return inotify_init1(IN_NONBLOCK) < 0 ? -1 : 1; }

static long watch(void)
{
    static int fd = -1, number;
    char path[64] = "/";
    if (fd < 0)
        fd = inotify_init1(IN_NONBLOCK);
    if (number++) {
        snprintf(path, sizeof path, "/tmp/watched-%d-%d", getpid(), number);
        mkdir("/tmp", 0755);
        if (mkdir(path, 0755))
            return -1;
    }
    return inotify_add_watch(fd, path, IN_CREATE) < 0 ? -1 : 1;
}

static long timer(void)
{
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    int id;
    return syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &id) < 0 ? -1 : 1;
}

static long queue(void)
{
    static int number;
    char name[64];
    snprintf(name, sizeof name, "/probe-%d-%d", getpid(), number++);
    mqd_t made = mq_open(name, O_CREAT | O_EXCL | O_RDWR, 0600, NULL);
    if (made == (mqd_t)-1)
        return -1;
    mq_unlink(name); /* it lives as long as it is open */
    return 1;
}

static long terminal(void) { return posix_openpt(O_RDWR | O_NOCTTY) < 0 ? -1 : 1; }

/* A terminal of a devpts that has no limit: each time another one's, when it is full. */
static long own_terminal(void)
{
    static int multiplexer = -1, number;
    for (int fresh = 0; fresh < 2; fresh++) {
        char path[64];
        snprintf(path, sizeof path, "/tmp/pts-%d-%d", getpid(), number);
        if (multiplexer < 0) {
            mkdir("/tmp", 0755), mkdir(path, 0755);
            if (mount("devpts", path, "devpts", 0, "newinstance,ptmxmode=0666"))
                return -1;
            multiplexer = open(path, O_PATH | O_DIRECTORY);
        }
        int fd = openat(multiplexer, "ptmx", O_RDWR | O_NOCTTY);
        if (fd >= 0)
            return 1;
        if (errno != ENOSPC || fresh)
            return -1;
        multiplexer = -1, number++;
    }
    return -1;
}

/* Another limit for the devpts that is there: 1 if it was lifted. */
static long lifted(void)
{
    if (mount("devpts", "/dev/pts", "devpts", MS_REMOUNT, "newinstance,ptmxmode=0666,max=100000") == 0)
        return 1;
    int fd = syscall(SYS_fspick, AT_FDCWD, "/dev/pts", 0);
    if (fd >= 0 && syscall(SYS_fsconfig, fd, 1 /* FSCONFIG_SET_STRING */, "max", "100000", 0) == 0
        && syscall(SYS_fsconfig, fd, 7 /* FSCONFIG_CMD_RECONFIGURE */, NULL, NULL, 0) == 0)
        return 1;
    return -1;
}

static long aio(void)
{
    aio_context_t context = 0;
    return syscall(SYS_io_setup, 512, &context) < 0 ? -1 : 512;
}

static long file(void) { return open("/dev/null", O_RDONLY) < 0 ? -1 : 1; }

static long huge_map(void)
{
    char *at = mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (at == MAP_FAILED)
        return -1;
    *at = 1;
    return 1;
}

static long huge_file(void)
{
    int fd = memfd_create("probe", MFD_HUGETLB);
    if (fd < 0)
        return -1;
    if (fallocate(fd, 0, 0, 2 << 20) < 0)
        return -1;
    return 1;
}

/* Kibibytes of a socket's unread or unsent data, as the kernel counts them. */
static long held(int fd, int which)
{
    unsigned int info[9] = {0};
    socklen_t size = sizeof info;
    getsockopt(fd, SOL_SOCKET, 55 /* SO_MEMINFO */, info, &size);
    return info[which] / 1024;
}

static void widen(int fd)
{
    int most = 1 << 26;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &most, sizeof most);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &most, sizeof most);
}

static char bulk[60000];

static int localhost(int fd, struct sockaddr_in *address)
{
    socklen_t size = sizeof *address;
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return bind(fd, (struct sockaddr *)address, size) || getsockname(fd, (struct sockaddr *)address, &size);
}

static long udp(void)
{
    static int sender = -1;
    struct sockaddr_in address;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (sender < 0)
        sender = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || sender < 0)
        return -1;
    widen(fd);
    if (localhost(fd, &address))
        return -1;
    long before = -1, now = 0;
    while (now > before) {
        before = now;
        for (int i = 0; i < 16; i++)
            if (sendto(sender, bulk, sizeof bulk, MSG_DONTWAIT, (struct sockaddr *)&address, sizeof address) < 0)
                return now ? now : -1;
        now = held(fd, 0);
    }
    if (now)
        return now;
    errno = ENOBUFS;
    return -1;
}

static long tcp(void)
{
    static int listener = -1;
    static struct sockaddr_in address;
    if (listener < 0) {
        listener = socket(AF_INET, SOCK_STREAM, 0);
        widen(listener);
        if (localhost(listener, &address) || listen(listener, 4096))
            return -1;
    }
    int to = socket(AF_INET, SOCK_STREAM, 0);
    if (to < 0)
        return -1;
    widen(to);
    if (connect(to, (struct sockaddr *)&address, sizeof address))
        return -1;
    int from = accept(listener, NULL, NULL);
    if (from < 0)
        return -1;
    fcntl(to, F_SETFL, O_NONBLOCK);
    for (int quiet = 0; quiet < 5;) {
        if (send(to, bulk, sizeof bulk, 0) > 0)
            quiet = 0;
        else if (errno == EAGAIN)
            quiet++, usleep(2000);
        else
            return -1;
    }
    long now = held(from, 0) + held(to, 3) + held(to, 2);
    if (now > 64)
        return now;
    errno = ENOBUFS;
    return -1;
}

/* Neighbours of the interface's network, which nobody is. */
static long neighbour(void)
{
    static int fd = -1;
    static unsigned int next;
    const char *network = getenv("NETWORK"); /* the first address */
    if (fd < 0)
        fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(9)};
    address.sin_addr.s_addr = htonl(ntohl(inet_addr(network ? network : "127.0.0.1")) + next++);
    if (sendto(fd, "", 1, MSG_DONTWAIT, (struct sockaddr *)&address, sizeof address) < 0) {
        if (errno != EAGAIN && errno != ENOBUFS)
            return -1;
        close(fd); /* what waits for an answer fills a socket's buffer: the next has another */
        fd = -1;
    }
    return 1;
}

static const struct { const char *name; long (*take)(void); } kinds[] = {
    {"inotify", inotify}, {"watch", watch}, {"timer", timer}, {"queue", queue}, {"terminal", terminal},
    {"own-terminal", own_terminal}, {"lifted", lifted}, {"aio", aio},
    {"file", file}, {"huge-map", huge_map}, {"huge-file", huge_file}, {"udp", udp}, {"tcp", tcp},
    {"neighbour", neighbour},
};

static void take(long (*one)(void), long most, int report)
{
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    long took = 0, more = 0;
    errno = 0;
    while (took < most && (more = one()) >= 0)
        took += more;
    dprintf(report, "took %ld: %s\n", took, more < 0 ? strerror(errno) : "enough");
}

int main(int argc, char **argv)
{
    for (size_t i = 0; argc > 2 && i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(argv[2], kinds[i].name))
            continue;
        if (strcmp(argv[1], "one") == 0) {
            if (kinds[i].take() >= 0)
                return puts("one"), 0;
            return printf("none: %s\n", strerror(errno)), 1;
        }
        int report[2];
        if (strcmp(argv[1], "take") || pipe2(report, O_CLOEXEC))
            break;
        if (fork() == 0) {
            setsid();
            for (int fd = 0; fd < 3; fd++)
                dup2(open("/dev/null", O_RDWR), fd);
            take(kinds[i].take, argc > 3 ? atol(argv[3]) : 1L << 40, report[1]);
            close(report[1]);
            pause();
        }
        close(report[1]);
        char line[256];
        ssize_t length = read(report[0], line, sizeof line);
        if (length > 0)
            return write(1, line, length) != length;
        puts("took ?: it was killed");
        return 0;
    }
    fprintf(stderr, "usage: probe take|one KIND [MOST]\n");
    return 2;
}
