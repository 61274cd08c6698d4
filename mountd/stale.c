/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * stale.c - finds and removes dead mounts; see stale.h.
 *
 * Main thread.  This process never touches a path inside a mount itself: what
 * waits for a hung daemon cannot be killed, so only a child may come to wait.
 */
#include "stale.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define ANSWER_MS 2000
#define MAX_STACKED 64

/*
 * statfs(2) and not stat(2): attributes of the root may still be in the
 * kernel's cache, this question always goes to the daemon.  Only
 * async-signal-safe calls, the parent may have threads.
 */
static void G_GNUC_NORETURN child_ask(const char *mountpoint, int fd)
{
    struct statfs st;
    char dead = statfs(mountpoint, &st) < 0 && (errno == ENOTCONN || errno == ECONNABORTED);

    _exit(write(fd, &dead, 1) == 1 ? 0 : 1);
}

VmMountState vm_mount_state(const char *mountpoint)
{
    struct pollfd answer = {.events = POLLIN};
    gint64 deadline = g_get_monotonic_time() + ANSWER_MS * 1000;
    char dead = 0;
    ssize_t n = -1;
    int ends[2];
    pid_t pid;

    if (pipe2(ends, O_CLOEXEC) < 0) {
        return VM_MOUNT_SILENT;
    }
    pid = fork();
    if (pid == 0) {
        child_ask(mountpoint, ends[1]);
    }
    (void)close(ends[1]);
    answer.fd = ends[0];
    while (pid > 0 && n < 0) {
        gint64 left_ms = (deadline - g_get_monotonic_time()) / 1000;

        if (left_ms < 0) {
            break;
        }
        if (poll(&answer, 1, (int)left_ms + 1) > 0) {
            n = read(ends[0], &dead, 1);
        }
    }
    (void)close(ends[0]);
    if (pid > 0) {
        (void)kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, n < 0 ? WNOHANG : 0);
    }
    if (n != 1) {
        return VM_MOUNT_SILENT;
    }
    return dead ? VM_MOUNT_DEAD : VM_MOUNT_ALIVE;
}

/* ---- Who serves it -------------------------------------------------------- */

/*
 * A process whose command line is ours and names the mount point: the kernel
 * of the target does not tell which process holds which FUSE connection.
 */
static gboolean process_serves(const char *pid, const VmMount *mount)
{
    g_autofree char *path = g_build_filename("/proc", pid, "cmdline", NULL);
    g_autofree char *text = NULL;
    g_autofree char *name = NULL;
    gsize length = 0;

    if (!g_file_get_contents(path, &text, &length, NULL) || length == 0) {
        return FALSE;
    }
    name = g_path_get_basename(text);
    if (!g_str_equal(name, "vmsnapfs") || atoi(pid) == getpid() || atoi(pid) == getppid()) {
        return FALSE;
    }
    for (const char *word = text; word < text + length; word += strlen(word) + 1) {
        g_autofree char *absolute = g_canonicalize_filename(word, "/");

        /* A relative one was meant from a directory that is not known any more. */
        if (g_str_equal(absolute, mount->mountpoint)
            || (*word != '/' && absolute[1] && g_str_has_suffix(mount->mountpoint, absolute))) {
            return TRUE;
        }
    }
    return FALSE;
}

char *vm_mount_server(const VmMount *mount)
{
    g_autoptr(GDir) dir = g_dir_open("/proc", 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        if (g_ascii_isdigit(*name) && process_serves(name, mount)) {
            return g_strconcat("pid ", name, NULL);
        }
    }
    return g_strdup("an unknown process");
}

/* ---- Taking away ---------------------------------------------------------- */

static gboolean unmount_by_helper(const char *mountpoint, GError **error)
{
    const char *const argv[] = {"fusermount3", "-u", "-z", "--", mountpoint, NULL};
    g_autofree char *complaint = NULL;
    int status;

    if (!g_spawn_sync("/", (char **)argv, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_STDOUT_TO_DEV_NULL,
                      NULL, NULL, NULL, &complaint, &status, error)) {
        return FALSE;
    }
    if (g_spawn_check_wait_status(status, NULL)) {
        return TRUE;
    }
    g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_FAILED, "cannot unmount '%s': %s", mountpoint,
                g_strchomp(complaint));
    return FALSE;
}

