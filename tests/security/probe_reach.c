/* Tries, from inside an instance, to open what is the host's, by every way that root inside has.
 *
 * Prints "refused: REASON" and exits 0 when each way was refused, "POSSIBLE: ..." and 1 when one
 * got through, "absent: ..." and 3 where nothing is there to be refused: that proves no wall.
 * Nothing is written but what a call's name says.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define SCRATCH "/tmp/reach"

static int possible(const char *what) { return printf("POSSIBLE: %s\n", what), 1; }
static int refused(const char *what, int error) { return printf("refused: %s: %s\n", what, strerror(error)), 0; }
static int absent(const char *what) { return printf("absent: %s\n", what), 3; }

/* No other reason says that somebody may not. */
static int forbids(int error) { return error == EPERM || error == EACCES || error == EROFS; }

/* 0: opened, and for reading it has something to say; else the reason. */
static int try_open(const char *path, int writing)
{
    struct stat is;
    char byte;
    int fd = open(path, (writing ? O_WRONLY | O_APPEND : O_RDONLY) | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return errno;
    /* What hides a file is /dev/null above it. */
    int error = 0;
    if (fstat(fd, &is) == 0 && S_ISCHR(is.st_mode) && is.st_rdev == makedev(1, 3))
        error = EACCES;
    else if (!writing) {
        ssize_t got = read(fd, &byte, 1);
        error = got > 0 || (got < 0 && errno == EAGAIN) ? 0 : got < 0 ? errno : ENODATA;
    }
    close(fd);
    return error;
}

static int open_file(const char *how, const char *path)
{
    int error = try_open(path, *how == 'w');
    return !error ? possible(path) : forbids(error) ? refused(path, error) : absent(strerror(error));
}

static const struct { const char *place, *kind; } kinds[] = {
    {"/proc", "proc"}, {"/sys", "sysfs"}, {"/sys/kernel/debug", "debugfs"}, {"/sys/kernel/tracing", "tracefs"},
};

/* Where it is, when what hides it is taken away. */
static int uncovered(const char *how, const char *path)
{
    int layers = 0, error;
    while (umount2(path, MNT_DETACH) == 0)
        layers++;
    if (!layers)
        return absent("nothing that hides it");
    error = try_open(path, *how == 'w');
    return !error ? possible(path) : forbids(error) ? refused(path, error) : absent(strerror(error));
}

/* Another file system's mount lies here and is locked: of such the kernel says EINVAL, as of no mount point. */
static int locked(const char *part, const char *top)
{
    struct statx at;
    struct stat its, whole;
    return !statx(AT_FDCWD, part, AT_SYMLINK_NOFOLLOW, 0, &at) && (at.stx_attributes & STATX_ATTR_MOUNT_ROOT)
        && !stat(part, &its) && !stat(top, &whole) && its.st_dev != whole.st_dev
        && umount2(part, MNT_DETACH) < 0 && errno == EINVAL;
}

/* What hides it or keeps it from being written is taken away, and a file system of our own put beside. */
static int reach(const char *how, const char *path)
{
    int writing = *how == 'w', forbidden = 0, covered = 0, fresh = 0, error;
    char part[256], *top = strdup(path);
    *strchr(top + 1, '/') = 0;
    if (!(error = try_open(path, writing)))
        return possible(path);
    if (forbids(error))
        forbidden = error;
    if (unshare(CLONE_NEWNS) == 0)
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
    for (size_t i = strlen(path); i > 1; i--) {
        if (path[i] && path[i] != '/')
            continue;
        snprintf(part, sizeof part, "%.*s", (int)i, path);
        if (strcmp(part, "/proc") == 0 || strcmp(part, "/sys") == 0 || strcmp(part, "/dev") == 0)
            break;
        mount(NULL, part, NULL, MS_REMOUNT | MS_BIND, NULL);
        if (!(error = try_open(path, writing)))
            return possible("after a remount");
        while (umount2(part, MNT_DETACH) == 0)
            ;
        covered |= locked(part, top);
        if (!(error = try_open(path, writing)))
            return possible("after an umount");
        if (forbids(error))
            forbidden = error;
    }
    if (mount(NULL, top, NULL, MS_REMOUNT, NULL) == 0 && !try_open(path, writing))
        return possible("after a remount of all of it");
    mkdir(SCRATCH, 0700);
    if (mount(top, SCRATCH, NULL, MS_BIND, NULL) == 0) {
        snprintf(part, sizeof part, "%s%s", SCRATCH, path + strlen(top));
        if (!try_open(part, writing))
            return possible("in a copy without what covers it");
        umount2(SCRATCH, MNT_DETACH);
        covered = 0;
    }
    /* Where the host has another file system mounted, it is that which is to be refused, too. */
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        size_t length = strlen(kinds[i].place);
        if (strncmp(path, kinds[i].place, length) || path[length] != '/')
            continue;
        if (mount("none", SCRATCH, kinds[i].kind, 0, NULL) < 0) {
            if (forbids(errno) && strcmp(kinds[i].place, top))
                forbidden = errno;
            else if (forbids(errno))
                fresh = errno;
            continue;
        }
        snprintf(part, sizeof part, "%s%s", SCRATCH, path + length);
        if (!(error = try_open(part, writing)))
            return possible("in a file system of our own");
        if (forbids(error))
            forbidden = error;
        umount2(SCRATCH, MNT_DETACH);
    }
    if (!forbidden && covered && fresh && try_open(path, writing) == ENOENT)
        return refused("a locked mount is above it, and no other of its kind is to be had", fresh);
    /* No way led to more than its absence, or to an empty file. */
    return forbidden ? refused(path, forbidden) : absent(strerror(error));
}

