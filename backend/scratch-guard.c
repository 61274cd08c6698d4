/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * scratch-guard.c - the thread that looks at a backup's scratch space.
 *
 * One thread for each live backup, so that a network file system that hangs
 * neither stops a deadline nor the guard of another.  It looks ten times a second,
 * and at once when QEMU says that a scratch image has grown past its threshold:
 * half of the room that was left when that was set.  Query workers set thresholds
 * and give up.  A backup's lock is held for field work only.
 */
#include <libvirt/libvirt.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "backend/error.h"
#include "backend/job.h"
#include "backend/scratch.h"

/* A guest under TCG filled 16 MiB in 0.36 s (facts); this is a look in time. */
#define LOOK_US (G_USEC_PER_SEC / 10)

/* Nearer thresholds come faster than they can be set. */
#define STEP_MIN (256 * 1024)

/* What a look has found. */
typedef struct {
    guint64 used;              /* bytes of the scratch images */
    guint64 free;              /* of the file system */
    dev_t device;
} Room;

static gboolean look(const char *path, Room *ret_room)
{
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    struct statvfs space;
    struct stat attr;
    const char *name;

    memset(ret_room, 0, sizeof(*ret_room));
    if (!dir || statvfs(path, &space) < 0 || stat(path, &attr) < 0) {
        return FALSE;
    }
    ret_room->free = (guint64)space.f_bavail * space.f_frsize;
    ret_room->device = attr.st_dev;
    while ((name = g_dir_read_name(dir))) {
        g_autofree char *file = g_build_filename(path, name, NULL);

        if (lstat(file, &attr) == 0) {
            ret_room->used += (guint64)attr.st_blocks * 512;
        }
    }
    return TRUE;
}

/* ---- Thresholds --------------------------------------------------------------- */

static void set_threshold(virDomainPtr domain, const BeXmlBackupDisk *disk, guint64 step)
{
    g_autofree char *device = g_strdup_printf("%s[%u]", disk->target, disk->scratch_index);
    struct stat attr;

    if (stat(disk->scratch, &attr) == 0
        && virDomainSetBlockThreshold(domain, device, (guint64)attr.st_size + step, 0) < 0) {
        g_autoptr(GError) error = NULL;

        be_error_from_libvirt(&error, "no threshold on scratch space");
        g_info("%s", error->message);
    }
}

/* Where it cannot be done the looks remain. */
static void arm(Be *be, gpointer data)
{
    Backup *backup = data;
    g_autoptr(BeVirDomain) domain =
        be_conn_domain(be->query_conn, backup->pub.domain_uuid, NULL);
    g_autoptr(BeXmlBackup) xml = be_xml_backup_parse(backup->pub.backup_xml, NULL);
    guint64 step;
    Room room;

    if (!domain || !xml || !look(backup->scratch_path, &room)
        || be_backup_state(&backup->pub, NULL) != BE_BACKUP_RUNNING) {
        return;
    }
    step = room.free > be->scratch_reserve ? room.free - be->scratch_reserve : 0;
    step = MAX(step / 2 / MAX(xml->disks->len, 1), STEP_MIN);
    for (guint i = 0; i < xml->disks->len; i++) {
        const BeXmlBackupDisk *disk = g_ptr_array_index(xml->disks, i);

        if (disk->backup && disk->scratch && disk->scratch_index) {
            set_threshold(domain, disk, step);
        }
    }
}

static void unref_backup(gpointer data)
{
    be_backup_unref(data);
}

static void arm_later(Backup *backup)
{
    be_query(backup->be, arm, be_backup_ref(&backup->pub), unref_backup);
}

/* ---- The guard ------------------------------------------------------------------ */

/* Whether ending @other gives, or will give, its room back to us. */
static gboolean comes_first(Backup *other, const Backup *backup, const Room *room)
{
    BeBackupState state = be_backup_state(&other->pub, NULL);
    gboolean first;

    g_mutex_lock(&other->lock);
    first = other->scratch_device == room->device && !other->released
            && (state != BE_BACKUP_RUNNING || other->scratch_used > room->used
                || (other->scratch_used == room->used && other < backup));
    g_mutex_unlock(&other->lock);
    return first;
}

