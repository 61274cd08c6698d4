/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * signals.h - TERM, INT and HUP become calls from a thread.
 */
#pragma once

#include <glib.h>

/**
 * vm_signals_start: starts the thread that waits for signals; after any fork,
 * before any other thread, once in a process.
 * @stop: called for each TERM and INT, from that thread
 */
gboolean vm_signals_start(void (*stop)(gpointer user), gpointer user, GError **error);

/**
 * vm_signals_stop: joins the thread: afterwards @stop is called no more, and
 * the signals do nothing.
 */
void vm_signals_stop(void);