/* Its own cgroup's limit, in the hierarchy that it sees and in one that it mounts itself. */
static int limit(const char *controller, const char *file)
{
    char path[256], option[64];
    int error, forbidden = 0;
    snprintf(path, sizeof path, "/sys/fs/cgroup/%s", file);
    if (!(error = try_open(path, 1)))
        return possible(path);
    if (forbids(error))
        forbidden = error;
    mkdir(SCRATCH, 0700);
    snprintf(option, sizeof option, "%s", controller);
    for (int kind = 0; kind < 2; kind++) {
        if (mount("none", SCRATCH, kind ? "cgroup2" : "cgroup", 0, kind ? NULL : option) < 0) {
            if (forbids(errno))
                forbidden = errno;
            continue;
        }
        snprintf(path, sizeof path, SCRATCH "/%s", file);
        error = try_open(path, 1);
        umount2(SCRATCH, MNT_DETACH);
        if (!error)
            return possible(path);
        if (forbids(error))
            forbidden = error;
    }
    return forbidden ? refused(file, forbidden) : absent(file);
}

/* A hierarchy of its own, whose release_agent would be run by the host's root. */
static int hierarchy(const char *name, const char *unused)
{
    char option[64];
    (void)unused;
    snprintf(option, sizeof option, "none,name=%s", name);
    mkdir(SCRATCH, 0700);
    if (mount("none", SCRATCH, "cgroup", 0, option) < 0)
        return forbids(errno) ? refused("a hierarchy", errno) : absent(strerror(errno));
    int error = try_open(SCRATCH "/release_agent", 1);
    umount(SCRATCH);
    return error ? refused("release_agent", error) : possible("a hierarchy with a release_agent");
}

/* Its own chance to survive when memory is short, at the cost of others. */
static int oom(const char *value, const char *unused)
{
    (void)unused;
    int fd = open("/proc/self/oom_score_adj", O_WRONLY);
    if (fd < 0)
        return absent(strerror(errno));
    if (write(fd, value, strlen(value)) < 0)
        return forbids(errno) ? refused("oom_score_adj", errno) : absent(strerror(errno));
    return possible("oom_score_adj");
}

static char *own_profile(void)
{
    static char text[256];
    int fd = open("/proc/self/attr/current", O_RDONLY);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    text[length < 0 ? 0 : length] = 0;
    text[strcspn(text, "\n")] = 0;
    close(fd);
    return text;
}

static int profile(const char *unused, const char *unused_too)
{
    (void)unused, (void)unused_too;
    return puts(own_profile()), 0;
}

/* Its AppArmor profile, for another one: at once, and with the next program. */
static int leave(const char *to, const char *unused)
{
    static const char *const ways[][2] = {
        {"/proc/self/attr/current", "changeprofile"}, {"/proc/self/attr/exec", "exec"},
    };
    char order[300], before[256];
    int error = 0;
    (void)unused;
    strcpy(before, own_profile());
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        int length = snprintf(order, sizeof order, "%s %s", ways[i][1], to);
        int fd = open(ways[i][0], O_WRONLY);
        if (fd < 0)
            return absent(strerror(errno));
        if (write(fd, order, length) < 0)
            error = forbids(errno) || !error ? errno : error;
        else if (i == 1 || strcmp(before, own_profile()))
            return possible(order);
        close(fd);
    }
    return forbids(error) ? refused(to, error) : absent(strerror(error));
}

int main(int argc, char **argv)
{
    static const struct { const char *name; int (*attempt)(const char *, const char *); int arguments; } attempts[] = {
        {"open", open_file, 2}, {"reach", reach, 2}, {"limit", limit, 2}, {"hierarchy", hierarchy, 1}, {"oom", oom, 1},
        {"uncovered", uncovered, 2}, {"profile", profile, 0}, {"leave", leave, 1},
    };
    for (size_t i = 0; argc > 1 && i < sizeof attempts / sizeof *attempts; i++)
        if (strcmp(argv[1], attempts[i].name) == 0 && argc == 2 + attempts[i].arguments)
            return attempts[i].attempt(argc > 2 ? argv[2] : NULL, argc > 3 ? argv[3] : NULL);
    fprintf(stderr, "usage: probe open|reach|uncovered r|w PATH, limit CONTROLLER FILE, hierarchy NAME, oom VALUE, profile, leave PROFILE\n");
    return 2;
}
