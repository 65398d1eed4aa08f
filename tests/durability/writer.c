/* Writes so many bytes into a file, each piece on the disk before the next, and
   reads them back from there. Says what was refused.

   usage: writer FILE MIB */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECE = 1 << 20 };

static void fail(const char *what, long at)
{
	printf("%s at %ld MiB: %s\n", what, at, strerror(errno));
	exit(1);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	long pieces = atol(argv[2]);
	unsigned char *piece = NULL, *back = NULL;
	if (posix_memalign((void **)&piece, 4096, PIECE) || posix_memalign((void **)&back, 4096, PIECE))
		return 2;
	int file = open(argv[1], O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0600);
	if (file < 0)
		fail("open", 0);
	for (long at = 0; at < pieces; at++) {
		memset(piece, (int)(at % 251) + 1, PIECE);
		errno = ENOSPC;
		if (pwrite(file, piece, PIECE, at * PIECE) != PIECE)
			fail("write", at);
		if (fsync(file))
			fail("fsync", at);
	}
	for (long at = 0; at < pieces; at++) {
		memset(piece, (int)(at % 251) + 1, PIECE);
		errno = EIO;
		if (pread(file, back, PIECE, at * PIECE) != PIECE || memcmp(piece, back, PIECE))
			fail("read", at);
	}
	puts("written");
	return 0;
}
