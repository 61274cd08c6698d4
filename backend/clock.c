/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * clock.c - one thread that ends what nobody else ends.
 *
 * Deadlines pass, limits let the next request go, and cancel, free and fail
 * leave callbacks that their own thread must not make.  One thread does that
 * for all streams; it runs while a stream is attached and sleeps until the next
 * deadline, or for ever while nothing is under way.
 *
 * The one piece of global state of the streams; clock.lock guards all of it and
 * is never held during a tick.
 */
#include "backend/stream-priv.h"

static struct {
    GMutex lock;
    GCond changed;             /* next_us, epoch or ticking */
    GThread *thread;
    guint epoch;               /* a thread of another epoch ends */
    GPtrArray *streams;        /* of BeStream, no references */
    BeStream *ticking;         /* out of the lock just now */
    gint64 next_us;            /* when the thread wakes */
} stream_clock;

/* Returns: the time of the next tick. */
static gint64 tick_all_locked(void)
{
    g_autofree BeStream **streams = NULL;
    guint count = stream_clock.streams->len;
    gint64 next_us = G_MAXINT64;

    streams = g_memdup2(stream_clock.streams->pdata, count * sizeof(*streams));
    for (guint i = 0; i < count; i++) {
        gint64 stream_us;

        if (!g_ptr_array_find(stream_clock.streams, streams[i], NULL)) {
            continue;
        }
        stream_clock.ticking = streams[i];
        g_mutex_unlock(&stream_clock.lock);
        stream_us = be_stream_tick(streams[i], g_get_monotonic_time());
        g_mutex_lock(&stream_clock.lock);
        stream_clock.ticking = NULL;
        g_cond_broadcast(&stream_clock.changed);
        next_us = MIN(next_us, stream_us);
    }
    return next_us;
}

static gpointer clock_run(gpointer data)
{
    guint epoch = GPOINTER_TO_UINT(data);

    g_mutex_lock(&stream_clock.lock);
    while (stream_clock.epoch == epoch) {
        gint64 next_us = stream_clock.next_us;

        if (next_us == G_MAXINT64) {
            g_cond_wait(&stream_clock.changed, &stream_clock.lock);
        } else if (next_us > g_get_monotonic_time()) {
            g_cond_wait_until(&stream_clock.changed, &stream_clock.lock, next_us);
        } else {
            /* A kick that comes during the ticks must not get lost. */
            stream_clock.next_us = G_MAXINT64;
            next_us = tick_all_locked();
            stream_clock.next_us = MIN(stream_clock.next_us, next_us);
        }
    }
    g_mutex_unlock(&stream_clock.lock);
    return NULL;
}

gboolean be_clock_attach(BeStream *stream)
{
    gboolean ok;

    g_mutex_lock(&stream_clock.lock);
    if (!stream_clock.streams) {
        stream_clock.streams = g_ptr_array_new();
    }
    if (!stream_clock.thread) {
        stream_clock.next_us = G_MAXINT64;
        stream_clock.thread =
            g_thread_try_new("stream-clock", clock_run, GUINT_TO_POINTER(stream_clock.epoch), NULL);
    }
    ok = stream_clock.thread != NULL;
    if (ok) {
        g_ptr_array_add(stream_clock.streams, stream);
    }
    g_mutex_unlock(&stream_clock.lock);
    return ok;
}

void be_clock_detach(BeStream *stream)
{
    GThread *thread = NULL;

    g_mutex_lock(&stream_clock.lock);
    g_ptr_array_remove(stream_clock.streams, stream);
    while (stream_clock.ticking == stream) {
        g_cond_wait(&stream_clock.changed, &stream_clock.lock);
    }
    /* Another one that was let go of may still be ticked: then it is that one's turn to end
     * the thread, which has the array in its hands until then. */
    if (stream_clock.streams && stream_clock.streams->len == 0 && !stream_clock.ticking) {
        thread = g_steal_pointer(&stream_clock.thread);
        stream_clock.epoch++;
        g_clear_pointer(&stream_clock.streams, g_ptr_array_unref);
        g_cond_broadcast(&stream_clock.changed);
    }
    g_mutex_unlock(&stream_clock.lock);
    if (thread) {
        g_thread_join(thread);
    }
}

void be_clock_kick(gint64 when_us)
{
    g_mutex_lock(&stream_clock.lock);
    if (when_us < stream_clock.next_us) {
        stream_clock.next_us = when_us;
        g_cond_broadcast(&stream_clock.changed);
    }
    g_mutex_unlock(&stream_clock.lock);
}
