/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * progress.c - how far the reading of a backup is, and how fast it may be.
 *
 * Any thread; nothing here blocks.
 */
#include <errno.h>

#include "backend/backup.h"
#include "backend/disk.h"
#include "backend/error.h"
#include "backend/scratch.h"

/* Less would let a single request wait for longer than anybody does. */
#define RATE_MIN (64u * 1024)

BackupProgress backup_progress(const Backup *backup)
{
    BackupProgress progress = {.done = 1};
    double done = 0;

    for (guint i = 0; i < backup->pub.disks->len; i++) {
        const BeDisk *disk = g_ptr_array_index(backup->pub.disks, i);

        progress.size += disk->size;
        progress.bytes += be_disk_bytes_read(disk);
        progress.rate += be_disk_read_rate(disk);
        done += be_disk_progress(disk) * (double)disk->size;
    }
    if (progress.size > 0) {
        progress.done = done / (double)progress.size;
    }
    return progress;
}

void be_backup_job_print(BeBackup *pub, GString *out)
{
    const Backup *backup = (const Backup *)pub;
    BackupProgress progress = backup_progress(backup);
    guint64 limit = be_rate_get(backup->rate);

    g_string_append_printf(out, "kind: backup\nobject: backups/%s\nstate: %s\n", pub->name,
                           be_backup_state_name(be_backup_state(pub, NULL)));
    if (pub->frozen_us) {
        g_string_append_printf(out, "frozen-ms: %" G_GINT64_FORMAT "\n", pub->frozen_us / 1000);
    }
    g_string_append_printf(out, "bytes-read: %" G_GUINT64_FORMAT "\n", progress.bytes);
    g_string_append_printf(out, "bytes-total: %" G_GUINT64_FORMAT "\n", progress.size);
    g_string_append_printf(out, "percent: %.1f\n", 100 * progress.done);
    g_string_append_printf(out, "bytes-per-second: %" G_GUINT64_FORMAT "\n", progress.rate);
    if (limit) {
        g_string_append_printf(out, "rate-limit: %" G_GUINT64_FORMAT "\n", limit);
    }
    be_scratch_print((Backup *)pub, out);
}

gboolean be_backup_set_rate(BeBackup *pub, guint64 bytes_per_second, GError **error)
{
    Backup *backup = (Backup *)pub;

    if (bytes_per_second > 0 && bytes_per_second < RATE_MIN) {
        g_set_error(error, BE_ERROR, EINVAL,
                    "the rate is in bytes per second, at least %u; 0 is no limit", RATE_MIN);
        return FALSE;
    }
    be_rate_set(backup->rate, bytes_per_second);
    for (guint i = 0; i < pub->disks->len; i++) {
        be_disk_set_rate(g_ptr_array_index(pub->disks, i), backup->rate);
    }
    return TRUE;
}
