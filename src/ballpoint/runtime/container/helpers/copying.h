/* Copies of files and trees, each file written as target.h says. */
#ifndef BALLPOINT_COPYING_H
#define BALLPOINT_COPYING_H

#include "target.h"

#define COPY_PIECE (16 << 20)

struct copying {
    int preserve;
    struct listed copied;
    struct text source, dest; /* paths, as they are shown */
    long long skipped;
    dev_t dest_device; /* the directory that is made: copied into itself, it would have no end */
    ino_t dest_inode;
};

/* Copies [at, end) of one file into the same place of another; 1: the file has become shorter. */
static inline int copy_range(int from, int to, off_t at, off_t end, int *plain)
{
    static char buffer[256 * 1024];
    while (at < end) {
        size_t piece = end - at < COPY_PIECE ? (size_t)(end - at) : COPY_PIECE;
        ssize_t n = -1;
        if (!*plain) {
            off_t in = at, written = at;
            n = copy_file_range(from, &in, to, &written, piece, 0);
            if (n < 0 && (errno == EXDEV || errno == EINVAL || errno == EOPNOTSUPP || errno == ENOSYS))
                *plain = 1;
            else if (n < 0)
                return -1;
        }
        if (*plain) {
            n = pread(from, buffer, piece < sizeof buffer ? piece : sizeof buffer, at);
            if (n < 0)
                return -1;
            for (ssize_t done = 0; done < n;) {
                ssize_t wrote = pwrite(to, buffer + done, n - done, at + done);
                if (wrote < 0)
                    return -1;
                done += wrote;
            }
        }
        if (n == 0)
            return 1;
        at += n;
        progress();
    }
    return 0;
}

/* Copies what a file of `size` bytes holds, its holes as holes. Returns the bytes it has then, or -1. */
static inline off_t copy_content(int from, int to, off_t size)
{
    int plain = size == 0; /* such a file of /proc may hold something all the same */
    if (plain) {
        struct stat st;
        if (copy_range(from, to, 0, 1LL << 40, &plain) < 0 || fstat(to, &st) != 0)
            return -1;
        return st.st_size;
    }
    for (off_t at = 0; at < size;) {
        off_t data = lseek(from, at, SEEK_DATA), end;
        if (data < 0 && errno == ENXIO)
            break;
        if (data < 0 || (end = lseek(from, data, SEEK_HOLE)) < 0)
            data = at, end = size;
        if (end > size)
            end = size;
        int done = data < end ? copy_range(from, to, data, end, &plain) : 0;
        if (done < 0)
            return -1;
        if (done == 1)
            break;
        at = end;
    }
    struct stat st;
    if (fstat(from, &st) != 0)
        return -1;
    if (st.st_size < size)
        size = st.st_size;
    return ftruncate(to, size) == 0 ? size : -1;
}

static inline int keep_attributes(int fd, const struct stat *st)
{
    const struct timespec times[2] = {st->st_atim, st->st_mtim};
    /* As `cp -p`: an owner that may not be given is no failure, but takes the set-id bits with it. */
    mode_t mode = fchown(fd, st->st_uid, st->st_gid) == 0 ? 07777 : 01777;
    return fchmod(fd, st->st_mode & mode) != 0 || futimens(fd, times) != 0 ? -1 : 0;
}

static inline void note_copy(struct copying *c)
{
    struct text *item = one_more(&c->copied);
    if (!item)
        return;
    append_text(item, "{\"source\":");
    append_string(item, c->source.data);
    append_text(item, ",\"dest\":");
    append_string(item, c->dest.data);
    append_text(item, "}");
}

static inline int copy_file(struct copying *c, int from, const struct stat *st, int directory, const char *name)
{
    struct target t;
    struct stat now;
    if (open_target(&t, directory, name, st->st_mode & 0777 & ~umask(022)) != 0)
        return -1;
    int done = -1;
    off_t size = 0;
    if (fstat(t.fd, &now) != 0)
        ;
    else if ((now.st_dev == st->st_dev && now.st_ino == st->st_ino) ||
             (t.exists && t.former.st_dev == st->st_dev && t.former.st_ino == st->st_ino))
        errno = EINVAL; /* a file and itself */
    else if (begin_target(&t) == 0 && (size = copy_content(from, t.fd, st->st_size)) >= 0 &&
             (!c->preserve || keep_attributes(t.fd, st) == 0) && commit_target(&t, 0) == 0)
        done = 0;
    int error = errno;
    close_target(&t, done == 0);
    errno = error;
    if (done != 0)
        return -1;
    c->copied.bytes += size;
    note_copy(c);
    return 0;
}

