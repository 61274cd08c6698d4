/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * notify.h - the receiving end of sd_notify(3), for one child process.
 *
 * Main thread, with GLib's default main context.
 */
#pragma once

#include <glib.h>

typedef struct VmNotify VmNotify;

/**
 * vm_notify_new: listens.
 * @ready: called, once, when the process vm_notify_set_pid() names says READY=1
 */
VmNotify *vm_notify_new(void (*ready)(gpointer user), gpointer user, GError **error);

void vm_notify_set_pid(VmNotify *notify, int pid);

/**
 * vm_notify_address: for the child's NOTIFY_SOCKET.
 */
const char *vm_notify_address(VmNotify *notify);

void vm_notify_free(VmNotify *notify);
