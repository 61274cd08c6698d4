/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * job.h - actions on domains: one at a time for each, cancellable, bounded.
 */
#pragma once

#include "backend/private.h"

/**
 * BeJobRun: does the work, on an action worker.  Returns FALSE with @error set
 * (ECANCELED after it saw be_job_is_cancelled() and undid what it had done).
 */
typedef gboolean (*BeJobRun)(Be *be, BeJob *job, gpointer data, GError **error);

typedef enum {
    BE_JOB_AT_ONCE,            /* EBUSY when another action of the domain runs */
    BE_JOB_WAITS,              /* waits behind it */
} BeJobTurn;

BeJobs *be_jobs_new(Be *be);

/**
 * be_jobs_refuse_new: cancels what is queued or can be stopped, and from now on
 * takes only jobs that wait for their turn: the ends of things.
 */
void be_jobs_refuse_new(BeJobs *jobs);

/**
 * be_jobs_wait: Returns: FALSE when some jobs or queries are not over after
 * @wait_us microseconds.  Blocks.
 */
gboolean be_jobs_wait(BeJobs *jobs, gint64 wait_us);
void be_jobs_free(BeJobs *jobs);

/**
 * be_job_submit:
 * @uuid: the domain
 * @what: what is being done, for messages: "mkdir backups/now"; copied
 * @data: (transfer full): freed with @free_data after @done
 *
 * Returns: a reference for the caller.  A job that is refused (EBUSY, EAGAIN
 * when too many wait, ECANCELED at shutdown) ends by @done as well.
 */
BeJob *be_job_submit(Be *be, const char *uuid, BeJobTurn turn, const char *what, BeJobRun run,
                     gpointer data, GDestroyNotify free_data, BeDone done, gpointer user);

/**
 * be_job_refuse: a job that ends with @error (transfer full) without running.
 */
BeJob *be_job_refuse(Be *be, GError *error, BeDone done, gpointer user);

/**
 * be_job_is_cancelled: whether the running job should undo and end.
 */
gboolean be_job_is_cancelled(BeJob *job);

/**
 * be_job_no_return: from here on the job cannot be cancelled any more.
 * Returns: FALSE when it was cancelled before that: undo and end.
 */
gboolean be_job_no_return(BeJob *job);

/**
 * be_jobs_running: what runs on a domain, to free with g_free(), or NULL.
 */
char *be_jobs_running(Be *be, const char *uuid);

guint be_jobs_count(BeJobs *jobs);

/**
 * be_jobs_hold, be_jobs_release: a thread that uses the backend and is no job of
 * the pools: be_jobs_wait() waits for its end, too.
 */
void be_jobs_hold(BeJobs *jobs);
void be_jobs_release(BeJobs *jobs);

/**
 * be_query: runs @run on a query worker.
 * @free_data: (nullable): called after it, and when the backend stops first
 */
typedef void (*BeQueryRun)(Be *be, gpointer data);
void be_query(Be *be, BeQueryRun run, gpointer data, GDestroyNotify free_data);

/**
 * be_text_query: runs @make on a query worker and gives its text to @done.
 * @make: returns the text, to be freed with free(), or NULL with @error
 */
typedef char *(*BeTextMake)(Be *be, virConnectPtr conn, const char *uuid, GError **error);
void be_text_query(Be *be, const char *uuid, BeTextMake make, BeTextDone done, gpointer user);
