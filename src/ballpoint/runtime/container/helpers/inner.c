/* Makes an inner container and becomes its init.
 *
 * Started by the agent (root of the outer user namespace U1) with
 *   fd 3             SOCK_SEQPACKET to the agent
 *   fd 4             the v2 cgroup directory the container is born in
 *   fd 5, 6, ...     cgroup.procs of the same instance's v1 controllers; argv[1] is their number
 *   the next fd      cgroup.procs of a child of fd 4's group: the container sees fd 4 as its cgroup root, and a group
 *                    that shares controllers with children must have no processes of its own
 *   argv[2]          open-file, shm and pty limits: "<devpts max>,<shm bytes>"
 * it clones the container in a child user namespace U2, writes its id maps, and ends. The clone stages /dev, /proc, /sys
 * and /run, parks, and at the claim moves them under the root it is handed, pivots into it and stays as its init.
 *   -> "I<pid>" + pidfd               from the launcher
 *   -> "P" + devpts, console, api     parked; of the console, a FIFO, the reading end; of the api, a socket, the listening
 *                                     one: bound in here, and accepted on by the agent
 *   <- "C" + texts + root, binds...   texts, each ended by NUL: resolv.conf, then one target path per bind
 *   -> "D"                            the container runs; the socket is closed
 *   -> "E<reason>"                    at any step, and the process ends
 * Started as `inner filter FILE`, it only writes the seccomp program of all instances into FILE.
 */
#include "common.h"
#include <linux/openat2.h>
#include <stdarg.h>
#include <sys/reboot.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <time.h>

#define FSCONFIG_SET_FLAG 0
#define FSCONFIG_SET_STRING 1
#define FSCONFIG_CMD_CREATE 6
#define OPEN_TREE_CLONE_ 1
#define F_EMPTY_PATH 0x4
#define T_EMPTY_PATH 0x40
#define ATTR_RDONLY 0x1
#define ATTR_NOSUID 0x2
#define ATTR_NODEV 0x4
#define ATTR_NOEXEC 0x8
#define STOP_SECONDS 5
#define STOPPING "stopping" /* the init's name from then on: the agent looks, and starts nothing more */
#define CONSOLE "/stage/dev/console"
#define OWN "/stage/run/sprite"
#define API OWN "/api.sock"
#define API_BACKLOG 32

static void fail(const char *step)
{
    char text[256];
    int n = snprintf(text, sizeof text, "E%s: %s", step, strerror(errno));
    send_packet(3, text, n, NULL, 0);
    _exit(1);
}

static int check(long result, const char *step)
{
    if (result < 0)
        fail(step);
    return (int)result;
}

static int fs_mount(const char *kind, unsigned attributes, const char *const options[][2])
{
    int fs = check(syscall(SYS_fsopen, kind, 1), kind);
    for (int i = 0; options && options[i][0]; i++)
        check(syscall(SYS_fsconfig, fs, options[i][1] ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, options[i][0],
                      options[i][1], 0),
              options[i][0]);
    check(syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0), kind);
    int fd = check(syscall(SYS_fsmount, fs, 1, attributes), kind);
    close(fs);
    return fd;
}

static void attach(int mount, const char *path)
{
    check(syscall(SYS_move_mount, mount, "", AT_FDCWD, path, F_EMPTY_PATH), path);
}

/* ---- what can be done before there is a disk ---- */

static const char *const DEVICES[] = {"null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun"};

/* A v1 hierarchy of the host, as far as the container's own group: what tells programs its limits. The groups of a host
 * with v2 alone are at /sys/fs/cgroup, and this mounts nothing. */