/*
 * Of several backups on one file system the one that takes most is given up
 * first, and the others wait for its room as long as half of the reserve is left.
 */
static gboolean another_gives_room(Backup *backup, const Room *room)
{
    g_autoptr(GPtrArray) all = be_backups(backup->be, NULL);
    gboolean found = FALSE;

    for (guint i = 0; i < all->len && !found; i++) {
        Backup *other = g_ptr_array_index(all, i);

        found = other != backup && other->scratch_path && comes_first(other, backup, room);
    }
    return found && room->free >= backup->be->scratch_reserve / 2;
}

static gboolean has_room(Backup *backup, const Room *room)
{
    return room->free >= backup->be->scratch_reserve || another_gives_room(backup, room);
}

/* Returns: whether a threshold was passed. */
static gboolean note_and_wait(Backup *backup, const Room *room)
{
    gint64 until_us = g_get_monotonic_time() + LOOK_US;
    gboolean kicked;

    g_mutex_lock(&backup->lock);
    backup->scratch_used = room->used;
    backup->scratch_free = room->free;
    backup->scratch_device = room->device;
    while (!backup->scratch_kicked
           && g_cond_wait_until(&backup->scratch_cond, &backup->lock, until_us)) {
        continue;
    }
    kicked = backup->scratch_kicked;
    backup->scratch_kicked = FALSE;
    g_mutex_unlock(&backup->lock);
    return kicked;
}

static gpointer guard_main(gpointer data)
{
    Backup *backup = data;
    BeJobs *jobs = backup->be->jobs;
    Room room = {0};

    while (be_backup_state(&backup->pub, NULL) == BE_BACKUP_RUNNING) {
        if (look(backup->scratch_path, &room) && !has_room(backup, &room)) {
            be_query(backup->be, be_scratch_give_up, be_backup_ref(&backup->pub), unref_backup);
            break;
        }
        if (note_and_wait(backup, &room)) {
            arm_later(backup);
        }
    }
    be_backup_unref(&backup->pub);
    be_jobs_release(jobs);
    return NULL;
}

void be_scratch_watch(Backup *backup)
{
    GThread *thread;

    be_jobs_hold(backup->be->jobs);
    be_backup_ref(&backup->pub);
    thread = g_thread_try_new("be-scratch", guard_main, backup, NULL);
    if (!thread) {
        g_warning("backup '%s' cannot be guarded: no thread", backup->pub.name);
        be_query(backup->be, be_scratch_give_up, backup, unref_backup);
        be_jobs_release(backup->be->jobs);
        return;
    }
    g_thread_unref(thread);
    arm_later(backup);
}

void be_scratch_kick(Be *be, const char *uuid)
{
    g_autoptr(GPtrArray) backups = be_backups(be, uuid);

    g_debug("%s: a scratch image has passed its threshold", uuid);
    for (guint i = 0; i < backups->len; i++) {
        Backup *backup = g_ptr_array_index(backups, i);

        g_mutex_lock(&backup->lock);
        backup->scratch_kicked = TRUE;
        g_cond_signal(&backup->scratch_cond);
        g_mutex_unlock(&backup->lock);
    }
}

void be_scratch_print(Backup *backup, GString *out)
{
    guint64 used, left;
    gboolean seen;

    g_mutex_lock(&backup->lock);
    seen = backup->scratch_device != 0;
    used = backup->scratch_used;
    left = backup->scratch_free;
    g_mutex_unlock(&backup->lock);
    if (seen) {
        g_string_append_printf(out,
                               "scratch-used: %" G_GUINT64_FORMAT "\nscratch-free: %"
                               G_GUINT64_FORMAT "\nscratch-reserve: %" G_GUINT64_FORMAT "\n",
                               used, left, backup->be->scratch_reserve);
    }
}
