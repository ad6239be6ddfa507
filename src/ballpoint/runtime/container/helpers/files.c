/* One file operation inside an inner container, from the first look at a path to its end: the agent touches none.
 *
 *   files <procs> <profile> <user> <verb> <argument>...
 *   <procs>       as nsexec's; `-`: there is no container, and it stays where it is and who it is (tests)
 *   <profile>     whose capabilities root inside keeps; any other user has none
 *   fd 0          write: what the file shall hold
 *   fd 1          the answer
 *   fd 2          write: one byte, once all has been written to fd 0; without it, the end of fd 0 is no end of the file.
 *                 With LENGTH, the client's socket instead, from which comes what is missing of so many bytes after fd 0
 *   fd 3, 4...    as nsexec's
 *
 *   read PATH FIRST LAST DIRECT    FIRST, LAST: of the bytes wanted, `-` where open; `- N` are the last N
 *   write PATH MODE PARENTS SYNC LENGTH      LENGTH: `-` where fd 0 has all
 *   list PATH RECURSIVE PATTERN
 *   delete PATH RECURSIVE
 *   rename SOURCE DEST
 *   copy SOURCE DEST RECURSIVE PRESERVE
 *   chmod PATH MODE RECURSIVE
 *   chown PATH UID GID RECURSIVE     names or numbers, `-` leaves it
 *   watch RECURSIVE PATH...
 * DIRECT: fd 2 is the client's socket, and fd 0 says by one byte that the head of the response is in it.
 * Paths are absolute; MODE is octal; the others are 0 or 1.
 *
 * The answer is lines, of which the last begins what follows to the end:
 *   `.`                         it is getting on, once a second at most; the first of `write`: the file is open
 *   `+`                         write with LENGTH: all has come
 *   `! ERRNO PATH`              it failed; the path is all that follows
 *   `* SIZE`                    read: no such bytes; the file's size
 *   `= LENGTH FIRST SIZE`       read: the bytes follow; -1 where their number is not known
 *   `@ LENGTH FIRST SIZE`       read, DIRECT: the bytes go to the client itself; then only `.` follows
 *   `=`                         any other: JSON follows; of `watch`, an object a line
 * The exit status is 0 where all is well. After a `=` it alone tells of a failure. SIGKILL at any moment is safe.
 *
 * No path is looked at before it is used: what is opened is looked at, and what is done is done to that. Nothing here waits
 * for a FIFO, a device or a lease. A file system that does not answer holds up this process, and no other.
 */
#include "copying.h"
#include "enter.h"
#include "watching.h"
#include <sys/sendfile.h>

#define HEAD_MAX (1 << 20)
#define SPLICED (1 << 20)
#define WRITTEN_AHEAD (16 << 20)

static int is(const char *word) { return word[0] == '1'; }

/* Opens the directory that a path's last name is in. A path that ends in no name is its own directory, and has `.`. */
static int open_parent(const char *path, const char **name)
{
    char parent[4096];
    struct text shown = shown_path(path);
    char *slash = strrchr(shown.data, '/');
    size_t size = slash ? (size_t)(slash - shown.data) : 0;
    if (size >= sizeof parent - 1) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(parent, shown.data, size);
    parent[size] = 0;
    *name = slash && slash[1] ? slash + 1 : ".";
    return open(size ? parent : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
}

static int is_no_name(const char *name) { return strcmp(name, ".") == 0 || strcmp(name, "..") == 0; }

/* ---- read ---- */

static int begin_read(off_t length, off_t first, off_t size)
{
    char head[96];
    snprintf(head, sizeof head, "= %lld %lld %lld\n", (long long)length, (long long)first, (long long)size);
    begin(head);
    return 0;
}

/* The bytes of a range, by RFC 9110 14.1.2; 0 where there are none. */
static int find_range(const char *first, const char *last, off_t size, off_t *at, off_t *length)
{
    off_t end = size - 1;
    if (*first == '-') {
        off_t suffix = strtoll(last, NULL, 10);
        *at = suffix < size ? size - suffix : 0;
        if (suffix == 0)
            return 0;
    } else {
        *at = strtoll(first, NULL, 10);
        if (*last != '-' && strtoll(last, NULL, 10) < end)
            end = strtoll(last, NULL, 10);
    }
    *length = end - *at + 1;
    return *at < size && *length > 0;
}

/* Gives `length` bytes from where a file stands, or all; less than that is a failure. */
static int give(int fd, off_t length)
{
    static char buffer[SPLICED];
    int plain = 0;
    for (off_t given = 0; length < 0 || given < length;) {
        size_t piece = length >= 0 && length - given < SPLICED ? (size_t)(length - given) : SPLICED;
        ssize_t n = plain ? read(fd, buffer, piece) : splice(fd, NULL, 1, NULL, piece, SPLICE_F_MORE);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && !plain && (errno == EINVAL || errno == EOPNOTSUPP)) {
            plain = 1;
            continue;
        }
        if (n < 0)
            return 1;
        if (n == 0)
            return length >= 0;
        if (plain)
            write_all(1, buffer, n);
        given += n;
    }
    return 0;
}

