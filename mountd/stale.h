/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * stale.h - mounts of ours whose daemon is gone.
 *
 * They are found in mountinfo and asked in a child process with a time limit:
 * a dead mount answers ENOTCONN to everything, and one whose daemon hangs does
 * not answer at all.  Main thread; each call blocks, for a mount that does not
 * answer 2 s.  Errors are in the domain G_FILE_ERROR.
 */
#pragma once

#include <glib.h>

#include "mountd/mounts.h"

typedef enum {
    VM_MOUNT_ALIVE,
    VM_MOUNT_DEAD,
    VM_MOUNT_SILENT,           /* no answer in time */
} VmMountState;

/**
 * vm_mount_state: asks a mount whether somebody serves it.
 */
VmMountState vm_mount_state(const char *mountpoint);

/**
 * vm_mount_server: who serves a mount, for a message: "pid 123", or "an unknown
 * process"; free with g_free().
 */
char *vm_mount_server(const VmMount *mount);

/**
 * vm_stale_check: before a start: whether @mountpoint is free to be mounted,
 * now or after vm_stale_clean().
 *
 * Returns: FALSE when a vmsnapfs serves it already, or hangs on it; the message
 * says who.
 */
gboolean vm_stale_check(const char *mountpoint, GError **error);

/**
 * vm_stale_clean: takes dead mounts of ours away from @mountpoint.  To be called
 * right before the new mount: until then a reader gets an error, afterwards he
 * would see an empty directory.
 */
gboolean vm_stale_clean(const char *mountpoint, GError **error);

/**
 * vm_stale_recover: takes a dead mount away, and all bind mounts of it that this
 * process can see.
 * @ret_count: how many mounts were taken away; 0 when there was none
 *
 * Returns: FALSE when the mount is alive or an unmount failed.
 */
gboolean vm_stale_recover(const char *mountpoint, guint *ret_count, GError **error);
