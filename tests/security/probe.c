/* Tries, from inside an instance, what a shell cannot: one attempt each call.
 *
 * Prints "refused: REASON" and exits 0 when the attempt was refused, prints
 * "POSSIBLE: ..." and exits 1 when it got through, prints "absent: ..." and exits 3 where
 * the kernel lacks what was tried, exits 2 on a wrong use.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>
#include <linux/reboot.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int verdict(long result, const char *what)
{
    if (result < 0) {
        printf("refused: %s: %s\n", what, strerror(errno));
        return 0;
    }
    printf("POSSIBLE: %s\n", what);
    return 1;
}

/* Of calls whose arguments are wrong on purpose: only that somebody may not is a refusal. */
static int forbidden(long result, const char *what)
{
    int lacking = errno == ENOSYS || errno == ENODEV;
    if (result < 0 && (errno == EPERM || errno == EACCES))
        return verdict(result, what);
    if (result < 0 && lacking) {
        printf("absent: %s: %s\n", what, strerror(errno));
        return 3;
    }
    return verdict(0, what);
}

static int try_mknod(void)
{
    int made = mknod("/tmp/null", S_IFCHR | 0600, makedev(1, 3));
    int error = errno;
    unlink("/tmp/null");
    errno = error;
    return forbidden(made, "a device node");
}

static int try_module(void)
{
    return forbidden(syscall(SYS_init_module, "\177ELF", 4UL, ""), "init_module");
}

static int try_bpf(void)
{
    union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
    return forbidden(syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr), "bpf map");
}

static int try_perf(void)
{
    struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .config = PERF_COUNT_SW_CPU_CLOCK};
    return forbidden(syscall(SYS_perf_event_open, &attr, -1, 0, -1, 0), "perf events of a whole CPU");
}

static int try_handle(void)
{
    /* Opening by handle walks past the mount's root (the escape called "shocker"). */
    struct { struct file_handle head; unsigned char bytes[8]; } handle = {
        .head = {.handle_bytes = 8, .handle_type = 1}, .bytes = {2},
    };
    int root = open("/etc/hosts", O_RDONLY);
    return forbidden(syscall(SYS_open_by_handle_at, root, &handle, O_RDONLY), "open_by_handle_at");
}

/* The kernel keeps keys of users, not of namespaces: each of the three calls is asked. */
static int try_keyring(void)
{
    if (syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_PROCESS_KEYRING, 1) >= 0)
        return verdict(0, "a keyring");
    if (syscall(SYS_add_key, "user", "berth-probe", "x", 1UL, KEY_SPEC_PROCESS_KEYRING) >= 0)
        return verdict(0, "a key");
    return forbidden(syscall(SYS_request_key, "user", "berth-probe", NULL, 0UL), "another's key");
}

static int try_ptrace(const char *pid)
{
    return verdict(ptrace(PTRACE_ATTACH, atoi(pid), NULL, NULL), "ptrace of a process outside");
}

static int try_reboot(void)
{
    /* In a pid namespace of its own this ends only that namespace: asked with a bad magic-free
     * command that changes the whole host's Ctrl-Alt-Del instead. */
    return verdict(syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_CAD_ON, NULL),
                   "the host's Ctrl-Alt-Del");
}

/* Flags and files that there are none of: whoever may gets another error, and nothing changes. */
static int try_kexec(void) { return forbidden(syscall(SYS_kexec_load, 0UL, 0UL, NULL, 0xfUL), "kexec_load"); }
static int try_swap(void) { return forbidden(syscall(SYS_swapon, "/nonexistent", 0), "swapon"); }
static int try_acct(void) { return forbidden(syscall(SYS_acct, "/nonexistent"), "process accounting"); }
static int try_syslog(void) { return forbidden(syscall(SYS_syslog, 2 /* read */, NULL, 0), "reading the kernel's log"); }
static int try_quota(void) { return forbidden(syscall(SYS_quotactl, 0x800003UL << 8, "/nonexistent", 0, NULL), "quotactl"); }

static int try_settime(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return forbidden(clock_settime(CLOCK_REALTIME, &now), "setting the host's clock");
}

static int try_ioport(void) { return forbidden(syscall(SYS_iopl, 3), "I/O ports"); }

static int try_setns(void)
{
    /* Namespaces of our own cannot be left by asking for pid 1's parent: there is none to see. */
    struct stat inside, outside;
    if (stat("/proc/1/ns/user", &inside) < 0 || stat("/proc/self/ns/user", &outside) < 0)
        return 2;
    if (inside.st_ino != outside.st_ino)
        return verdict(0, "pid 1 is in another user namespace than exec");
    int fd = open("/proc/self/ns/user", O_RDONLY);
    int parent = ioctl(fd, 0xb702 /* NS_GET_PARENT */);
    if (parent < 0)
        parent = ioctl(fd, 0xb701 /* NS_GET_USERNS */);
    if (parent < 0)
        return forbidden(-1, "the parent user namespace");
    return forbidden(setns(parent, CLONE_NEWUSER), "entering the parent user namespace");
}

