/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * paused-holder.h - the process that turns a held machine off when we cannot.
 *
 * One for each held machine: this program again, by /proc/self/exe, with nothing of
 * ours but one end of a socket.  It starts the machine, because then it knows of it
 * whenever we die, and waits.  When the socket closes before we let it go, it turns
 * the machine off, unless somebody has resumed it, and ends.
 *
 * Private to paused.c; be_holder_main() is in backend.h.
 */
#pragma once

#include <glib.h>
#include <sys/types.h>

#define HOLDER_FD 3
#define HOLDER_NAME "vmsnapfs-hold"

/**
 * holder_spawn: starts the process for a machine.
 * @ret_pid: its pid; it is no child of ours
 * Returns: our end of the socket, or -1.
 */
int holder_spawn(const char *uri, const char *uuid, pid_t *ret_pid, GError **error);

/**
 * holder_start_machine: has it start the machine.
 * @ret_refused: on failure: whether it surely was not started
 * Returns: libvirt's number of this run; -1 with @error.
 */
int holder_start_machine(int fd, gboolean *ret_refused, GError **error);

/**
 * holder_let_go: it ends and leaves the machine alone.  Closes @fd.
 */
void holder_let_go(int fd);
