/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * job.c - jobs, the two pools, the turn of each domain; see job.h.
 *
 * Submitted from any thread.  `lock` guards the turns and the state of every
 * job; it is dropped before a run, a done or a push that could call back.
 */
#include "backend/job.h"

#include <errno.h>

#include "backend/error.h"

#define ACTION_THREADS 4
#define QUERY_THREADS 2
#define WAITING_MAX 64         /* behind one domain's action */

typedef enum {
    JOB_QUEUED,
    JOB_RUNNING,
    JOB_OVER,
} JobState;

struct BeJob {
    gatomicrefcount refs;
    Be *be;
    char *uuid;                /* NULL: refused, belongs to no turn */
    char *what;
    BeJobRun run;
    gpointer data;
    GDestroyNotify free_data;
    BeDone done;
    gpointer user;

    /* guarded by jobs->lock */
    JobState state;
    gboolean cancelled;
    gboolean no_return;
    GError *error;
};

/* A domain's turn: the job that has it, and those behind. */
typedef struct {
    BeJob *job;
    GQueue waiting;            /* of BeJob */
} Turn;

/* One thing for a query worker. */
typedef struct {
    BeQueryRun run;
    gpointer data;
    GDestroyNotify free_data;
} Query;

struct BeJobs {
    Be *be;
    GMutex lock;
    GCond idle;                /* the count or the holds went to 0 */
    GHashTable *turns;         /* uuid -> Turn; guarded by lock */
    guint count;               /* jobs and queries not over; guarded by lock */
    guint holds;               /* guarded by lock; see be_jobs_hold() */
    gboolean stopping;         /* guarded by lock */
    GThreadPool *actions;
    GThreadPool *queries;
};

BeJob *be_job_ref(BeJob *job)
{
    g_atomic_ref_count_inc(&job->refs);
    return job;
}

void be_job_unref(BeJob *job)
{
    if (!job || !g_atomic_ref_count_dec(&job->refs)) {
        return;
    }
    g_clear_error(&job->error);
    g_free(job->uuid);
    g_free(job->what);
    g_free(job);
}

/* ---- Turns ------------------------------------------------------------------ */

static void turn_free(gpointer data)
{
    Turn *turn = data;

    g_queue_clear(&turn->waiting);
    g_free(turn);
}

static void count_down(BeJobs *jobs)
{
    g_mutex_lock(&jobs->lock);
    if (--jobs->count == 0) {
        g_cond_broadcast(&jobs->idle);
    }
    g_mutex_unlock(&jobs->lock);
}

/* Gives the turn to the next one that waits; Returns: that one. */
static BeJob *pass_turn_locked(BeJobs *jobs, BeJob *job)
{
    Turn *turn = job->uuid ? g_hash_table_lookup(jobs->turns, job->uuid) : NULL;

    if (!turn || turn->job != job) {
        return NULL;
    }
    turn->job = g_queue_pop_head(&turn->waiting);
    if (!turn->job) {
        g_hash_table_remove(jobs->turns, job->uuid);
        return NULL;
    }
    return turn->job;
}

/* The pool holds a reference of what it was given, run or not. */
static void push_action(BeJobs *jobs, BeJob *job)
{
    g_thread_pool_push(jobs->actions, be_job_ref(job), NULL);
}

/* The end of a job, on a worker: tells, frees, and lets the next one in. */
static void finish(BeJobs *jobs, BeJob *job, GError *error)
{
    BeJob *next;

    g_mutex_lock(&jobs->lock);
    job->state = JOB_OVER;
    next = pass_turn_locked(jobs, job);
    g_mutex_unlock(&jobs->lock);
    if (next) {
        push_action(jobs, next);
    }
    job->done(error, job->user);
    if (job->free_data) {
        job->free_data(job->data);
    }
    g_clear_error(&error);
    be_job_unref(job);
    count_down(jobs);
}

static void action_main(gpointer data, gpointer user)
{
    BeJobs *jobs = user;
    BeJob *job = data;
    g_autofree char *what = g_strdup(job->what);
    gint64 start_us = g_get_monotonic_time();
    GError *error = NULL;
    gboolean skip;

    g_mutex_lock(&jobs->lock);
    skip = job->state != JOB_QUEUED;
    job->state = skip ? job->state : JOB_RUNNING;
    g_mutex_unlock(&jobs->lock);
    if (skip) {
        be_job_unref(job);     /* cancelled in the queue: its end is told elsewhere */
        return;
    }
    if (!job->run(jobs->be, job, job->data, &error) && !error) {
        g_set_error(&error, BE_ERROR, EIO, "'%s' failed without a reason", what);
        g_critical("bug: '%s' failed without a reason", what);
    }
    g_info("%s: %s in %" G_GINT64_FORMAT " ms", what, error ? error->message : "done",
           (g_get_monotonic_time() - start_us) / 1000);
    finish(jobs, job, error);
    be_job_unref(job);
}

