/* A regular file that is written: whole or not at all where that can be, and otherwise in place.
 *
 * What is written goes into a file without a name (O_TMPFILE), which goes with this process, however that ends. At the
 * end it takes the name. A file that exists is written in place, instead, where its replacement would not be the same
 * file to those who use it: it has other names, a symbolic link leads to it, it is a mount point, it has extended
 * attributes, or its owner cannot be given to another file. So is one on a file system without O_TMPFILE.
 */
#ifndef BALLPOINT_TARGET_H
#define BALLPOINT_TARGET_H

#include "walk.h"
#include <sys/xattr.h>

struct target {
    int fd, directory;
    const char *name;
    enum { ANONYMOUS, IN_PLACE, FRESH } way;
    int exists;
    struct stat former;
};

static inline int kind_error(mode_t mode) { return S_ISDIR(mode) ? EISDIR : S_ISREG(mode) ? 0 : EINVAL; }

/* Opens a regular file and nothing else: a FIFO, a device or a socket is not touched at all. */
static inline int open_regular(int at, const char *name, int flags, mode_t mode, struct stat *st)
{
    int error, seen = openat(at, name, O_PATH | O_CLOEXEC | (flags & O_NOFOLLOW));
    if (seen < 0 && !(errno == ENOENT && (flags & O_CREAT)))
        return -1;
    if (seen >= 0) {
        error = fstat(seen, st) != 0 ? errno : S_ISLNK(st->st_mode) ? ELOOP : kind_error(st->st_mode);
        close(seen);
        if (error) {
            errno = error;
            return -1;
        }
    }
    /* It may be another by now: opened so, nothing waits, and it is looked at again. */
    int fd = openat(at, name, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, mode);
    if (fd < 0) {
        if (errno == ENXIO || errno == ENODEV)
            errno = EINVAL;
        return -1;
    }
    if ((error = fstat(fd, st) != 0 ? errno : kind_error(st->st_mode))) {
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

static inline int is_replaceable(int directory, const char *name, const struct stat *st)
{
    struct statx more;
    struct stat again;
    if (st->st_nlink != 1 || statx(directory, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &more) != 0 ||
        (more.stx_attributes & STATX_ATTR_MOUNT_ROOT) || faccessat(directory, name, W_OK, AT_EACCESS) != 0)
        return 0;
    int fd = open_regular(directory, name, O_RDONLY | O_NOFOLLOW, 0, &again);
    if (fd < 0)
        return 0;
    int same = again.st_ino == st->st_ino && again.st_dev == st->st_dev && flistxattr(fd, NULL, 0) <= 0;
    close(fd);
    return same;
}

/* Opens `name` in a directory for writing from its start; `mode` is that of a new file. Returns 0 or -1 with errno. */
static inline int open_target(struct target *t, int directory, const char *name, mode_t mode)
{
    struct stat st;
    memset(t, 0, sizeof *t);
    t->directory = directory;
    t->name = name;
    t->fd = -1;
    int seen = openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (seen < 0 && errno != ENOENT)
        return -1;
    if (seen >= 0) {
        int error = fstat(seen, &st) != 0 ? errno : S_ISLNK(st.st_mode) ? 0 : kind_error(st.st_mode);
        close(seen);
        if (error) {
            errno = error;
            return -1;
        }
        t->exists = 1;
        t->way = IN_PLACE;
        if (S_ISREG(st.st_mode) && is_replaceable(directory, name, &st)) {
            t->way = ANONYMOUS;
            t->former = st;
        }
    }
    if (t->way == ANONYMOUS) {
        t->fd = openat(directory, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
        if (t->fd >= 0) {
            mode_t wanted = t->exists ? st.st_mode & 07777 : mode;
            int kept = !t->exists || fchown(t->fd, st.st_uid, st.st_gid) == 0;
            if (kept && fchmod(t->fd, wanted) == 0 &&
                (!t->exists || (fstat(t->fd, &st) == 0 && (st.st_mode & 07777) == wanted)))
                return 0;
            close(t->fd);
            t->fd = -1;
            if (!t->exists)
                return -1;
        } else if (!t->exists && (errno == ENOSPC || errno == EDQUOT || errno == EACCES || errno == EPERM || errno == EROFS))
            return -1;
        t->way = t->exists ? IN_PLACE : FRESH;
    }
    t->fd = open_regular(directory, name, t->way == FRESH ? O_WRONLY | O_CREAT | O_EXCL : O_WRONLY | O_CREAT, mode, &st);
    if (t->fd < 0)
        return -1;
    t->former = st;
    return t->way == FRESH ? fchmod(t->fd, mode) : 0;
}

/* From here on what was in the file goes. */
static inline int begin_target(struct target *t) { return t->way == IN_PLACE ? ftruncate(t->fd, 0) : 0; }

static inline int link_as(int fd, int directory, const char *name)
{
    /* The first wants a capability before Linux 6.10, the other a /proc. */
    if (linkat(fd, "", directory, name, AT_EMPTY_PATH) == 0)
        return 0;
    if (errno != ENOENT && errno != EPERM)
        return -1;
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return linkat(AT_FDCWD, path, directory, name, AT_SYMLINK_FOLLOW);
}

static inline int sync_directory(int directory)
{
    int fd = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return 0; /* it may be entered, not read */
    int done = fsync(fd);
    close(fd);
    return done != 0 && errno != EINVAL ? -1 : 0;
}

/* Gives the file its name; with `sync`, it is on the disk then. */
static inline int commit_target(struct target *t, int sync)
{
    if (sync && fsync(t->fd) != 0 && errno != EINVAL)
        return -1;
    if (t->way == IN_PLACE)
        return 0;
    if (t->way == ANONYMOUS && (t->exists || link_as(t->fd, t->directory, t->name) != 0)) {
        if (!t->exists && errno != EEXIST)
            return -1;
        char beside[64];
        struct timespec now;
        int linked;
        do {
            clock_gettime(CLOCK_REALTIME, &now);
            snprintf(beside, sizeof beside, ".written-%lx-%lx", (long)now.tv_sec, now.tv_nsec);
        } while ((linked = link_as(t->fd, t->directory, beside)) != 0 && errno == EEXIST);
        if (linked != 0)
            return -1;
        if (renameat(t->directory, beside, t->directory, t->name) != 0) {
            int error = errno;
            unlinkat(t->directory, beside, 0);
            errno = error;
            return -1;
        }
    }
    return sync ? sync_directory(t->directory) : 0;
}

/* Closes the file. One that has no name goes; a new one that has one is taken back where it is still there. */
static inline void close_target(struct target *t, int committed)
{
    struct stat st;
    if (!committed && t->way == FRESH && t->fd >= 0 && fstatat(t->directory, t->name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
        st.st_ino == t->former.st_ino && st.st_dev == t->former.st_dev)
        unlinkat(t->directory, t->name, 0);
    if (t->fd >= 0)
        close(t->fd);
    t->fd = -1;
}

#endif
