/* What programs do that a machine of one's own lets them: `ordinary WHAT` says "works" or why not. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static int said(long result)
{
    if (result < 0)
        printf("%s\n", strerrorname_np(errno));
    else
        puts("works");
    return result < 0;
}

/* gdb and `setarch -R`, so that addresses are the same at each run. */
static int no_randomization(void)
{
    return said(personality(ADDR_NO_RANDOMIZE) < 0 ? -1 : personality(0xffffffff) & ADDR_NO_RANDOMIZE ? 0 : -1);
}

/* numactl, databases, JVMs. */
static int memory_policy(void)
{
    int mode;
    if (syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0UL) < 0)
        return said(-1);
    return said(syscall(SYS_get_mempolicy, &mode, NULL, 0UL, NULL, 0UL));
}

/* ntpq, chronyc, node exporters: how the clock is kept. */
static int read_clock(void)
{
    struct timex clock = {.modes = 0};
    return said(syscall(SYS_clock_adjtime, CLOCK_REALTIME, &clock));
}

/* runc, crun and podman go on without keyrings where the kernel has none. */
static int keyring(void) { return said(syscall(SYS_keyctl, 1 /* join */, NULL)); }

static int own_attribute(const char *name, const char *value)
{
    int file = open(name, O_WRONLY | O_CLOEXEC);
    return said(file < 0 ? -1 : write(file, value, strlen(value)));
}

/* A program that asks for a capability, as `setcap NAME+ep` marks it; capability N of those above 31, too. */
static int with_capability(const char *self, int capability)
{
    struct { unsigned magic, permitted[2][2]; } __attribute__((packed)) mark = {.magic = 0x02000001 /* revision 2, effective */};
    mark.permitted[capability / 32][0] = 1U << capability % 32;
    static char copy[64];
    snprintf(copy, sizeof copy, "/root/with-%d", capability);
    int from = open(self, O_RDONLY | O_CLOEXEC), to = open(copy, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
    static char bytes[1 << 16];
    for (long n; (n = read(from, bytes, sizeof bytes)) > 0;)
        if (write(to, bytes, n) != n)
            return said(-1);
    close(to);
    if (setxattr(copy, "security.capability", &mark, sizeof mark, 0) < 0)
        return said(-1);
    int status, pid = fork();
    if (pid == 0) {
        execl(copy, copy, "nothing", NULL);
        said(-1);
        fflush(stdout);
        _exit(1);
    }
    waitpid(pid, &status, 0);
    unlink(copy);
    return status ? 1 : said(0);
}

/* What a program may not for having the capability: the kernel asks in the first user namespace. */
static int raise_limit(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max = limit.rlim_max + 1;
    return said(setrlimit(RLIMIT_NOFILE, &limit));
}

static int immutable(void)
{
    int flags = FS_IMMUTABLE_FL, file = open("/root/file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    return said(file < 0 ? -1 : ioctl(file, FS_IOC_SETFLAGS, &flags));
}

int main(int count, char **words)
{
    const char *what = count > 1 ? words[1] : "";
    if (!strcmp(what, "nothing")) return 0;
    if (!strcmp(what, "no-randomization")) return no_randomization();
    if (!strcmp(what, "memory-policy")) return memory_policy();
    if (!strcmp(what, "read-clock")) return read_clock();
    if (!strcmp(what, "keyring")) return keyring();
    if (!strcmp(what, "raise-limit")) return raise_limit();
    if (!strcmp(what, "immutable")) return immutable();
    if (!strcmp(what, "write") && count == 4) return own_attribute(words[2], words[3]);
    if (!strcmp(what, "with-capability") && count == 3) {
        int number = 0;
        sscanf(words[2], "%d", &number);
        return with_capability(words[0], number);
    }
    fprintf(stderr, "ordinary: no such thing: %s\n", what);
    return 2;
}
