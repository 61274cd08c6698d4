/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * watchdog.h - a small process that thaws guests when we cannot any more.
 *
 * It shares nothing with us but a socket: when that closes, because we ended or
 * died, or when the time of a guest is up, it thaws over a connection of its
 * own, again and again until the guest answers.
 */
#pragma once

#include <glib.h>

typedef struct BeWatchdog BeWatchdog;

/**
 * be_watchdog_new: starts the process.  To be called while this process has
 * one thread: it forks and does not exec.
 * @uri: of libvirt; the connection is opened when a guest is first watched
 * Returns: the watchdog, or NULL with the errno of fork(2) or socketpair(2).
 */
BeWatchdog *be_watchdog_new(const char *uri, GError **error);

/**
 * be_watchdog_arm: from now on @uuid is thawed @after_ms from now, or when we
 * are gone.  Arming again moves the time.  Blocks until the process has said
 * that it can reach libvirt, at most 5 s; workers.
 * Returns: FALSE: EHOSTUNREACH (or a thaw of it is under way), ETIMEDOUT, EIO (the process
 *   is gone).
 */
gboolean be_watchdog_arm(BeWatchdog *watchdog, const char *uuid, guint after_ms, GError **error);

/**
 * be_watchdog_extend: the guest is frozen now; its time counts from here.
 * Returns: FALSE, EHOSTUNREACH: that was up already, and it is being thawed; the rest as
 *   above.
 */
gboolean be_watchdog_extend(BeWatchdog *watchdog, const char *uuid, guint after_ms,
                            GError **error);

/**
 * be_watchdog_disarm: the guest is thawed; it is no longer watched.
 */
void be_watchdog_disarm(BeWatchdog *watchdog, const char *uuid);

/**
 * be_watchdog_free: ends the process; what is still armed is thawed first.
 * Does not wait for that.
 */
void be_watchdog_free(BeWatchdog *watchdog);
