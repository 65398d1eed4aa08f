/* A fixed amount of CPU-bound work; prints the milliseconds it took. */
#include <stdint.h>
#include <stdio.h>
#include <time.h>

int main(void)
{
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    uint64_t state = 88172645463325252ULL, sum = 0;
    for (long i = 0; i < 150000000; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        sum += state;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    double took = (end.tv_sec - start.tv_sec) * 1e3 + (end.tv_nsec - start.tv_nsec) / 1e6;
    printf("%.3f\n", took);
    return sum == 0;
}