static BeJob *job_new(Be *be, const char *uuid, const char *what, BeJobRun run, gpointer data,
                      GDestroyNotify free_data, BeDone done, gpointer user)
{
    BeJob *job = g_new0(BeJob, 1);

    g_atomic_ref_count_init(&job->refs);
    job->be = be;
    job->uuid = g_strdup(uuid);
    job->what = g_strdup(what);
    job->run = run;
    job->data = data;
    job->free_data = free_data;
    job->done = done;
    job->user = user;
    return job;
}

static gboolean end_refused(gpointer data)
{
    BeJob *job = data;

    finish(job->be->jobs, job, g_steal_pointer(&job->error));
    return G_SOURCE_REMOVE;
}

/* Ends a job that never ran, on the timer thread: that one is never stuck. */
static void refuse(BeJob *job, GError *error)
{
    job->error = error;
    g_source_unref(be_timer_add(job->be, 0, end_refused, job, NULL));
}

BeJob *be_job_refuse(Be *be, GError *error, BeDone done, gpointer user)
{
    BeJob *job = job_new(be, NULL, "refused", NULL, NULL, NULL, done, user);

    g_mutex_lock(&be->jobs->lock);
    be->jobs->count++;
    g_mutex_unlock(&be->jobs->lock);
    be_job_ref(job);
    refuse(job, error);
    return job;
}

/* Takes the turn or a place behind it; an error where neither can be had. */
static GError *enqueue_locked(BeJobs *jobs, BeJob *job, BeJobTurn when, gboolean *ret_push)
{
    Turn *turn = g_hash_table_lookup(jobs->turns, job->uuid);

    *ret_push = FALSE;
    if (jobs->stopping && when == BE_JOB_AT_ONCE) {
        return g_error_new(BE_ERROR, ECANCELED, "vmsnapfs is stopping");
    }
    if (!turn) {
        turn = g_new0(Turn, 1);
        g_queue_init(&turn->waiting);
        turn->job = job;
        g_hash_table_insert(jobs->turns, g_strdup(job->uuid), turn);
        *ret_push = TRUE;
        return NULL;
    }
    if (when == BE_JOB_AT_ONCE) {
        return g_error_new(BE_ERROR, EBUSY, "'%s' is under way on this domain; see its 'job'",
                           turn->job->what);
    }
    if (g_queue_get_length(&turn->waiting) >= WAITING_MAX) {
        return g_error_new(BE_ERROR, EAGAIN, "too many actions wait for this domain");
    }
    g_queue_push_tail(&turn->waiting, job);
    return NULL;
}

BeJob *be_job_submit(Be *be, const char *uuid, BeJobTurn turn, const char *what, BeJobRun run,
                     gpointer data, GDestroyNotify free_data, BeDone done, gpointer user)
{
    BeJobs *jobs = be->jobs;
    BeJob *job = job_new(be, uuid, what, run, data, free_data, done, user);
    gboolean push;
    GError *error;

    be_job_ref(job);
    g_mutex_lock(&jobs->lock);
    jobs->count++;
    error = enqueue_locked(jobs, job, turn, &push);
    g_mutex_unlock(&jobs->lock);
    if (push) {
        push_action(jobs, job);
    } else if (error) {
        refuse(job, error);
    }
    return job;
}

/* ---- Cancelling --------------------------------------------------------------- */

/*
 * A queued job leaves its turn: it is taken out of the waiting ones, or, when
 * it has the turn and waits for a thread, gives it away.
 */
static BeJob *leave_queue_locked(BeJobs *jobs, BeJob *job)
{
    Turn *turn = g_hash_table_lookup(jobs->turns, job->uuid);

    job->state = JOB_OVER;
    if (turn && turn->job != job) {
        g_queue_remove(&turn->waiting, job);
        return NULL;
    }
    return pass_turn_locked(jobs, job);
}

gboolean be_job_cancel(BeJob *job)
{
    BeJobs *jobs = job->be->jobs;
    BeJob *next = NULL;
    gboolean queued, stops;

    g_mutex_lock(&jobs->lock);
    queued = job->uuid && job->state == JOB_QUEUED;
    if (queued) {
        next = leave_queue_locked(jobs, job);
    }
    job->cancelled = TRUE;
    stops = queued || (job->state == JOB_RUNNING && !job->no_return);
    g_mutex_unlock(&jobs->lock);
    if (next) {
        push_action(jobs, next);
    }
    if (queued) {
        refuse(job, g_error_new(BE_ERROR, ECANCELED, "cancelled before it began"));
    }
    return stops;
}

gboolean be_job_is_cancelled(BeJob *job)
{
    BeJobs *jobs = job->be->jobs;
    gboolean cancelled;

    g_mutex_lock(&jobs->lock);
    cancelled = job->cancelled;
    g_mutex_unlock(&jobs->lock);
    return cancelled;
}

gboolean be_job_no_return(BeJob *job)
{
    BeJobs *jobs = job->be->jobs;
    gboolean cancelled;

    g_mutex_lock(&jobs->lock);
    cancelled = job->cancelled;
    job->no_return = !cancelled;
    g_mutex_unlock(&jobs->lock);
    return !cancelled;
}

