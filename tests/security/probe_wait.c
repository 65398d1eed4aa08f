/* Holds up whoever would freeze the file system that a file is on: writes to the file what
 * comes out of a pipe, into which nothing comes. The kernel counts the write as under way. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int pipes[2];
	int file = argc > 1 ? open(argv[1], O_WRONLY | O_CREAT, 0600) : -1;

	if (file < 0 || pipe(pipes) < 0) {
		perror("making the pipe and the file");
		return 2;
	}
	puts("waiting");
	fflush(stdout);
	splice(pipes[0], NULL, file, NULL, 4096, 0);
	perror("the write ended");
	return 1;
}
