/* Floods the console until it is killed: `lines` as fast as it is taken, `bytes` one by one,
 * `drops` one by one with a pause, so that each comes alone. Tells once that it has begun. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    static char lines[65536];
    const char *how = count > 1 ? arguments[1] : "";
    int console = open("/dev/console", O_WRONLY | O_NOCTTY);

    if (console < 0)
        return 1;
    for (size_t i = 0; i < sizeof lines; i++)
        lines[i] = i % 64 == 63 ? '\n' : 'a' + i % 26;
    if (write(1, "begun\n", 6) != 6)
        return 1;
    close(1);
    if (strcmp(how, "lines") == 0)
        while (write(console, lines, sizeof lines) > 0)
            ;
    else if (strcmp(how, "bytes") == 0)
        while (write(console, "x", 1) > 0)
            ;
    else if (strcmp(how, "drops") == 0)
        while (write(console, "x", 1) > 0)
            nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    return 1;
}
