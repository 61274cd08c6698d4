/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * action.c - requests that wait for jobs; see action.h.
 *
 * Entered by FUSE threads (run), backend workers (done) and the timer thread
 * (cancel, deadline); `lock` of the action guards the little they share.
 */
#include "fs/action.h"

#include <errno.h>

/*
 * How long a cancelled job may take to undo itself before its caller, who
 * pressed Ctrl-C, is let go.
 */
#define UNDO_WAIT_MS 120

typedef struct {
    gatomicrefcount refs;
    Fs *fs;
    FsReq *req;
    FsItem *item;
    FsNode *directory;
    char *operation;
    int late_errno;
    FsActionAnswer answer;
    void (*ended)(Fs *fs, FsItem *item);
    gpointer data;
    GDestroyNotify free_data;
    BeCaller caller;
    gint answered;             /* atomic */

    GMutex lock;
    BeJob *job;                /* guarded by lock; NULL before the start and after the end */
    gboolean over;             /* guarded by lock */
    gboolean cancel_wanted;    /* guarded by lock */
    GSource *deadline;         /* guarded by lock */
} FsAction;

static FsAction *action_ref(FsAction *action)
{
    g_atomic_ref_count_inc(&action->refs);
    return action;
}

static gboolean action_free(gpointer data)
{
    FsAction *action = data;

    if (action->free_data) {
        action->free_data(action->data);
    }
    be_job_unref(action->job);
    fs_node_unref(action->fs->nodes, action->directory);
    fs_item_unref(action->item);
    g_free(action->operation);
    g_mutex_clear(&action->lock);
    fs_req_unref(action->req);
    g_free(action);
    return G_SOURCE_REMOVE;
}

/*
 * Freed on the timer thread, where cancellations run: one of those that found
 * the request unanswered still finds the action.
 */
static void action_unref(gpointer data)
{
    FsAction *action = data;

    if (!g_atomic_ref_count_dec(&action->refs)) {
        return;
    }
    if (g_atomic_int_get(&action->fs->timer_over)) {
        action_free(action);
    } else {
        g_source_unref(fs_timer_add(action->fs, 0, action_free, action, NULL));
    }
}

/*
 * The kernel's lock on the directory ends with the answer, so the directory
 * stops being answered with fresh nodes just before it.
 */
static gboolean action_answer(FsAction *action, const GError *error)
{
    if (!g_atomic_int_compare_and_exchange(&action->answered, 0, 1)) {
        return FALSE;
    }
    if (action->directory) {
        fs_node_action_end(action->fs->nodes, action->directory);
    }
    action->answer(action->req, error);
    return TRUE;
}

static gboolean answer_errno(FsAction *action, int errnum, const char *text)
{
    g_autoptr(GError) error = errnum ? g_error_new_literal(BE_ERROR, errnum, text) : NULL;

    return action_answer(action, error);
}

/* The job is over: on a backend worker, or at once where nothing was started. */
static void action_over(FsAction *action, const GError *error)
{
    gboolean interrupted, in_time;

    g_mutex_lock(&action->lock);
    action->over = TRUE;
    interrupted = action->cancel_wanted;
    if (action->deadline) {
        g_source_destroy(action->deadline);
        g_clear_pointer(&action->deadline, g_source_unref);
    }
    g_mutex_unlock(&action->lock);

    if (action->ended) {
        action->ended(action->fs, action->item);
    }
    if (error && error->code == ECANCELED && interrupted
        && answer_errno(action, EINTR, "interrupted by its caller; the state is as before")) {
        return;
    }
    if (error) {
        fs_failures_add(action->fs->failures, action->item, &action->caller, action->operation,
                        fs_error_errno(error), error->message);
    }
    in_time = action_answer(action, error);
    if (!error && action->late_errno && (!in_time || interrupted)) {
        fs_failures_add(action->fs->failures, action->item, &action->caller, action->operation, 0,
                        "finished after its caller had stopped waiting");
    }
}

static void action_done(const GError *error, gpointer user)
{
    FsAction *action = user;

    action_over(action, error);
    action_unref(action);
}

