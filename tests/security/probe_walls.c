/* Tries, from inside an instance, what a flavor allows or forbids.
 *
 * Prints "refused: REASON" and exits 0, or "POSSIBLE: ..." and exits 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <linux/sched.h>
#include <net/ethernet.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int verdict(int possible, const char *what)
{
    if (possible)
        return printf("POSSIBLE: %s\n", what), 1;
    return printf("refused: %s: %s\n", what, strerror(errno)), 0;
}

/* A call as a 32-bit program makes it, which 64-bit ones may, too. */
static long call_i386(long number, long a, long b, long c, long d, long e)
{
#ifdef __x86_64__
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
                     : "memory", "r8", "r9", "r10", "r11");
    errno = (int)result < 0 ? -(int)result : 0;
    return (int)result < 0 ? -1 : (int)result;
#else
    (void)number, (void)a, (void)b, (void)c, (void)d, (void)e;
    errno = ENOSYS;
    return -1;
#endif
}

static int compat(void)
{
    pid_t child = fork();
    if (child == 0)
        _exit(call_i386(20 /* getpid */, 0, 0, 0, 0, 0) == getpid() ? 1 : 0);
    int status;
    waitpid(child, &status, 0);
    errno = ENOSYS;
    return verdict(WIFEXITED(status) && WEXITSTATUS(status) == 1, "a 32-bit system call");
}

/* By each call that makes one; what each says. */
static int user_namespace(void)
{
    pid_t child = fork();
    if (child == 0)
        _exit(unshare(CLONE_NEWUSER) == 0);
    int status;
    waitpid(child, &status, 0);
    if (status)
        return verdict(1, "unshare");
    long made = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL);
    if (made == 0)
        _exit(0);
    if (made > 0)
        return verdict(1, "clone");
    struct clone_args arguments = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
    made = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (made == 0)
        _exit(0);
    if (made > 0)
        return verdict(1, "clone3");
    made = call_i386(310 /* unshare */, CLONE_NEWUSER, 0, 0, 0, 0);
    return verdict(made == 0, "user namespaces");
}

static int other_namespaces(void)
{
    return verdict(unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID) == 0 && fork() >= 0, "other namespaces");
}

static int ring(void)
{
    static const int options[] = {PACKET_RX_RING, PACKET_TX_RING};
    struct tpacket_req wanted = {
        .tp_block_size = 1 << 16, .tp_block_nr = 1, .tp_frame_size = 2048, .tp_frame_nr = 32,
    };
    struct tpacket_req *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | 0x40 /* MAP_32BIT */, -1, 0);
    *low = wanted;
    for (int i = 0; i < 2; i++) {
        int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
        if (fd < 0)
            return printf("absent: %s\n", strerror(errno)), 3;
        long level = SOL_PACKET, option = options[i], high = 0x100000000L;
        if (syscall(SYS_setsockopt, fd, level, option, &wanted, sizeof wanted) == 0)
            return verdict(1, "a ring");
        if (syscall(SYS_setsockopt, fd, high | level, high | option, &wanted, sizeof wanted) == 0)
            return verdict(1, "a ring of an option with higher bits");
        if (call_i386(366 /* setsockopt */, fd, level, option, (long)low, sizeof wanted) == 0)
            return verdict(1, "a ring of a 32-bit program");
        close(fd);
    }
    return verdict(0, "rings of packets");
}

/* Every other option reaches the kernel, which knows each of its own. */
static int options(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), packets = socket(AF_PACKET, SOCK_RAW, 0), one = 1;
    for (int level = 0; level < 600; level++)
        for (int option = 0; option < 300; option++) {
            int is_ring = level == SOL_PACKET && (option == PACKET_RX_RING || option == PACKET_TX_RING);
            if (!is_ring && setsockopt(-1, level, option, &one, sizeof one) < 0 && errno != EBADF)
                return printf("refused: %d %d: %s\n", level, option, strerror(errno)), 0;
        }
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) || setsockopt(packets, SOL_PACKET, PACKET_AUXDATA, &one, sizeof one))
        return verdict(0, "usual options");
    return verdict(1, "every other option");
}

/* Kibibytes of rings until the kernel refuses or there are 256 MiB, which are given back. */
static int rings(void)
{
    struct tpacket_req wanted = {
        .tp_block_size = 1 << 16, .tp_block_nr = 64, .tp_frame_size = 2048, .tp_frame_nr = 2048,
    };
    int took = 0;
    while (took < 256) {
        int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
        if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &wanted, sizeof wanted))
            break;
        took += 4;
    }
    return printf("%d\n", took), 0;
}

int main(int argc, char **argv)
{
    static const struct { const char *name; int (*attempt)(void); } attempts[] = {
        {"compat", compat}, {"user-namespace", user_namespace}, {"other-namespaces", other_namespaces},
        {"ring", ring}, {"options", options}, {"rings", rings},
    };
    for (size_t i = 0; argc == 2 && i < sizeof attempts / sizeof *attempts; i++)
        if (strcmp(argv[1], attempts[i].name) == 0)
            return attempts[i].attempt();
    fprintf(stderr, "usage: probe compat|user-namespace|other-namespaces|ring|options|rings\n");
    return 2;
}
