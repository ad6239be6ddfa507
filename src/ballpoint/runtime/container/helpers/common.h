/* What the helpers share: raw system calls, descriptors over SOCK_SEQPACKET, and the confinement of inner processes. */
#ifndef BALLPOINT_COMMON_H
#define BALLPOINT_COMMON_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_open_tree
#define SYS_open_tree 428
#endif
#ifndef SYS_move_mount
#define SYS_move_mount 429
#endif
#ifndef SYS_fsopen
#define SYS_fsopen 430
#endif
#ifndef SYS_fsconfig
#define SYS_fsconfig 431
#endif
#ifndef SYS_fsmount
#define SYS_fsmount 432
#endif
#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif

#define MAX_FDS 16

/* Sends `len` bytes and `nfds` descriptors as one packet. */
static inline int send_packet(int sock, const void *data, size_t len, const int *fds, int nfds)
{
    char control[CMSG_SPACE(sizeof(int) * MAX_FDS)] = {0};
    struct iovec iov = {(void *)data, len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (nfds > 0) {
        msg.msg_control = control;
        msg.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
        memcpy(CMSG_DATA(c), fds, sizeof(int) * nfds);
    }
    return sendmsg(sock, &msg, MSG_NOSIGNAL) == (ssize_t)len ? 0 : -1;
}

/* Receives one packet; descriptors go to `fds` (at most MAX_FDS), their number to `nfds`. Returns bytes, 0 at the end. */
static inline ssize_t receive_packet(int sock, void *data, size_t len, int *fds, int *nfds)
{
    char control[CMSG_SPACE(sizeof(int) * MAX_FDS)];
    struct iovec iov = {data, len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n;
    do
        n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    *nfds = 0;
    if (n < 0)
        return n;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
            *nfds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(fds, CMSG_DATA(c), sizeof(int) * *nfds);
        }
    return n;
}

static inline void close_from(unsigned first) { syscall(SYS_close_range, first, ~0U, 0); }

/* ---- confinement: the same for the inner init and for every process started beside it ---- */

enum profile { PROFILE_MINIMAL = 0, PROFILE_STANDARD = 1, PROFILE_PRIVILEGED = 2 };

/* Capabilities count only inside the sprite's user namespace. MINIMAL is what apt, sudo and ping were measured to need;
 * STANDARD adds what nested containers, debuggers, packet capture and reboot need. */
#define BIT(cap) (1ULL << (cap))
#define CAPS_MINIMAL                                                                                                   \
    (BIT(CAP_CHOWN) | BIT(CAP_DAC_OVERRIDE) | BIT(CAP_FOWNER) | BIT(CAP_FSETID) | BIT(CAP_KILL) | BIT(CAP_SETGID) |    \
     BIT(CAP_SETUID) | BIT(CAP_SETPCAP) | BIT(CAP_SETFCAP) | BIT(CAP_NET_BIND_SERVICE) | BIT(CAP_NET_RAW) |            \
     BIT(CAP_SYS_CHROOT) | BIT(CAP_AUDIT_WRITE) | BIT(CAP_SYS_BOOT))
#define CAPS_STANDARD                                                                                                  \
    (CAPS_MINIMAL | BIT(CAP_SYS_ADMIN) | BIT(CAP_NET_ADMIN) | BIT(CAP_SYS_PTRACE) | BIT(CAP_NET_BROADCAST) |           \
     BIT(CAP_DAC_READ_SEARCH) | BIT(CAP_IPC_OWNER) | BIT(CAP_IPC_LOCK) | BIT(CAP_SYS_NICE) | BIT(CAP_SYS_RESOURCE) |   \
     BIT(CAP_MKNOD) | BIT(CAP_LEASE))

static inline uint64_t profile_caps(enum profile profile)
{
    return profile == PROFILE_MINIMAL ? CAPS_MINIMAL : profile == PROFILE_STANDARD ? CAPS_STANDARD : ~0ULL;
}

static inline int drop_bounding_set(uint64_t keep)
{
    for (int cap = 0; cap < 64; cap++) {
        if (keep & (1ULL << cap))
            continue;
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) != 0)
            return errno == EINVAL ? 0 : -1; /* the first number the kernel does not know ends the list */
    }
    return 0;
}

#if defined(__x86_64__)
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#else
#error "untested architecture"
#endif

/* System calls that touch what all tenants of the kernel share, or that widen its attack surface without need. */
static const int DENIED[] = {
    SYS_kexec_load, SYS_kexec_file_load, SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_acct,
    SYS_swapon, SYS_swapoff, SYS_quotactl, SYS_syslog, SYS_settimeofday, SYS_clock_settime, SYS_adjtimex,
    SYS_clock_adjtime, SYS_open_by_handle_at, SYS_perf_event_open, SYS_bpf, SYS_userfaultfd, SYS_lookup_dcookie,
#if defined(__x86_64__)
    SYS_iopl, SYS_ioperm, SYS_uselib, SYS_ustat, SYS_sysfs, SYS__sysctl, SYS_create_module, SYS_get_kernel_syms,
    SYS_query_module, SYS_nfsservctl, SYS_modify_ldt,
#endif
};
/* Limits on core files are answered with success and stay what they are. Where core_pattern is a program, the host runs it
 * as root for every crash but those at a limit of 1 byte; anybody may lower that to 0, and sudo does. Programs that want no
 * core file for the secrets they hold give up when they cannot say so. Numbers: setrlimit, prlimit64. */
