/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * fresh.c - readings of the host, and those who wait for them; see fresh.h.
 *
 * Any thread; `lock` guards the times and the waiters, and is never held while
 * something is read or a waiter is told.
 */
#include "backend/fresh.h"

#include "backend/job.h"

#define FRESH_US (G_USEC_PER_SEC / 2)
#define WAIT_US G_USEC_PER_SEC
#define RETRY_MS 1000

typedef struct {
    BeRefreshDone done;
    gpointer user;
    gint64 asked_us;           /* only a read that began later answers it */
    GSource *deadline;
    BeFresh *fresh;            /* a reference */
} Waiter;

struct BeFresh {
    gatomicrefcount refs;
    Be *be;
    gboolean retry;
    BeFreshRead read;
    gpointer data;
    GDestroyNotify destroy;

    GMutex lock;
    gint64 read_us;            /* guarded by lock; start of the last good read; 0: none */
    gint64 reading_us;         /* guarded by lock; start of the read under way; 0: none */
    gint64 touched_us;         /* guarded by lock; the last sign of a change */
    gboolean stopped;          /* guarded by lock */
    GPtrArray *waiters;        /* of Waiter; guarded by lock */
};

BeFresh *be_fresh_new(Be *be, gboolean retry, BeFreshRead read, gpointer data,
                      GDestroyNotify destroy)
{
    BeFresh *fresh = g_new0(BeFresh, 1);

    g_atomic_ref_count_init(&fresh->refs);
    g_mutex_init(&fresh->lock);
    fresh->be = be;
    fresh->retry = retry;
    fresh->read = read;
    fresh->data = data;
    fresh->destroy = destroy;
    fresh->waiters = g_ptr_array_new();
    return fresh;
}

BeFresh *be_fresh_ref(BeFresh *fresh)
{
    g_atomic_ref_count_inc(&fresh->refs);
    return fresh;
}

void be_fresh_unref(BeFresh *fresh)
{
    if (!fresh || !g_atomic_ref_count_dec(&fresh->refs)) {
        return;
    }
    if (fresh->destroy) {
        fresh->destroy(fresh->data);
    }
    g_ptr_array_unref(fresh->waiters);
    g_mutex_clear(&fresh->lock);
    g_free(fresh);
}

static void unref_fresh(gpointer fresh)
{
    be_fresh_unref(fresh);
}

/* ---- Waiters ------------------------------------------------------------------- */

static void waiter_free(gpointer data)
{
    Waiter *waiter = data;

    be_fresh_unref(waiter->fresh);
}

static void waiter_release(gpointer waiter)
{
    g_atomic_rc_box_release_full(waiter, waiter_free);
}

/* The deadline holds a reference of its own: it may be firing right now. */
static void waiter_wake(Waiter *waiter)
{
    g_source_destroy(waiter->deadline);
    g_source_unref(waiter->deadline);
    waiter->done(waiter->user);
    waiter_release(waiter);
}

static void wake_all(GPtrArray *waiters)
{
    for (guint i = 0; i < waiters->len; i++) {
        waiter_wake(g_ptr_array_index(waiters, i));
    }
    g_ptr_array_unref(waiters);
}

static gboolean waited_too_long(gpointer data)
{
    Waiter *waiter = data;
    BeFresh *fresh = waiter->fresh;
    gboolean ours;

    g_mutex_lock(&fresh->lock);
    ours = g_ptr_array_remove_fast(fresh->waiters, waiter);
    g_mutex_unlock(&fresh->lock);
    if (ours) {
        waiter_wake(waiter);
    }
    return G_SOURCE_REMOVE;
}

/* Those that asked before @start_us; all of them where nothing can be read. */
static GPtrArray *steal_answered_locked(BeFresh *fresh, gint64 start_us, gboolean failed)
{
    GPtrArray *answered = g_ptr_array_new();

    for (guint i = fresh->waiters->len; i > 0; i--) {
        Waiter *waiter = g_ptr_array_index(fresh->waiters, i - 1);

        if (failed || waiter->asked_us <= start_us) {
            g_ptr_array_remove_index_fast(fresh->waiters, i - 1);
            g_ptr_array_add(answered, waiter);
        }
    }
    return answered;
}

/* ---- Reading ------------------------------------------------------------------- */

