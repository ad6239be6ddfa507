/* What every helper does that acts for one of a sprite's users: it enters the inner container, and finds out who that is. */
#ifndef BALLPOINT_ENTER_H
#define BALLPOINT_ENTER_H

#include "common.h"

#define GROUPS_MAX 256
#define DATABASE_MAX (1 << 20)
#define INIT_FD 3
#define FIRST_PROCS_FD 4

/* Joins the groups of the `procs` descriptors that come first from FIRST_PROCS_FD on, then the namespaces of the init
 * behind INIT_FD, and closes all but fd 0, 1 and 2. Returns NULL, or what failed, with errno. */
static inline const char *enter(int procs)
{
    for (int i = 0; i < procs; i++)
        if (write(FIRST_PROCS_FD + i, "0", 1) != 1)
            return "cannot join its cgroup";
    /* Before the setns: joined, root inside may trace this process, whose memory is still the agent's business. */
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (setns(INIT_FD, CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP) != 0)
        return "cannot enter the container";
    close_from(INIT_FD);
    return NULL;
}

/* Reads a user database whose content, type and size are the sprite's choice. */
static inline char *read_database(const char *path)
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

static inline int parse_id(const char *text, uint32_t *id)
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
static inline int find_user(const char *name, uint32_t *uid, uint32_t *gid)
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
static inline int find_groups(const char *name, gid_t first, gid_t *groups)
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

#endif
