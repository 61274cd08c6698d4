/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * files-thread.c - the thread "files" of a BeFiles: one appliance after the other,
 * as long as somebody asks.
 */
#include <errno.h>

#include "backend/files-priv.h"

/* Nothing is started again for so long: after a start in vain; after crashes. */
#define HOLD_START_US (5 * G_USEC_PER_SEC)
#define HOLD_CRASH_US (10 * G_USEC_PER_SEC)
#define CRASHES_MAX 3

/* ---- With KVM or without ------------------------------------------------------ */

static FilesEnd run_by_any_means(BeFiles *files, GError **error)
{
    g_autoptr(GError) kvm_error = NULL;
    FilesEnd end;

    if (be_files_pool_wants_tcg(files->pool)) {
        return be_files_run(files, TRUE, error);
    }
    end = be_files_run(files, FALSE, &kvm_error);
    if (end == FILES_END_KVM) {
        be_files_pool_kvm_fails(files->pool);
        return be_files_run(files, TRUE, error);
    }
    if (kvm_error) {
        g_propagate_error(error, g_steal_pointer(&kvm_error));
    }
    return end;
}

/* ---- The thread -------------------------------------------------------------- */

/* A broken file system must not have one appliance started after the other. */
static void note_failure_locked(BeFiles *files, const GError *error)
{
    gint64 now_us = g_get_monotonic_time();
    gboolean in_use = files->volumes != NULL;

    if (error->code == EBUSY) {
        return;
    }
    files->crashes = now_us - files->crash_us < G_USEC_PER_SEC * 60 ? files->crashes + 1 : 1;
    files->crash_us = now_us;
    if (!in_use || files->crashes >= CRASHES_MAX) {
        g_clear_error(&files->hold_error);
        files->hold_error = g_error_copy(error);
        files->hold_us = now_us + (in_use ? HOLD_CRASH_US : HOLD_START_US);
    }
}

/* Whether there is nothing more to do; if not, calls came while an appliance ended. */
static gboolean finish(BeFiles *files, const GError *error)
{
    gboolean over;

    g_mutex_lock(&files->lock);
    if (error && !files->closed) {
        note_failure_locked(files, error);
    }
    files->evicted = FALSE;
    over = !files->submitted.head;
    if (over) {
        files->gives_way = FALSE;
        files->running = FALSE;
        files->thread = NULL;
        g_cond_broadcast(&files->changed);
    }
    g_mutex_unlock(&files->lock);
    return over;
}

static GError *ask(BeFiles *files, GError *(*question)(const BeFiles *files))
{
    GError *error;

    g_mutex_lock(&files->lock);
    error = question(files);
    g_mutex_unlock(&files->lock);
    return error;
}

gpointer be_files_thread(gpointer data)
{
    BeFiles *files = data;
    gboolean over;

    do {
        g_autoptr(GError) error = ask(files, be_files_refusal_locked);
        FilesEnd end = FILES_END_FAILED;
        gboolean refused = error != NULL;

        if (!error && be_files_pool_enter(files, &error)) {
            end = run_by_any_means(files, &error);
            be_files_pool_leave(files);
        }
        if (!error) {
            error = ask(files, be_files_stopped_locked);
        }
        /* Who has not asked the one that died yet asks the next one. */
        if (error && end != FILES_END_DIED) {
            be_files_fail_submitted(files, error);
        }
        over = finish(files, refused ? NULL : error);
    } while (!over);
    be_files_pool_remove(files);
    return NULL;
}
