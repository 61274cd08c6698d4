/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * blockjob.c - block jobs on the disks of active machines, to their end.
 *
 * Steps: the record, the job, its end (and the pivot where it has one).  An action
 * worker waits for it and asks how far it is; others read that under `lock`.  A job
 * that an earlier process left is seen to its end by the same steps.
 */
#include "backend/blockjob.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/domain-read.h"
#include "backend/error.h"
#include "backend/step.h"

#define LOOK_US (100 * 1000)
#define GONE_WAIT_US (30 * G_USEC_PER_SEC)

struct BeBlockJobs {
    GMutex lock;
    GHashTable *running;       /* uuid -> BlockJob, borrowed; guarded by lock */
    GPtrArray *left;           /* of BlockJob; guarded by lock */
};

BeBlockJobs *be_block_jobs_new(void)
{
    BeBlockJobs *jobs = g_new0(BeBlockJobs, 1);

    g_mutex_init(&jobs->lock);
    jobs->running = g_hash_table_new(g_str_hash, g_str_equal);
    jobs->left = g_ptr_array_new_with_free_func(block_job_free);
    return jobs;
}

void be_block_jobs_free(BeBlockJobs *jobs)
{
    if (!jobs) {
        return;
    }
    g_hash_table_unref(jobs->running);
    g_ptr_array_unref(jobs->left);
    g_mutex_clear(&jobs->lock);
    g_free(jobs);
}

BlockJob *block_job_new(Be *be, const char *uuid, const BeBlockRequest *request)
{
    BlockJob *block = g_new0(BlockJob, 1);

    block->be = be;
    block->uuid = g_strdup(uuid);
    block->kind = request->kind;
    block->target = g_strdup(request->target);
    block->to = g_strdup(request->to);
    block->format = g_strdup(request->format);
    block->base = g_strdup(request->base);
    block->top = g_strdup(request->top);
    return block;
}

void block_job_free(gpointer data)
{
    BlockJob *block = data;

    if (block->domain) {
        virDomainFree(block->domain);
    }
    be_xml_domain_free(block->xml);
    g_free(block->uuid);
    g_free(block->name);
    g_free(block->target);
    g_free(block->to);
    g_free(block->format);
    g_free(block->base);
    g_free(block->top);
    g_free(block);
}

gboolean block_job_read_domain(BlockJob *block, GError **error)
{
    BeXmlDomain *xml;

    if (block->domain) {
        virDomainFree(block->domain);
    }
    block->domain = be_conn_domain(block->be->action_conn, block->uuid, error);
    if (!block->domain) {
        return FALSE;
    }
    xml = be_domain_read(block->domain, 0, error);
    if (!xml) {
        return FALSE;
    }
    be_xml_domain_free(block->xml);
    block->xml = xml;
    if (!block->name) {
        block->name = g_strdup(block->xml->name);
    }
    block->disk = be_xml_domain_disk(block->xml, block->target);
    return TRUE;
}

static void tell(const BlockJob *block, int errnum, const char *text)
{
    g_autofree char *what = block_job_name(block);
    g_autofree char *sentence = g_strdup_printf("'%s' %s", what, text);
    BeEvent event = {.kind = BE_EVENT_WARNING, .time_us = g_get_real_time(),
                     .domain_uuid = block->uuid, .domain_name = block->name, .errnum = errnum,
                     .text = sentence};

    be_notify(block->be, &event);
}

/* ---- What others see of it ------------------------------------------------------------ */

static void set_running(BlockJob *block, gboolean running)
{
    BeBlockJobs *jobs = block->be->block_jobs;

    g_mutex_lock(&jobs->lock);
    if (running) {
        g_hash_table_insert(jobs->running, block->uuid, block);
    } else {
        g_hash_table_remove(jobs->running, block->uuid);
    }
    g_mutex_unlock(&jobs->lock);
}

static void set_progress(BlockJob *block, guint64 bytes, guint64 total)
{
    BeBlockJobs *jobs = block->be->block_jobs;

    g_mutex_lock(&jobs->lock);
    block->bytes = bytes;
    block->total = total;
    g_mutex_unlock(&jobs->lock);
}

static const char *const job_kinds[] = {
    [BE_BLOCK_COPY] = "block-copy",
    [BE_BLOCK_PULL] = "block-pull",
    [BE_BLOCK_COMMIT] = "block-commit",
};

