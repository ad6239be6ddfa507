/* The log of one service, inside the sprite: written as its output comes, read for whoever wants it.
 *
 *   svclog <procs> write PATH BYTES
 *   svclog <procs> read PATH LINES
 *   <procs>       as nsexec's; `-`: there is no container, and it stays where it is and who it is (tests)
 *   fd 3, 4...    as nsexec's
 *
 * write: fd 0 and 2 are the reading ends of the service's stdout and stderr. Each line becomes `TIME [stdout|stderr] TEXT`, a
 * longer one several. It ends once both are at their end, and outlives the agent. While the disk is slow the service waits; where
 * the file cannot be written, lines are dropped, and the next one that can be written is preceded by how many. At BYTES the file
 * becomes PATH.1, instead of any former one.
 *
 * read: the last LINES lines (-1: all, also those of PATH.1) go to fd 1, each behind a `=`, then `.` alone; then what is written
 * from then on. For each byte on fd 0, `.` follows once all that is in the file has been told. It ends with fd 0, or its agent.
 *
 * Nobody else need be told of a line: what is read comes from the file, so nothing is lost or told twice where it is taken up.
 */
#include "enter.h"
#include "target.h"
#include <poll.h>
#include <sys/inotify.h>

/* With every byte escaped, a line of the contract's 64 KB has room for it. */
#define PIECE 8192
#define CHUNK (64 * 1024)
#define LOOK_AGAIN_MS 200

static const char *path;
static char older[4096 + 2], place[4096];

static void make_place(void)
{
    char part[sizeof place];
    for (size_t at = 1; place[at]; at++)
        if (place[at] == '/') {
            memcpy(part, place, at);
            part[at] = 0;
            mkdir(part, 0755);
        }
    mkdir(place, 0755);
}

static int open_log(int flags)
{
    struct stat st;
    int fd = open_regular(AT_FDCWD, path, flags | O_CREAT | O_NOFOLLOW, 0644, &st);
    if (fd < 0 && errno == ENOENT) {
        make_place();
        fd = open_regular(AT_FDCWD, path, flags | O_CREAT | O_NOFOLLOW, 0644, &st);
    }
    return fd;
}

/* ---- write ---- */

struct stream {
    int fd;
    const char *name;
    size_t size;
    char line[PIECE + 4]; /* a character that is cut is looked at whole */
};

static off_t limit;
static int log_fd = -1;
static long long dropped, dropped_bytes; /* lines that could not be written, and their text */
static int dropped_for;                  /* errno */

static size_t stamp(char *to)
{
    struct timespec now;
    struct tm parts;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    size_t n = strftime(to, 32, "%Y-%m-%dT%H:%M:%S", &parts);
    return n + (size_t)sprintf(to + n, ".%03dZ", (int)(now.tv_nsec / 1000000));
}

/* Makes sure that the file is there and not too large for `more`; its size, or -1. */
static off_t ready(size_t more)
{
    struct stat st, named;
    for (int tries = 0; tries < 3; tries++) {
        if (log_fd >= 0 && (fstat(log_fd, &st) != 0 || st.st_nlink == 0)) {
            close(log_fd);
            log_fd = -1;
        }
        if (log_fd < 0 && ((log_fd = open_log(O_WRONLY | O_APPEND)) < 0 || fstat(log_fd, &st) != 0))
            return -1;
        if (st.st_size == 0 || st.st_size + (off_t)more <= limit)
            return st.st_size;
        if (stat(path, &named) != 0 || named.st_ino != st.st_ino || rename(path, older) != 0) {
            if (ftruncate(log_fd, 0) != 0) /* it has another name by now: nobody would read what is written there */
                return -1;
        }
        close(log_fd);
        log_fd = -1;
    }
    return -1;
}

/* Adds text to the file, all of it or nothing. */
static int add(const char *text, size_t size)
{
    off_t before = ready(size);
    if (before < 0)
        return -1;
    for (size_t done = 0; done < size;) {
        ssize_t n = write(log_fd, text + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int error = n == 0 ? ENOSPC : errno;
            if (done && ftruncate(log_fd, before) != 0)
                error = error ? error : errno;
            errno = error;
            return -1;
        }
        done += (size_t)n;
    }
    return 0;
}