#define CLIENT_WAIT_MS 10000
#define CLIENT_WAITS 60

/* Waits until the client's socket can go on; says meanwhile that it is the client who is waited for. */
static int wait_for_client(short events, int *waits)
{
    struct pollfd poll_for = {2, events, 0};
    int ready = poll(&poll_for, 1, CLIENT_WAIT_MS);
    if (ready == 0)
        write_all(1, ".\n", 2);
    if (ready == 0 && ++*waits == CLIENT_WAITS) {
        errno = ECONNRESET;
        return -1;
    }
    return 0;
}

/* Sends `length` bytes from where a file stands to the client's socket, which does not block. */
static int give_to_client(int fd, off_t length)
{
    int waits = 0;
    char byte;
    if (read(0, &byte, 1) != 1)
        return 1; /* there is no agent any more */
    begun = 0; /* for progress: what follows is lines again */
    for (off_t given = 0; given < length;) {
        ssize_t n = sendfile(2, fd, NULL, length - given < SPLICED ? (size_t)(length - given) : SPLICED);
        if (n < 0 && errno == EAGAIN && wait_for_client(POLLOUT, &waits) == 0)
            continue;
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return 1;
        given += n;
        waits = 0;
        progress();
    }
    return 0;
}

static int begin_direct(int fd, off_t length, off_t first, off_t size)
{
    char head[96];
    snprintf(head, sizeof head, "@ %lld %lld %lld\n", (long long)length, (long long)first, (long long)size);
    begin(head);
    flush_out();
    return give_to_client(fd, length);
}

static int do_read(const char *path, const char *first, const char *last, int direct)
{
    struct stat st;
    int fd = open_regular(AT_FDCWD, path, O_RDONLY, 0, &st);
    if (fd < 0)
        return fail(errno, path);
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    if (*first != '-' || *last != '-') {
        off_t at, length;
        if (!find_range(first, last, st.st_size, &at, &length)) {
            char head[48];
            snprintf(head, sizeof head, "* %lld\n", (long long)st.st_size);
            begin(head);
            flush_out();
            return 0;
        }
        if (lseek(fd, at, SEEK_SET) < 0)
            return fail(errno, path);
        if (direct && length > HEAD_MAX)
            return begin_direct(fd, length, at, st.st_size);
        begin_read(length, at, st.st_size);
        flush_out();
        return give(fd, length);
    }
    if (direct && st.st_size > HEAD_MAX)
        return begin_direct(fd, st.st_size, 0, st.st_size);
    /* What fits is read before its size is told: the size that the kernel tells of its own files is not theirs. */
    char *head = malloc(HEAD_MAX);
    size_t got = 0;
    ssize_t n = 1;
    while (head && got < HEAD_MAX && (n = read(fd, head + got, HEAD_MAX - got)) > 0)
        got += n;
    if (!head || n < 0)
        return fail(head ? errno : ENOMEM, path);
    off_t length = n == 0 ? (off_t)got : st.st_size >= (off_t)got ? st.st_size : -1;
    begin_read(length, 0, length);
    append(&out, head, got);
    flush_out();
    return n == 0 ? 0 : give(fd, length < 0 ? -1 : length - (off_t)got);
}

/* ---- write ---- */

static int make_parents(const char *path, int all)
{
    char part[4096];
    struct text shown = shown_path(path);
    if (shown.size >= sizeof part) {
        errno = ENAMETOOLONG;
        return -1;
    }
    char *slash = strrchr(shown.data, '/');
    for (char *at = shown.data + 1; at <= slash; at++) {
        if (*at != '/' || (!all && at != slash))
            continue;
        memcpy(part, shown.data, at - shown.data);
        part[at - shown.data] = 0;
        if (mkdir(part, 0777) != 0 && errno != EEXIST)
            return -1;
    }
    return 0;
}