static void stage_v1(const char *controller)
{
    char path[64];
    int mounted = -1, fs = (int)syscall(SYS_fsopen, "cgroup", 1);
    if (fs >= 0 && syscall(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, controller, NULL, 0) == 0 &&
        syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
        mounted = (int)syscall(SYS_fsmount, fs, 1, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC);
    close(fs);
    if (mounted < 0)
        return;
    mkdir("/stage/run/cgroup", 0755);
    snprintf(path, sizeof path, "/stage/run/cgroup/%s", controller);
    check(mkdir(path, 0755), path);
    attach(mounted, path);
    close(mounted);
}

static int stage(const char *pts_max, const char *shm_size)
{
    const char *const dev_options[][2] = {{"mode", "755"}, {"size", "1m"}, {NULL, NULL}};
    const char *const pts_options[][2] = {{"ptmxmode", "666"}, {"mode", "620"}, {"uid", "0"}, {"gid", "5"}, {"max", pts_max}, {NULL, NULL}};
    const char *const shm_options[][2] = {{"mode", "1777"}, {"size", shm_size}, {NULL, NULL}};
    const char *const run_options[][2] = {{"mode", "755"}, {"size", "20%"}, {NULL, NULL}};
    char from[64], to[64];

    attach(fs_mount("proc", ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC, NULL), "/stage/proc");
    attach(fs_mount("sysfs", ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC, NULL), "/stage/sys");
    attach(fs_mount("cgroup2", ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC, NULL), "/stage/sys/fs/cgroup");
    attach(fs_mount("tmpfs", ATTR_NOSUID | ATTR_NODEV, run_options), "/stage/run");
    check(mkdir("/stage/run/lock", 01777), "mkdir /run/lock");
    chmod("/stage/run/lock", 01777);
    check(mkdir(OWN, 0755) | mkdir(OWN "/checkpoints", 0755), OWN);
    stage_v1("cpu");
    stage_v1("memory");

    attach(fs_mount("tmpfs", ATTR_NOSUID | ATTR_NOEXEC, dev_options), "/stage/dev");
    check(mkdir("/stage/dev/pts", 0755) | mkdir("/stage/dev/shm", 01777) | mkdir("/stage/dev/mqueue", 01777) |
              mkdir("/stage/dev/net", 0755),
          "mkdir in /dev");
    for (int i = 0; i < COUNT(DEVICES); i++) {
        snprintf(from, sizeof from, "/dev/%s", DEVICES[i]);
        snprintf(to, sizeof to, "/stage/dev/%s", DEVICES[i]);
        int device = (int)syscall(SYS_open_tree, AT_FDCWD, from, OPEN_TREE_CLONE_ | O_CLOEXEC);
        if (device < 0 && errno == ENOENT)
            continue; /* the host has no fuse or tun */
        check(device, from);
        close(check(open(to, O_CREAT | O_WRONLY | O_CLOEXEC, 0666), to));
        attach(device, to);
        close(device);
    }
    check(symlink("/proc/self/fd", "/stage/dev/fd") | symlink("/proc/self/fd/0", "/stage/dev/stdin") |
              symlink("/proc/self/fd/1", "/stage/dev/stdout") | symlink("/proc/self/fd/2", "/stage/dev/stderr") |
              symlink("pts/ptmx", "/stage/dev/ptmx"),
          "symlink in /dev");
    attach(fs_mount("tmpfs", ATTR_NOSUID | ATTR_NODEV, shm_options), "/stage/dev/shm");
    attach(fs_mount("mqueue", ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC, NULL), "/stage/dev/mqueue");
    int pts = fs_mount("devpts", ATTR_NOSUID | ATTR_NOEXEC, pts_options);
    attach(pts, "/stage/dev/pts");
    check(mkfifo(CONSOLE, 0), CONSOLE);
    check(chmod(CONSOLE, 0622), CONSOLE);
    return pts;
}

/* An open file of its own for each user: whoever takes init's and makes it blocking must not hold up the agent. */
static int open_console(void) { return check(open(CONSOLE, O_RDWR | O_NONBLOCK | O_CLOEXEC), CONSOLE); }

/* What the sprite asks its node through. A path reaches a socket from any network namespace (unix(7)), and any user may. */
static int open_api(void)
{
    const struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = API};
    int listener = check(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), API);
    check(bind(listener, (const struct sockaddr *)&address, sizeof address), API);
    check(chmod(API, 0666), API);
    check(listen(listener, API_BACKLOG), API);
    return listener;
}

/* ---- the claim ---- */

/* A directory of the new root as a descriptor. The root is the user's: nothing of it is followed out of it. */
static int directory_in(int root, const char *path, int make)
{
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS};
    int fd = (int)syscall(SYS_openat2, root, path, &how, sizeof how);
    if (fd >= 0 || !make)
        return fd;
    if (errno == ENOTDIR || errno == ELOOP)
        unlinkat(root, path, 0);
    mkdirat(root, path, 0755);
    return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
}

