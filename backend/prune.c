/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * prune.c - checkpoints of ours that are old enough to go.
 *
 * A checkpoint costs: QEMU keeps a bitmap for each in memory and in the image, and
 * libvirt 9.0 makes no snapshot of a machine that is off and has one.  Those of other
 * programs are never touched, nor is the base of a chain: what the next increment
 * starts from.
 *
 * Submitted from any thread; action workers.
 */
#include "backend/prune.h"

#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include "backend/backup.h"
#include "backend/change.h"
#include "backend/checkpoint.h"
#include "backend/domain-read.h"
#include "backend/error.h"
#include "backend/objects.h"
#include "backend/trust.h"

typedef struct {
    char *uuid;
    char *chain;               /* NULL: all */
    BeRetentionRules rules;
    gboolean dry_run;
    BeCaller caller;
    BeTextDone done;
    gpointer user;
    GString *text;             /* what the caller is told */
} Pruning;

static void pruning_free(gpointer data)
{
    Pruning *pruning = data;

    g_free(pruning->uuid);
    g_free(pruning->chain);
    g_string_free(pruning->text, TRUE);
    g_free(pruning);
}

/* ---- What stays ---------------------------------------------------------------------- */

/*
 * What the next increment starts from: the newest that was taken and is not known to
 * be no good.
 */
static const BeTrustRecord *base_of(Be *be, virDomainPtr domain, const BeXmlDomain *xml,
                                    const GPtrArray *records)
{
    for (guint i = records->len; i > 0; i--) {
        const BeTrustRecord *record = g_ptr_array_index(records, i - 1);
        g_autoptr(GError) error = NULL;

        if (record->taken && !record->broken
            && (be_trust_check(be, domain, xml, record, &error) || error->code != EUCLEAN)) {
            return record;
        }
    }
    return NULL;
}

/* Whether a backup that is there now starts from it or made it. */
static gboolean is_in_use(const GPtrArray *backups, const char *name)
{
    for (guint i = 0; i < backups->len; i++) {
        const BeBackup *backup = g_ptr_array_index(backups, i);

        if (g_strcmp0(backup->since, name) == 0 || g_strcmp0(backup->checkpoint, name) == 0) {
            return TRUE;
        }
    }
    return FALSE;
}

static const char *why_held(const BeTrustRecord *record, const BeTrustRecord *base,
                            const GPtrArray *backups, const BeCaller *caller)
{
    if (record == base) {
        return "the base of the next increment";
    }
    if (is_in_use(backups, record->name)) {
        return "in use by a backup";
    }
    if (caller && caller->uid != 0 && caller->uid != record->owner.uid) {
        return "made by another user";
    }
    return NULL;
}

static void free_record(gpointer record)
{
    be_trust_record_free(record);
}

/* Moves the records of one chain, oldest first, out of @all. */
static GPtrArray *take_chain(GPtrArray *all, const char *chain)
{
    GPtrArray *records = g_ptr_array_new_with_free_func(free_record);

    for (guint i = 0; i < all->len;) {
        const BeTrustRecord *record = g_ptr_array_index(all, i);

        if (g_str_equal(record->chain, chain)) {
            g_ptr_array_add(records, g_ptr_array_steal_index(all, i));
        } else {
            i++;
        }
    }
    return records;
}

/* (element char *): why each of the chain stays, NULL: it goes. */
static GPtrArray *plan_chain(Be *be, virDomainPtr domain, const BeXmlDomain *xml,
                             const GPtrArray *records, const BeRetentionRules *rules,
                             const BeCaller *caller)
{
    g_autoptr(GPtrArray) backups = be_backups(be, xml->uuid);
    g_autofree BeRetentionPoint *rows = g_new0(BeRetentionPoint, records->len + 1);
    g_autoptr(GPtrArray) points = g_ptr_array_new();
    g_autoptr(GTimeZone) zone = g_time_zone_new_local();
    const BeTrustRecord *base = base_of(be, domain, xml, records);

    for (guint i = 0; i < records->len; i++) {
        const BeTrustRecord *record = g_ptr_array_index(records, i);

        rows[i] = (BeRetentionPoint){.name = record->name, .time_us = record->created_us,
                                     .held = why_held(record, base, backups, caller),
                                     .useless = record->broken != NULL};
        g_ptr_array_add(points, &rows[i]);
    }
    return be_retention_plan(points, rules, zone);
}

/* ---- What goes ------------------------------------------------------------------------- */

/* Of one whose name another program has taken since only the record goes. */
static gboolean remove_one(Be *be, virDomainPtr domain, const BeTrustRecord *record,
                           GError **error)
{
    if (be_trust_owns(domain, record)
        && !be_checkpoint_remove(be, domain, record->name, error)) {
        g_prefix_error(error, "checkpoint '%s': ", record->name);
        return FALSE;
    }
    be_trust_remove(be, record->domain_uuid, record->name);
    return TRUE;
}

static gboolean prune_chain(Be *be, virDomainPtr domain, const BeXmlDomain *xml,
                            Pruning *pruning, GPtrArray *records, GError **error)
{
    g_autoptr(GPtrArray) reasons =
        plan_chain(be, domain, xml, records, &pruning->rules, &pruning->caller);

    for (guint i = 0; i < records->len; i++) {
        const BeTrustRecord *record = g_ptr_array_index(records, i);
        const char *reason = g_ptr_array_index(reasons, i);

        if (!reason && !pruning->dry_run && !remove_one(be, domain, record, error)) {
            return FALSE;
        }
        g_string_append_printf(pruning->text, "%s %s (chain %s)%s%s\n",
                               reason ? "keep" : "remove", record->name, record->chain,
                               reason ? ": " : "", reason ? reason : "");
    }
    return TRUE;
}

