/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * freeze.c - freeze and thaw; see freeze.h.
 *
 * Action workers freeze; action and query workers thaw; the timer thread only
 * submits.  `lock` guards the table and is not held across a call.
 */
#include "backend/freeze-priv.h"

#include <errno.h>
#include <libvirt/libvirt.h>
#include <string.h>

#include "backend/backup.h"
#include "backend/error.h"
#include "backend/freeze-channel.h"
#include "backend/step.h"
#include "backend/watchdog.h"

#define THAW_WAIT_US (10 * G_USEC_PER_SEC)

/* An agent that died is back by then, where anybody starts it again. */
#define AGENT_BACK_US (5 * G_USEC_PER_SEC)
#define THAW_POLL_US (200 * 1000)

/* libvirt finds an agent that is back in this time, or does not while a backup runs. */
#define LIBVIRT_BACK_US (2 * G_USEC_PER_SEC)

/* A hook in the guest may freeze after we gave up: thaw again by then. */
#define LATE_FREEZE_MS 12000

/* The freeze itself takes up to 5 s, which are not those of the window. */
#define FREEZE_TAKES_MS 7000

/* As often a thaw that failed is sent again, as long as it takes. */
#define RETRY_MS 5000

BeFreezes *be_freezes_new(Be *be, GError **error)
{
    BeWatchdog *watchdog = be_watchdog_new(be->uri, error);
    BeFreezes *freezes;

    if (!watchdog) {
        return NULL;
    }
    freezes = g_new0(BeFreezes, 1);
    freezes->watchdog = watchdog;
    g_mutex_init(&freezes->lock);
    freezes->retried = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    freezes->windows = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    freezes->rebooted = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    freezes->held = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, be_held_free);
    return freezes;
}

void be_freezes_free(BeFreezes *freezes)
{
    if (!freezes) {
        return;
    }
    be_watchdog_free(freezes->watchdog);
    g_hash_table_unref(freezes->held);
    g_hash_table_unref(freezes->retried);
    g_hash_table_unref(freezes->rebooted);
    g_hash_table_unref(freezes->windows);
    g_mutex_clear(&freezes->lock);
    g_free(freezes);
}

/* ---- Thawing ---------------------------------------------------------------------- */

void be_freezes_rebooted(Be *be, const char *uuid)
{
    if (be->freezes) {
        g_mutex_lock(&be->freezes->lock);
        g_hash_table_add(be->freezes->rebooted, g_strdup(uuid));
        g_mutex_unlock(&be->freezes->lock);
    }
}

static gboolean is_in(Be *be, GHashTable *set, const char *uuid)
{
    gboolean found;

    g_mutex_lock(&be->freezes->lock);
    found = g_hash_table_contains(set, uuid);
    g_mutex_unlock(&be->freezes->lock);
    return found;
}

/* Only what is known to be frozen is worth the taint of the domain. */
static gboolean thaw_past_libvirt(Be *be, virDomainPtr domain, const char *uuid)
{
    BeEvent event = {.kind = BE_EVENT_WARNING, .domain_uuid = uuid, .errnum = EHOSTDOWN,
                     .text = "the guest agent went away before the thaw, and libvirt has lost "
                             "it: the guest was thawed without libvirt, which finds the agent "
                             "again when libvirtd is restarted (guests go on)"};
    g_autoptr(GError) error = NULL;

    if (!be_journal_is_marked(be, uuid)) {
        return FALSE;
    }
    if (!be_channel_thaw_past_libvirt(domain, &error)) {
        g_info("not thawed past libvirt: %s", error->message);
        return FALSE;
    }
    event.time_us = g_get_real_time();
    event.domain_name = virDomainGetName(domain);
    be_notify(be, &event);
    return TRUE;
}