static void move_into(int root, const char *staged, const char *path)
{
    int target = check(directory_in(root, path, 1), path);
    int from = check(syscall(SYS_open_tree, AT_FDCWD, staged, O_CLOEXEC), staged);
    check(syscall(SYS_move_mount, from, "", target, "", F_EMPTY_PATH | T_EMPTY_PATH), path);
    close(from);
    close(target);
}

/* Images have these links; an older one, or one whose user removed them, gets them again. Where its user has put
 * something else in their place, that stays. */
static void link_own(int root)
{
    static const char *const names[] = {"api.sock", "checkpoints"};
    char to[64];
    int place = directory_in(root, ".sprite", 0);
    if (place < 0 && errno == ENOENT && mkdirat(root, ".sprite", 0755) == 0)
        place = directory_in(root, ".sprite", 0);
    for (int i = 0; place >= 0 && i < COUNT(names); i++) {
        snprintf(to, sizeof to, "../run/sprite/%s", names[i]);
        if (symlinkat(to, place, names[i]) != 0 && errno != EEXIST)
            break; /* a full or damaged disk starts, too */
    }
    close(place);
}

static void write_file(const char *path, const char *text)
{
    int fd = check(open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0644), path);
    check(write(fd, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -1, path);
    close(fd);
}

static void enter_root(const char *texts, const char *end, const int *fds, int nfds)
{
    const char *resolv = texts, *target = texts + strlen(texts) + 1;
    int root = fds[0];
    attach(root, "/mnt");
    move_into(root, "/stage/proc", "proc");
    move_into(root, "/stage/sys", "sys");
    move_into(root, "/stage/dev", "dev");
    move_into(root, "/stage/run", "run");
    link_own(root);
    for (int i = 1; i < nfds && target < end; i++, target += strlen(target) + 1) {
        int place = directory_in(root, target, 0); /* gone or replaced by its user: the bind is left out */
        if (place >= 0)
            check(syscall(SYS_move_mount, fds[i], "", place, "", F_EMPTY_PATH | T_EMPTY_PATH), target);
    }
    check(fchdir(root), "fchdir");
    check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    check(umount2(".", MNT_DETACH), "umount old root");
    check(chdir("/"), "chdir");
    /* As systemd leaves it; rootless containers look for it. */
    check(mount("none", "/", NULL, MS_REC | MS_SHARED, NULL), "shared mounts");
    write_file("/run/resolv.conf", resolv);
}

/* ---- the init ---- */

/* A line on the console, or none where it is full: an init never waits. */
static void say(int console, const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (n > 0 && write(console, text, n < (int)sizeof text ? n : (int)sizeof text - 1) < 0)
        return;
}

/* Reaps all that have ended. Of a signal that nobody sends to end a process in peace, the console is told: the parent of an
 * orphan is gone, and nobody else would be. */
static void reap(int console)
{
    for (;;) {
        siginfo_t info = {0};
        char path[64], name[32];
        if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0)
            return;
        int number = info.si_status, ended = info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED;
        if (ended && number != SIGHUP && number != SIGINT && number != SIGTERM && number != SIGPIPE) {
            ssize_t n = -1;
            snprintf(path, sizeof path, "/proc/%d/comm", info.si_pid);
            int fd = open(path, O_RDONLY | O_CLOEXEC);
            if (fd >= 0) {
                n = read(fd, name, sizeof name - 1);
                close(fd);
            }
            name[n > 0 ? n - 1 : 0] = 0; /* it ends with a newline */
            say(console, "init: the orphan %d (%s) was ended by signal %d\n", info.si_pid, name, number);
        }
        waitpid(info.si_pid, NULL, 0);
    }
}

static void stop_everything(int console, int how)
{
    struct timespec limit = {STOP_SECONDS, 0};
    sigset_t chld;
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    prctl(PR_SET_NAME, STOPPING, 0, 0, 0);
    say(console, "init: %s: every process is asked to end\n", how == RB_AUTOBOOT ? "restarting" : "halting");
    kill(-1, SIGTERM);
    kill(-1, SIGHUP); /* interactive shells do not hear the other */
    kill(-1, SIGCONT);
    for (;;) {
        pid_t pid;
        while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
            ;
        if (pid < 0) /* nobody is left */
            break;
        if (sigtimedwait(&chld, NULL, &limit) < 0 && errno == EAGAIN) {
            say(console, "init: some process does not end in %d s; the kernel ends it\n", STOP_SECONDS);
            break;
        }
    }
    /* In a pid namespace this ends its init with SIGHUP (restart) or SIGINT (halt), which the agent reads. */
    reboot(how);
    _exit(0);
}