static int try_fds(void)
{
    /* What the runtime or the service left open: anything that is no terminal, pipe or null. */
    DIR *fds = opendir("/proc/self/fd");
    struct dirent *entry;
    int found = 0;
    while ((entry = readdir(fds))) {
        char target[512] = {0}, path[300];
        int number = atoi(entry->d_name);
        if (entry->d_name[0] == '.' || number == dirfd(fds) || number <= 2)
            continue;
        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        if (readlink(path, target, sizeof target - 1) > 0) {
            printf("POSSIBLE: descriptor %s is %s\n", entry->d_name, target);
            found = 1;
        }
    }
    if (!found)
        puts("refused: no descriptor was left open");
    return found;
}

static int try_mount_new(void)
{
    /* File systems that read raw devices or the host's kernel state. */
    static const char *const kinds[] = {"ext4", "xfs", "btrfs", "debugfs", "tracefs", "securityfs", "configfs", "pstore", "devtmpfs", "nfsd"};
    int refused = 0;
    mkdir("/tmp/m", 0700);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (mount("/dev/null", "/tmp/m", kinds[i], 0, NULL) == 0) {
            umount2("/tmp/m", MNT_DETACH);
            return verdict(0, kinds[i]);
        }
        if (errno == EPERM || errno == EACCES)
            refused = errno;
        else if (errno != ENODEV)
            return verdict(0, kinds[i]); /* it looked at what is to be mounted */
    }
    errno = refused ? refused : ENODEV;
    return forbidden(-1, "mounts of foreign file systems");
}

static int try_setuid(const char *id)
{
    return verdict(setresuid((uid_t)strtoul(id, NULL, 10), -1, -1), "an id of another block");
}

static int try_chown(const char *id)
{
    /* Not another's, from the time before: fs.protected_regular keeps even root from those. */
    unlink("/tmp/chown");
    int fd = open("/tmp/chown", O_CREAT | O_WRONLY, 0600);
    if (fd < 0)
        return printf("absent: a file of ours: %s\n", strerror(errno)), 3;
    close(fd);
    return verdict(chown("/tmp/chown", (uid_t)strtoul(id, NULL, 10), -1), "a file of another block's id");
}

static int try_nested_map(void)
{
    /* A nested user namespace may map only what its parent has. */
    int ready[2];
    if (pipe(ready))
        return 2;
    pid_t child = fork();
    if (child == 0) {
        if (unshare(CLONE_NEWUSER) < 0)
            _exit(3);
        if (write(ready[1], "x", 1) != 1)
            _exit(3);
        pause();
    }
    close(ready[1]);
    char byte, path[64];
    if (read(ready[0], &byte, 1) != 1) {
        waitpid(child, NULL, 0);
        return puts("absent: no user namespace was made"), 3;
    }
    snprintf(path, sizeof path, "/proc/%d/uid_map", child);
    int fd = open(path, O_WRONLY);
    long written = fd < 0 ? -1 : write(fd, "0 70000 1\n", 10);
    int error = errno;
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    errno = error;
    return forbidden(written, "mapping ids beyond the own block");
}

/* A call as a 32-bit program makes it, which 64-bit ones may, too. */
static long call_i386(long number, long a, long b, long c)
{
#ifdef __x86_64__
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c)
                     : "memory", "r8", "r9", "r10", "r11");
    errno = (int)result < 0 ? -(int)result : 0;
    return (int)result < 0 ? -1 : (int)result;
#else
    (void)number, (void)a, (void)b, (void)c;
    errno = ENOSYS;
    return -1;
#endif
}

static long socket_by(const char *way, int family, int type)
{
    if (strcmp(way, "plain") == 0)
        return syscall(SYS_socket, (long)family, type, 0);
    /* The kernel looks at the lower half of the register. */
    if (strcmp(way, "high") == 0)
        return syscall(SYS_socket, 0x100000000L | family, type, 0);
    if (strcmp(way, "i386") == 0)
        return call_i386(359 /* socket */, family, type, 0);
    if (strcmp(way, "socketcall") == 0) {
        unsigned *arguments = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | 0x40 /* MAP_32BIT */, -1, 0);
        if (arguments == MAP_FAILED)
            return -1;
        arguments[0] = family, arguments[1] = type, arguments[2] = 0;
        return call_i386(102 /* socketcall */, 1 /* SYS_SOCKET */, (long)arguments, 0);
    }
    exit(2);
}

static int try_family(const char *way)
{
    /* Families that reach past the network namespace, or are there for nobody inside. */
    static const struct { const char *name; int family, type; } sockets[] = {
        {"AF_VSOCK", 40, SOCK_SEQPACKET}, {"AF_ALG", 38, SOCK_SEQPACKET}, {"AF_XDP", 44, SOCK_RAW},
    };
    for (size_t i = 0; i < sizeof sockets / sizeof *sockets; i++)
        if (socket_by(way, sockets[i].family, sockets[i].type) >= 0)
            return verdict(0, sockets[i].name);
    return verdict(-1, "sockets of other families");
}