/* A guest that is off or gone is not frozen; nor is one that was reset since. */
static gboolean thaw_or_gone(Be *be, virDomainPtr domain, const char *uuid,
                             gboolean past_libvirt, GError **error)
{
    g_autoptr(GError) failed = NULL;

    if (be_freeze_thaw_once(domain, &failed) || virDomainIsActive(domain) == 0
        || (be_freeze_agent_is_gone(failed)
            && (is_in(be, be->freezes->rebooted, uuid)
                || (past_libvirt && thaw_past_libvirt(be, domain, uuid))))) {
        return TRUE;
    }
    g_propagate_error(error, g_steal_pointer(&failed));
    return FALSE;
}

static void forget(Be *be, const char *uuid)
{
    be_watchdog_disarm(be->freezes->watchdog, uuid);
    be_journal_unmark(be, uuid);
}

/* ---- Thawing later -------------------------------------------------------------------- */

static void retry_thaw(Be *be, const char *uuid);

static void thaw_marked(Be *be, const char *uuid, gboolean past_libvirt)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BeVirDomain) domain = be_conn_domain(be->query_conn, uuid, &error);

    if ((!domain && error->code == ENOENT)
        || (domain && thaw_or_gone(be, domain, uuid, past_libvirt, &error))) {
        forget(be, uuid);
    } else {
        g_warning("a guest may be frozen: %s", error->message);
        retry_thaw(be, uuid);
    }
}

/* It may have been thawed meanwhile, and be frozen again by who will thaw it. */
static void thaw_on_worker(Be *be, gpointer data)
{
    const char *uuid = data;

    if (is_in(be, be->freezes->windows, uuid)) {
        retry_thaw(be, uuid);
    } else if (be_journal_is_marked(be, uuid) && !be_freeze_is_held(be, uuid)) {
        thaw_marked(be, uuid, TRUE);
    }
}

void be_thaw_soon(Be *be, const char *uuid)
{
    be_query(be, thaw_on_worker, g_strdup(uuid), g_free);
}

static void later_free(gpointer data)
{
    BeThawLater *later = data;

    g_free(later->uuid);
    g_free(later);
}

static gboolean thaw_later_now(gpointer data)
{
    const BeThawLater *later = data;

    be_thaw_soon(later->be, later->uuid);
    return G_SOURCE_REMOVE;
}

GSource *be_thaw_later(Be *be, const char *uuid, guint delay_ms, GSourceFunc func)
{
    BeThawLater *later = g_new0(BeThawLater, 1);

    later->be = be;
    later->uuid = g_strdup(uuid);
    return be_timer_add(be, delay_ms, func, later, later_free);
}

static gboolean retry_now(gpointer data)
{
    const BeThawLater *later = data;

    g_mutex_lock(&later->be->freezes->lock);
    g_hash_table_remove(later->be->freezes->retried, later->uuid);
    g_mutex_unlock(&later->be->freezes->lock);
    return thaw_later_now(data);
}

/* An agent that is gone comes back, with the next boot of its guest at the latest. */
static void retry_thaw(Be *be, const char *uuid)
{
    gboolean first;

    g_mutex_lock(&be->freezes->lock);
    first = g_hash_table_add(be->freezes->retried, g_strdup(uuid));
    g_mutex_unlock(&be->freezes->lock);
    if (first && !g_atomic_int_get(&be->stopping)) {
        g_source_unref(be_thaw_later(be, uuid, RETRY_MS, retry_now));
    }
}

/* ---- Freeze and thaw ------------------------------------------------------------------- */

static gboolean end_within(Be *be, virDomainPtr domain, const char *uuid, gint64 wait_us,
                           GError **error)
{
    gint64 begin_us = g_get_monotonic_time(), since_us = 0;
    g_autoptr(GError) last = NULL;

    while (!thaw_or_gone(be, domain, uuid, since_us > LIBVIRT_BACK_US, &last)) {
        since_us = g_get_monotonic_time() - begin_us;
        if (since_us > wait_us) {
            g_propagate_error(error, g_steal_pointer(&last));
            return FALSE;
        }
        g_clear_error(&last);
        g_usleep(THAW_POLL_US);
    }
    be_crash_point("freeze", "thaw", "after");
    forget(be, uuid);
    be_crash_point("freeze", "forget", "after");
    return TRUE;
}

