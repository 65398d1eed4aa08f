/* Many small processes: each holds one mebibyte for good. usage: crowd NUMBER */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* For all to see: what nobody could read need not be written. */
char *held;

int main(int argc, char **argv)
{
	int number = argc > 1 ? atoi(argv[1]) : 100;
	for (int i = 0; i < number; i++) {
		pid_t pid = fork();
		if (pid < 0)
			continue;
		if (pid == 0) {
			held = malloc(1 << 20);
			if (held)
				memset(held, i, 1 << 20);
			for (;;)
				pause();
		}
		usleep(500);
	}
	for (;;)
		pause();
}