#define CORE_LIMIT_CALLS SYS_setrlimit, SYS_prlimit64
#define CORE_LIMIT_CALLS_I386 75, 340
/* io_uring answers "not built in", so that programs take their other path. */
static const int ABSENT[] = {SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register};

#if defined(__x86_64__)
/* The same list in the numbers of int 0x80 (arch/x86/entry/syscalls/syscall_32.tbl). */
static const int DENIED_I386[] = {283, 128, 350, 129, 51, 87, 115, 131, 103, 79, 264, 124, 343, 342, 336, 357, 374, 253,
                                  110, 101, 86, 62, 135, 149, 127, 130, 167, 169, 123, 25, 404, 405};
static const int ABSENT_I386[] = {425, 426, 427};
#endif

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

static inline int append_list(struct sock_filter *f, int n, const int *list, int count, uint32_t action)
{
    for (int i = 0; i < count; i++) {
        f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)list[i], 0, 1);
        f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action);
    }
    return n;
}

/* "Succeed" without acting, where argument `which` names RLIMIT_CORE; prlimit64 may still read it (no new limit given).
 * Leaves the accumulator as it found it: the call's number. */
static inline int append_core_limit(struct sock_filter *f, int n, int setrlimit_number, int prlimit_number)
{
    const uint32_t succeed = SECCOMP_RET_ERRNO | 0, number = offsetof(struct seccomp_data, nr);
    const uint32_t argument = offsetof(struct seccomp_data, args); /* the low halves: these are little-endian machines */
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)setrlimit_number, 0, 4);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument);
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, RLIMIT_CORE, 0, 1);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, succeed);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, number);
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)prlimit_number, 0, 8);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument + 8);
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, RLIMIT_CORE, 0, 5);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument + 16);
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 2);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument + 20);
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, succeed);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, number);
    return n;
}

/* The deny-list as a seccomp program. The zygote installs it in every anchor and agent, and all else inherits it. It cannot
 * use no_new_privs, which would break sudo, so its installer needs CAP_SYS_ADMIN in its user namespace. */
static inline int build_filter(struct sock_filter *f)
{
    const uint32_t eperm = SECCOMP_RET_ERRNO | EPERM, enosys = SECCOMP_RET_ERRNO | ENOSYS;
    int n = 0;
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
#if defined(__x86_64__)
    int skip = n;
    f[n++] = (struct sock_filter)BPF_STMT(0, 0); /* patched below: to the 64-bit part */
    int refuse = n;
    f[n++] = (struct sock_filter)BPF_STMT(0, 0); /* patched below: any third architecture */
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    n = append_core_limit(f, n, CORE_LIMIT_CALLS_I386);
    n = append_list(f, n, DENIED_I386, COUNT(DENIED_I386), eperm);
    n = append_list(f, n, ABSENT_I386, COUNT(ABSENT_I386), enosys);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    f[skip] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NATIVE_ARCH, (uint8_t)(n - skip - 1), 0);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 0x40000000, 0, 1); /* x32 */
    f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, enosys);
#else
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NATIVE_ARCH, 1, 0);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, enosys);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
#endif
    n = append_core_limit(f, n, CORE_LIMIT_CALLS);
    n = append_list(f, n, DENIED, COUNT(DENIED), eperm);
    n = append_list(f, n, ABSENT, COUNT(ABSENT), enosys);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
#if defined(__x86_64__)
    int last = n;
    f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, enosys);
    f[refuse] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_I386, 0, (uint8_t)(last - refuse - 1));
#endif
    return n;
}

#define KEYCTL_JOIN_SESSION_KEYRING 1

/* Everything an inner process gets before user code runs in it, beside what it inherits: the seccomp filter, and a limit
 * for core files of 1 byte. The caller is root of the inner user namespace. */
static inline int confine(enum profile profile)
{
    struct rlimit files, have;
    if (getrlimit(RLIMIT_NOFILE, &have) == 0) { /* may be lowered, never raised, without the host's CAP_SYS_RESOURCE */
        files.rlim_max = have.rlim_max;
        files.rlim_cur = have.rlim_max < 16384 ? have.rlim_max : 16384;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0)
        return -1;
    return drop_bounding_set(profile_caps(profile));
}

static inline int become(uid_t uid, gid_t gid, const gid_t *groups, int count)
{
    return setgroups(count, groups) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid) ? -1 : 0;
}

#endif