gboolean be_block_jobs_print(Be *be, const char *uuid, GString *out)
{
    const BlockJob *block;

    g_mutex_lock(&be->block_jobs->lock);
    block = g_hash_table_lookup(be->block_jobs->running, uuid);
    if (block) {
        g_string_append_printf(out,
                               "kind: %s\nobject: %s\nbytes: %" G_GUINT64_FORMAT
                               "\nbytes-total: %" G_GUINT64_FORMAT "\npercent: %.1f\n",
                               job_kinds[block->kind], block->target, block->bytes, block->total,
                               block->total
                                   ? 100.0 * (double)block->bytes / (double)block->total
                                   : 0.0);
    }
    g_mutex_unlock(&be->block_jobs->lock);
    return block != NULL;
}

/* ---- How far it is ---------------------------------------------------------------------- */

typedef enum {
    LOOK_RUNS,
    LOOK_READY,                /* waits for its pivot */
    LOOK_OVER,                 /* the host runs none */
    LOOK_UNKNOWN,              /* the host does not answer now */
} Look;

static gboolean ends_by_pivot(const BlockJob *block)
{
    return block->kind == BE_BLOCK_COPY || (block->kind == BE_BLOCK_COMMIT && block->active);
}

/* libvirt tells cur == end of such a job only once it can be pivoted. */
static Look look(BlockJob *block, GError **error)
{
    g_autoptr(BeVirDomain) domain =
        be_conn_domain(block->be->action_conn, block->uuid, error);
    virDomainBlockJobInfo info;
    int found;

    if (!domain) {
        return (*error)->code == ENOENT ? LOOK_OVER : LOOK_UNKNOWN;
    }
    found = virDomainGetBlockJobInfo(domain, block->target, &info, 0);
    if (found < 0) {
        be_error_from_libvirt(error, "cannot ask for the block job");
        return virDomainIsActive(domain) == 0 ? LOOK_OVER : LOOK_UNKNOWN;
    }
    if (found == 0) {
        return LOOK_OVER;
    }
    set_progress(block, info.cur, info.end);
    return ends_by_pivot(block) && info.end > 0 && info.cur == info.end ? LOOK_READY : LOOK_RUNS;
}

static gboolean chain_has(const BeXmlDisk *disk, const char *path)
{
    gboolean has = g_strcmp0(disk->top.path, path) == 0;

    for (guint i = 0; i < disk->backing->len && !has; i++) {
        const BeXmlLevel *level = g_ptr_array_index(disk->backing, i);

        has = g_strcmp0(level->path, path) == 0;
    }
    return has;
}

/* The host does not say how a job ended: the disk's images do. */
static gboolean has_succeeded(BlockJob *block, GError **error)
{
    if (!block_job_read_domain(block, error) || !block->disk) {
        return FALSE;
    }
    switch (block->kind) {
    case BE_BLOCK_COPY:
        return g_strcmp0(block->disk->top.path, block->to) == 0;
    case BE_BLOCK_PULL:
        return virDomainIsActive(block->domain) == 1 && block->disk->backing->len == 0;
    case BE_BLOCK_COMMIT:
        return virDomainIsActive(block->domain) == 1 && chain_has(block->disk, block->base)
               && !chain_has(block->disk, block->top);
    }
    return FALSE;
}

static gboolean ended_well(BlockJob *block, GError **error)
{
    g_autoptr(GError) look_error = NULL;

    if (has_succeeded(block, &look_error)) {
        return TRUE;
    }
    if (look_error && look_error->code != ENOENT) {
        g_propagate_error(error, g_steal_pointer(&look_error));
        return FALSE;
    }
    g_set_error(error, BE_ERROR, EIO,
                block->domain && virDomainIsActive(block->domain) == 0
                    ? "the machine stopped before the block job was done"
                    : "the block job ended before it was done: somebody aborted it, or QEMU had an "
                      "I/O error (see its log)");
    return FALSE;
}

/* ---- Steps ---------------------------------------------------------------------------------- */

static gboolean run_record(gpointer work, GError **error)
{
    return block_job_record(work, error);
}

static void undo_record(gpointer work)
{
    const BlockJob *block = work;

    if (!block->left) {
        block_job_forget(block);
    }
}

static gboolean start_copy(BlockJob *block, GError **error)
{
    g_autofree char *xml = be_xml_copy_build(block->to, block->format, error);

    if (!xml) {
        return FALSE;
    }
    /* Without the flag libvirt takes it for transient domains only. */
    if (virDomainBlockCopy(block->domain, block->target, xml, NULL, 0,
                           VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB) < 0) {
        be_error_from_libvirt(error, "libvirt cannot begin the copy");
        return FALSE;
    }
    return TRUE;
}

static gboolean start_merge(BlockJob *block, GError **error)
{
    int begun = block->kind == BE_BLOCK_PULL
                    ? virDomainBlockPull(block->domain, block->target, 0, 0)
                    : virDomainBlockCommit(block->domain, block->target, block->base,
                                           block->active ? NULL : block->top, 0,
                                           block->active ? VIR_DOMAIN_BLOCK_COMMIT_ACTIVE : 0);

    if (begun < 0) {
        be_error_from_libvirt(error, "libvirt cannot begin the block job");
    }
    return begun == 0;
}

