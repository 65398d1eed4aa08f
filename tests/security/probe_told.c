/* Looks, from inside an instance, for what /proc and /sys tell of others, and tries to see more.
 *
 * `find ROOT WORD...` reads every file, link and name below ROOT, and prints "TOLD: PATH: WORD" for
 * each that has one of the words; a word that begins with `=` has to stand alone, without a letter,
 * a digit or an underscore beside it. `uncover` takes every mount below /proc and /sys away, in this
 * mount namespace and in those of its own, and mounts proc and sysfs anew; it prints "POSSIBLE: WAY"
 * for what succeeds. Both say "done: N" at their end, N being what was read or tried.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST (1 << 20)
#define SCRATCH "/tmp/told"

static char **words;
static int count, tried;
static char content[MOST + 1];

static int in_word(int c) { return isalnum(c) || c == '_'; }

static int has(const char *text, size_t size, const char *word)
{
    int alone = *word == '=';
    size_t length = strlen(word += alone);
    const char *at = text, *end = text + size;
    while (at < end && (at = memmem(at, end - at, word, length))) {
        if (!alone || ((at == text || !in_word(at[-1])) && (at + length == end || !in_word(at[length]))))
            return 1;
        at++;
    }
    return 0;
}

static void look(const char *path, const char *text, size_t size)
{
    for (int i = 0; i < count; i++)
        if (has(text, size, words[i]))
            printf("TOLD: %s: %s\n", path, words[i]);
}

static void read_file(const char *path)
{
    size_t size = 0;
    ssize_t got;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW);
    if (fd < 0)
        return;
    tried++;
    while (size < MOST && (got = read(fd, content + size, MOST - size)) > 0)
        size += got;
    close(fd);
    look(path, content, size);
}

static int decimal(const char *name) { return *name && strspn(name, "0123456789") == strlen(name); }

static void walk(const char *path, int depth)
{
    char below[4096], target[4096];
    struct dirent *entry;
    struct stat is;
    DIR *dir = opendir(path);
    if (!dir || depth > 24)
        return (void)(dir && closedir(dir));
    while ((entry = readdir(dir))) {
        const char *name = entry->d_name;
        if (!strcmp(name, ".") || !strcmp(name, ".."))
            continue;
        /* The words on our own command line are no news, nor is what our own memory holds. */
        if (!strcmp(path, "/proc") && decimal(name) && atoi(name) == getpid())
            continue;
        if (snprintf(below, sizeof below, "%s/%s", path, name) >= (int)sizeof below || lstat(below, &is))
            continue;
        if (!strncmp(below, "/proc/self", 10) || !strncmp(below, "/proc/thread-self", 17))
            continue;
        look(below, name, strlen(name));
        if (S_ISLNK(is.st_mode)) {
            ssize_t size = readlink(below, target, sizeof target);
            if (size > 0)
                tried++, look(below, target, size);
        } else if (S_ISDIR(is.st_mode)) {
            walk(below, depth + 1);
        } else if (S_ISREG(is.st_mode) && strcmp(name, "pagemap") && strcmp(name, "mem") && strcmp(name, "kmsg")) {
            read_file(below);
        }
    }
    closedir(dir);
}

static int find(const char *root)
{
    /* What this process has is what each one has. */
    const char *own[] = {"mountinfo", "mounts", "mountstats", "cgroup", "maps", "limits", "status"};
    char path[64];
    walk(root, 0);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) {
        snprintf(path, sizeof path, "/proc/self/%s", own[i]);
        read_file(path);
    }
    return printf("done: %d\n", tried), 0;
}

static void attempt(int failed, const char *way, const char *what)
{
    tried++;
    if (!failed)
        printf("POSSIBLE: %s %s\n", way, what);
}

/* The mount points below /proc and /sys, from the innermost. */
static int points(char found[][256], int most)
{
    char line[4096], point[256];
    int n = 0;
    FILE *table = fopen("/proc/self/mountinfo", "r");
    while (table && fgets(line, sizeof line, table) && n < most)
        if (sscanf(line, "%*d %*d %*s %*s %255s", point) == 1 &&
            (!strncmp(point, "/proc/", 6) || !strncmp(point, "/sys/", 5)))
            strcpy(found[n++], point);
    if (table)
        fclose(table);
    return n;
}

static void take_away(const char *where)
{
    static char found[512][256];
    char way[64];
    int n = points(found, 512);
    for (int i = n - 1; i >= 0; i--) {
        snprintf(way, sizeof way, "%s: unmounting", where);
        attempt(umount2(found[i], MNT_DETACH), way, found[i]);
        snprintf(way, sizeof way, "%s: moving", where);
        attempt(mount(found[i], SCRATCH, NULL, MS_MOVE, NULL), way, found[i]);
    }
    if (!n)
        printf("nothing is mounted below /proc\n");
    snprintf(way, sizeof way, "%s: binding without what covers it", where);
    attempt(mount("/proc", SCRATCH, NULL, MS_BIND, NULL), way, "/proc");
    attempt(mount("/sys", SCRATCH, NULL, MS_BIND, NULL), way, "/sys");
    snprintf(way, sizeof way, "%s: copying without what covers it", where);
    attempt(syscall(SYS_open_tree, AT_FDCWD, "/sys", 1) < 0, way, "/sys");
    /* A copy with all that covers it is no harm, unless that comes off. */
    if (!mount("/sys", SCRATCH, NULL, MS_BIND | MS_REC, NULL)) {
        snprintf(way, sizeof way, "%s: unmounting in a copy", where);
        attempt(umount2(SCRATCH "/devices", MNT_DETACH), way, "/sys/devices");
        umount2(SCRATCH, MNT_DETACH);
    }
    snprintf(way, sizeof way, "%s: mounting", where);
    attempt(mount("proc", SCRATCH, "proc", 0, NULL), way, "proc");
    attempt(mount("sysfs", SCRATCH, "sysfs", 0, NULL), way, "sysfs");
    attempt(mount("sysfs", SCRATCH, "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), way, "sysfs, read-only");
}

static void apart(const char *where, int flags)
{
    fflush(stdout);
    int status = 0, before = tried;
    pid_t child = fork();
    if (child == 0) {
        if (unshare(flags))
            _exit(2);
        pid_t inner = fork();
        if (inner == 0) {
            take_away(where);
            umount2("/sys", MNT_DETACH);
            umount2("/proc", MNT_DETACH);
            attempt(mount("proc", SCRATCH, "proc", 0, NULL), where, "mounting proc after all");
            attempt(mount("sysfs", SCRATCH, "sysfs", 0, NULL), where, "mounting sysfs after all");
            fflush(stdout);
            _exit(tried - before > 10 ? 0 : 1);
        }
        waitpid(inner, &status, 0);
        _exit(WEXITSTATUS(status));
    }
    waitpid(child, &status, 0);
    if (WEXITSTATUS(status) == 0)
        printf("tried: %s\n", where);
    else
        printf("no namespaces: %s\n", where);
}

int main(int argc, char **argv)
{
    if (argc > 2 && !strcmp(argv[1], "find")) {
        words = argv + 3;
        count = argc - 3;
        return find(argv[2]);
    }
    mkdir(SCRATCH, 0777);
    take_away("here");
    apart("own mounts", CLONE_NEWNS | CLONE_NEWPID);
    apart("own users", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID);
    apart("own network", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET);
    return printf("done: %d\n", tried), 0;
}
