/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * rate.c - a limit in bytes per second; see stream.h.
 *
 * A bucket in debt form: each request is told when it may start, and moves the
 * start of the next one by the time its bytes take.  Idle time is saved up for
 * BURST_US only.  Any thread; the lock is held for a few instructions.
 */
#include "backend/stream-priv.h"

/* What a loaded machine comes too late by is made up for, up to this. */
#define BURST_US (250 * 1000)

struct BeRate {
    gatomicrefcount refs;
    GMutex lock;
    guint64 bytes_per_second;  /* guarded by lock; 0: no limit */
    gint64 next_us;            /* guarded by lock; 0: none was made yet */
};

BeRate *be_rate_new(guint64 bytes_per_second)
{
    BeRate *rate = g_new0(BeRate, 1);

    g_atomic_ref_count_init(&rate->refs);
    g_mutex_init(&rate->lock);
    rate->bytes_per_second = bytes_per_second;
    return rate;
}

BeRate *be_rate_ref(BeRate *rate)
{
    g_atomic_ref_count_inc(&rate->refs);
    return rate;
}

void be_rate_unref(BeRate *rate)
{
    if (rate && g_atomic_ref_count_dec(&rate->refs)) {
        g_mutex_clear(&rate->lock);
        g_free(rate);
    }
}

void be_rate_set(BeRate *rate, guint64 bytes_per_second)
{
    g_mutex_lock(&rate->lock);
    rate->bytes_per_second = bytes_per_second;
    rate->next_us = 0;
    g_mutex_unlock(&rate->lock);
}

guint64 be_rate_get(BeRate *rate)
{
    guint64 bytes_per_second;

    g_mutex_lock(&rate->lock);
    bytes_per_second = rate->bytes_per_second;
    g_mutex_unlock(&rate->lock);
    return bytes_per_second;
}

gboolean be_rate_is_limited(BeRate *rate)
{
    return rate && be_rate_get(rate) > 0;
}

gint64 be_rate_reserve(BeRate *rate, guint64 bytes, gint64 now_us)
{
    gint64 due_us = now_us;

    g_mutex_lock(&rate->lock);
    if (rate->bytes_per_second > 0) {
        due_us = rate->next_us ? MAX(rate->next_us, now_us - BURST_US) : now_us;
        rate->next_us = due_us + (gint64)(bytes * G_USEC_PER_SEC / rate->bytes_per_second);
    }
    g_mutex_unlock(&rate->lock);
    return due_us;
}

void be_rate_refund(BeRate *rate, guint64 bytes)
{
    g_mutex_lock(&rate->lock);
    if (rate->bytes_per_second > 0) {
        rate->next_us -= (gint64)(bytes * G_USEC_PER_SEC / rate->bytes_per_second);
    }
    g_mutex_unlock(&rate->lock);
}