/* A checkpoint that was made for no backup belongs to no chain: it is the user's. */
static gboolean is_meant(const Pruning *pruning, const char *chain)
{
    return *chain && (!pruning->chain || g_str_equal(pruning->chain, chain));
}

static gboolean run_prune(Be *be, BeJob *job, gpointer data, GError **error)
{
    Pruning *pruning = data;
    g_autoptr(BeVirDomain) domain = be_conn_domain(be->action_conn, pruning->uuid, error);
    g_autoptr(BeXmlDomain) xml = domain ? be_domain_read(domain, 0, error) : NULL;
    g_autoptr(GPtrArray) all = NULL;
    gboolean done = xml != NULL;

    if (!done || (!pruning->dry_run && !be_change_nothing_runs(be, domain, pruning->uuid, error))) {
        return FALSE;
    }
    all = be_trust_records(be, pruning->uuid);
    if (pruning->dry_run) {
        g_string_append(pruning->text, "dry run: nothing is removed\n");
    }
    while (done && all->len > 0 && !be_job_is_cancelled(job)) {
        const BeTrustRecord *first = g_ptr_array_index(all, 0);
        g_autofree char *chain = g_strdup(first->chain);
        g_autoptr(GPtrArray) records = take_chain(all, chain);

        done = !is_meant(pruning, chain)
               || prune_chain(be, domain, xml, pruning, records, error);
    }
    if (!pruning->dry_run) {
        be_objects_read(be, BE_CHECKPOINTS, pruning->uuid, NULL);
    }
    return done;
}

static void tell(const GError *error, gpointer data)
{
    Pruning *pruning = data;

    pruning->done(error ? NULL : pruning->text->str, error, pruning->user);
}

static void tell_refused(const GError *error, gpointer data)
{
    tell(error, data);
    pruning_free(data);
}

static GError *refusal(Be *be, const char *uuid, const BePrune *prune)
{
    g_autofree char *busy = NULL;

    if (be->read_only) {
        return g_error_new(BE_ERROR, EROFS, "this mount is read-only");
    }
    if (!be_host_is_local(be)) {
        return g_error_new(BE_ERROR, EOPNOTSUPP, "the checkpoints of a remote host cannot be "
                                                 "pruned from here; mount on the host itself");
    }
    if (prune->last + prune->daily + prune->weekly + prune->monthly == 0) {
        return g_error_new(BE_ERROR, EINVAL, "say what to keep: keep-last=N, keep-daily=N, "
                                             "keep-weekly=N or keep-monthly=N");
    }
    busy = prune->dry_run ? NULL : be_domain_busy(be, uuid);
    return busy ? g_error_new_literal(BE_ERROR, EBUSY, busy) : NULL;
}

BeJob *be_domain_prune(Be *be, const char *uuid, const BePrune *prune, const BeCaller *caller,
                       BeTextDone done, gpointer user)
{
    Pruning *pruning = g_new(Pruning, 1);
    GError *error = refusal(be, uuid, prune);

    *pruning = (Pruning){
        .uuid = g_strdup(uuid), .chain = g_strdup(prune->chain),
        .rules = {prune->last, prune->daily, prune->weekly, prune->monthly},
        .dry_run = prune->dry_run, .caller = *caller, .done = done, .user = user,
        .text = g_string_new(NULL)};
    if (error) {
        return be_job_refuse(be, error, tell_refused, pruning);
    }
    return be_job_submit(be, uuid, BE_JOB_AT_ONCE, "prune", run_prune, pruning, pruning_free,
                         tell, pruning);
}

/* ---- After each backup ------------------------------------------------------------------- */

/* What another program deleted is a record and nothing else. */
static void forget_lost(Be *be, virDomainPtr domain, GPtrArray *records)
{
    for (guint i = 0; i < records->len;) {
        const BeTrustRecord *record = g_ptr_array_index(records, i);
        virDomainCheckpointPtr known =
            record->broken ? virDomainCheckpointLookupByName(domain, record->name, 0) : NULL;

        if (known || !record->broken
            || virGetLastErrorCode() != VIR_ERR_NO_DOMAIN_CHECKPOINT) {
            i++;
        } else {
            be_trust_remove(be, record->domain_uuid, record->name);
            g_ptr_array_remove_index(records, i);
        }
        if (known) {
            virDomainCheckpointFree(known);
        }
    }
}

void be_prune_chain(Be *be, virDomainPtr domain, const char *uuid, const char *chain)
{
    BeRetentionRules rules = {.last = be->keep_checkpoints};
    g_autoptr(GPtrArray) all = be_trust_records(be, uuid);
    g_autoptr(GPtrArray) records = take_chain(all, chain);
    g_autoptr(BeXmlDomain) xml = NULL;
    g_autoptr(GPtrArray) reasons = NULL;

    forget_lost(be, domain, records);
    if (rules.last == 0 || records->len <= rules.last || !*chain) {
        return;
    }
    xml = be_domain_read(domain, 0, NULL);
    if (!xml) {
        return;
    }
    reasons = plan_chain(be, domain, xml, records, &rules, NULL);
    for (guint i = 0; i < records->len; i++) {
        const BeTrustRecord *record = g_ptr_array_index(records, i);
        g_autoptr(GError) error = NULL;

        if (!g_ptr_array_index(reasons, i) && !remove_one(be, domain, record, &error)) {
            g_warning("an old checkpoint stays: %s", error->message);
            return;
        }
    }
}