gboolean be_fresh_read(BeFresh *fresh, GError **error)
{
    gint64 start_us = g_get_monotonic_time();

    if (!fresh->read(fresh->be, fresh->data, start_us, error)) {
        return FALSE;
    }
    g_mutex_lock(&fresh->lock);
    fresh->read_us = MAX(fresh->read_us, start_us);
    g_mutex_unlock(&fresh->lock);
    return TRUE;
}

static gboolean touch_again(gpointer data)
{
    be_fresh_touch(data);
    return G_SOURCE_REMOVE;
}

static void schedule_locked(BeFresh *fresh);

static void read_on_worker(Be *be, gpointer data)
{
    BeFresh *fresh = data;
    g_autoptr(GError) error = NULL;
    gint64 start_us = g_get_monotonic_time();
    GPtrArray *answered;

    g_mutex_lock(&fresh->lock);
    fresh->reading_us = start_us;
    g_mutex_unlock(&fresh->lock);
    if (!be_fresh_read(fresh, &error)) {
        g_debug("a reading of the host failed: %s", error->message);
        if (fresh->retry) {
            g_source_unref(be_timer_add(be, RETRY_MS, touch_again, be_fresh_ref(fresh),
                                        unref_fresh));
        }
    }
    g_mutex_lock(&fresh->lock);
    answered = steal_answered_locked(fresh, start_us, error != NULL);
    fresh->reading_us = 0;
    /* Something changed while this was read, and what was read may miss it. */
    if (fresh->waiters->len > 0 || (fresh->touched_us > start_us && !error)) {
        schedule_locked(fresh);
    }
    g_mutex_unlock(&fresh->lock);
    wake_all(answered);
}

/* be_query() takes the lock of the jobs, which never asks for this one. */
static void schedule_locked(BeFresh *fresh)
{
    if (fresh->reading_us == 0 && !fresh->stopped) {
        fresh->reading_us = g_get_monotonic_time();
        be_query(fresh->be, read_on_worker, be_fresh_ref(fresh), unref_fresh);
    }
}

void be_fresh_touch(BeFresh *fresh)
{
    g_mutex_lock(&fresh->lock);
    fresh->touched_us = g_get_monotonic_time();
    schedule_locked(fresh);
    g_mutex_unlock(&fresh->lock);
}

/* ---- Asking -------------------------------------------------------------------- */

static gboolean hangs_locked(const BeFresh *fresh)
{
    return fresh->reading_us && g_get_monotonic_time() - fresh->reading_us > WAIT_US;
}

gboolean be_fresh_hangs(BeFresh *fresh)
{
    gboolean hangs;

    g_mutex_lock(&fresh->lock);
    hangs = hangs_locked(fresh);
    g_mutex_unlock(&fresh->lock);
    return hangs;
}

gboolean be_fresh_is_fresh(BeFresh *fresh)
{
    gboolean is_fresh;

    g_mutex_lock(&fresh->lock);
    is_fresh = fresh->stopped || hangs_locked(fresh)
               || (fresh->read_us > fresh->touched_us
                   && g_get_monotonic_time() - fresh->read_us < FRESH_US);
    g_mutex_unlock(&fresh->lock);
    return is_fresh || be_conn_waits(fresh->be->query_conn);
}

gboolean be_fresh_is_stale(BeFresh *fresh)
{
    gboolean stale;

    g_mutex_lock(&fresh->lock);
    stale = fresh->read_us == 0 || hangs_locked(fresh);
    g_mutex_unlock(&fresh->lock);
    return stale || !be_conn_is_up(fresh->be->query_conn);
}

void be_fresh_wait(BeFresh *fresh, BeRefreshDone done, gpointer user)
{
    Waiter *waiter = g_atomic_rc_box_new0(Waiter);

    waiter->done = done;
    waiter->user = user;
    waiter->fresh = be_fresh_ref(fresh);
    waiter->asked_us = g_get_monotonic_time();
    g_mutex_lock(&fresh->lock);
    waiter->deadline = be_timer_add(fresh->be, fresh->stopped ? 0 : WAIT_US / 1000,
                                    waited_too_long, g_atomic_rc_box_acquire(waiter),
                                    waiter_release);
    g_ptr_array_add(fresh->waiters, waiter);
    schedule_locked(fresh);
    g_mutex_unlock(&fresh->lock);
}

void be_fresh_stop(BeFresh *fresh)
{
    GPtrArray *waiters;

    g_mutex_lock(&fresh->lock);
    fresh->stopped = TRUE;
    waiters = fresh->waiters;
    fresh->waiters = g_ptr_array_new();
    g_mutex_unlock(&fresh->lock);
    wake_all(waiters);
}