static inline int copy_link(struct copying *c, int from, int to, const char *name)
{
    char target[4096];
    ssize_t size = readlinkat(from, name, target, sizeof target - 1);
    if (size < 0)
        return -1;
    target[size] = 0;
    if (symlinkat(target, to, name) != 0) {
        struct stat there;
        if (errno != EEXIST || fstatat(to, name, &there, AT_SYMLINK_NOFOLLOW) != 0)
            return -1;
        if (S_ISDIR(there.st_mode)) {
            errno = EISDIR;
            return -1;
        }
        if (unlinkat(to, name, 0) != 0 || symlinkat(target, to, name) != 0)
            return -1;
    }
    note_copy(c);
    return 0;
}

static inline int copy_directory(struct copying *c, int from, const struct stat *st, int to_parent, const char *name, int depth);

static inline int copy_entry(struct copying *c, int from, int to, const char *name, int depth)
{
    struct statx seen;
    struct stat st;
    if (look(from, name, &seen) != 0)
        return errno == ENOENT ? 0 : -1; /* it went meanwhile */
    if (S_ISLNK(seen.stx_mode))
        return copy_link(c, from, to, name);
    if (!S_ISREG(seen.stx_mode) && !S_ISDIR(seen.stx_mode)) {
        c->skipped++;
        return 0;
    }
    int done = -1, directory = S_ISDIR(seen.stx_mode);
    int fd = directory ? open_inside(from, name) : open_regular(from, name, O_RDONLY | O_NOFOLLOW, 0, &st);
    if (fd < 0 && directory && errno == EXDEV) { /* a mount: its place is copied, not what is there */
        if (mkdirat(to, name, 0755) != 0 && errno != EEXIST)
            return -1;
        note_copy(c);
        return 0;
    }
    if (fd < 0)
        return -1;
    if (!directory)
        done = copy_file(c, fd, &st, to, name);
    else if (fstat(fd, &st) == 0)
        done = copy_directory(c, fd, &st, to, name, depth + 1);
    int error = errno;
    close(fd);
    errno = error;
    return done;
}

/* Whether a directory is another, or below it. */
static inline int is_within(int directory, const struct stat *other)
{
    struct stat st, above;
    int fd = fcntl(directory, F_DUPFD_CLOEXEC, 3), within = 0;
    while (fd >= 0 && fstat(fd, &st) == 0) {
        int up = openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
        within = st.st_ino == other->st_ino && st.st_dev == other->st_dev;
        close(fd);
        fd = up;
        if (within || up < 0 || fstat(up, &above) != 0 || (above.st_ino == st.st_ino && above.st_dev == st.st_dev))
            break; /* the root is its own parent */
    }
    if (fd >= 0)
        close(fd);
    return within;
}

/* Copies an open directory to `name` in another; what is there already stays, or is replaced file by file. */
static inline int copy_directory(struct copying *c, int from, const struct stat *st, int to_parent, const char *name, int depth)
{
    struct names names;
    struct stat made;
    if (depth > DEPTH_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if (c->dest_inode && st->st_ino == c->dest_inode && st->st_dev == c->dest_device) {
        errno = EINVAL;
        return -1;
    }
    if (read_names(from, &names) != 0)
        return -1;
    int done = -1, to = -1, fresh = mkdirat(to_parent, name, 0700) == 0;
    if (!fresh && errno != EEXIST)
        goto end;
    /* At the top, a link to a directory is as good as one. */
    to = depth ? open_inside(to_parent, name) : openat(to_parent, name, O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC);
    if (to < 0 || fstat(to, &made) != 0)
        goto end;
    if (made.st_ino == st->st_ino && made.st_dev == st->st_dev) {
        errno = EINVAL;
        goto end;
    }
    if (!depth) {
        c->dest_device = made.st_dev;
        c->dest_inode = made.st_ino;
    }
    note_copy(c);
    for (size_t i = 0; i < names.count; i++) {
        size_t source = enter_name(&c->source, names.name[i]), dest = enter_name(&c->dest, names.name[i]);
        if (copy_entry(c, from, to, names.name[i], depth) != 0)
            goto end; /* the path says where */
        leave_name(&c->source, source);
        leave_name(&c->dest, dest);
    }
    mode_t mask = umask(022);
    umask(mask);
    if (c->preserve ? keep_attributes(to, st) : fresh ? fchmod(to, st->st_mode & 0777 & ~mask) : 0)
        goto end;
    done = 0;
end:;
    int error = errno;
    if (to >= 0)
        close(to);
    free_names(&names);
    errno = error;
    return done;
}

#endif