/* Agents that are not there have frozen nothing; nor has one that was frozen before. */
static gboolean froze_nothing(const GError *error)
{
    return error->code == EBUSY || error->code == EOPNOTSUPP
           || strstr(error->message, "not connected") != NULL
           || strstr(error->message, "not configured") != NULL;
}

/* Adds to @error what is not over yet. */
static void freeze_failed(Be *be, virDomainPtr domain, const char *uuid, gboolean was_marked,
                          GError *error)
{
    g_autoptr(GError) thaw_error = NULL;

    if (froze_nothing(error)) {
        if (!was_marked) {     /* else an earlier freeze of ours is not over */
            forget(be, uuid);
        }
        return;
    }
    if (be_freeze_agent_is_gone(error)) {
        gboolean thawed = end_within(be, domain, uuid, AGENT_BACK_US, &thaw_error);

        if (!thawed || is_in(be, be->freezes->rebooted, uuid)) {
            error->code = BE_FREEZE_LOST;
        }
        if (thawed) {
            return;
        }
    } else if (!thaw_or_gone(be, domain, uuid, FALSE, &thaw_error)) {
        g_info("%s", thaw_error->message);
    } else if (error->code == EINVAL) {
        forget(be, uuid);      /* the agent answered: it is in no slow hook */
        return;
    }
    if (!be_watchdog_arm(be->freezes->watchdog, uuid, LATE_FREEZE_MS + BE_WATCHDOG_GRACE_MS,
                         NULL)) {
        g_warning("the watchdog does not watch a guest whose freeze failed");
    }
    g_source_unref(be_thaw_later(be, uuid, LATE_FREEZE_MS, thaw_later_now));
}

static guint strv_count(const char *const *strv)
{
    return strv ? g_strv_length((char **)strv) : 0;
}

/*
 * An agent that does not even say what it runs on is asked for nothing that it may do
 * later: so that nothing has to be thawed.
 */
static gboolean agent_answers(Be *be, virDomainPtr domain, const char *uuid,
                              BeConsistency *ret_means, GError **error)
{
    g_autoptr(GError) silent = NULL;

    if (be_freeze_ask(domain, ret_means, &silent)) {
        return TRUE;
    }
    if (be_freeze_agent_is_gone(silent)) {
        if (be_journal_is_marked(be, uuid)) {
            silent->code = BE_FREEZE_LOST;      /* of an earlier freeze */
        }
        g_propagate_prefixed_error(error, g_steal_pointer(&silent),
                                   "libvirt has lost the guest agent (of a guest that was "
                                   "rebooted during a backup, perhaps): restart libvirtd (guests "
                                   "go on) if it stays so: ");
        return FALSE;
    }
    g_propagate_error(error, g_steal_pointer(&silent));
    return FALSE;
}

static void not_rebooted_yet(Be *be, const char *uuid)
{
    g_mutex_lock(&be->freezes->lock);
    g_hash_table_remove(be->freezes->rebooted, uuid);
    g_mutex_unlock(&be->freezes->lock);
}

static void window_begins(Be *be, const char *uuid)
{
    g_mutex_lock(&be->freezes->lock);
    g_hash_table_add(be->freezes->windows, g_strdup(uuid));
    g_mutex_unlock(&be->freezes->lock);
}

void be_freeze_window_ends(Be *be, const char *uuid)
{
    g_mutex_lock(&be->freezes->lock);
    g_hash_table_remove(be->freezes->windows, uuid);
    g_mutex_unlock(&be->freezes->lock);
}

