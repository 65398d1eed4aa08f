/* Makes many files with two names each, in a directory as deep as a path can be long, and
 * further names of one file beside each other: probe FILES NAMES. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void check(int done, const char *what)
{
	if (done < 0) {
		perror(what);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	char part[201], name[256];
	int files = argc > 2 ? atoi(argv[1]) : 0, names = argc > 2 ? atoi(argv[2]) : 0;

	memset(part, 'd', 200);
	part[200] = 0;
	check(mkdir("/many", 0755), "mkdir");
	check(chdir("/many"), "chdir");
	/* 19 of them are 3,820 bytes, and the image's readers take 4,095. */
	for (int depth = 0; depth < 19; depth++) {
		check(mkdir(part, 0755), "mkdir");
		check(chdir(part), "chdir");
	}
	for (int n = 0; n < files; n++) {
		snprintf(name, sizeof name, "a%d", n);
		int file = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600);
		check(file, "open");
		close(file);
		snprintf(name, sizeof name, "/many/z%d", n);
		char from[16];
		snprintf(from, sizeof from, "a%d", n);
		check(link(from, name), "link");
	}
	check(mkdir("/full", 0755), "mkdir");
	check(chdir("/full"), "chdir");
	memset(name, 'n', 240);
	for (int n = 0; n < names; n++) {
		snprintf(name + 240, sizeof name - 240, "%d", n);
		check(symlink("x", name), "symlink");
	}
	return 0;
}
