/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * idle.c - a backup that nobody reads any more is ended (-o idle-end).
 *
 * A backup that was forgotten fills the scratch space and keeps its domain from
 * every other job.  The timer thread looks; an action worker ends it.  An open
 * file is a reader, whether or not it reads now.
 */
#include <errno.h>

#include "backend/backup.h"
#include "backend/disk.h"

#define LOOK_MS 500

typedef struct {
    Backup *backup;
    guint64 bytes;             /* that had been read at the last look */
    gint64 since_us;           /* monotonic: not idle then */
} Idle;

static void idle_free(gpointer data)
{
    Idle *idle = data;

    be_backup_unref(&idle->backup->pub);
    g_free(idle);
}

/* Whether a file is open or was read since the last look. */
static gboolean in_use(Idle *idle)
{
    guint64 bytes = 0;
    guint readers = 0;
    gboolean used;

    for (guint i = 0; i < idle->backup->pub.disks->len; i++) {
        const BeDisk *disk = g_ptr_array_index(idle->backup->pub.disks, i);

        readers += be_disk_readers(disk);
        bytes += be_disk_bytes_read(disk);
    }
    used = readers > 0 || bytes != idle->bytes;
    idle->bytes = bytes;
    return used;
}

/* Not ended now (the host does not answer): it is watched on. */
static void ended(const GError *error, gpointer user)
{
    Backup *backup = user;

    if (error) {
        g_warning("backup '%s' is idle and was not ended: %s", backup->pub.name, error->message);
        be_idle_watch(backup);
    }
    be_backup_unref(&backup->pub);
}

static void end(Backup *backup)
{
    g_autofree char *text =
        g_strdup_printf("ended: nobody has read it for %u s (-o idle-end=%u)",
                        backup->be->idle_end, backup->be->idle_end);

    backup_notify(backup, BE_EVENT_WARNING, ETIMEDOUT, text);
    be_job_unref(be_backup_end(backup->be, &backup->pub, BE_VERDICT_TAKEN, ended,
                               be_backup_ref(&backup->pub)));
}

static gboolean look(gpointer data)
{
    Idle *idle = data;
    gint64 now_us = g_get_monotonic_time();

    if (be_backup_state(&idle->backup->pub, NULL) != BE_BACKUP_RUNNING) {
        return G_SOURCE_REMOVE;
    }
    if (in_use(idle)) {
        idle->since_us = now_us;
    }
    if (now_us - idle->since_us < (gint64)idle->backup->be->idle_end * G_USEC_PER_SEC) {
        return G_SOURCE_CONTINUE;
    }
    end(idle->backup);
    return G_SOURCE_REMOVE;
}

void be_idle_watch(Backup *backup)
{
    Idle *idle;

    if (backup->be->idle_end == 0 || g_atomic_int_get(&backup->be->stopping)) {
        return;
    }
    idle = g_new0(Idle, 1);
    idle->backup = (Backup *)be_backup_ref(&backup->pub);
    idle->since_us = g_get_monotonic_time();
    g_source_unref(be_timer_add(backup->be, LOOK_MS, look, idle, idle_free));
}
