/* Speaks Ethernet from inside an instance, past its kernel's own ideas of what to send.
 *
 *   probe_net send DEVICE FRAME...    sends frames, each in hexadecimal
 *   probe_net hear DEVICE SECONDS     prints every frame that arrives meanwhile, in hexadecimal;
 *                                     "ready" first
 */
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int fail(const char *what)
{
    perror(what);
    return 2;
}

static int send_frame(int fd, const char *hex)
{
    unsigned char frame[1514];
    size_t length = strlen(hex) / 2;
    if (length > sizeof frame)
        return fail("a long frame");
    for (size_t i = 0; i < length; i++)
        if (sscanf(hex + 2 * i, "%2hhx", &frame[i]) != 1)
            return fail(hex);
    return send(fd, frame, length, 0) == (ssize_t)length ? 0 : fail("send");
}

static int hear(int fd, double seconds)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double end = now.tv_sec + now.tv_nsec / 1e9 + seconds;
    puts("ready");
    fflush(stdout);
    for (;;) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        double left = end - now.tv_sec - now.tv_nsec / 1e9;
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        if (left <= 0 || poll(&wait, 1, (int)(left * 1000) + 1) < 0)
            return 0;
        unsigned char frame[2048];
        struct sockaddr_ll from;
        socklen_t size = sizeof from;
        ssize_t length = recvfrom(fd, frame, sizeof frame, MSG_DONTWAIT, (struct sockaddr *)&from, &size);
        if (length <= 0 || from.sll_pkttype == PACKET_OUTGOING)
            continue;
        for (ssize_t i = 0; i < length; i++)
            printf("%02x", frame[i]);
        puts("");
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: probe_net send DEVICE FRAME... | hear DEVICE SECONDS\n");
        return 2;
    }
    int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
    if (fd < 0)
        return fail("a packet socket");
    struct sockaddr_ll at = {
        .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = (int)if_nametoindex(argv[2]),
    };
    if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0)
        return fail(argv[2]);
    struct packet_mreq all = {.mr_ifindex = at.sll_ifindex, .mr_type = PACKET_MR_PROMISC};
    setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all);
    if (strcmp(argv[1], "hear") == 0)
        return hear(fd, atof(argv[3]));
    for (int i = 3; i < argc; i++)
        if (send_frame(fd, argv[i]))
            return 2;
    return 0;
}
