/* What a device that an instance has beside the usual ones could give: a FUSE file system, or a TUN interface.
 *
 * `probe_fuse serve HOW POINT` mounts a file system with a file `file` and serves it, without a library.
 * It says "ready"; how: `all` answers all, `open` never answers who opens the file, `self` neither, and
 * opens it itself, `disk` has a block device in the file's place.
 *
 * `probe_fuse open PATH` says "POSSIBLE: ..." when what is there can be opened for reading, and
 * `probe_fuse fuseblk DISK POINT` when a disk is mounted by a server; "refused: REASON" otherwise.
 *
 * `probe_fuse tun NAME` makes an interface or takes one of that name, says "has NAME", and waits to be
 * killed; or "refused: REASON". */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { ROOT = 1, LEAF = 2 };

static int device;
static const char *how, *point;

static int said(int done, const char *what)
{
	if (done >= 0)
		return printf("POSSIBLE: %s\n", what), 1;
	return printf("refused: %s: %s\n", what, strerror(errno)), 0;
}

static int is(const char *name)
{
	return !strcmp(how, name);
}

static void answer(const struct fuse_in_header *in, int error, const void *data, size_t length)
{
	char buffer[512];
	struct fuse_out_header *out = (void *)buffer;

	*out = (struct fuse_out_header){ .len = sizeof *out + length, .error = -error, .unique = in->unique };
	memcpy(out + 1, data, length);
	if (write(device, buffer, out->len) < 0 && errno != ENOENT)
		perror("answering");
}

static struct fuse_attr attributes(uint64_t node)
{
	int mode = node == ROOT ? S_IFDIR | 0755 : is("disk") ? S_IFBLK | 0666 : S_IFREG | 0644;

	/* The first loop device: what some instance's disk may be. */
	return (struct fuse_attr){ .ino = node, .mode = mode, .nlink = 1, .rdev = makedev(7, 0), .blksize = 4096 };
}

static void *wait_for_myself(void *unused)
{
	char path[256];

	(void)unused;
	snprintf(path, sizeof path, "%s/file", point);
	close(open(path, O_RDONLY));
	return NULL;
}

static void handle(const struct fuse_in_header *in)
{
	const struct fuse_init_in *init = (void *)(in + 1);
	struct fuse_init_out begun = { .major = 7, .minor = 31, .max_write = 4096, .max_background = 4, .time_gran = 1 };
	struct fuse_entry_out entry = { .nodeid = LEAF, .entry_valid = 60, .attr_valid = 60, .attr = attributes(LEAF) };
	struct fuse_attr_out found = { .attr_valid = 60, .attr = attributes(in->nodeid) };
	struct fuse_open_out opened = { .fh = 1 };
	struct fuse_statfs_out size = { .st = { .bsize = 4096, .blocks = 1 } };
	pthread_t thread;

	switch (in->opcode) {
	case FUSE_INIT:
		begun.max_readahead = init->max_readahead;
		answer(in, 0, &begun, sizeof begun);
		if (is("self"))
			pthread_create(&thread, NULL, wait_for_myself, NULL);
		puts("ready");
		fflush(stdout);
		return;
	case FUSE_LOOKUP:
		if (strcmp((const char *)(in + 1), "file"))
			return answer(in, ENOENT, "", 0);
		return answer(in, 0, &entry, sizeof entry);
	case FUSE_GETATTR:
		return answer(in, 0, &found, sizeof found);
	case FUSE_OPEN:
		if (is("open") || is("self"))
			return;
		/* Fall through. */
	case FUSE_OPENDIR:
		return answer(in, 0, &opened, sizeof opened);
	case FUSE_STATFS:
		return answer(in, 0, &size, sizeof size);
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return;
	case FUSE_READ:
	case FUSE_READDIR:
	case FUSE_FLUSH:
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
		return answer(in, 0, "", 0);
	default:
		return answer(in, ENOSYS, "", 0);
	}
}

static int serve(void)
{
	static char request[1 << 17];
	char options[128];

	device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (device < 0)
		return perror("/dev/fuse"), 2;
	snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
	if (mount("probe", point, "fuse", 0, options) < 0)
		return perror("mounting"), 2;
	for (;;) {
		if (read(device, request, sizeof request) > 0)
			handle((void *)request);
		else if (errno != EINTR && errno != ENOENT)
			return perror("serving"), 2;
	}
}

static int fuseblk(const char *disk)
{
	char options[128];

	device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", device);
	return said(mount(disk, point, "fuseblk", 0, options), "a disk by a server");
}

static int tun(const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI };

	device = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	if (device < 0)
		return said(-1, "/dev/net/tun");
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	if (ioctl(device, TUNSETIFF, &request) < 0)
		return said(-1, name);
	printf("has %s\n", name);
	fflush(stdout);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	const char *what = argc > 2 ? argv[1] : "";

	how = argc > 2 ? argv[2] : "";
	point = argc > 3 ? argv[3] : "/mnt";
	if (!strcmp(what, "serve"))
		return serve();
	if (!strcmp(what, "fuseblk"))
		return fuseblk(how);
	if (!strcmp(what, "open"))
		return said(open(how, O_RDONLY | O_NONBLOCK), how);
	if (!strcmp(what, "tun"))
		return tun(how);
	fprintf(stderr, "usage: probe_fuse serve|open|fuseblk|tun ...\n");
	return 2;
}
