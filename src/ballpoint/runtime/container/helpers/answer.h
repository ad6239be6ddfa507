/* What the helper `files` says: a head, then its result, as files.c describes them. Names are bytes and JSON is text, so
 * what is no UTF-8 in a name becomes U+FFFD. */
#ifndef BALLPOINT_ANSWER_H
#define BALLPOINT_ANSWER_H

#include "common.h"
#include <time.h>

/* Of the names that a result lists; it counts all. */
#define LISTED_MAX (1 << 20)
#define OUT_PIECE (64 * 1024)

/* Text that grows. */
struct text {
    char *data;
    size_t size, room;
};

static inline void append(struct text *t, const void *data, size_t size)
{
    if (t->size + size + 1 > t->room) {
        size_t room = (t->size + size + 1) * 2;
        char *grown = realloc(t->data, room);
        if (!grown)
            _exit(2);
        t->data = grown;
        t->room = room;
    }
    memcpy(t->data + t->size, data, size);
    t->size += size;
    t->data[t->size] = 0;
}

static inline void append_text(struct text *t, const char *text) { append(t, text, strlen(text)); }

static inline void append_number(struct text *t, long long value)
{
    char digits[24];
    append(t, digits, snprintf(digits, sizeof digits, "%lld", value));
}

/* Bytes of the UTF-8 character at `s` (RFC 3629), or 0 where there is none. */
static inline int utf8_size(const unsigned char *s)
{
    if (s[0] < 0x80)
        return 1;
    int size = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 0;
    for (int i = 1; i < size; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
        (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return size;
}

/* A JSON string (RFC 8259). */
static inline void append_string(struct text *t, const char *string)
{
    append(t, "\"", 1);
    for (const unsigned char *s = (const unsigned char *)string; *s;) {
        int size = utf8_size(s);
        if (size == 0) {
            append_text(t, "\\ufffd");
            s++;
        } else if (size == 1 && (*s < 0x20 || *s == '"' || *s == '\\' || *s == 0x7f)) {
            char escaped[8];
            append(t, escaped, snprintf(escaped, sizeof escaped, "\\u%04x", *s));
            s++;
        } else {
            append(t, s, size);
            s += size;
        }
    }
    append(t, "\"", 1);
}

static inline void append_mode(struct text *t, mode_t mode)
{
    char octal[16];
    append(t, octal, snprintf(octal, sizeof octal, "\"%04o\"", (unsigned)(mode & 07777)));
}

/* RFC 3339 in UTC with microseconds; years that it does not know are moved into those it does. */
static inline void append_moment(struct text *t, long long seconds, unsigned nanoseconds)
{
    const long long first = -62135596800LL, last = 253402300799LL; /* the years 1 to 9999 */
    time_t moment = (time_t)(seconds < first ? first : seconds > last ? last : seconds);
    struct tm parts;
    char written[64];
    gmtime_r(&moment, &parts);
    append(t, written,
           snprintf(written, sizeof written, "\"%04d-%02d-%02dT%02d:%02d:%02d.%06uZ\"", parts.tm_year + 1900, parts.tm_mon + 1,
                    parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec, nanoseconds / 1000));
}

/* ---- what goes to fd 1 ---- */

static struct text out;
static int begun; /* the head has gone out: a failure can no longer be told, only shown by the exit status */
static int streams; /* what goes out after the head is JSON, in which there may be white space anywhere */

static inline void write_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            _exit(2); /* nobody listens any more */
        data += n;
        size -= n;
    }
}

static inline void flush_out(void)
{
    write_all(1, out.data, out.size);
    out.size = 0;
}

static inline void flush_pieces(void)
{
    if (out.size >= OUT_PIECE)
        flush_out();
}

/* Says, once a second at most, that something is being done. */
static inline void progress(void)
{
    static time_t said;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    if (said == 0)
        said = now.tv_sec;
    if (now.tv_sec == said)
        return;
    said = now.tv_sec;
    if (!begun)
        write_all(1, ".\n", 2);
    else if (streams) {
        append(&out, "\n", 1);
        flush_out();
    }
}

static inline void begin(const char *head)
{
    append_text(&out, head);
    begun = 1;
}

/* The end of a helper that failed; returns its exit status. */
static inline int fail(int error, const char *path)
{
    if (begun) {
        flush_out();
        return 1;
    }
    char number[16];
    out.size = 0;
    append(&out, number, snprintf(number, sizeof number, "! %d ", error));
    append_text(&out, path);
    flush_out();
    return 1;
}

/* ---- the names that a result lists ---- */

struct listed {
    struct text items;
    long long count, bytes;
    int cut;
};

/* Room for one more item, which the caller appends; NULL where only its number can still be told. */
static inline struct text *one_more(struct listed *l)
{
    l->count++;
    progress();
    if (l->items.size > LISTED_MAX) {
        l->cut = 1;
        return NULL;
    }
    if (l->items.size)
        append(&l->items, ",", 1);
    return &l->items;
}

/* Begins the result `{"NAME":[...],"count":N`, to which the caller adds what else there is. */
static inline void begin_result(const char *name, struct listed *l)
{
    begin("=\n{\"");
    append_text(&out, name);
    append_text(&out, "\":[");
    append(&out, l->items.data ? l->items.data : "", l->items.size);
    append_text(&out, "],\"count\":");
    append_number(&out, l->count);
    if (l->cut)
        append_text(&out, ",\"truncated\":true");
}

static inline int end_result(void)
{
    append_text(&out, "}");
    flush_out();
    return 0;
}

#endif