static gboolean undo_took_too_long(gpointer data)
{
    answer_errno(data, EINTR, "interrupted by its caller; it goes on, its end comes in `error`");
    return G_SOURCE_REMOVE;
}

/*
 * The job as long as it is not over, and with it a reference of the action: the
 * end of the job, which may come at any moment, gives another one back.
 */
static BeJob *running_job(FsAction *action)
{
    BeJob *job = NULL;

    g_mutex_lock(&action->lock);
    if (action->job && !action->over) {
        job = be_job_ref(action->job);
        action_ref(action);
    }
    g_mutex_unlock(&action->lock);
    return job;
}

/* A signal that ends the caller; on the timer thread. */
static void action_cancelled(FsReq *req G_GNUC_UNUSED, gpointer data)
{
    FsAction *action = data;
    g_autoptr(BeJob) job = NULL;

    g_mutex_lock(&action->lock);
    action->cancel_wanted = TRUE;
    g_mutex_unlock(&action->lock);
    job = running_job(action);
    if (!job) {
        return;
    }
    if (be_job_cancel(job)) {
        g_source_unref(fs_timer_add(action->fs, UNDO_WAIT_MS, undo_took_too_long,
                                    action_ref(action), action_unref));
    } else {
        undo_took_too_long(action);
    }
    action_unref(action);
}

static gboolean deadline_passed(gpointer data)
{
    FsAction *action = data;
    g_autoptr(BeJob) job = running_job(action);

    if (job && action->late_errno) {
        be_job_cancel(job);
        fs_failures_add(action->fs->failures, action->item, &action->caller, action->operation,
                        action->late_errno, "no answer within the deadline");
    }
    answer_errno(action, action->late_errno, "no answer within the deadline");
    if (job) {
        action_unref(action);
    }
    return G_SOURCE_REMOVE;
}

static FsAction *action_new(FsReq *req, const FsActionSpec *spec)
{
    FsAction *action = g_new0(FsAction, 1);

    g_atomic_ref_count_init(&action->refs);
    g_mutex_init(&action->lock);
    action->fs = req->fs;
    action->req = req;
    action->item = spec->item ? fs_item_ref(spec->item) : NULL;
    action->operation = g_strdup(spec->operation);
    action->late_errno = spec->late_errno;
    action->answer = spec->answer;
    action->ended = spec->ended;
    action->data = spec->data;
    action->free_data = spec->free_data;
    action->caller = req->caller;
    if (spec->directory) {
        action->directory = fs_node_ref(req->fs->nodes, spec->directory);
        fs_node_action_begin(req->fs->nodes, action->directory);
    }
    return action;
}

/* The job is known from here on: to cancellations and to a deadline. */
static void action_started(FsAction *action, BeJob *job, guint wait_ms)
{
    gboolean cancel;

    g_mutex_lock(&action->lock);
    action->job = job;
    if (!action->over && wait_ms > 0) {
        action->deadline = fs_timer_add(action->fs, wait_ms, deadline_passed, action_ref(action),
                                        action_unref);
    }
    cancel = action->cancel_wanted && !action->over;
    g_mutex_unlock(&action->lock);
    if (cancel) {
        action_cancelled(action->req, action);
    }
}

void fs_action_run(FsReq *req, const FsActionSpec *spec)
{
    FsAction *action = action_new(req, spec);
    FsAct act = {.fs = req->fs, .be = req->fs->be, .item = spec->item, .caller = &req->caller,
                 .done = action_done, .user = action};
    g_autoptr(GError) error = NULL;
    gboolean slow = FALSE;
    BeJob *job;

    act.ret_slow = &slow;
    fs_req_on_cancel(req, action_cancelled, action);
    action_ref(action);        /* for action_done(), which may come before the return */
    job = spec->start(&act, spec->data, &error);
    if (job) {
        action_started(action, job, slow && spec->late_errno ? 0 : spec->wait_ms);
    } else {
        action_over(action, error);
        action_unref(action);
    }
    action_unref(action);
}