static gboolean unmount(const char *mountpoint, GError **error)
{
    if (umount2(mountpoint, MNT_DETACH | UMOUNT_NOFOLLOW) == 0) {
        return TRUE;
    }
    if (errno == EPERM) {
        return unmount_by_helper(mountpoint, error);
    }
    g_set_error(error, G_FILE_ERROR, (int)g_file_error_from_errno(errno),
                "cannot unmount '%s': %s", mountpoint, g_strerror(errno));
    return FALSE;
}

static void refused_error(const VmMount *mount, VmMountState state, GError **error)
{
    g_autofree char *server = vm_mount_server(mount);

    if (state == VM_MOUNT_SILENT) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_FAILED,
                    "'%s' is mounted and does not answer: %s hangs; end it first",
                    mount->mountpoint, server);
    } else {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_EXIST,
                    "'%s' is already served by %s, for %s", mount->mountpoint, server,
                    mount->source);
    }
}

/*
 * Returns: the mount of ours that is seen at @mountpoint, in @mounts; NULL with
 * @ret_state untouched when there is none.
 */
static const VmMount *ours_at(GPtrArray *mounts, const char *mountpoint, VmMountState *ret_state)
{
    const VmMount *mount = vm_mounts_at(mounts, mountpoint);

    if (!mount || !g_str_equal(mount->fstype, VM_FSTYPE)) {
        return NULL;
    }
    *ret_state = vm_mount_state(mountpoint);
    return mount;
}

gboolean vm_stale_check(const char *mountpoint, GError **error)
{
    g_autoptr(GPtrArray) mounts = vm_mounts_read(error);
    VmMountState state = VM_MOUNT_DEAD;
    const VmMount *mount;

    if (!mounts) {
        return FALSE;
    }
    mount = ours_at(mounts, mountpoint, &state);
    if (mount && state != VM_MOUNT_DEAD) {
        refused_error(mount, state, error);
        return FALSE;
    }
    return TRUE;
}

gboolean vm_stale_clean(const char *mountpoint, GError **error)
{
    for (guint i = 0; i < MAX_STACKED; i++) {
        g_autoptr(GPtrArray) mounts = vm_mounts_read(error);
        VmMountState state = VM_MOUNT_DEAD;
        const VmMount *mount;

        if (!mounts) {
            return FALSE;
        }
        mount = ours_at(mounts, mountpoint, &state);
        if (!mount) {
            return TRUE;
        }
        if (state != VM_MOUNT_DEAD) {
            refused_error(mount, state, error);
            return FALSE;
        }
        if (!unmount(mountpoint, error)) {
            return FALSE;
        }
        g_message("took a dead mount of %s away from '%s'", mount->source, mountpoint);
    }
    g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_FAILED, "too many mounts on '%s'", mountpoint);
    return FALSE;
}

/*
 * All mounts of one dead file system, from the last to the first.  One that is
 * covered by another mount stays: umount(2) would take the one above.
 */
static gboolean device_unmount(const char *device, guint *ret_count, GError **error)
{
    g_autoptr(GPtrArray) mounts = vm_mounts_read(error);

    if (!mounts) {
        return FALSE;
    }
    for (guint i = mounts->len; i > 0; i--) {
        const VmMount *mount = g_ptr_array_index(mounts, i - 1);

        if (!g_str_equal(mount->device, device)) {
            continue;
        }
        if (vm_mounts_at(mounts, mount->mountpoint) != mount) {
            g_warning("'%s' is covered by another mount and stays", mount->mountpoint);
            continue;
        }
        if (!unmount(mount->mountpoint, error)) {
            return FALSE;
        }
        (*ret_count)++;
    }
    return TRUE;
}

gboolean vm_stale_recover(const char *mountpoint, guint *ret_count, GError **error)
{
    *ret_count = 0;
    for (guint i = 0; i < MAX_STACKED; i++) {
        g_autoptr(GPtrArray) mounts = vm_mounts_read(error);
        VmMountState state = VM_MOUNT_DEAD;
        const VmMount *mount;

        if (!mounts) {
            return FALSE;
        }
        mount = ours_at(mounts, mountpoint, &state);
        if (!mount || (state != VM_MOUNT_DEAD && *ret_count > 0)) {
            return TRUE;
        }
        if (state != VM_MOUNT_DEAD) {
            refused_error(mount, state, error);
            return FALSE;
        }
        if (!device_unmount(mount->device, ret_count, error)) {
            return FALSE;
        }
    }
    return TRUE;
}
