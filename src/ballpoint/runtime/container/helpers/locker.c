/* Gives back copies of mounts whose flags can no longer be cleared.
 *
 * The flags of a mount handed over by descriptor are not locked: root inside could clear nodev. But a mount that arrives
 * in a mount namespace of a less privileged user namespace by propagation has its flags locked for good. So the node
 * puts a mount into a shared directory, this process (same directory, own user and mount namespace) sees it arrive,
 * and sends a detached copy back; the copy keeps the lock.
 *   cwd   the shared directory
 *   fd 0  SOCK_SEQPACKET to the node: a packet is a name in that directory; the answer "F" + descriptor, or "E<errno>"
 */
#include "common.h"

int main(void)
{
    prctl(PR_SET_NAME, "locker", 0, 0, 0);
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
        perror("locker: unshare");
        return 1;
    }
    send_packet(0, "R", 1, NULL, 0);
    for (;;) {
        char name[64];
        int fds[MAX_FDS], nfds;
        ssize_t n = receive_packet(0, name, sizeof name - 1, fds, &nfds);
        if (n <= 0)
            return 0; /* the node has ended */
        name[n] = 0;
        int fd = (int)syscall(SYS_open_tree, AT_FDCWD, name, 1 /* OPEN_TREE_CLONE */ | O_CLOEXEC);
        if (fd < 0) {
            char text[16];
            snprintf(text, sizeof text, "E%d", errno);
            send_packet(0, text, strlen(text), NULL, 0);
            continue;
        }
        send_packet(0, "F", 1, &fd, 1);
        close(fd);
    }
}
