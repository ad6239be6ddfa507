/* What happens to files, by inotify(7): a JSON object a line, as the API's clients take them. */
#ifndef BALLPOINT_WATCHING_H
#define BALLPOINT_WATCHING_H

#include "walk.h"
#include <poll.h>
#include <sys/inotify.h>

#define WATCHES_MAX 8192
#define WATCHED (IN_MODIFY | IN_ATTRIB | IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE_SELF | IN_MOVE_SELF)

struct watch {
    int number, top;
    char *path;
};

static struct watch watches[WATCHES_MAX];
static int watching, inotify, all_below, full;

static inline void say_error(const char *message)
{
    append_text(&out, "{\"type\":\"error\",\"message\":");
    append_string(&out, message);
    append_text(&out, "}\n");
}

static inline void say_event(const char *path, const char *event, int is_directory)
{
    struct statx st;
    struct timespec now;
    long long size = look(AT_FDCWD, path, &st) == 0 ? (long long)st.stx_size : 0;
    clock_gettime(CLOCK_REALTIME, &now);
    append_text(&out, "{\"type\":\"event\",\"path\":");
    append_string(&out, path);
    append_text(&out, ",\"event\":");
    append_string(&out, event);
    append_text(&out, ",\"timestamp\":");
    append_moment(&out, now.tv_sec, now.tv_nsec);
    append_text(&out, ",\"size\":");
    append_number(&out, size);
    append_text(&out, is_directory ? ",\"isDir\":true}\n" : ",\"isDir\":false}\n");
    flush_pieces();
}

static inline struct watch *watch_of(int number)
{
    for (int i = 0; i < watching; i++)
        if (watches[i].number == number)
            return watches + i;
    return NULL;
}

static inline void forget(struct watch *w)
{
    free(w->path);
    *w = watches[--watching];
}

/* Watches one path; 0 where it is, was already, or cannot be for want of room, which is said once. */
static inline int add_watch(const char *path, int top)
{
    int number = -1;
    if (watching < WATCHES_MAX)
        number = inotify_add_watch(inotify, path, WATCHED | (top ? 0 : IN_ONLYDIR | IN_DONT_FOLLOW | IN_EXCL_UNLINK));
    else
        errno = ENOSPC;
    if (number < 0 && errno == ENOSPC && !top) {
        if (!full)
            say_error("there are too many directories: the rest is not watched");
        full = 1;
        return 0;
    }
    if (number < 0)
        return -1;
    if (!watch_of(number))
        watches[watching++] = (struct watch){number, top, strdup(path)};
    return 0;
}

/* Watches the directories below an open one; with `tell`, what is in them already has come since its watch began. */
static inline void add_below(int fd, struct text *path, int tell, int depth)
{
    struct names names;
    struct statx st;
    if (depth > DEPTH_MAX || read_names(fd, &names) != 0)
        return;
    for (size_t i = 0; i < names.count; i++) {
        size_t size = enter_name(path, names.name[i]);
        if (look(fd, names.name[i], &st) == 0) {
            int directory = S_ISDIR(st.stx_mode), inside;
            if (tell)
                say_event(path->data, "create", directory);
            if (directory && all_below && (inside = open_inside(fd, names.name[i])) >= 0) {
                if (add_watch(path->data, 0) == 0)
                    add_below(inside, path, tell, depth + 1);
                close(inside);
            }
        }
        leave_name(path, size);
    }
    free_names(&names);
}

static inline void forget_below(const char *path)
{
    size_t size = strlen(path);
    for (int i = watching - 1; i >= 0; i--)
        if (!watches[i].top && strncmp(watches[i].path, path, size) == 0 && (!watches[i].path[size] || watches[i].path[size] == '/')) {
            inotify_rm_watch(inotify, watches[i].number);
            forget(watches + i);
        }
}

static inline void take_event(const struct inotify_event *event)
{
    if (event->mask & IN_Q_OVERFLOW) {
        say_error("events came faster than they were taken: some are lost");
        return;
    }
    struct watch *w = watch_of(event->wd);
    if (!w)
        return;
    if (event->mask & IN_IGNORED) {
        forget(w);
        return;
    }
    /* What happens to a directory itself is told by the one above, unless there is none. */
    if (event->len == 0 && !w->top)
        return;
    int directory = (event->mask & IN_ISDIR) != 0;
    struct text path = {0};
    append_text(&path, w->path);
    if (event->len)
        enter_name(&path, event->name);
    const char *what = event->mask & (IN_CREATE | IN_MOVED_TO)      ? "create"
                       : event->mask & (IN_DELETE | IN_DELETE_SELF) ? "remove"
                       : event->mask & (IN_MOVED_FROM | IN_MOVE_SELF) ? "rename"
                       : event->mask & IN_ATTRIB                      ? "chmod"
                                                                      : "write";
    say_event(path.data, what, directory);
    if (directory && all_below && event->len) {
        if (event->mask & (IN_MOVED_FROM | IN_DELETE))
            forget_below(path.data);
        if (event->mask & (IN_CREATE | IN_MOVED_TO)) {
            int fd = open(path.data, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
            if (fd >= 0) {
                if (add_watch(path.data, 0) == 0)
                    add_below(fd, &path, 1, 0);
                close(fd);
            }
        }
    }
    free(path.data);
}

/* Tells what happens until nobody listens; returns only where a path cannot be watched. */
static inline int do_watch(int recursive, char **paths, int count)
{
    static char buffer[64 * 1024] __attribute__((aligned(8)));
    all_below = recursive;
    if ((inotify = inotify_init1(IN_CLOEXEC)) < 0)
        return fail(errno, paths[0]);
    struct text found = {0}; /* what is said of the paths before it is known that they can be watched */
    for (int i = 0; i < count; i++) {
        struct text path = shown_path(paths[i]);
        int fd;
        if (add_watch(path.data, 1) != 0)
            return fail(errno, path.data);
        if (recursive && (fd = open(path.data, O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC)) >= 0) {
            add_below(fd, &path, 0, 0);
            close(fd);
        }
        free(path.data);
    }
    found = out;
    memset(&out, 0, sizeof out);
    begin("=\n{\"type\":\"subscribed\",\"paths\":[");
    for (int i = 0; i < count; i++) {
        struct text path = shown_path(paths[i]);
        append_text(&out, i ? "," : "");
        append_string(&out, path.data);
        free(path.data);
    }
    append_text(&out, "]}\n");
    if (found.size)
        append(&out, found.data, found.size);
    flush_out();
    struct pollfd poll_for[2] = {{inotify, POLLIN, 0}, {1, 0, 0}};
    for (;;) {
        if (poll(poll_for, 2, -1) < 0 && errno != EINTR)
            return 1;
        if (poll_for[1].revents)
            return 0; /* nobody listens any more */
        if (!(poll_for[0].revents & POLLIN))
            continue;
        ssize_t size = read(inotify, buffer, sizeof buffer);
        for (char *at = buffer; at < buffer + size;) {
            const struct inotify_event *event = (const struct inotify_event *)at;
            take_event(event);
            at += sizeof *event + event->len;
        }
        flush_out();
    }
}

#endif