static void put_line(const char *name, const char *text, size_t size)
{
    char whole[64 + PIECE + 1];
    if (dropped) {
        char note[256];
        size_t n = stamp(note);
        n += (size_t)snprintf(note + n, sizeof note - n, " [stderr] sprite: %lld lines (%lld bytes) were dropped: %s\n", dropped,
                              dropped_bytes, strerror(dropped_for));
        if (add(note, n) == 0)
            dropped = dropped_bytes = 0;
    }
    size_t n = stamp(whole);
    n += (size_t)sprintf(whole + n, " [%s] ", name);
    memcpy(whole + n, text, size);
    n += size;
    whole[n++] = '\n';
    if (dropped || add(whole, n) != 0) {
        if (!dropped)
            dropped_for = errno;
        dropped++;
        dropped_bytes += (long long)size + 1;
    }
}

/* How much of a line that is too long is a piece of its own: no character is cut in two. */
static size_t piece_of(const char *text, size_t size)
{
    size_t cut = size;
    for (int i = 0; i < 3 && cut > 1 && ((unsigned char)text[cut - 1] & 0xc0) == 0x80; i++)
        cut--;
    if (cut > 1 && (unsigned char)text[cut - 1] >= 0xc0)
        return cut - 1 + (size_t)(utf8_size((const unsigned char *)text + cut - 1) == (int)(size - cut + 1) ? size - cut + 1 : 0);
    return size;
}

static void take(struct stream *s, const char *data, size_t size)
{
    while (size > 0) {
        const char *newline = memchr(data, '\n', size);
        size_t whole = newline ? (size_t)(newline - data) : size;
        size_t n = whole < PIECE - s->size ? whole : PIECE - s->size;
        memcpy(s->line + s->size, data, n);
        s->size += n;
        data += n;
        size -= n;
        if (newline && n == whole) {
            put_line(s->name, s->line, s->size);
            s->size = 0;
            data++;
            size--;
        } else if (s->size == PIECE) {
            size_t piece = piece_of(s->line, s->size);
            put_line(s->name, s->line, piece);
            s->size -= piece;
            memmove(s->line, s->line + piece, s->size);
        }
    }
}

static int do_write(const char *bytes)
{
    static struct stream streams[] = {{0, "stdout", 0, {0}}, {2, "stderr", 0, {0}}};
    static char chunk[CHUNK];
    limit = strtoll(bytes, NULL, 10);
    for (int i = 0; i < 2; i++)
        fcntl(streams[i].fd, F_SETFL, O_NONBLOCK);
    /* It ends by the end of what it reads, not by a signal that is meant for everybody. */
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    while (streams[0].fd >= 0 || streams[1].fd >= 0) {
        struct pollfd waiting[] = {{streams[0].fd, POLLIN, 0}, {streams[1].fd, POLLIN, 0}};
        if (poll(waiting, 2, -1) < 0)
            continue;
        for (int i = 0; i < 2; i++) {
            if (!waiting[i].revents)
                continue;
            ssize_t n = read(streams[i].fd, chunk, sizeof chunk);
            if (n > 0)
                take(&streams[i], chunk, (size_t)n);
            else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
                if (streams[i].size)
                    put_line(streams[i].name, streams[i].line, streams[i].size);
                streams[i].fd = -1;
            }
        }
    }
    return 0;
}

/* ---- read ---- */

static int read_fd = -1;
static char begun_line[PIECE + 64];
static size_t begun_size;
static ino_t older_seen; /* of PATH.1, when it was last looked for */

static void tell(const char *text, size_t size)
{
    append(&out, "=", 1);
    append(&out, text, size);
    append(&out, "\n", 1);
    flush_pieces();
}

/* Tells what is in a file from where it stands to its end. */
static void tell_rest(int fd)
{
    static char chunk[CHUNK];
    ssize_t n;
    while ((n = read(fd, chunk, sizeof chunk)) > 0)
        for (ssize_t at = 0; at < n;) {
            char *newline = memchr(chunk + at, '\n', (size_t)(n - at));
            size_t whole = newline ? (size_t)(newline - chunk - at) : (size_t)(n - at);
            size_t piece = whole < sizeof begun_line - begun_size ? whole : sizeof begun_line - begun_size;
            memcpy(begun_line + begun_size, chunk + at, piece);
            begun_size += piece;
            at += (ssize_t)piece;
            if ((newline && piece == whole) || begun_size == sizeof begun_line) {
                tell(begun_line, begun_size);
                begun_size = 0;
                if (newline && piece == whole)
                    at++;
            }
        }
}

