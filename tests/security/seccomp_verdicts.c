/* What the seccomp filters of two processes say to every call of every architecture, compared.
 *
 * usage: seccomp_verdicts PID PID     as the host's root; prints each difference, exits with 1 if there is any
 *
 * A filter is read from the process itself (ptrace), so it is what holds, whoever made it. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#define MOST 4096

struct program {
    struct sock_filter code[MOST];
    long length;
};

static void fail(const char *what) {
    fprintf(stderr, "seccomp_verdicts: %s: %s\n", what, strerror(errno));
    exit(2);
}

/* The filters of a process, the latest first: the kernel asks all, and the strictest answer holds. */
static int filters_of(pid_t pid, struct program *programs, int most) {
    if (ptrace(PTRACE_SEIZE, pid, 0, 0)) fail("PTRACE_SEIZE");
    if (ptrace(PTRACE_INTERRUPT, pid, 0, 0)) fail("PTRACE_INTERRUPT");
    if (waitpid(pid, 0, __WALL) != pid) fail("waitpid");
    int count = 0;
    for (; count < most; count++) {
        long length = ptrace(PTRACE_SECCOMP_GET_FILTER, pid, count, programs[count].code);
        if (length < 0 && errno == ENOENT) break;
        if (length < 0) fail("PTRACE_SECCOMP_GET_FILTER");
        programs[count].length = length;
    }
    ptrace(PTRACE_DETACH, pid, 0, 0);
    return count;
}

static uint32_t word(const struct seccomp_data *data, uint32_t offset) {
    uint32_t value;
    if (offset > sizeof *data - 4) { fprintf(stderr, "a load beyond the data\n"); exit(2); }
    memcpy(&value, (const char *)data + offset, 4);
    return value;
}

static uint32_t run(const struct program *program, const struct seccomp_data *data) {
    uint32_t a = 0, x = 0, memory[BPF_MEMWORDS] = {0};
    for (long at = 0; at < program->length; at++) {
        struct sock_filter f = program->code[at];
        uint32_t other = f.code & BPF_X ? x : f.k;
        switch (BPF_CLASS(f.code)) {
        case BPF_LD: a = BPF_MODE(f.code) == BPF_IMM ? f.k : BPF_MODE(f.code) == BPF_MEM ? memory[f.k] : word(data, f.k); break;
        case BPF_LDX: x = BPF_MODE(f.code) == BPF_IMM ? f.k : memory[f.k]; break;
        case BPF_ST: memory[f.k] = a; break;
        case BPF_STX: memory[f.k] = x; break;
        case BPF_ALU:
            switch (BPF_OP(f.code)) {
            case BPF_AND: a &= other; break;
            case BPF_OR: a |= other; break;
            case BPF_XOR: a ^= other; break;
            case BPF_ADD: a += other; break;
            case BPF_SUB: a -= other; break;
            case BPF_LSH: a <<= other; break;
            case BPF_RSH: a >>= other; break;
            default: fprintf(stderr, "operation %#x\n", f.code); exit(2);
            }
            break;
        case BPF_JMP:
            switch (BPF_OP(f.code)) {
            case BPF_JA: at += f.k; break;
            case BPF_JEQ: at += a == other ? f.jt : f.jf; break;
            case BPF_JGT: at += a > other ? f.jt : f.jf; break;
            case BPF_JGE: at += a >= other ? f.jt : f.jf; break;
            case BPF_JSET: at += a & other ? f.jt : f.jf; break;
            default: fprintf(stderr, "jump %#x\n", f.code); exit(2);
            }
            break;
        case BPF_RET: return BPF_RVAL(f.code) == BPF_A ? a : f.k;
        case BPF_MISC: if (BPF_MISCOP(f.code) == BPF_TAX) x = a; else a = x; break;
        }
    }
    fprintf(stderr, "a program without an end\n");
    exit(2);
}

static uint32_t verdict(const struct program *programs, int count, const struct seccomp_data *data) {
    uint32_t strictest = SECCOMP_RET_ALLOW;
    for (int n = 0; n < count; n++) {
        uint32_t one = run(&programs[n], data);
        if ((int32_t)(one & SECCOMP_RET_ACTION_FULL) < (int32_t)(strictest & SECCOMP_RET_ACTION_FULL)) strictest = one;
    }
    return strictest;
}

static const uint32_t architectures[] = {AUDIT_ARCH_X86_64, AUDIT_ARCH_I386, AUDIT_ARCH_AARCH64, AUDIT_ARCH_ARM, 0};
static uint64_t arguments[512][3];
static int count;

static void argument(uint64_t first, uint64_t second, uint64_t third) {
    arguments[count][0] = first, arguments[count][1] = second, arguments[count++][2] = third;
}

int main(int argc, char **argv) {
    static struct program one[8], other[8];
    if (argc != 3) return 2;
    int n = filters_of(atoi(argv[1]), one, 8), m = filters_of(atoi(argv[2]), other, 8);
    if (!n || !m) { fprintf(stderr, "no filter: %d, %d\n", n, m); return 2; }
    /* Namespaces, families and personalities are first arguments; options of sockets the next two. */
    for (int value = 0; value < 66; value++) argument(value, 0, 0);
    for (int bit = 0; bit < 64; bit++) argument(1ull << bit, 0, 0);
    for (int family = 0; family < 20; family++) argument(family | 1ull << 32, 0, 0);
    static const uint64_t others[] = {0x20008, 0x20000, 0xffffffff, ~0ull, 0x7e020000, 0x10000011, 0x01200011, 0x40000000};
    for (unsigned k = 0; k < sizeof others / sizeof *others; k++) argument(others[k], 0, 0);
    static const uint64_t level[] = {0, 1, 6, 263, 263 | 1ull << 32, 0x107 | 1u << 31};
    static const uint64_t option[] = {0, 1, 4, 5, 7, 13, 15, 5 | 1ull << 32, 13 | 1ull << 40, 5 | 1u << 30};
    for (unsigned l = 0; l < 6; l++) for (unsigned o = 0; o < 10; o++) argument(3, level[l], option[o]);
    int differences = 0;
    long asked = 0;
    for (unsigned a = 0; a < sizeof architectures / sizeof *architectures; a++)
        for (int base = 0; base < 3; base++)
            for (int number = 0; number < 700; number++)
                for (int k = 0; k < count; k++) {
                    struct seccomp_data data = {.arch = architectures[a]};
                    data.nr = base == 0 ? number : base == 1 ? 0x40000000 + number : -1 - number;
                    memcpy(data.args, arguments[k], sizeof arguments[k]);
                    uint32_t first = verdict(one, n, &data), second = verdict(other, m, &data);
                    asked++;
                    if (first != second && differences++ < 20)
                        printf("arch %#x call %d (%#llx, %#llx, %#llx): %#x, %#x\n", data.arch, data.nr, (unsigned long long)data.args[0],
                               (unsigned long long)data.args[1], (unsigned long long)data.args[2], first, second);
                }
    printf("asked %ld times: %d differences\n", asked, differences);
    return differences != 0;
}