/* From here on the new image is one that we made: the record says so. */
static gboolean run_start(gpointer work, GError **error)
{
    BlockJob *block = work;

    if (!(block->kind == BE_BLOCK_COPY ? start_copy(block, error) : start_merge(block, error))) {
        return FALSE;
    }
    block->started = TRUE;
    return block_job_record(block, error);
}

static gboolean wait_until_gone(BlockJob *block)
{
    gint64 until_us = g_get_monotonic_time() + GONE_WAIT_US;
    g_autoptr(GError) error = NULL;
    Look found;

    while ((found = look(block, &error)) != LOOK_OVER && g_get_monotonic_time() < until_us) {
        g_clear_error(&error);
        g_usleep(LOOK_US);
    }
    return found == LOOK_OVER;
}

/* Only what is no image of the machine, running or not: it may have been pivoted to. */
static void remove_copy(BlockJob *block)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BeXmlDomain) inactive = NULL;
    const BeXmlDisk *disk = NULL;
    struct stat attr;

    if (block->kind != BE_BLOCK_COPY || lstat(block->to, &attr) < 0 || !S_ISREG(attr.st_mode)
        || !block_job_read_domain(block, &error)) {
        return;
    }
    inactive = be_domain_read(block->domain, VIR_DOMAIN_XML_INACTIVE, NULL);
    disk = inactive ? be_xml_domain_disk(inactive, block->target) : NULL;
    if ((block->disk && chain_has(block->disk, block->to)) || !inactive
        || (disk && chain_has(disk, block->to))) {
        return;
    }
    if (unlink(block->to) < 0) {
        g_warning("cannot remove '%s': %s", block->to, g_strerror(errno));
    }
}

static void undo_start(gpointer work)
{
    BlockJob *block = work;
    g_autoptr(BeVirDomain) domain = NULL;

    if (!block->started || block->left) {
        return;
    }
    domain = be_conn_domain(block->be->action_conn, block->uuid, NULL);
    if (domain && virDomainBlockJobAbort(domain, block->target, 0) < 0) {
        g_info("cannot abort the block job on '%s'; it may be over", block->target);
    }
    if (wait_until_gone(block)) {
        remove_copy(block);
    } else {
        block->left = TRUE;    /* the record stays, and the next start ends it */
    }
}

/* A host that does not answer is waited for; a stop of ours leaves the job to go on. */
static gboolean stop_waiting(BlockJob *block, Look found, GError **error)
{
    gboolean stopping = g_atomic_int_get(&block->be->stopping);

    if (!be_job_is_cancelled(block->job)) {
        return FALSE;
    }
    block->left = stopping || found == LOOK_UNKNOWN;
    g_set_error(error, BE_ERROR, ECANCELED,
                block->left ? "vmsnapfs lets it go on; the next start sees it to its end"
                            : "cancelled");
    return TRUE;
}

static gboolean run_watch(gpointer work, GError **error)
{
    BlockJob *block = work;
    Look found;

    do {
        g_autoptr(GError) look_error = NULL;

        found = look(block, &look_error);
        if (found == LOOK_READY) {
            return TRUE;
        }
        if (found == LOOK_OVER) {
            return ended_well(block, error);
        }
        if (stop_waiting(block, found, error)) {
            return FALSE;
        }
        g_usleep(LOOK_US);
    } while (TRUE);
}

/*
 * What the pivot answers is not believed: the disk says whether it goes on on the
 * other image.
 */