char *be_jobs_running(Be *be, const char *uuid)
{
    Turn *turn;
    char *what;

    g_mutex_lock(&be->jobs->lock);
    turn = g_hash_table_lookup(be->jobs->turns, uuid);
    what = turn ? g_strdup(turn->job->what) : NULL;
    g_mutex_unlock(&be->jobs->lock);
    return what;
}

/* ---- Queries -------------------------------------------------------------------- */

static void query_main(gpointer data, gpointer user)
{
    BeJobs *jobs = user;
    Query *query = data;

    query->run(jobs->be, query->data);
    if (query->free_data) {
        query->free_data(query->data);
    }
    g_free(query);
    count_down(jobs);
}

void be_query(Be *be, BeQueryRun run, gpointer data, GDestroyNotify free_data)
{
    Query *query = g_new0(Query, 1);

    query->run = run;
    query->data = data;
    query->free_data = free_data;
    g_mutex_lock(&be->jobs->lock);
    be->jobs->count++;
    g_mutex_unlock(&be->jobs->lock);
    g_thread_pool_push(be->jobs->queries, query, NULL);
}

typedef struct {
    char *uuid;
    BeTextMake make;
    BeTextDone done;
    gpointer user;
} TextQuery;

static void text_query_free(gpointer data)
{
    TextQuery *query = data;

    g_free(query->uuid);
    g_free(query);
}

static void text_query_run(Be *be, gpointer data)
{
    TextQuery *query = data;
    g_autoptr(GError) error = NULL;
    g_autoptr(BeVirConnect) conn = be_conn_get(be->query_conn, &error);
    char *text = conn ? query->make(be, conn, query->uuid, &error) : NULL;

    query->done(text, error, query->user);
    free(text);
}

void be_text_query(Be *be, const char *uuid, BeTextMake make, BeTextDone done, gpointer user)
{
    TextQuery *query = g_new0(TextQuery, 1);

    query->uuid = g_strdup(uuid);
    query->make = make;
    query->done = done;
    query->user = user;
    be_query(be, text_query_run, query, text_query_free);
}

/* ---- Life -------------------------------------------------------------------------- */

BeJobs *be_jobs_new(Be *be)
{
    BeJobs *jobs = g_new0(BeJobs, 1);

    jobs->be = be;
    g_mutex_init(&jobs->lock);
    g_cond_init(&jobs->idle);
    jobs->turns = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, turn_free);
    jobs->actions = g_thread_pool_new(action_main, jobs, ACTION_THREADS, FALSE, NULL);
    jobs->queries = g_thread_pool_new(query_main, jobs, QUERY_THREADS, FALSE, NULL);
    return jobs;
}

static GPtrArray *all_jobs_locked(BeJobs *jobs)
{
    GPtrArray *all = g_ptr_array_new_with_free_func((GDestroyNotify)be_job_unref);
    GHashTableIter iter;
    gpointer value;

    g_hash_table_iter_init(&iter, jobs->turns);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        Turn *turn = value;

        for (GList *link = turn->waiting.head; link; link = link->next) {
            g_ptr_array_add(all, be_job_ref(link->data));
        }
        g_ptr_array_add(all, be_job_ref(turn->job));
    }
    return all;
}

void be_jobs_refuse_new(BeJobs *jobs)
{
    g_autoptr(GPtrArray) all = NULL;

    g_mutex_lock(&jobs->lock);
    jobs->stopping = TRUE;
    all = all_jobs_locked(jobs);
    g_mutex_unlock(&jobs->lock);
    for (guint i = 0; i < all->len; i++) {
        be_job_cancel(g_ptr_array_index(all, i));
    }
}

gboolean be_jobs_wait(BeJobs *jobs, gint64 wait_us)
{
    gint64 until_us = g_get_monotonic_time() + wait_us;
    gboolean idle;

    g_mutex_lock(&jobs->lock);
    while (jobs->count + jobs->holds > 0
           && g_cond_wait_until(&jobs->idle, &jobs->lock, until_us)) {
        continue;
    }
    idle = jobs->count + jobs->holds == 0;
    g_mutex_unlock(&jobs->lock);
    return idle;
}

void be_jobs_hold(BeJobs *jobs)
{
    g_mutex_lock(&jobs->lock);
    jobs->holds++;
    g_mutex_unlock(&jobs->lock);
}

void be_jobs_release(BeJobs *jobs)
{
    g_mutex_lock(&jobs->lock);
    if (--jobs->holds == 0) {
        g_cond_broadcast(&jobs->idle);
    }
    g_mutex_unlock(&jobs->lock);
}

guint be_jobs_count(BeJobs *jobs)
{
    guint count;

    g_mutex_lock(&jobs->lock);
    count = jobs->count;
    g_mutex_unlock(&jobs->lock);
    return count;
}

void be_jobs_free(BeJobs *jobs)
{
    if (!jobs) {
        return;
    }
    g_thread_pool_free(jobs->actions, FALSE, TRUE);
    g_thread_pool_free(jobs->queries, FALSE, TRUE);
    g_hash_table_unref(jobs->turns);
    g_cond_clear(&jobs->idle);
    g_mutex_clear(&jobs->lock);
    g_free(jobs);
}
