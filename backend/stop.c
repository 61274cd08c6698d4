/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * stop.c - the end: in order where the host answers, in bounded time where not.
 *
 * be_stop() is the main thread's.  Two threads of its own: "be-stop" does what
 * waits for the host, "be-pulse" asks the host something small again and again, so
 * that one that works (a job takes half a minute to go while a guest boots) is told
 * from one that hangs.
 */
#include <libvirt/libvirt.h>

#include "backend/backup.h"
#include "backend/files.h"
#include "backend/freeze.h"
#include "backend/job.h"
#include "backend/objects.h"

#define STOP_JOBS_US (50 * G_USEC_PER_SEC)
#define HANGS_US (10 * G_USEC_PER_SEC)
#define PULSE_US (G_USEC_PER_SEC / 5)
#define AT_ONCE_US (2 * G_USEC_PER_SEC)

/* Counted, because threads that hang outlive the wait for them. */
typedef struct {
    gatomicrefcount refs;
    Be *be;
    GMutex lock;
    GCond changed;
    gint64 answered_us;        /* guarded by lock; monotonic: the host's last answer */
    gboolean answers;          /* guarded by lock: there was one */
    gboolean over;             /* guarded by lock: the pulse may end */
    gboolean stopped;          /* guarded by lock: "be-stop" has ended */
    gboolean idle;             /* guarded by lock: and no job was left */
} Stop;

static void stop_unref(Stop *stop)
{
    if (g_atomic_ref_count_dec(&stop->refs)) {
        g_cond_clear(&stop->changed);
        g_mutex_clear(&stop->lock);
        g_free(stop);
    }
}

/*
 * One that cannot be reached answers, too: nothing waits for it.  That a connection was
 * given up after some seconds is no answer.
 */
static gboolean host_answers(Be *be, virConnectPtr *conn)
{
    gint64 start_us = g_get_monotonic_time();
    unsigned long version;

    if (!*conn) {
        *conn = be_conn_get(be->query_conn, NULL);
    }
    return (*conn && virConnectGetLibVersion(*conn, &version) == 0)
           || g_get_monotonic_time() < start_us + AT_ONCE_US;
}

/* With a reference of its own: closing the connection waits for the host, too. */
static gpointer pulse_main(gpointer data)
{
    Stop *stop = data;
    g_autoptr(BeVirConnect) conn = NULL;
    gboolean over = FALSE;

    while (!over) {
        gboolean answers = host_answers(stop->be, &conn);
        gint64 now_us = g_get_monotonic_time();

        g_mutex_lock(&stop->lock);
        if (answers) {
            stop->answered_us = now_us;
            stop->answers = TRUE;
            g_cond_broadcast(&stop->changed);
        }
        if (!stop->over) {
            g_cond_wait_until(&stop->changed, &stop->lock, now_us + PULSE_US);
        }
        over = stop->over;
        g_mutex_unlock(&stop->lock);
    }
    stop_unref(stop);
    return NULL;
}

/* By then the pulse has its connection.  Returns: FALSE: nobody waits for the end any more. */
static gboolean wait_for_answer(Stop *stop)
{
    gboolean answers;

    g_mutex_lock(&stop->lock);
    while (!stop->answers && !stop->over) {
        g_cond_wait(&stop->changed, &stop->lock);
    }
    answers = stop->answers;
    g_mutex_unlock(&stop->lock);
    return answers;
}

/* All that may wait for the host. */
static gpointer stop_main(gpointer data)
{
    Stop *stop = data;
    gboolean idle = wait_for_answer(stop) && be_jobs_wait(stop->be->jobs, STOP_JOBS_US);

    if (idle) {
        be_conn_close(stop->be->query_conn);
        be_conn_close(stop->be->action_conn);
        be_event_stop(stop->be);
    }
    g_mutex_lock(&stop->lock);
    stop->idle = idle;
    stop->stopped = TRUE;
    g_cond_broadcast(&stop->changed);
    g_mutex_unlock(&stop->lock);
    stop_unref(stop);
    return NULL;
}

/* Returns: whether all has ended. */
static gboolean stop_wait(Stop *stop)
{
    gboolean ended;

    g_mutex_lock(&stop->lock);
    while (!stop->stopped && g_get_monotonic_time() < stop->answered_us + HANGS_US) {
        g_cond_wait_until(&stop->changed, &stop->lock, stop->answered_us + HANGS_US);
    }
    ended = stop->stopped && stop->idle;
    stop->over = TRUE;
    g_cond_broadcast(&stop->changed);
    g_mutex_unlock(&stop->lock);
    return ended;
}

/* With the host or without it; Returns: whether all has ended. */
static gboolean stop_bounded(Be *be)
{
    Stop *stop = g_new0(Stop, 1);
    GThread *pulse, *stopper;
    gboolean ended;

    g_atomic_ref_count_init(&stop->refs);
    g_atomic_ref_count_inc(&stop->refs);
    g_atomic_ref_count_inc(&stop->refs);
    g_mutex_init(&stop->lock);
    g_cond_init(&stop->changed);
    stop->be = be;
    stop->answered_us = g_get_monotonic_time();
    pulse = g_thread_new("be-pulse", pulse_main, stop);
    stopper = g_thread_new("be-stop", stop_main, stop);
    ended = stop_wait(stop);
    if (ended) {
        g_thread_join(stopper);
        g_thread_join(pulse);
    } else {
        g_thread_unref(stopper);
        g_thread_unref(pulse);
    }
    stop_unref(stop);
    return ended;
}

gboolean be_stop(Be *be)
{
    if (!be->started) {
        return TRUE;
    }
    g_atomic_int_set(&be->stopping, 1);
    be_inventory_stop(be->inventory);
    be_objects_stop(be->objects);
    be_space_stop(be);
    be_jobs_refuse_new(be->jobs);
    be_files_pool_stop(be->files_pool);
    be_backups_end_all(be);
    if (be->freezes) {
        be_freezes_end_all(be);
    }
    be->threads_stuck = !stop_bounded(be);
    if (be->threads_stuck) {
        g_warning("the host does not answer; what waits for it is left behind");
        be_backups_abandon(be);
        return FALSE;
    }
    be_timer_stop(be);
    return TRUE;
}
