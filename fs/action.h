/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * action.h - a request that waits for a job: mkdir, rmdir, a control command.
 *
 * The caller waits, no thread does.  What ends the wait is whichever comes
 * first: the job, a signal that ends the caller, the deadline.  The outcome of
 * a job whose caller is gone is written to `error`.
 */
#pragma once

#include "fs/req.h"

/**
 * FsActionStart: submits the job; as FsMake, FsDrop and FsRun in def.h.
 */
typedef BeJob *(*FsActionStart)(const FsAct *act, gpointer data, GError **error);

/**
 * FsActionAnswer: answers the request; @error is NULL on success.
 */
typedef void (*FsActionAnswer)(FsReq *req, const GError *error);

/**
 * FsActionSpec: how an action is run.  Everything is copied or referenced.
 */
typedef struct {
    FsItem *item;              /* the object acted on; its `error` gets the failure */
    FsNode *directory;         /* (nullable): kept locked by the kernel meanwhile */
    const char *operation;     /* as the user wrote it, for `error` */
    guint wait_ms;             /* the deadline; 0: none */
    int late_errno;            /* the answer at the deadline; 0: "it goes on" */
    FsActionStart start;
    gpointer data;             /* for start, which is called before the return */
    GDestroyNotify free_data;  /* (nullable): for data, when the action is freed */
    FsActionAnswer answer;
    void (*ended)(Fs *fs, FsItem *item); /* (nullable): when the job is over */
} FsActionSpec;

/**
 * fs_action_run: starts the job and sees to the answer.
 * @req: (transfer full)
 */
void fs_action_run(FsReq *req, const FsActionSpec *spec);
