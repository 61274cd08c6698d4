/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * ready.h - going to the background, and telling others when the mount answers.
 */
#pragma once

#include <glib.h>

typedef struct VmReady VmReady;

/**
 * vm_ready_new:
 * @pid_file: absolute path, or NULL
 */
VmReady *vm_ready_new(const char *pid_file);

/**
 * vm_ready_fork: forks; before the first thread exists.
 * @ret_status: in the parent: the exit code to end with
 *
 * In the child it returns at once.  In the parent it returns when the child has
 * called vm_ready_announce() (status 0) or is gone (status 1, and the child has
 * said why on the stderr that both share).
 *
 * Returns: the child's process id in the parent, 0 in the child, -1 with @error
 * set when fork(2) failed.
 */
int vm_ready_fork(VmReady *ready, int *ret_status, GError **error);

/**
 * vm_ready_announce: writes the pid file, tells systemd, and, after
 * vm_ready_fork(), leaves the terminal and lets the parent go.  Any thread, once.
 * @status: one line for systemd's status
 */
void vm_ready_announce(VmReady *ready, const char *status);

/**
 * vm_ready_stopping: tells systemd that the end has begun, and how long it may
 * take.
 */
void vm_ready_stopping(guint seconds);

/**
 * vm_ready_free: removes the pid file that vm_ready_announce() has written.
 */
void vm_ready_free(VmReady *ready);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmReady, vm_ready_free)
