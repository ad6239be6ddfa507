/* Pid 1 of an instance's outer namespaces: reaps, remembers exit statuses, and keeps descriptors for the agent.
 *
 * It owns what must outlive a crash or an upgrade of the agent, and has no behaviour that could need an upgrade itself.
 *   fd 3  its end of a SOCK_SEQPACKET pair
 *   fd 4  the agent's end, kept so that a new agent can be given a copy of it (pidfd_getfd)
 * Requests, one packet each, a name being at most 63 bytes and <names> being names each ended by a newline:
 *   P<names> + as many descriptors   keep each under its name, instead of any former one
 *   D<names>                         close what is kept under them
 *   G<name>                          a copy of it                                    -> "F" + descriptor, or "N"
 *   L                                the names                                       -> "L" + names
 *   W<pid>                           wait status of an orphan that has ended         -> "S<status>" or "N"
 *   E<text>                          an echo: all before it has been answered        -> "E<text>"
 * P and D have no answer: a packet that was sent is in the queue, whatever becomes of its sender. What there is no room for
 * is closed; the agent counts along (agent/anchor.py), and asks for no more than there is.
 */
#include "common.h"
#include <poll.h>

#define SLOTS 2560
#define STATUSES 1024
#define NAME_SIZE 64
#define PACKET_MAX (1 + 64 * NAME_SIZE)

static struct { int fd; char name[NAME_SIZE]; } kept[SLOTS];
static int used;
static struct { pid_t pid; int status; } ended[STATUSES];
static int last_ended;

static void on_child(int signal) { (void)signal; }

static void reap(void)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        ended[last_ended].pid = pid;
        ended[last_ended].status = status;
        last_ended = (last_ended + 1) % STATUSES;
    }
}

static int find(const char *name)
{
    for (int i = 0; i < used; i++)
        if (strcmp(kept[i].name, name) == 0)
            return i;
    return -1;
}

static void answer(const char *text, const int *fds, int nfds) { send_packet(3, text, strlen(text), fds, nfds); }

/* The next of the names at `*rest`; NULL at their end, or where it is none. */
static const char *next_name(char **rest)
{
    char *newline = strchr(*rest, '\n'), *name = *rest;
    if (!newline || newline == name || newline - name >= NAME_SIZE)
        return NULL;
    *newline = 0;
    *rest = newline + 1;
    return name;
}

static void keep(char *names, const int *fds, int nfds)
{
    for (int next = 0; next < nfds; next++) {
        const char *name = next_name(&names);
        int i = name ? find(name) : -1;
        if (i >= 0) {
            close(kept[i].fd);
        } else if (name && used < SLOTS) {
            i = used++;
            strcpy(kept[i].name, name);
        } else {
            close(fds[next]);
            continue;
        }
        kept[i].fd = fds[next];
    }
}

static void forget(char *names)
{
    const char *name;
    while ((name = next_name(&names))) {
        int i = find(name);
        if (i < 0)
            continue;
        close(kept[i].fd);
        kept[i] = kept[--used];
    }
}

static void list(void)
{
    static char text[SLOTS * NAME_SIZE + 2];
    char *end = text;
    *end++ = 'L';
    for (int i = 0; i < used; i++)
        end += sprintf(end, "%s\n", kept[i].name);
    *end = 0;
    answer(text, NULL, 0);
}

static void status_of(const char *text)
{
    pid_t pid = atoi(text);
    char reply[32];
    reap();
    for (int i = 0; i < STATUSES; i++)
        if (ended[i].pid == pid && pid > 0) {
            snprintf(reply, sizeof reply, "S%d", ended[i].status);
            ended[i].pid = 0;
            answer(reply, NULL, 0);
            return;
        }
    answer("N", NULL, 0);
}

int main(void)
{
    struct sigaction action = {.sa_handler = on_child};
    sigset_t none, chld;
    struct rlimit files;
    prctl(PR_SET_NAME, "anchor", 0, 0, 0);
    sigaction(SIGCHLD, &action, NULL);
    sigemptyset(&none);
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    sigprocmask(SIG_SETMASK, &chld, NULL);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    for (;;) {
        char packet[PACKET_MAX + 1];
        int fds[MAX_FDS], nfds = 0;
        struct iovec iov = {packet, sizeof packet - 1};
        char control[CMSG_SPACE(sizeof(int) * MAX_FDS)];
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        struct pollfd waiting = {.fd = 3, .events = POLLIN};
        ppoll(&waiting, 1, NULL, &none); /* SIGCHLD is let in only here, so no exit is missed */
        reap();
        ssize_t n = recvmsg(3, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (n < 0)
            continue;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c))
            if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
                nfds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                memcpy(fds, CMSG_DATA(c), sizeof(int) * nfds);
            }
        packet[n] = 0;
        if (packet[0] == 'P') {
            keep(packet + 1, fds, nfds);
            continue;
        }
        for (int i = 0; i < nfds; i++)
            close(fds[i]);
        int i = packet[0] == 'G' ? find(packet + 1) : -1;
        if (i >= 0)
            answer("F", &kept[i].fd, 1);
        else if (packet[0] == 'D')
            forget(packet + 1);
        else if (packet[0] == 'E')
            answer(packet, NULL, 0);
        else if (packet[0] == 'L')
            list();
        else if (packet[0] == 'W')
            status_of(packet + 1);
        else
            answer("N", NULL, 0);
    }
}