/* While the rest comes, the disk has something to do. */
static void write_ahead(int fd, long long size, int sync)
{
    static long long ahead;
    if (sync && size - ahead >= WRITTEN_AHEAD) {
        sync_file_range(fd, ahead, size - ahead, SYNC_FILE_RANGE_WRITE);
        ahead = size;
    }
    progress();
}

/* Takes up to `most` bytes from a pipe into a file; 0 at its end, -1 with errno. */
static ssize_t take_piece(int from, int fd, size_t most)
{
    static char buffer[SPLICED];
    static int plain;
    for (;;) {
        ssize_t n = plain ? read(from, buffer, most) : splice(from, NULL, fd, NULL, most, SPLICE_F_MORE);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && !plain && (errno == EINVAL || errno == EOPNOTSUPP)) {
            plain = 1;
            continue;
        }
        for (ssize_t done = 0; plain && done < n;) {
            ssize_t wrote = write(fd, buffer + done, n - done);
            if (wrote < 0)
                return -1;
            done += wrote;
        }
        return n;
    }
}

/* Takes `length` bytes from the client's socket, which does not block, into a file that has `size`. Returns as take_body. */
static long long take_from_client(int fd, int sync, long long size, long long length)
{
    int through[2], waits = 0;
    if (pipe2(through, O_CLOEXEC) != 0)
        return -1;
    fcntl(through[1], F_SETPIPE_SZ, SPLICED);
    while (size < length) {
        size_t piece = length - size < SPLICED ? (size_t)(length - size) : SPLICED;
        ssize_t n = splice(2, NULL, through[1], NULL, piece, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (n < 0 && errno == EAGAIN) {
            if (wait_for_client(POLLIN, &waits) != 0)
                return -1;
            continue;
        }
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            errno = ECONNRESET;
            return -1;
        }
        waits = 0;
        for (ssize_t done = 0, took; done < n; done += took)
            if ((took = take_piece(through[0], fd, n - done)) <= 0)
                return -1;
        size += n;
        write_ahead(fd, size, sync);
    }
    write_all(1, "+\n", 2);
    return size;
}

/* Takes what comes into a file; the bytes of it, or -1 with errno. */
static long long take_body(int fd, int sync, const char *length)
{
    long long size = 0;
    char byte;
    ssize_t n;
    while ((n = take_piece(0, fd, SPLICED)) > 0) {
        size += n;
        write_ahead(fd, size, sync);
    }
    if (n < 0)
        return -1;
    if (*length != '-')
        return take_from_client(fd, sync, size, strtoll(length, NULL, 10));
    if (read(2, &byte, 1) != 1) {
        errno = ECONNRESET; /* it was cut off */
        return -1;
    }
    return size;
}

static int do_write(const char *path, const char *mode, int parents, int sync, const char *length)
{
    const char *name;
    struct target target = {.fd = -1};
    struct stat st;
    int directory = open_parent(path, &name);
    if (directory < 0 && errno == ENOENT) {
        if (make_parents(path, parents) != 0)
            return fail(errno, path);
        directory = open_parent(path, &name);
    }
    if (directory < 0)
        return fail(errno, path);
    if (is_no_name(name) || path[strlen(path) - 1] == '/')
        return fail(EISDIR, path);
    if (open_target(&target, directory, name, (mode_t)strtol(mode, NULL, 8)) != 0)
        return fail(errno, path);
    write_all(1, ".\n", 2);
    long long size = begin_target(&target) == 0 ? take_body(target.fd, sync, length) : -1;
    int error = errno;
    if (size < 0 || commit_target(&target, sync) != 0 || fstat(target.fd, &st) != 0) {
        error = size < 0 ? error : errno;
        close_target(&target, 0);
        return fail(error, path);
    }
    close_target(&target, 1);
    begin("=\n{\"path\":");
    struct text shown = shown_path(path);
    append_string(&out, shown.data);
    append_text(&out, ",\"size\":");
    append_number(&out, size);
    append_text(&out, ",\"mode\":");
    append_mode(&out, st.st_mode);
    return end_result();
}

/* ---- list ---- */

struct listing {
    const char *pattern;
    struct text path;
    long long count;
    int recursive, errors;
    struct text failed;
};

