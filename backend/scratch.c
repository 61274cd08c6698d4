/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * scratch.c - the guard over scratch space; see scratch.h.
 *
 * What is decided before and after; scratch-guard.c looks meanwhile.  Workers.
 */
#include "backend/scratch.h"

#include <errno.h>
#include <libvirt/libvirt.h>
#include <sys/statvfs.h>

#include "backend/error.h"

/* What a new scratch image needs before the first block is in it. */
#define START_BYTES (1024 * 1024)

static gboolean available(const char *dir, guint64 *ret_bytes)
{
    struct statvfs space;

    if (statvfs(dir, &space) < 0) {
        return FALSE;
    }
    *ret_bytes = (guint64)space.f_bavail * space.f_frsize;
    return TRUE;
}

gboolean be_scratch_check_start(Be *be, const char *dir, guint64 sure_bytes, GError **error)
{
    guint64 bytes;

    if (!available(dir, &bytes)) {
        be_error_set_errno(error, errno, "scratch directory '%s'", dir);
        return FALSE;
    }
    if (bytes < be->scratch_reserve + START_BYTES) {
        g_set_error(error, BE_ERROR, ENOSPC,
                    "scratch directory '%s' has %" G_GUINT64_FORMAT " bytes free, less than the "
                    "reserve of %" G_GUINT64_FORMAT " and 1 MiB; see -o scratch= and "
                    "-o scratch-reserve=",
                    dir, bytes, be->scratch_reserve);
        return FALSE;
    }
    if (bytes < be->scratch_reserve + START_BYTES + sure_bytes) {
        g_set_error(error, BE_ERROR, ENOSPC,
                    "scratch directory '%s' has %" G_GUINT64_FORMAT " bytes free; a disk with "
                    "error_policy='report' would hand its guest an error if that were not enough, "
                    "so it needs room for all it holds: %" G_GUINT64_FORMAT " bytes",
                    dir, bytes, sure_bytes);
        return FALSE;
    }
    return TRUE;
}

/* ---- While it runs ------------------------------------------------------------------ */

void be_scratch_give_up(Be *be G_GNUC_UNUSED, gpointer data)
{
    Backup *backup = data;
    g_autofree char *reason = g_strdup_printf(
        "given up: less than the reserve of %" G_GUINT64_FORMAT " bytes was left in '%s', and the "
        "guest writes faster than this backup is read",
        backup->be->scratch_reserve, backup->scratch_path);

    g_atomic_int_set(&backup->scratch_full, 1);
    backup_fail(backup, reason);
}

/* ---- When it came too late ------------------------------------------------------------ */

static gboolean is_paused(virDomainPtr domain)
{
    int state, reason;

    return virDomainGetState(domain, &state, &reason, 0) == 0 && state == VIR_DOMAIN_PAUSED
           && reason == VIR_DOMAIN_PAUSED_IOERROR;
}

gboolean be_scratch_stalls(Backup *backup, virDomainPtr domain)
{
    guint64 bytes;

    return backup->scratch_path && is_paused(domain) && available(backup->scratch_path, &bytes)
           && bytes < backup->be->scratch_reserve + START_BYTES;
}

void be_scratch_rescue(Backup *backup)
{
    g_atomic_int_set(&backup->scratch_full, 1);
    backup_fail(backup, "ended: the scratch space was full and the guest was paused by an I/O "
                        "error; it goes on");
}

void be_scratch_resume(Backup *backup)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BeVirDomain) domain = NULL;

    if (!g_atomic_int_get(&backup->scratch_full)) {
        return;
    }
    domain = be_conn_domain(backup->be->action_conn, backup->pub.domain_uuid, &error);
    if (!domain || !is_paused(domain)) {
        return;
    }
    if (virDomainResume(domain) < 0) {
        be_error_from_libvirt(&error, "the guest is paused and cannot be resumed");
        backup_notify(backup, BE_EVENT_WARNING, EIO, error->message);
    } else {
        backup_notify(backup, BE_EVENT_WARNING, ENOSPC,
                      "the scratch space was full: the guest was paused, and goes on now");
    }
    be_inventory_touch(backup->be);
}