static int try_usual(const char *way)
{
    static const int families[] = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK};
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (socket_by(way, families[i], SOCK_DGRAM) < 0)
            return verdict(-1, "a usual socket");
    return verdict(0, "usual sockets");
}

/* Whether what /proc calls a program's file is the one that has this name here. */
static int is_ours(const char *path, int fd)
{
    char name[300];
    struct stat here, is;
    ssize_t length = readlink(path, name, sizeof name - 1);
    name[length < 0 ? 0 : length] = 0;
    return stat(name, &here) == 0 && fstat(fd, &is) == 0 && here.st_dev == is.st_dev && here.st_ino == is.st_ino;
}

/* Whether a program's file could be written, which a sealed copy in memory cannot. */
static int writable(const char *way)
{
    int fd = open(way, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    int seals = fcntl(fd, F_GET_SEALS);
    close(fd);
    return seals < 0 || !(seals & F_SEAL_WRITE);
}

/* CVE-2019-5736: the file of every program that comes into sight for some seconds, held and written to once it
 * does not run any more. */
static int try_overwrite(const char *seconds)
{
    enum { MOST = 64 };
    int held[MOST], count = 0, refusals = 0;
    time_t end = time(NULL) + atoi(seconds);
    puts("ready");
    fflush(stdout);
    while (time(NULL) < end) {
        DIR *all = opendir("/proc");
        for (struct dirent *entry; (entry = readdir(all));) {
            char path[300];
            if (*entry->d_name < '1' || *entry->d_name > '9' || atoi(entry->d_name) == getpid())
                continue;
            snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
            int fd = open(path, O_PATH | O_CLOEXEC);
            if (fd < 0) {
                refusals += errno == EACCES || errno == EPERM;
                continue;
            }
            if (is_ours(path, fd) || count == MOST)
                close(fd);
            else
                held[count++] = fd;
        }
        closedir(all);
        for (int i = 0; i < count; i++) {
            char way[64];
            snprintf(way, sizeof way, "/proc/self/fd/%d", held[i]);
            if (writable(way))
                return verdict(0, "the file of a program from outside");
        }
    }
    if (!count && !refusals)
        return puts("absent: no program from outside came into sight"), 3;
    errno = EACCES;
    return verdict(-1, "files of programs from outside");
}

/* CVE-2024-21626: a way to a file of the host, through what any process here has open or stands in. */
static int try_leftover(const char *marker)
{
    static const char *const climbs[] = {"", "/..", "/../..", "/../../..", "/../../../..", "/../../../../../.."};
    DIR *all = opendir("/proc");
    for (struct dirent *entry; (entry = readdir(all));) {
        if (*entry->d_name < '1' || *entry->d_name > '9')
            continue;
        for (int fd = -2; fd < 64; fd++) {
            char path[700];
            int length = snprintf(path, sizeof path, fd == -2 ? "/proc/%s/cwd" : fd == -1 ? "/proc/%s/root" : "/proc/%s/fd/%d", entry->d_name, fd);
            for (size_t i = 0; i < sizeof climbs / sizeof *climbs; i++) {
                snprintf(path + length, sizeof path - length, "%s%s", climbs[i], marker);
                if (open(path, O_RDONLY | O_CLOEXEC) >= 0)
                    return verdict(0, path);
            }
        }
    }
    closedir(all);
    errno = ENOENT;
    return verdict(-1, marker);
}

static int with(const char *argument, int (*attempt)(const char *))
{
    if (!argument)
        return 2;
    return attempt(argument);
}

int main(int argc, char **argv)
{
    static const struct { const char *name; int (*plain)(void); int (*taking)(const char *); } attempts[] = {
        {"mknod", try_mknod, NULL}, {"module", try_module, NULL}, {"bpf", try_bpf, NULL},
        {"perf", try_perf, NULL}, {"handle", try_handle, NULL}, {"reboot", try_reboot, NULL},
        {"kexec", try_kexec, NULL}, {"swap", try_swap, NULL}, {"acct", try_acct, NULL},
        {"syslog", try_syslog, NULL}, {"quota", try_quota, NULL}, {"settime", try_settime, NULL},
        {"ioport", try_ioport, NULL}, {"setns", try_setns, NULL}, {"fds", try_fds, NULL},
        {"mount", try_mount_new, NULL}, {"map", try_nested_map, NULL},
        {"keyring", try_keyring, NULL}, {"ptrace", NULL, try_ptrace},
        {"family", NULL, try_family}, {"usual", NULL, try_usual},
        {"overwrite", NULL, try_overwrite}, {"leftover", NULL, try_leftover},
        {"setuid", NULL, try_setuid}, {"chown", NULL, try_chown},
    };
    for (size_t i = 0; argc > 1 && i < sizeof attempts / sizeof *attempts; i++)
        if (strcmp(argv[1], attempts[i].name) == 0)
            return attempts[i].plain ? attempts[i].plain() : with(argv[2], attempts[i].taking);
    fprintf(stderr, "usage: probe ATTEMPT [ARGUMENT]\n");
    return 2;
}