/* Puts a file where its last `lines` lines begin; returns how many it lacks. */
static long long seek_back(int fd, long long lines)
{
    static char chunk[CHUNK];
    off_t at = lseek(fd, 0, SEEK_END);
    int last = 1; /* the newline at the very end ends the last line */
    if (lines < 0) {
        lseek(fd, 0, SEEK_SET);
        return lines;
    }
    if (at <= 0 || lines == 0)
        return lines;
    while (at > 0) {
        off_t from = at > CHUNK ? at - CHUNK : 0;
        ssize_t n = pread(fd, chunk, (size_t)(at - from), from);
        if (n <= 0)
            break;
        for (ssize_t i = n; i-- > 0;) {
            if (chunk[i] == '\n' && !last && --lines == 0) {
                lseek(fd, from + i + 1, SEEK_SET);
                return 0;
            }
            last = 0;
        }
        at = from;
    }
    lseek(fd, 0, SEEK_SET);
    return lines - 1; /* the first line has no newline before it */
}

static ino_t inode_of(const char *name)
{
    struct stat st;
    return lstat(name, &st) == 0 ? st.st_ino : 0;
}

static int is_same(int fd, const char *name)
{
    struct stat a, b;
    return fstat(fd, &a) == 0 && lstat(name, &b) == 0 && a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

/* Tells what has come, also in a file that has taken the place of the one that is read. */
static void tell_news(void)
{
    struct stat st;
    if (read_fd >= 0) {
        if (fstat(read_fd, &st) == 0 && st.st_size < lseek(read_fd, 0, SEEK_CUR))
            lseek(read_fd, 0, SEEK_SET); /* somebody has emptied it */
        tell_rest(read_fd);
    }
    if (read_fd >= 0 && is_same(read_fd, path))
        return;
    if (read_fd >= 0) {
        tell_rest(read_fd); /* until it was renamed, more may have come */
        /* Not the one that was read, and not there before: the file has been changed twice since. */
        if (!is_same(read_fd, older) && inode_of(older) != older_seen) {
            int between = open_regular(AT_FDCWD, older, O_RDONLY | O_NOFOLLOW, 0, &st);
            if (between >= 0) {
                tell_rest(between);
                close(between);
            }
        }
        close(read_fd);
    }
    older_seen = inode_of(older);
    read_fd = open_log(O_RDONLY);
    if (read_fd >= 0)
        tell_rest(read_fd);
}

static int do_read(long long lines)
{
    struct stat st;
    char events[4096] __attribute__((aligned(8)));
    older_seen = inode_of(older);
    read_fd = open_log(O_RDONLY);
    int notes = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    int watched = notes >= 0 && inotify_add_watch(notes, place, IN_MODIFY | IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM) >= 0;
    if (read_fd >= 0) {
        long long lacking = seek_back(read_fd, lines);
        int before = lacking != 0 && lines != 0 ? open_regular(AT_FDCWD, older, O_RDONLY | O_NOFOLLOW, 0, &st) : -1;
        if (before >= 0) {
            seek_back(before, lacking);
            tell_rest(before);
            close(before);
        }
        tell_rest(read_fd);
    }
    append_text(&out, ".\n");
    flush_out();
    for (;;) {
        struct pollfd waiting[] = {{0, POLLIN, 0}, {notes, POLLIN, 0}};
        if (poll(waiting, 2, watched ? -1 : LOOK_AGAIN_MS) < 0)
            continue;
        int marks = 0;
        if (waiting[0].revents) {
            char asked[64];
            ssize_t n = read(0, asked, sizeof asked);
            if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
                return 0;
            marks = n > 0 ? (int)n : 0;
        }
        while (notes >= 0 && read(notes, events, sizeof events) > 0)
            ;
        tell_news();
        while (marks-- > 0)
            append_text(&out, ".\n");
        flush_out();
    }
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    if (argv[1][0] != '-' && (enter(atoi(argv[1])) || setsid() < 0 || confine(PROFILE_STANDARD) != 0 || become(0, 0, NULL, 0) != 0))
        return 1;
    const char *slash = strrchr(argv[3], '/');
    path = argv[3];
    if (!slash || strlen(path) >= sizeof place)
        return 2;
    snprintf(older, sizeof older, "%s.1", path);
    memcpy(place, path, (size_t)(slash - path));
    umask(022);
    if (chdir("/") != 0)
        return 1;
    if (strcmp(argv[2], "write") == 0)
        return do_write(argv[4]);
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    return do_read(strtoll(argv[4], NULL, 10));
}