static const char *kind_of(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFDIR: return "directory";
    case S_IFLNK: return "symlink";
    case S_IFREG: return "file";
    case S_IFIFO: return "fifo";
    case S_IFSOCK: return "socket";
    default: return "device";
    }
}

/* One character of a path against what follows a `[`; returns behind the `]`, or NULL where it is none. */
static const char *match_set(const char *p, const char *character, int size, int *matches)
{
    int negated = *p == '!' || *p == '^', first = 1;
    *matches = 0;
    for (p += negated; *p && (*p != ']' || first); first = 0) {
        int low = utf8_size((const unsigned char *)p);
        const char *from = p, *to = p;
        p += low = low ? low : 1;
        int high = low;
        if (p[0] == '-' && p[1] && p[1] != ']') {
            to = ++p;
            high = utf8_size((const unsigned char *)p);
            p += high = high ? high : 1;
        }
        /* By code point, which is the order of UTF-8's bytes; a longer character is a later one. */
        int below = low < size || (low == size && memcmp(from, character, size) <= 0);
        int above = high > size || (high == size && memcmp(to, character, size) >= 0);
        *matches |= below && above;
    }
    *matches ^= negated;
    return *p ? p + 1 : NULL;
}

/* glob(7) without braces; `*` and `?` match no slash. Quadratic at worst: only the last `*` is gone back to. */
static int matches_glob(const char *p, const char *s)
{
    const char *star = NULL, *after = NULL;
    for (;;) {
        int size = *s ? utf8_size((const unsigned char *)s) : 0, matches = 0;
        const char *next;
        if (*s && !size)
            size = 1;
        if (*p == '*') {
            star = ++p;
            after = s;
            continue;
        }
        if (*s && *p == '?' && *s != '/') {
            p++;
            s += size;
            continue;
        }
        if (*s && *p == '[' && *s != '/' && (next = match_set(p + 1, s, size, &matches))) {
            if (matches) {
                p = next;
                s += size;
                continue;
            }
        } else {
            const char *literal = *p == '\\' && p[1] ? p + 1 : p;
            if (*literal == *s && (*s || !*p)) {
                if (!*s)
                    return 1;
                p = literal + 1;
                s++;
                continue;
            }
        }
        if (!star || !*after || *after == '/')
            return 0;
        p = star;
        s = ++after;
    }
}

static void list_one(struct listing *l, const char *name, const struct statx *st, int error)
{
    if (*l->pattern && !matches_glob(l->pattern, name))
        return;
    append_text(&out, l->count++ ? ",\n{\"name\":" : "{\"name\":");
    append_string(&out, name);
    append_text(&out, ",\"path\":");
    append_string(&out, l->path.data);
    append_text(&out, ",\"type\":\"");
    append_text(&out, error ? "file" : kind_of(st->stx_mode));
    append_text(&out, "\",\"isDir\":");
    append_text(&out, !error && S_ISDIR(st->stx_mode) ? "true" : "false");
    if (error) {
        append_text(&out, ",\"error\":");
        append_string(&out, strerrorname_np(error));
    } else {
        append_text(&out, ",\"size\":");
        append_number(&out, (long long)st->stx_size);
        append_text(&out, ",\"mode\":");
        append_mode(&out, st->stx_mode);
        append_text(&out, ",\"modTime\":");
        append_moment(&out, st->stx_mtime.tv_sec, st->stx_mtime.tv_nsec);
    }
    append_text(&out, "}");
    flush_pieces();
}

/* What is below a directory and cannot be listed is left out, and named at the end. */
static void cannot_list(struct listing *l, int error)
{
    if (l->errors++ >= 100)
        return;
    append_text(&l->failed, l->errors > 1 ? ",{\"path\":" : "{\"path\":");
    append_string(&l->failed, l->path.data);
    append_text(&l->failed, ",\"code\":");
    append_string(&l->failed, strerrorname_np(error));
    append_text(&l->failed, "}");
}

static void list_below(struct listing *l, int fd, const struct names *names, int depth)
{
    struct statx st;
    for (size_t i = 0; i < names->count; i++) {
        const char *name = names->name[i];
        progress();
        int error = look(fd, name, &st) == 0 ? 0 : errno;
        if (error == ENOENT)
            continue;
        size_t size = enter_name(&l->path, name);
        list_one(l, name, &st, error);
        if (!error && l->recursive && S_ISDIR(st.stx_mode)) {
            struct names below;
            int inside = open_inside(fd, name);
            if (inside >= 0 && depth < DEPTH_MAX && read_names(inside, &below) == 0) {
                list_below(l, inside, &below, depth + 1);
                free_names(&below);
            } else if (inside >= 0 || (errno != EXDEV && errno != ENOENT)) /* a mount is shown, and not entered */
                cannot_list(l, inside >= 0 && depth >= DEPTH_MAX ? ENAMETOOLONG : errno);
            if (inside >= 0)
                close(inside);
        }
        leave_name(&l->path, size);
    }
}

