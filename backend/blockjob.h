/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * blockjob.h - block jobs on the disks of active machines: what one is to us.
 */
#pragma once

#include "backend/job.h"
#include "backend/private.h"
#include "backend/xml.h"

/**
 * BlockJob: from the request to its end; an action worker's, but for what the lock
 * guards.
 */
typedef struct {
    Be *be;
    BeJob *job;                /* borrowed */
    char *uuid;
    char *name;                /* of the domain */
    BeBlockKind kind;
    char *target;
    char *to;                  /* of a copy: the new image */
    char *format;              /* of a copy */
    char *base;                /* of a commit: never NULL once it was checked */
    char *top;
    gboolean active;           /* of a commit: of the active image, which ends by a pivot */
    gboolean started;          /* the host may run it */
    gboolean left;             /* we end, and it goes on without us */

    virDomainPtr domain;
    BeXmlDomain *xml;
    const BeXmlDisk *disk;     /* of xml */

    guint64 bytes;             /* guarded by the lock of all */
    guint64 total;             /* guarded by the lock of all */
} BlockJob;

BlockJob *block_job_new(Be *be, const char *uuid, const BeBlockRequest *request);
void block_job_free(gpointer data);

/**
 * block_job_name: "copy vda", as the user would write it.
 */
char *block_job_name(const BlockJob *block);

/**
 * block_job_read_domain: looks the domain up and reads its XML anew.
 */
gboolean block_job_read_domain(BlockJob *block, GError **error);

/* ---- blockjob-check.c --------------------------------------------------------- */

/**
 * block_job_check: whether it can be begun; completes what the request left open.
 * Changes nothing.  Blocks; action worker.
 */
gboolean block_job_check(BlockJob *block, GError **error);

/* ---- blockjob-record.c -------------------------------------------------------- */

gboolean block_job_record(const BlockJob *block, GError **error);
void block_job_forget(const BlockJob *block);

/* ---- blockjob.c ---------------------------------------------------------------- */

BeBlockJobs *be_block_jobs_new(void);
void be_block_jobs_free(BeBlockJobs *jobs);

/**
 * block_job_keep: a block job of an earlier process, or one that the host does not
 * tell of now: be_block_jobs_recover() sees to it.
 * @block: (transfer full)
 */
void block_job_keep(BlockJob *block);

/**
 * be_block_jobs_print: lines for `job`, if one of ours runs on the domain.
 * Returns: whether.
 */
gboolean be_block_jobs_print(Be *be, const char *uuid, GString *out);

/**
 * be_block_jobs_load: reads the records of an earlier process.  Before the first
 * action.  be_block_jobs_recover: submits what sees them to their end.  Query worker.
 */
void be_block_jobs_load(Be *be);
void be_block_jobs_recover(Be *be);