static gboolean run_pivot(gpointer work, GError **error)
{
    BlockJob *block = work;
    g_autoptr(GError) pivot_error = NULL;

    if (!ends_by_pivot(block)) {
        return TRUE;
    }
    if (!be_job_no_return(block->job)) {
        g_set_error(error, BE_ERROR, ECANCELED, "cancelled");
        return FALSE;
    }
    if (!block_job_read_domain(block, error)) {
        return FALSE;
    }
    if (virDomainBlockJobAbort(block->domain, block->target, VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        < 0) {
        be_error_from_libvirt(&pivot_error, "libvirt cannot pivot");
    }
    if (has_succeeded(block, error)) {
        return TRUE;
    }
    if (!*error) {
        g_propagate_error(error, pivot_error ? g_steal_pointer(&pivot_error)
                                             : g_error_new(BE_ERROR, EIO,
                                                           "the disk did not change its image"));
    }
    return FALSE;
}

static const BeStep block_steps[] = {
    {"record", run_record, undo_record},
    {"start", run_start, undo_start},
    {"watch", run_watch, NULL},
    {"pivot", run_pivot, NULL},
    {NULL, NULL, NULL},
};

void block_job_keep(BlockJob *block)
{
    g_mutex_lock(&block->be->block_jobs->lock);
    g_ptr_array_add(block->be->block_jobs->left, block);
    g_mutex_unlock(&block->be->block_jobs->lock);
}

/* A job that nobody has seen to its end yet is one for be_block_jobs_recover(). */
static void keep_if_left(const BlockJob *block)
{
    const BeBlockRequest request = {.kind = block->kind, .target = block->target,
                                    .to = block->to, .format = block->format,
                                    .base = block->base, .top = block->top};
    BlockJob *kept;

    if (block->left && !g_atomic_int_get(&block->be->stopping)) {
        kept = block_job_new(block->be, block->uuid, &request);
        kept->name = g_strdup(block->name);
        kept->active = block->active;
        kept->started = block->started;
        block_job_keep(kept);
    }
}

static gboolean run_block(Be *be G_GNUC_UNUSED, BeJob *job, gpointer data, GError **error)
{
    BlockJob *block = data;
    gboolean done;

    block->job = job;
    if (!block_job_check(block, error)) {
        return FALSE;
    }
    set_running(block, TRUE);
    done = be_steps_run("block-job", block_steps, block, job, error);
    set_running(block, FALSE);
    if (done) {
        block_job_forget(block);
    }
    keep_if_left(block);
    return done;
}

BeJob *be_domain_block(Be *be, const char *uuid, const BeBlockRequest *request, BeDone done,
                       gpointer user)
{
    g_autofree char *busy = be_domain_busy(be, uuid);
    g_autofree char *what = NULL;
    BlockJob *block;

    if (be->read_only) {
        return be_job_refuse(be, g_error_new(BE_ERROR, EROFS, "this mount is read-only"), done,
                             user);
    }
    if (busy) {
        return be_job_refuse(be, g_error_new_literal(BE_ERROR, EBUSY, busy), done, user);
    }
    block = block_job_new(be, uuid, request);
    what = block_job_name(block);
    return be_job_submit(be, uuid, BE_JOB_AT_ONCE, what, run_block, block, block_job_free, done,
                         user);
}

/* ---- After a restart ------------------------------------------------------------ */

/* Whether it still runs, and what is to be done with it. */
static gboolean run_found(gpointer work, GError **error)
{
    BlockJob *block = work;
    Look found = look(block, error);

    if (found == LOOK_UNKNOWN) {
        block->left = TRUE;
        return FALSE;
    }
    g_clear_error(error);
    /* Begun, perhaps, in the moment of the crash: the image that it copies to says so. */
    block->started = block->started || block->kind != BE_BLOCK_COPY
                     || (found != LOOK_OVER && access(block->to, F_OK) == 0);
    if (found != LOOK_OVER && block->be->recover == BE_RECOVER_END) {
        g_set_error(error, BE_ERROR, ECANCELED, "ended after a restart (-o recover=end)");
        return FALSE;
    }
    return TRUE;
}

static const BeStep adopted_steps[] = {
    {"adopt", run_record, undo_record},
    {"found", run_found, undo_start},
    {"watch", run_watch, NULL},
    {"pivot", run_pivot, NULL},
    {NULL, NULL, NULL},
};

static gboolean run_adopted(Be *be G_GNUC_UNUSED, BeJob *job, gpointer data, GError **error)
{
    BlockJob *block = data;
    gboolean done;

    block->job = job;
    set_running(block, TRUE);
    done = be_steps_run("block-job", adopted_steps, block, job, error);
    set_running(block, FALSE);
    if (done) {
        block_job_forget(block);
    } else if (!block->left) {
        tell(block, (*error)->code, (*error)->message);
    }
    keep_if_left(block);
    return done;
}

static void adopted_done(const GError *error, gpointer user G_GNUC_UNUSED)
{
    if (error) {
        g_warning("a block job of an earlier process: %s", error->message);
    }
}

void be_block_jobs_recover(Be *be)
{
    g_autoptr(GPtrArray) left = NULL;

    g_mutex_lock(&be->block_jobs->lock);
    left = g_steal_pointer(&be->block_jobs->left);
    be->block_jobs->left = g_ptr_array_new_with_free_func(block_job_free);
    g_mutex_unlock(&be->block_jobs->lock);
    g_ptr_array_set_free_func(left, NULL);
    for (guint i = 0; i < left->len; i++) {
        BlockJob *block = g_ptr_array_index(left, i);
        g_autofree char *what = block_job_name(block);

        be_job_unref(be_job_submit(be, block->uuid, BE_JOB_WAITS, what, run_adopted, block,
                                   block_job_free, adopted_done, NULL));
    }
}
