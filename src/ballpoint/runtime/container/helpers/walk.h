/* Trees, by descriptors: names are looked up in open directories only, no symbolic link and no mount inside a tree is
 * followed, so nothing that is swapped meanwhile leads out of it. */
#ifndef BALLPOINT_WALK_H
#define BALLPOINT_WALK_H

#include "answer.h"
#include <dirent.h>
#include <linux/openat2.h>

/* Each level holds up to two descriptors and its own names. */
#define DEPTH_MAX 256
#define NAMES_BYTES_MAX (64 << 20)

struct names {
    char *text;
    char **name;
    size_t count, bytes;
};

static size_t names_bytes; /* of all levels there are */

static inline void free_names(struct names *n)
{
    names_bytes -= n->bytes;
    free(n->text);
    free(n->name);
}

static inline int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* The names in a directory, by their bytes in order. Returns 0 or -1 with errno; then there is nothing to free. */
static inline int read_names(int fd, struct names *n)
{
    static char buffer[64 * 1024] __attribute__((aligned(8)));
    struct text text = {0};
    memset(n, 0, sizeof *n);
    long got;
    while ((got = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0) {
        for (long at = 0; at < got;) {
            struct dirent64 *entry = (struct dirent64 *)(buffer + at);
            at += entry->d_reclen;
            if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
                continue;
            append(&text, entry->d_name, strlen(entry->d_name) + 1);
            n->count++;
        }
        if (names_bytes + text.size > NAMES_BYTES_MAX) {
            free(text.data);
            errno = ENOMEM;
            return -1;
        }
        progress();
    }
    if (got < 0 || !(n->name = malloc((n->count + 1) * sizeof(char *)))) {
        free(text.data);
        return -1;
    }
    n->text = text.data;
    n->bytes = text.size;
    names_bytes += n->bytes;
    char *name = text.data;
    for (size_t i = 0; i < n->count; i++, name += strlen(name) + 1)
        n->name[i] = name;
    qsort(n->name, n->count, sizeof(char *), by_name);
    return 0;
}

static inline int open_inside(int at, const char *name)
{
    struct open_how how = {.flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC,
                           .resolve = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS};
    return (int)syscall(SYS_openat2, at, name, &how, sizeof how);
}

/* Looks at what a name is, without asking a file system that may not answer for what the kernel knows already. */
static inline int look(int at, const char *name, struct statx *st)
{
    return statx(at, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC | (*name ? 0 : AT_EMPTY_PATH),
                 STATX_BASIC_STATS, st);
}

/* Goes one name deeper in the path that is shown; returns what `leave` wants. */
static inline size_t enter_name(struct text *path, const char *name)
{
    size_t size = path->size;
    if (size == 0 || path->data[size - 1] != '/')
        append(path, "/", 1);
    append_text(path, name);
    return size;
}

static inline void leave_name(struct text *path, size_t size)
{
    path->size = size;
    path->data[size] = 0;
}

/* A path as it is shown: without slashes at its end. */
static inline struct text shown_path(const char *path)
{
    struct text shown = {0};
    size_t size = strlen(path);
    while (size > 1 && path[size - 1] == '/')
        size--;
    append(&shown, path, size);
    return shown;
}

#endif
