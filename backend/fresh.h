/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * fresh.h - how old what we know of the host may be, and who waits for newer.
 *
 * One BeFresh stands for one thing that is read from the host as a whole: the
 * list of domains, one domain's list of snapshots.  It is younger than 0.5 s
 * when somebody asks, he waits at most 1 s for that, and not at all while a
 * reading hangs.  One reading is under way at a time.
 *
 * Any thread; the readings run on a query worker.
 */
#pragma once

#include "backend/private.h"

typedef struct BeFresh BeFresh;

/**
 * BeFreshRead: reads the thing and keeps it.  Blocks; a query worker.
 * @start_us: monotonic time at which the reading began
 * Returns: FALSE with @error: what was known stays.
 */
typedef gboolean (*BeFreshRead)(Be *be, gpointer data, gint64 start_us, GError **error);

/**
 * be_fresh_new:
 * @retry: after a failure it is read again each second, though nobody asks
 * @destroy: (nullable): frees @data with the last reference
 */
BeFresh *be_fresh_new(Be *be, gboolean retry, BeFreshRead read, gpointer data,
                      GDestroyNotify destroy);
BeFresh *be_fresh_ref(BeFresh *fresh);
void be_fresh_unref(BeFresh *fresh);

/**
 * be_fresh_is_fresh: whether it is younger than 0.5 s, or cannot be had younger
 * now (the connection is down, or a reading hangs for over 1 s).
 */
gboolean be_fresh_is_fresh(BeFresh *fresh);

/**
 * be_fresh_hangs: whether a reading has been under way for over 1 s.
 */
gboolean be_fresh_hangs(BeFresh *fresh);

/**
 * be_fresh_is_stale: whether it may be old for as long as the host does not
 * answer: a reading hangs, or there was none.
 */
gboolean be_fresh_is_stale(BeFresh *fresh);

/**
 * be_fresh_wait: calls @done when a reading that began after this call has
 * ended, or after 1 s, whichever is first; never from inside the call.
 */
void be_fresh_wait(BeFresh *fresh, BeRefreshDone done, gpointer user);

/**
 * be_fresh_touch: something changed: what is known is stale, and is read again
 * soon.  Never blocks.
 */
void be_fresh_touch(BeFresh *fresh);

/**
 * be_fresh_read: reads it now, on this thread.  Blocks; workers.
 */
gboolean be_fresh_read(BeFresh *fresh, GError **error);

/**
 * be_fresh_stop: wakes all that wait; nothing is read any more.
 */
void be_fresh_stop(BeFresh *fresh);
