/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * freeze-command.c - guests frozen by command, for so many seconds; see freeze.h.
 *
 * Action workers freeze and thaw, the timer thread ends what was held too long.
 */
#include "backend/freeze-priv.h"

#include <errno.h>
#include <libvirt/libvirt.h>

#include "backend/error.h"

/* Windows ends a freeze by VSS by itself (MS-VSS: flush and hold writes, 10 s). */
#define VSS_HOLDS_US (8 * G_USEC_PER_SEC)

void be_held_free(gpointer data)
{
    Held *held = data;

    g_source_destroy(held->timer);
    g_source_unref(held->timer);
    g_free(held);
}

gboolean be_freeze_is_held(Be *be, const char *uuid)
{
    gboolean held;

    g_mutex_lock(&be->freezes->lock);
    held = g_hash_table_contains(be->freezes->held, uuid);
    g_mutex_unlock(&be->freezes->lock);
    return held;
}

BeConsistency be_freeze_held_consistency(Be *be, const char *uuid)
{
    const Held *held;
    BeConsistency consistency;

    g_mutex_lock(&be->freezes->lock);
    held = g_hash_table_lookup(be->freezes->held, uuid);
    consistency = held ? held->consistency : BE_CONSISTENCY_CRASH;
    if (consistency == BE_CONSISTENCY_APPLICATION
        && g_get_real_time() - held->since_us > VSS_HOLDS_US) {
        consistency = BE_CONSISTENCY_CRASH;
    }
    g_mutex_unlock(&be->freezes->lock);
    return consistency;
}

gboolean be_freeze_print(Be *be, const char *uuid, GString *out)
{
    const Held *held;

    g_mutex_lock(&be->freezes->lock);
    held = g_hash_table_lookup(be->freezes->held, uuid);
    if (held) {
        g_string_append_printf(out, "kind: freeze\nobject: guest file systems\nseconds-left: %d\n",
                               (int)MAX(0, (held->since_us - g_get_real_time()) / G_USEC_PER_SEC
                                               + (gint64)held->seconds));
    }
    g_mutex_unlock(&be->freezes->lock);
    return held != NULL;
}

static gboolean drop_held(Be *be, const char *uuid)
{
    gboolean held;

    g_mutex_lock(&be->freezes->lock);
    held = g_hash_table_remove(be->freezes->held, uuid);
    g_mutex_unlock(&be->freezes->lock);
    return held;
}

/* The time is up: on the timer thread. */
static gboolean held_too_long(gpointer data)
{
    const BeThawLater *later = data;
    BeEvent event = {.kind = BE_EVENT_WARNING, .time_us = g_get_real_time(),
                     .domain_uuid = later->uuid, .errnum = ETIMEDOUT,
                     .text = "the time of the freeze is up; the guest is being thawed"};

    /* First: what is held is nobody's to thaw but its timer's. */
    drop_held(later->be, later->uuid);
    be_thaw_soon(later->be, later->uuid);
    be_notify(later->be, &event);
    return G_SOURCE_REMOVE;
}

typedef struct {
    char *uuid;
    char **mountpoints;
    guint seconds;
} Command;

static void command_free(gpointer data)
{
    Command *command = data;

    g_free(command->uuid);
    g_strfreev(command->mountpoints);
    g_free(command);
}

