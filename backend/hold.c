/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * hold.c - what is open while somebody uses it; see hold.h.
 *
 * Workers and FUSE threads.  `opening` is held while it is opened, which blocks; `lock`
 * for a few instructions.  Order: opening > lock.
 */
#include "backend/hold.h"

struct BeHold {
    const BeHoldOps *ops;
    gpointer user;
    GMutex opening;
    GMutex lock;
    gpointer held;             /* guarded by lock; NULL: it is not open */
    guint users;               /* guarded by lock; those who have it */
    gboolean resting;          /* guarded by lock; the last of them closes it */
};

BeHold *be_hold_new(const BeHoldOps *ops, gpointer user)
{
    BeHold *hold = g_new0(BeHold, 1);

    hold->ops = ops;
    hold->user = user;
    g_mutex_init(&hold->opening);
    g_mutex_init(&hold->lock);
    return hold;
}

static void close_unused(const BeHold *hold, gpointer unused)
{
    if (unused) {
        hold->ops->close(unused);
    }
}

void be_hold_free(BeHold *hold)
{
    close_unused(hold, hold->held);
    g_mutex_clear(&hold->lock);
    g_mutex_clear(&hold->opening);
    g_free(hold);
}

gpointer be_hold_take_open(BeHold *hold)
{
    gpointer held;

    g_mutex_lock(&hold->lock);
    held = hold->held;
    hold->users += held != NULL;
    g_mutex_unlock(&hold->lock);
    return held;
}

gpointer be_hold_take(BeHold *hold, GError **error)
{
    gpointer held;

    g_mutex_lock(&hold->opening);
    held = be_hold_take_open(hold);
    if (!held && (held = hold->ops->open(hold->user, error))) {
        g_mutex_lock(&hold->lock);
        hold->held = held;
        hold->users = 1;
        hold->resting = FALSE;
        g_mutex_unlock(&hold->lock);
    }
    g_mutex_unlock(&hold->opening);
    return held;
}

/* Returns: what is to be closed now, without the lock, or NULL. */
static gpointer unused_locked(BeHold *hold)
{
    return hold->resting && hold->users == 0 ? g_steal_pointer(&hold->held) : NULL;
}

void be_hold_give(BeHold *hold)
{
    gpointer unused;

    g_mutex_lock(&hold->lock);
    hold->users--;
    unused = unused_locked(hold);
    g_mutex_unlock(&hold->lock);
    close_unused(hold, unused);
}

void be_hold_rest(BeHold *hold)
{
    gpointer unused;

    g_mutex_lock(&hold->lock);
    hold->resting = TRUE;
    unused = unused_locked(hold);
    g_mutex_unlock(&hold->lock);
    close_unused(hold, unused);
}