static int do_list(const char *path, int recursive, const char *pattern)
{
    struct listing l = {.pattern = pattern, .path = shown_path(path), .recursive = recursive};
    struct text shown = shown_path(path);
    struct statx st;
    struct names names;
    int fd = open(path, O_PATH | O_CLOEXEC), directory = 0;
    if (fd < 0 || look(fd, "", &st) != 0)
        return fail(errno, path);
    if (S_ISDIR(st.stx_mode)) {
        directory = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (directory < 0 || read_names(directory, &names) != 0)
            return fail(errno, path);
    }
    streams = 1;
    begin("=\n{\"path\":");
    append_string(&out, shown.data);
    append_text(&out, ",\"entries\":[");
    if (directory)
        list_below(&l, directory, &names, 0);
    else {
        const char *slash = strrchr(shown.data, '/');
        list_one(&l, slash && slash[1] ? slash + 1 : shown.data, &st, 0);
    }
    append_text(&out, "],\"count\":");
    append_number(&out, l.count);
    if (l.errors) {
        append_text(&out, ",\"errors\":[");
        append_text(&out, l.failed.data);
        append_text(&out, "]");
    }
    return end_result();
}

/* ---- delete ---- */

static void note_path(struct listed *l, const struct text *path)
{
    struct text *item = one_more(l);
    if (item)
        append_string(item, path->data);
}

/* Removes a name; where it fails, the path is that of what could not be removed. */
static int remove_name(struct listed *l, int at, const char *name, struct text *path, int recursive, int depth)
{
    struct names names;
    if (unlinkat(at, name, 0) == 0) {
        note_path(l, path);
        return 0;
    }
    if (errno != EISDIR)
        return -1;
    if (recursive) {
        int fd = open_inside(at, name);
        if (fd < 0) {
            errno = errno == EXDEV ? EBUSY : errno; /* a mount */
            return -1;
        }
        if (depth >= DEPTH_MAX)
            errno = ENAMETOOLONG;
        if (depth >= DEPTH_MAX || read_names(fd, &names) != 0) {
            int error = errno;
            close(fd);
            errno = error;
            return -1;
        }
        for (size_t i = 0; i < names.count; i++) {
            size_t size = enter_name(path, names.name[i]);
            if (remove_name(l, fd, names.name[i], path, 1, depth + 1) != 0 && errno != ENOENT)
                return -1;
            leave_name(path, size);
        }
        free_names(&names);
        close(fd);
    }
    if (unlinkat(at, name, AT_REMOVEDIR) != 0)
        return -1;
    note_path(l, path);
    return 0;
}

static int do_delete(const char *path, int recursive)
{
    struct listed deleted = {0};
    struct text shown = shown_path(path);
    const char *name;
    int directory = open_parent(path, &name);
    if (directory < 0)
        return fail(errno, path);
    if (is_no_name(name))
        return fail(EINVAL, path);
    if (remove_name(&deleted, directory, name, &shown, recursive, 0) != 0)
        return fail(errno, shown.data);
    begin_result("deleted", &deleted);
    return end_result();
}

/* ---- rename, copy ---- */

static int end_pair(const char *source, const char *dest)
{
    append_text(&out, "\"source\":");
    append_string(&out, source);
    append_text(&out, ",\"dest\":");
    append_string(&out, dest);
    return end_result();
}

static int do_rename(const char *source, const char *dest)
{
    struct text from = shown_path(source), to = shown_path(dest);
    struct stat st;
    if (rename(from.data, to.data) != 0) {
        int error = errno; /* whichever of the two it is about */
        return fail(error, fstatat(AT_FDCWD, from.data, &st, AT_SYMLINK_NOFOLLOW) != 0 ? from.data : to.data);
    }
    begin("=\n{");
    return end_pair(from.data, to.data);
}