static gboolean run_freeze(Be *be, BeJob *job, gpointer data, GError **error)
{
    const Command *command = data;
    g_autoptr(BeVirDomain) domain = be_conn_domain(be->action_conn, command->uuid, error);
    BeConsistency means;
    Held *held;

    if (!domain || be_job_is_cancelled(job)
        || !be_freeze_begin(be, domain, command->uuid, (const char *const *)command->mountpoints,
                            command->seconds * 1000 + BE_WATCHDOG_GRACE_MS, &means, error)) {
        if (error && !*error) {
            g_set_error(error, BE_ERROR, ECANCELED, "cancelled");
        } else if (error && (*error)->code == BE_FREEZE_LOST) {
            (*error)->code = EHOSTDOWN;
        }
        return FALSE;
    }
    if (!be_job_no_return(job)) {
        be_freeze_end(be, domain, command->uuid, NULL);
        g_set_error(error, BE_ERROR, ECANCELED, "cancelled, and thawed");
        return FALSE;
    }
    held = g_new0(Held, 1);
    held->since_us = g_get_real_time();
    held->seconds = command->seconds;
    /* Some of the file systems are not the disk. */
    held->consistency = command->mountpoints ? BE_CONSISTENCY_CRASH : means;
    g_mutex_lock(&be->freezes->lock);
    held->timer = be_thaw_later(be, command->uuid, command->seconds * 1000, held_too_long);
    g_hash_table_insert(be->freezes->held, g_strdup(command->uuid), held);
    g_mutex_unlock(&be->freezes->lock);
    be_freeze_window_ends(be, command->uuid);
    return TRUE;
}

static gboolean run_thaw(Be *be, BeJob *job G_GNUC_UNUSED, gpointer data, GError **error)
{
    const Command *command = data;
    g_autoptr(BeVirDomain) domain = be_conn_domain(be->action_conn, command->uuid, error);
    gboolean thawed;

    if (!domain) {
        return FALSE;
    }
    thawed = be_freeze_end(be, domain, command->uuid, error);
    /* Nobody wants it frozen any more: what thaws it later finds nobody who holds it. */
    drop_held(be, command->uuid);
    return thawed;
}

static Command *command_new(const char *uuid, const char *const *mountpoints, guint seconds)
{
    Command *command = g_new0(Command, 1);

    command->uuid = g_strdup(uuid);
    command->mountpoints = g_strdupv((char **)mountpoints);
    command->seconds = seconds;
    return command;
}

BeJob *be_domain_freeze(Be *be, const char *uuid, const char *const *mountpoints, guint seconds,
                        BeDone done, gpointer user)
{
    if (be->read_only) {
        return be_job_refuse(be, g_error_new(BE_ERROR, EROFS, "this mount is read-only"), done,
                             user);
    }
    if (be_freeze_is_held(be, uuid)) {
        return be_job_refuse(be,
                             g_error_new(BE_ERROR, EBUSY,
                                         "the guest is frozen already; write 'thaw' first"),
                             done, user);
    }
    return be_job_submit(be, uuid, BE_JOB_AT_ONCE, "freeze", run_freeze,
                         command_new(uuid, mountpoints, seconds), command_free, done, user);
}

BeJob *be_domain_thaw(Be *be, const char *uuid, BeDone done, gpointer user)
{
    if (be->read_only) {
        return be_job_refuse(be, g_error_new(BE_ERROR, EROFS, "this mount is read-only"), done,
                             user);
    }
    return be_job_submit(be, uuid, BE_JOB_WAITS, "thaw", run_thaw, command_new(uuid, NULL, 0),
                         command_free, done, user);
}

/* ---- At the end --------------------------------------------------------------------------- */

static void thawed_at_stop(const GError *error, gpointer user G_GNUC_UNUSED)
{
    if (error) {
        g_warning("a guest may be frozen: %s", error->message);
    }
}

void be_freezes_end_all(Be *be)
{
    g_auto(GStrv) uuids = NULL;

    g_mutex_lock(&be->freezes->lock);
    uuids = (char **)g_hash_table_get_keys_as_array(be->freezes->held, NULL);
    for (guint i = 0; uuids[i]; i++) {
        uuids[i] = g_strdup(uuids[i]);
    }
    g_mutex_unlock(&be->freezes->lock);
    for (guint i = 0; uuids[i]; i++) {
        be_job_unref(be_domain_thaw(be, uuids[i], thawed_at_stop, NULL));
    }
}
