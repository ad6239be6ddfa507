/* Lets a sprite read one of its checkpoints, or no longer: attaches a mount in a running inner container, and takes it off.
 *
 *   reveal show NAME    fd 4, a detached mount, becomes /run/sprite/checkpoints/NAME
 *   reveal hide NAME    what is mounted there goes; what a process inside still uses stays until it lets go
 *   fd 3                pidfd of the inner init
 * Both may be repeated. The exit status is 0, or the errno of what failed. What is below /run is the sprite's to change: a
 * path there leads nowhere but into the sprite, and may take for ever, so the agent has a deadline.
 */
#include "common.h"
#include <linux/openat2.h>

#define PLACE "/run/sprite/checkpoints"
#define STACKED_MAX 8

static int open_directory(int at, const char *path)
{
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS};
    return (int)syscall(SYS_openat2, at, path, &how, sizeof how);
}

static int hide(const char *name)
{
    int mounts = 0;
    /* What root inside has mounted over it goes, too. */
    while (umount2(name, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
        if (++mounts == STACKED_MAX)
            return EBUSY;
    if (errno != EINVAL && errno != ENOENT)
        return errno;
    rmdir(name); /* the sprite's own directory: where it has put something into it, that stays */
    return 0;
}

static int show(const char *name)
{
    if (mkdir(name, 0555) != 0 && errno != EEXIST)
        return errno;
    int place = open_directory(AT_FDCWD, name);
    if (place < 0)
        return errno;
    return syscall(SYS_move_mount, 4, "", place, "", 0x4 /* F_EMPTY_PATH */ | 0x40 /* T_EMPTY_PATH */) == 0 ? 0 : errno;
}

int main(int argc, char **argv)
{
    if (argc != 3 || !*argv[2] || strchr(argv[2], '/') || strcmp(argv[2], ".") == 0 || strcmp(argv[2], "..") == 0)
        return EINVAL;
    /* Before the setns: joined, root inside may trace this process, whose memory is still the agent's business. */
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (setns(3, CLONE_NEWUSER | CLONE_NEWNS) != 0)
        return errno;
    if (become(0, 0, NULL, 0) != 0)
        return errno;
    mkdir("/run/sprite", 0755);
    mkdir(PLACE, 0755);
    int showing = strcmp(argv[1], "show") == 0, place = open_directory(AT_FDCWD, PLACE);
    if (place < 0 && errno == ENOENT && !showing)
        return 0;
    if (place < 0 || fchdir(place) != 0)
        return errno;
    return showing ? show(argv[2]) : hide(argv[2]);
}