static int do_copy(const char *source, const char *dest, int recursive, int preserve)
{
    struct copying c = {.preserve = preserve, .source = shown_path(source), .dest = shown_path(dest)};
    struct text from = shown_path(source), to = shown_path(dest);
    struct stat st;
    const char *name;
    int fd = open(source, O_PATH | O_CLOEXEC), directory, done;
    if (fd < 0 || fstat(fd, &st) != 0)
        return fail(errno, from.data);
    close(fd);
    if (S_ISDIR(st.st_mode)) {
        if (!recursive)
            return fail(EISDIR, from.data);
        fd = open(source, O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC);
    } else
        fd = open_regular(AT_FDCWD, source, O_RDONLY, 0, &st);
    if (fd < 0 || fstat(fd, &st) != 0)
        return fail(errno, from.data);
    if ((directory = open_parent(dest, &name)) < 0)
        return fail(errno, to.data);
    if (is_no_name(name) && (strcmp(name, "..") == 0 || !S_ISDIR(st.st_mode)))
        return fail(EISDIR, to.data);
    if (S_ISDIR(st.st_mode) && is_within(directory, &st))
        return fail(EINVAL, to.data);
    done = S_ISDIR(st.st_mode) ? copy_directory(&c, fd, &st, directory, name, 0) : copy_file(&c, fd, &st, directory, name);
    if (done != 0) {
        int about_dest = errno == EISDIR || errno == EEXIST || errno == ENOSPC || errno == EDQUOT || errno == EROFS;
        return fail(errno, about_dest ? c.dest.data : c.source.data);
    }
    begin_result("copied", &c.copied);
    append_text(&out, ",\"totalBytes\":");
    append_number(&out, c.copied.bytes);
    if (c.skipped) {
        append_text(&out, ",\"skipped\":");
        append_number(&out, c.skipped);
    }
    append_text(&out, ",");
    return end_pair(from.data, to.data);
}

/* ---- chmod, chown ---- */

struct change {
    int owns, recursive; /* owner and group, instead of the mode */
    mode_t mode;
    uid_t uid;
    gid_t gid;
    struct listed affected;
    struct text path;
};

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif

static int change_mode(int fd, mode_t mode)
{
    /* fchmod(2) wants a descriptor that may read or write, and this one need not exist before Linux 6.6. */
    if (syscall(SYS_fchmodat2, fd, "", mode, AT_EMPTY_PATH) == 0)
        return 0;
    if (errno != ENOSYS)
        return -1;
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return chmod(path, mode);
}

static int change_one(struct change *c, int fd)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return -1;
    if (S_ISLNK(st.st_mode) && !c->owns)
        return 0; /* it has none */
    if (c->owns ? fchownat(fd, "", c->uid, c->gid, AT_EMPTY_PATH) : change_mode(fd, c->mode))
        return -1;
    struct text *item = fstat(fd, &st) == 0 ? one_more(&c->affected) : NULL;
    if (!item)
        return 0;
    append_text(item, "{\"path\":");
    append_string(item, c->path.data);
    append_text(item, c->owns ? ",\"uid\":" : ",\"mode\":");
    if (c->owns) {
        append_number(item, st.st_uid);
        append_text(item, ",\"gid\":");
        append_number(item, st.st_gid);
    } else
        append_mode(item, st.st_mode);
    append_text(item, "}");
    return 0;
}

/* Changes what an O_PATH descriptor stands for, after what is below it, which a new mode might shut out. */
static int change_tree(struct change *c, int fd, int depth)
{
    struct names names;
    struct stat st;
    if (fstat(fd, &st) != 0)
        return -1;
    if (!c->recursive || !S_ISDIR(st.st_mode))
        return change_one(c, fd);
    if (depth > DEPTH_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    int directory = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0 && errno == EACCES && !c->owns && change_mode(fd, c->mode) == 0)
        directory = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0 || read_names(directory, &names) != 0)
        return -1;
    for (size_t i = 0; i < names.count; i++) {
        struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_NO_XDEV};
        size_t size = enter_name(&c->path, names.name[i]);
        int below = (int)syscall(SYS_openat2, directory, names.name[i], &how, sizeof how);
        if (below < 0 && errno != ENOENT && errno != EXDEV)
            return -1;
        if (below >= 0) {
            if (change_tree(c, below, depth + 1) != 0)
                return -1;
            close(below);
        }
        leave_name(&c->path, size);
    }
    free_names(&names);
    close(directory);
    return change_one(c, fd);
}