static void init(int console)
{
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGCHLD);
    sigaddset(&wanted, SIGHUP);
    sigaddset(&wanted, SIGTERM);
    sigaddset(&wanted, SIGINT);
    for (;;) {
        int signal = sigwaitinfo(&wanted, NULL);
        reap(console);
        if (signal == SIGHUP || signal == SIGINT)
            stop_everything(console, RB_AUTOBOOT);
        if (signal == SIGTERM)
            stop_everything(console, RB_POWER_OFF);
    }
}

static void run(int procs, char *limits)
{
    char buffer[16384], *shm = strchr(limits, ',');
    int fds[MAX_FDS], nfds;
    sigset_t all;
    if (!shm)
        errno = EINVAL, fail("limits");
    *shm++ = 0;
    check(become(0, 0, NULL, 0), "become root");
    check(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable"); /* else its /proc files belong to the host's root */
    prctl(PR_SET_NAME, "init", 0, 0, 0);
    setsid();
    check(unshare(CLONE_NEWCGROUP), "unshare cgroup"); /* here, not in the clone: the v1 moves come between */
    check(sethostname("sprite", 6), "sethostname");
    check(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), "private mounts");
    check(write(5 + procs, "0", 1), "join the container's cgroup");
    for (int i = 0; i <= procs; i++)
        close(5 + i);
    int pts = stage(limits, shm);
    int mine = open_console(), given[] = {pts, open_console(), open_api()};
    send_packet(3, "P", 1, given, COUNT(given));
    for (int i = 0; i < COUNT(given); i++)
        close(given[i]);

    ssize_t n = receive_packet(3, buffer, sizeof buffer - 1, fds, &nfds);
    if (n <= 0)
        _exit(0);
    buffer[n] = 0;
    if (buffer[0] != 'C' || nfds < 1)
        errno = EPROTO, fail("claim");
    enter_root(buffer + 1, buffer + n, fds, nfds);
    /* Blocked, not ignored: what is sent to an init from inside is dropped unless blocked or handled. */
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    check(confine(PROFILE_STANDARD), "confine");
    send_packet(3, "D", 1, NULL, 0);
    check(dup2(mine, 3), "console"); /* in the place of the socket */
    close_from(4);
    init(3);
}

static void write_map(pid_t pid, const char *file)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
    write_file(path, "0 1 131071"); /* all of the instance's range but the agent's own id */
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "filter") == 0) {
        struct sock_filter f[512];
        int n = build_filter(f), out = open(argv[2], O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0644);
        return out >= 0 && write(out, f, n * sizeof f[0]) == (ssize_t)(n * sizeof f[0]) ? 0 : 1;
    }
    int pidfd = -1, go[2], procs = argc == 3 ? atoi(argv[1]) : -1;
    char text[32], byte;
    if (procs < 0 || procs > MAX_FDS)
        errno = EINVAL, fail("arguments");
    check(pipe2(go, O_CLOEXEC), "pipe");
    struct clone_args args = {
        /* CLONE_PARENT: the container is the agent's child, not this launcher's. */
        .flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC |
                 CLONE_INTO_CGROUP | CLONE_PIDFD | CLONE_PARENT,
        .pidfd = (uintptr_t)&pidfd,
        .cgroup = 4,
    };
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0) {
        close(4);
        close(go[1]);
        if (read(go[0], &byte, 1) != 1)
            _exit(1);
        close(go[0]);
        run(procs, argv[2]);
    }
    check(pid, "clone3");
    write_map((pid_t)pid, "uid_map");
    write_map((pid_t)pid, "gid_map");
    snprintf(text, sizeof text, "%ld", pid);
    for (int i = 0; i < procs; i++)
        check(write(5 + i, text, strlen(text)), "join v1 cgroup");
    snprintf(text, sizeof text, "I%ld", pid);
    send_packet(3, text, strlen(text), &pidfd, 1);
    check(write(go[1], "g", 1), "go");
    return 0;
}
