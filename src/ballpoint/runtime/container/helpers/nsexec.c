/* Starts one process inside an inner container: the only way in.
 *
 *   nsexec <procs> <tty> <profile> <user> <directory> <program> <argv0> [argument...]
 *   <profile>     its number; an `n` behind it: set-user-ID programs and file capabilities have no effect (no_new_privs)
 *   fd 0, 1, 2    the process's own (with <tty> 1, fd 0 is its terminal)
 *   fd 3          pidfd of the inner init
 *   fd 4, 5, ...  cgroup.procs to join, <procs> of them
 * The environment is the process's own, and so are its signals' actions and mask. It is born in the inner pid namespace
 * already. A reason not to start is written to fd 2, and the exit status is 127 (no such program) or 126.
 */
#include "enter.h"
#include <sys/ioctl.h>

static int refuse(int status, const char *what, const char *why)
{
    dprintf(2, "sprite: %s: %s\n", what, why);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 8)
        return refuse(126, "nsexec", "bad arguments");
    int procs = atoi(argv[1]), tty = atoi(argv[2]);
    enum profile profile = (enum profile)atoi(argv[3]);
    const char *user = argv[4], *directory = argv[5], *program = argv[6];
    uint32_t uid = 0, gid = 0;
    gid_t groups[GROUPS_MAX];

    const char *failed = enter(procs);
    if (failed)
        return refuse(126, failed, strerror(errno));

    if (find_user(user, &uid, &gid) != 0)
        return refuse(126, user, "no such user in this sprite's /etc/passwd");
    int count = find_groups(user, gid, groups);
    if (setsid() < 0)
        return refuse(126, "setsid", strerror(errno));
    if (tty && (ioctl(0, TIOCSCTTY, 0) != 0 || fchown(0, uid, 5) != 0))
        return refuse(126, "terminal", strerror(errno));
    if (confine(profile) != 0)
        return refuse(126, "confine", strerror(errno));
    if (become(uid, gid, groups, count) != 0)
        return refuse(126, "become", strerror(errno));
    if (chdir(directory) != 0)
        return refuse(126, directory, strerror(errno));
    if (strchr(argv[3], 'n') && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return refuse(126, "no new privileges", strerror(errno));

    /* posix_spawn ignores the two signals of its C library's threads, and signal() refuses to know them. */
    static const unsigned long default_action[4]; /* the kernel's sigaction */
    for (int s = 32; s < 34; s++)
        syscall(SYS_rt_sigaction, s, default_action, NULL, sizeof(unsigned long));
    execvp(program, argv + 7);
    return refuse(errno == ENOENT || errno == ENOTDIR ? 127 : 126, program, errno == ENOENT ? "command not found" : strerror(errno));
}
