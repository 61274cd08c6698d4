/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * space.c - the room in the scratch directory, for those who ask with statfs.
 *
 * "be-space" looks; any thread reads what it saw.  A network file system that does
 * not answer stops this thread and no other.
 */
#include <sys/statvfs.h>

#include "backend/job.h"

#define LOOK_US G_USEC_PER_SEC

static gpointer space_main(gpointer data)
{
    Be *be = data;
    gboolean over = FALSE;

    while (!over) {
        struct statvfs space;
        gboolean seen = statvfs(be->scratch_dir, &space) == 0;

        g_mutex_lock(&be->space_lock);
        if (seen) {
            be->space_total = (guint64)space.f_blocks * space.f_frsize;
            be->space_available = (guint64)space.f_bavail * space.f_frsize;
        }
        if (!be->space_over) {
            g_cond_wait_until(&be->space_over_cond, &be->space_lock,
                              g_get_monotonic_time() + LOOK_US);
        }
        over = be->space_over;
        g_mutex_unlock(&be->space_lock);
    }
    be_jobs_release(be->jobs);
    return NULL;
}

void be_space_start(Be *be)
{
    be_jobs_hold(be->jobs);
    g_thread_unref(g_thread_new("be-space", space_main, be));
}

void be_space_stop(Be *be)
{
    g_mutex_lock(&be->space_lock);
    be->space_over = TRUE;
    g_cond_signal(&be->space_over_cond);
    g_mutex_unlock(&be->space_lock);
}

void be_scratch_space(Be *be, guint64 *ret_total, guint64 *ret_available)
{
    g_mutex_lock(&be->space_lock);
    *ret_total = be->space_total;
    *ret_available = be->space_available;
    g_mutex_unlock(&be->space_lock);
}
