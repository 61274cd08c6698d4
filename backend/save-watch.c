/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * save-watch.c - memory that is being saved; see save-watch.h.
 *
 * The call runs on a thread "be-save", so that the action worker can look after it.
 */
#include "backend/save-watch.h"

#include <errno.h>
#include <libvirt/virterror.h>

#include "backend/merge-progress.h"

#define LOOK_US (20 * 1000)
#define LOOKS_PER_PROGRESS 5

typedef struct {
    BeSaveCall call;
    gpointer data;
    gboolean good;
    GError *error;
    gint over;                 /* atomic */
} Save;

static gpointer save_main(gpointer data)
{
    Save *save = data;

    save->good = save->call(save->data, &save->error);
    g_atomic_int_set(&save->over, 1);
    return NULL;
}

/*
 * Aborts the job only if it saves memory: ours may still wait for the end of one of
 * another program, which is not to be harmed.
 */
static void abort_save(virDomainPtr domain)
{
    virTypedParameterPtr params = NULL;
    int type, count = 0, operation = VIR_DOMAIN_JOB_OPERATION_UNKNOWN;

    if (virDomainGetJobStats(domain, &type, &params, &count, 0) == 0) {
        (void)virTypedParamsGetInt(params, count, VIR_DOMAIN_JOB_OPERATION, &operation);
    }
    virTypedParamsFree(params, count);
    if ((operation == VIR_DOMAIN_JOB_OPERATION_SAVE
         || operation == VIR_DOMAIN_JOB_OPERATION_SNAPSHOT)
        && virDomainAbortJob(domain) < 0) {
        g_debug("the save cannot be aborted in this moment");
    }
}

static void show_progress(virDomainPtr domain, const char *uuid, const char *kind,
                          const char *object)
{
    virDomainJobInfo info;

    if (virDomainGetJobInfo(domain, &info) == 0 && info.dataTotal > 0) {
        be_progress_set(uuid, kind, object, info.dataProcessed, info.dataTotal);
    }
}

gboolean be_save_watched(virDomainPtr domain, const char *uuid, BeJob *job, const char *kind,
                         const char *object, BeSaveCall call, gpointer data, GError **error)
{
    Save save = {.call = call, .data = data};
    GThread *thread = g_thread_try_new("be-save", save_main, &save, NULL);

    if (!thread) {
        g_set_error(error, BE_ERROR, EAGAIN, "no thread can be started; try again");
        return FALSE;
    }
    /* libvirt forgets an abort that comes before QEMU writes: it is repeated until the end. */
    for (guint looks = 0; !g_atomic_int_get(&save.over); looks++) {
        if (be_job_is_cancelled(job)) {
            abort_save(domain);
        } else if (looks % LOOKS_PER_PROGRESS == 0) {
            show_progress(domain, uuid, kind, object);
        }
        g_usleep(LOOK_US);
    }
    g_thread_join(thread);
    be_progress_clear(uuid);
    if (save.error) {
        g_propagate_error(error, save.error);
    }
    return save.good;
}
