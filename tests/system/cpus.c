/* What programs count as the machine's CPUs: those it may run on, those that the C library says are
 * online, and those it may run on after it asked for all. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int allowed(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? -1 : CPU_COUNT(&set);
}

int main(void) {
    cpu_set_t all;
    int before = allowed();
    memset(&all, 0xff, sizeof all);
    sched_setaffinity(0, sizeof all, &all);
    printf("%d %ld %d\n", before, sysconf(_SC_NPROCESSORS_ONLN), allowed());
    return 0;
}