static int do_change(struct change *c, const char *path)
{
    struct text shown = shown_path(path);
    c->path = shown_path(path);
    int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0)
        return fail(errno, shown.data);
    if (change_tree(c, fd, 0) != 0)
        return fail(errno, c->path.data);
    begin_result("affected", &c->affected);
    append_text(&out, ",\"path\":");
    append_string(&out, shown.data);
    if (!c->owns) {
        append_text(&out, ",\"mode\":");
        append_mode(&out, c->mode);
    }
    return end_result();
}

/* Number of a user or a group, which may be given by its name; `-` is -1, which chown(2) leaves. */
static int find_id(const char *text, int group, uint32_t *id)
{
    uint32_t primary;
    *id = (uint32_t)-1;
    if (strcmp(text, "-") == 0 || parse_id(text, id) == 0)
        return 0;
    if (!group)
        return find_user(text, id, &primary);
    char *database = read_database("/etc/group"), *rest = database, *line;
    while (database && (line = strsep(&rest, "\n"))) {
        char *name = strsep(&line, ":");
        strsep(&line, ":");
        if (strcmp(name, text) == 0)
            return parse_id(strsep(&line, ":"), id);
    }
    return -1;
}

/* ---- who it is ---- */

/* The capabilities that are left are what exec(2) would leave: for root those of the profile, for others none. */
static int keep_capabilities(uint64_t kept)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct have[2];
    if (syscall(SYS_capget, &header, have) != 0)
        return -1;
    for (int i = 0; i < 2; i++) {
        have[i].permitted &= (uint32_t)(kept >> (32 * i));
        have[i].effective = have[i].permitted;
        have[i].inheritable = 0;
    }
    return (int)syscall(SYS_capset, &header, have);
}

static const char *enter_as(int procs, enum profile profile, const char *user)
{
    uint32_t uid = 0, gid = 0;
    gid_t groups[GROUPS_MAX];
    const char *failed = enter(procs);
    if (failed)
        return failed;
    if (find_user(user, &uid, &gid) != 0)
        return errno = ESRCH, "no such user in this sprite's /etc/passwd";
    int count = find_groups(user, gid, groups);
    if (setsid() < 0 || confine(profile) != 0 || become(uid, gid, groups, count) != 0 ||
        keep_capabilities(uid == 0 ? profile_caps(profile) : 0) != 0)
        return "cannot become its user";
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc < 6)
        return fail(EINVAL, "files: bad arguments");
    const char *failed = argv[1][0] == '-' ? NULL : enter_as(atoi(argv[1]), (enum profile)atoi(argv[2]), argv[3]);
    if (failed)
        return fail(errno, failed);
    /* What runs on without its agent would be an operation of nobody. Not before: a change of user takes it back. */
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    umask(022);
    if (chdir("/") != 0)
        return fail(errno, "/");
    const char *verb = argv[4];
    char **a = argv + 5;
    int count = argc - 5;
    if (strcmp(verb, "read") == 0 && count == 4)
        return do_read(a[0], a[1], a[2], is(a[3]));
    if (strcmp(verb, "write") == 0 && count == 5)
        return do_write(a[0], a[1], is(a[2]), is(a[3]), a[4]);
    if (strcmp(verb, "list") == 0 && count == 3)
        return do_list(a[0], is(a[1]), a[2]);
    if (strcmp(verb, "delete") == 0 && count == 2)
        return do_delete(a[0], is(a[1]));
    if (strcmp(verb, "rename") == 0 && count == 2)
        return do_rename(a[0], a[1]);
    if (strcmp(verb, "copy") == 0 && count == 4)
        return do_copy(a[0], a[1], is(a[2]), is(a[3]));
    if (strcmp(verb, "chmod") == 0 && count == 3) {
        struct change change = {.mode = (mode_t)strtol(a[1], NULL, 8), .recursive = is(a[2])};
        return do_change(&change, a[0]);
    }
    if (strcmp(verb, "chown") == 0 && count == 4) {
        struct change change = {.owns = 1, .recursive = is(a[3])};
        if (find_id(a[1], 0, &change.uid) != 0 || find_id(a[2], 1, &change.gid) != 0)
            return fail(EINVAL, a[0]);
        return do_change(&change, a[0]);
    }
    if (strcmp(verb, "watch") == 0 && count >= 2)
        return do_watch(is(a[0]), a + 1, count - 1);
    return fail(EINVAL, "files: bad arguments");
}
