/* The kernel's floor for starting a container: what any runtime must at least do.
 *
 * An overlay on a shared lower directory; a process cloned straight into new user, mount, pid,
 * network, IPC, UTS and cgroup namespaces; its ids mapped; a memory and a CPU limit and a place
 * in every controller's hierarchy; proc mounted, the root pivoted, the program executed. The
 * clock stops when the program has been executed. Writes one line a run: milliseconds.
 *
 * usage: floor LOWER_DIR WORK_DIR CGROUP_NAME RUNS      (root)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define V1_ROOT "/sys/fs/cgroup"

static const char *const controllers[] = {"memory", "cpu", "cpuacct", "pids", "blkio", "devices", "freezer", "cpuset"};
enum { CONTROLLERS = sizeof controllers / sizeof *controllers };

static void die(const char *what)
{
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static const char *format(char *buffer, const char *pattern, ...)
{
    va_list arguments;
    va_start(arguments, pattern);
    vsnprintf(buffer, PATH_MAX, pattern, arguments);
    va_end(arguments);
    return buffer;
}

static int write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t written = write(fd, text, strlen(text));
    close(fd);
    return written < 0 ? -1 : 0;
}

static double milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

static void make_cgroups(const char *name)
{
    char path[PATH_MAX];
    for (int i = 0; i < CONTROLLERS; i++)
        mkdir(format(path, V1_ROOT "/%s/%s", controllers[i], name), 0755);
    write_text(format(path, V1_ROOT "/memory/%s/memory.limit_in_bytes", name), "67108864");
    write_text(format(path, V1_ROOT "/cpu/%s/cpu.cfs_quota_us", name), "100000");
    write_text(format(path, V1_ROOT "/pids/%s/pids.max", name), "4096");
    write_text(format(path, V1_ROOT "/cpuset/%s/cpuset.mems", name), "0");
    write_text(format(path, V1_ROOT "/cpuset/%s/cpuset.cpus", name), "0");
}

static void join_cgroups(const char *name, pid_t pid)
{
    char path[PATH_MAX], text[32];
    snprintf(text, sizeof text, "%d", pid);
    for (int i = 0; i < CONTROLLERS; i++)
        write_text(format(path, V1_ROOT "/%s/%s/cgroup.procs", controllers[i], name), text);
}

static void remove_cgroups(const char *name)
{
    char path[PATH_MAX];
    for (int i = 0; i < CONTROLLERS; i++) {
        format(path, V1_ROOT "/%s/%s", controllers[i], name);
        for (int tries = 0; tries < 200 && rmdir(path) && errno == EBUSY; tries++)
            usleep(500);
    }
}

/* The container's side: waits for its ids, changes its world, becomes the program. */
static void child(const char *root, int go)
{
    char byte;
    if (read(go, &byte, 1) != 1 || setresgid(0, 0, 0) || setresuid(0, 0, 0))
        _exit(10);
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount(root, root, NULL, MS_BIND, NULL))
        _exit(11);
    if (chdir(root) || mount("proc", "proc", "proc", 0, NULL))
        _exit(12);
    if (syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
        _exit(13);
    sethostname("floor", 5);
    execl("/bin/busybox", "sleep", "1000", (char *)NULL);
    _exit(14);
}

static double spawn(const char *lower, const char *work, const char *name, int run)
{
    char upper[PATH_MAX], scratch[PATH_MAX], root[PATH_MAX], options[3 * PATH_MAX + 64], path[PATH_MAX];
    int go[2], executed[2];
    double start = milliseconds();

    mkdir(format(upper, "%s/upper-%d", work, run), 0755);
    mkdir(format(scratch, "%s/scratch-%d", work, run), 0755);
    mkdir(format(root, "%s/root-%d", work, run), 0755);
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, scratch);
    if (mount("overlay", root, "overlay", 0, options))
        die("overlay");
    make_cgroups(name);
    if (pipe2(go, O_CLOEXEC) || pipe2(executed, O_CLOEXEC))
        die("pipe");
    struct clone_args arguments = {
        .flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP,
        .exit_signal = SIGCHLD,
    };
    pid_t pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid < 0)
        die("clone3");
    if (pid == 0) {
        close(go[1]);
        child(root, go[0]);
    }
    close(go[0]);
    close(executed[1]);
    if (write_text(format(path, "/proc/%d/uid_map", pid), "0 0 65536\n") ||
        write_text(format(path, "/proc/%d/gid_map", pid), "0 0 65536\n"))
        die("id maps");
    join_cgroups(name, pid);
    if (write(go[1], "x", 1) != 1)
        die("go");
    /* The other end of this pipe closes when the program is executed, or when it fails. */
    char byte;
    ssize_t end = read(executed[0], &byte, 1);
    double took = milliseconds() - start;
    int status;
    if (end != 0 || waitpid(pid, &status, WNOHANG) != 0)
        die("the container ended at once");
    close(go[1]);
    close(executed[0]);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    umount2(root, MNT_DETACH);
    remove_cgroups(name);
    return took;
}

int main(int count, char **words)
{
    if (count != 5) {
        fprintf(stderr, "usage: floor LOWER_DIR WORK_DIR CGROUP_NAME RUNS\n");
        return 2;
    }
    for (int run = 0; run < atoi(words[4]); run++)
        printf("%.3f\n", spawn(words[1], words[2], words[3], run));
    return 0;
}
