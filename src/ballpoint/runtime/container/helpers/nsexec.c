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
#include "common.h"
#include <sys/ioctl.h>

#define GROUPS_MAX 256
#define DATABASE_MAX (1 << 20)

static int refuse(int status, const char *what, const char *why)
{
    dprintf(2, "sprite: %s: %s\n", what, why);
    return status;
}

/* Reads a user database whose content, type and size are the sprite's choice. */
static char *read_database(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    char *text = NULL;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size <= DATABASE_MAX && (text = malloc(st.st_size + 1))) {
        ssize_t n, got = 0;
        while (got < st.st_size && (n = read(fd, text + got, st.st_size - got)) > 0)
            got += n;
        text[got] = 0;
    }
    close(fd);
    return text;
}

static int parse_id(const char *text, uint32_t *id)
{
    char *end;
    if (!text || !*text)
        return -1;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (errno || *end || value >= 131071)
        return -1;
    *id = (uint32_t)value;
    return 0;
}

/* passwd(5): name:password:uid:gid:gecos:home:shell */
static int find_user(const char *name, uint32_t *uid, uint32_t *gid)
{
    char *text = read_database("/etc/passwd"), *rest = text, *line;
    if (!text)
        return -1;
    while ((line = strsep(&rest, "\n"))) {
        char *login = strsep(&line, ":");
        if (strcmp(login, name) != 0)
            continue;
        strsep(&line, ":");
        if (parse_id(strsep(&line, ":"), uid) == 0 && parse_id(strsep(&line, ":"), gid) == 0)
            return 0;
    }
    return -1;
}

/* group(5): name:password:gid:member,member */
static int find_groups(const char *name, gid_t first, gid_t *groups)
{
    char *text = read_database("/etc/group"), *rest = text, *line, *member;
    int count = 0;
    groups[count++] = first;
    while (text && count < GROUPS_MAX && (line = strsep(&rest, "\n"))) {
        uint32_t gid;
        strsep(&line, ":");
        strsep(&line, ":");
        if (parse_id(strsep(&line, ":"), &gid) != 0)
            continue;
        while ((member = strsep(&line, ",")))
            if (strcmp(member, name) == 0 && gid != first) {
                groups[count++] = gid;
                break;
            }
    }
    return count;
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

    for (int i = 0; i < procs; i++)
        if (write(4 + i, "0", 1) != 1)
            return refuse(126, "cannot join its cgroup", strerror(errno));
    /* Before the setns: joined, root inside may trace this process, whose memory is still the agent's business. */
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (setns(3, CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP) != 0)
        return refuse(126, "cannot enter the container", strerror(errno));
    close_from(3);

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