gboolean be_freeze_begin(Be *be, virDomainPtr domain, const char *uuid,
                         const char *const *mountpoints, guint watch_ms,
                         BeConsistency *ret_means, GError **error)
{
    g_autoptr(GError) freeze_error = NULL;
    gboolean was_marked = be_journal_is_marked(be, uuid);
    int state, frozen;

    if (virDomainGetState(domain, &state, NULL, 0) < 0) {
        be_error_from_libvirt(error, "cannot look at the domain");
        return FALSE;
    }
    /* The agent of a paused guest cannot answer. */
    if (state != VIR_DOMAIN_RUNNING) {
        g_set_error(error, BE_ERROR, EINVAL, "the domain is not running");
        return FALSE;
    }
    if (!agent_answers(be, domain, uuid, ret_means, error)
        || !be_journal_mark(be, uuid, error)) {
        return FALSE;
    }
    be_crash_point("freeze", "mark", "after");
    if (!be_watchdog_arm(be->freezes->watchdog, uuid, MAX(watch_ms, FREEZE_TAKES_MS), error)) {
        if (!was_marked) {
            be_journal_unmark(be, uuid);
        }
        return FALSE;
    }
    not_rebooted_yet(be, uuid);
    be_crash_point("freeze", "call", "before");
    be_freeze_bound_agent(domain, TRUE);
    frozen = virDomainFSFreeze(domain, (const char **)mountpoints, strv_count(mountpoints), 0);
    if (frozen < 0) {
        be_error_from_libvirt(&freeze_error, "cannot freeze the guest");
    } else if (frozen == 0) {
        freeze_error = g_error_new(BE_ERROR, EINVAL, "the guest has no such file system to freeze");
    }
    be_freeze_bound_agent(domain, FALSE);
    be_crash_point("freeze", "call", "after");
    if (frozen > 0 && be_watchdog_extend(be->freezes->watchdog, uuid, watch_ms, &freeze_error)) {
        window_begins(be, uuid);
        return TRUE;
    }
    freeze_failed(be, domain, uuid, was_marked, freeze_error);
    g_propagate_error(error, g_steal_pointer(&freeze_error));
    return FALSE;
}

gboolean be_freeze_end(Be *be, virDomainPtr domain, const char *uuid, GError **error)
{
    BeEvent event = {.kind = BE_EVENT_WARNING, .domain_uuid = uuid, .errnum = EIO,
                     .text = "the guest may still be frozen; thawing goes on"};
    g_autoptr(GError) last = NULL;
    gboolean thawed = end_within(be, domain, uuid, THAW_WAIT_US, &last);

    be_freeze_window_ends(be, uuid);
    if (thawed) {
        return TRUE;
    }
    if (be_freeze_agent_is_gone(last)) {
        event.text = "THE GUEST MAY BE FROZEN: its agent went away before the thaw; it is thawed "
                     "as soon as the agent is back (if not: restart libvirtd, guests go on)";
    }
    g_propagate_error(error, g_steal_pointer(&last));
    event.time_us = g_get_real_time();
    event.domain_name = virDomainGetName(domain);
    be_notify(be, &event);
    g_source_unref(be_thaw_later(be, uuid, LATE_FREEZE_MS, thaw_later_now));
    return FALSE;
}

/* ---- Start and stop ------------------------------------------------------------------------ */

void be_freezes_recover(Be *be)
{
    g_autoptr(GPtrArray) marks = be->read_only ? NULL : be_journal_marks(be);

    for (guint i = 0; marks && i < marks->len; i++) {
        const char *uuid = g_ptr_array_index(marks, i);
        g_autofree char *running = be_jobs_running(be, uuid);

        /* What is marked by an action that runs now is that one's to thaw; what failed has
         * its timer. */
        if (!running && !be_freeze_is_held(be, uuid)
            && !is_in(be, be->freezes->retried, uuid)) {
            thaw_marked(be, uuid, FALSE);
        }
    }
}
