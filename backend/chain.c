/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * chain.c - see chain.h.  Workers; no state of its own: what is known of the
 * checkpoints of a domain is in libvirt and in the records (trust.h).
 */
#include "backend/chain.h"

#include <errno.h>
#include <string.h>

#include "backend/checkpoint.h"
#include "backend/disk.h"
#include "backend/domain-read.h"
#include "backend/error.h"
#include "backend/prune.h"
#include "backend/step.h"
#include "backend/trust.h"

/* A name that is taken by one of ours is tried with ".2" to this. */
#define SUFFIX_MAX 99

static void warn(const BackupPlan *plan, int errnum, const char *format, ...) G_GNUC_PRINTF(3, 4);

static void warn(const BackupPlan *plan, int errnum, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    backup_notify(plan->backup, BE_EVENT_WARNING, errnum, text);
}

static BeTrustRecord *record_named(const GPtrArray *records, const char *name)
{
    for (guint i = 0; name && i < records->len; i++) {
        BeTrustRecord *record = g_ptr_array_index(records, i);

        if (g_str_equal(record->name, name)) {
            return record;
        }
    }
    return NULL;
}

/* ---- The checkpoint it leaves ------------------------------------------------------- */

/* Whether libvirt has a checkpoint of that name; -1 with @error. */
static int is_there(const BackupPlan *plan, const char *name, GError **error)
{
    g_autoptr(GError) failure = NULL;
    g_autoptr(BeXmlCheckpoint) checkpoint = be_checkpoint_read(plan->domain, name, &failure);

    if (checkpoint) {
        return 1;
    }
    if (failure->code == ENOENT) {
        return 0;
    }
    g_propagate_error(error, g_steal_pointer(&failure));
    return -1;
}

/*
 * libvirt cannot rename a checkpoint, and the old one is needed until the new one
 * is taken: the new one gets a name beside it.
 */
static char *name_beside(const BackupPlan *plan, const char *name, GError **error)
{
    for (guint i = 2; i <= SUFFIX_MAX; i++) {
        g_autofree char *beside =
            g_strdup_printf("%.*s.%u", BE_CHECKPOINT_NAME_MAX - 3, name, i);
        int there = is_there(plan, beside, error);

        if (there < 0) {
            return NULL;
        }
        if (there == 0) {
            return g_steal_pointer(&beside);
        }
    }
    g_set_error(error, BE_ERROR, EEXIST, "checkpoints '%s.2' to '%s.%d' exist", name, name,
                SUFFIX_MAX);
    return NULL;
}

/* The checkpoint of the last backup of that name in this chain: its copy is overwritten. */
static char *name_of_same_backup(const BackupPlan *plan, const GPtrArray *records)
{
    for (guint i = records->len; i > 0; i--) {
        const BeTrustRecord *record = g_ptr_array_index(records, i - 1);

        if (g_strcmp0(record->chain, plan->chain) == 0
            && g_strcmp0(record->backup_name, plan->name) == 0) {
            return g_strdup(record->name);
        }
    }
    return NULL;
}

static gboolean choose_name(BackupPlan *plan, const GPtrArray *records, GError **error)
{
    g_autofree char *name = plan->checkpoint ? g_strdup(plan->checkpoint)
                                             : be_checkpoint_name_like(plan->name);
    const BeTrustRecord *record;
    int there;

    if (!be_checkpoint_check_name(name, error)) {
        return FALSE;
    }
    there = is_there(plan, name, error);
    record = record_named(records, name);
    if (there == 1 && (!record || !be_trust_owns(plan->domain, record))) {
        g_set_error(error, BE_ERROR, EEXIST,
                    "the checkpoint '%s' was made by another program; take another name, or "
                    "checkpoint=NAME or checkpoint=none",
                    name);
        return FALSE;
    }
    plan->backup->pub.checkpoint = there == 0   ? g_steal_pointer(&name)
                                   : there == 1 ? name_beside(plan, name, error)
                                                : NULL;
    plan->backup->replaces = name_of_same_backup(plan, records);
    return plan->backup->pub.checkpoint != NULL;
}

/* NULL: the disk is in the record; else why it cannot be, to be freed with g_free(). */
static char *mark_disk(BackupPlan *plan, BeXmlDisk *disk, guint64 size)
{
    g_autoptr(GError) error = NULL;
    char *why = be_checkpoint_why_no_bitmap(disk);
    const BeXmlDisk *running;

    if (why) {
        return why;
    }
    running = be_xml_domain_disk(plan->running, disk->target);
    if (!running || !be_trust_record_add_disk(plan->record, running, size, &error)) {
        return g_strdup_printf("cannot be told from another later: %s",
                               error ? error->message : "it is gone");
    }
    g_ptr_array_add(plan->marked, disk);
    return NULL;
}

/*
 * Each disk that can hold a bitmap; EOPNOTSUPP when none can and the user asked
 * for a checkpoint by name.
 */
static gboolean mark_disks(BackupPlan *plan, GError **error)
{
    BeBackup *pub = &plan->backup->pub;
    g_autofree char *first = NULL;

    plan->record = be_trust_record_new(plan->running, pub->checkpoint, pub->chain, pub->id,
                                       pub->name, NULL, &pub->owner);
    for (guint i = 0; i < plan->chosen->len; i++) {
        BeXmlDisk *disk = g_ptr_array_index(plan->chosen, i);
        const BeDisk *measured = g_ptr_array_index(pub->disks, i);
        g_autofree char *why = mark_disk(plan, disk, measured->size);

        if (why && !first) {
            first = g_strdup_printf("disk '%s' %s", disk->target, why);
        }
    }
    if (plan->marked->len > 0) {
        return TRUE;
    }
    g_clear_pointer(&plan->record, be_trust_record_free);
    g_clear_pointer(&pub->checkpoint, g_free);
    g_clear_pointer(&plan->backup->replaces, g_free);
    if (plan->checkpoint) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "no disk can hold a checkpoint: %s", first);
    }
    return plan->checkpoint == NULL;
}

static gboolean plan_checkpoint(BackupPlan *plan, const GPtrArray *records, GError **error)
{
    gboolean none = plan->checkpoint ? g_str_equal(plan->checkpoint, "none")
                                     : plan->be->checkpoints == BE_CHECKPOINTS_NONE;

    return none || (choose_name(plan, records, error) && mark_disks(plan, error));
}

char *backup_chain_xml(const BackupPlan *plan, GError **error)
{
    const BeBackup *pub = &plan->backup->pub;
    g_autofree char *description = g_strdup_printf("backup '%s' of chain '%s' by vmsnapfs (%s)",
                                                   pub->name, pub->chain, pub->id);
    g_autofree BeXmlCheckpointDisk *rows = g_new0(BeXmlCheckpointDisk, plan->xml->disks->len);
    g_autoptr(GPtrArray) disks = g_ptr_array_new();

    for (guint i = 0; i < plan->xml->disks->len; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(plan->xml->disks, i);

        rows[i].target = disk->target;
        rows[i].bitmap = g_ptr_array_find(plan->marked, disk, NULL) ? pub->checkpoint : NULL;
        g_ptr_array_add(disks, &rows[i]);
    }
    return be_xml_checkpoint_build(pub->checkpoint, description, disks, error);
}

/* ---- The checkpoint it starts from ------------------------------------------------------ */

/*
 * Whether copies of @record's backup stand, directly or not, on a copy of one
 * named as the backup that is about to be made, and so about to be overwritten.
 * The depth is bounded: a record may name anything.
 */
static gboolean stands_on(const GPtrArray *records, const BeTrustRecord *record, const char *chain,
                          const char *backup_name)
{
    for (guint depth = 0; record && depth <= records->len; depth++) {
        if (g_strcmp0(record->chain, chain) == 0
            && g_strcmp0(record->backup_name, backup_name) == 0) {
            return TRUE;
        }
        record = record_named(records, record->since);
    }
    return FALSE;
}

static gboolean stands_on_itself(const BackupPlan *plan, const GPtrArray *records,
                                 const BeTrustRecord *record)
{
    return stands_on(records, record, plan->chain, plan->name);
}

static void start_from(BackupPlan *plan, const char *since, const char *base)
{
    g_free(plan->backup->pub.since);
    g_free(plan->backup->pub.base);
    plan->backup->pub.since = g_strdup(since);
    plan->backup->pub.base = g_strdup(base);
}

/*
 * The directory of its copy beside the one that this backup will have.  What we
 * make has names that need no spelling of their own (fs/name.h).
 */
static const char *base_name(const BeTrustRecord *record)
{
    return record->backup_name ? record->backup_name : record->name;
}

static void tell_passed_over(const BackupPlan *plan, const char *reason)
{
    const char *since = plan->backup->pub.since;

    warn(plan, EUCLEAN, "%s; backup '%s' %s%s%s", reason, plan->name,
         since ? "starts from '" : "is full", since ? since : "", since ? "'" : "");
}

/*
 * The newest that can be trusted.  None is no failure: the backup is full then,
 * and the user is told why the newest one could not serve.
 */
static gboolean find_latest(BackupPlan *plan, GPtrArray *records, GError **error)
{
    g_autofree char *reason = NULL;

    for (guint i = records->len; i > 0 && !plan->backup->pub.since; i--) {
        BeTrustRecord *record = g_ptr_array_index(records, i - 1);
        g_autoptr(GError) failure = NULL;

        if (!record->taken || g_strcmp0(record->chain, plan->chain) != 0
            || stands_on_itself(plan, records, record)) {
            continue;
        }
        if (be_trust_check(plan->be, plan->domain, plan->running, record, &failure)) {
            start_from(plan, record->name, base_name(record));
            plan->base = g_ptr_array_steal_index(records, i - 1);
        } else if (failure->code != EUCLEAN) {
            g_propagate_error(error, g_steal_pointer(&failure));
            return FALSE;
        } else if (!reason) {
            reason = g_strdup(failure->message);
        }
    }
    if (reason) {
        tell_passed_over(plan, reason);
    }
    return TRUE;
}

static gboolean find_named(BackupPlan *plan, GPtrArray *records, GError **error)
{
    BeTrustRecord *record = record_named(records, plan->since);
    guint index;
    int there = is_there(plan, plan->since, error);

    if (there < 0) {
        return FALSE;
    }
    if (there == 0 && !record) {
        g_set_error(error, BE_ERROR, ENOENT, "there is no checkpoint '%s'", plan->since);
        return FALSE;
    }
    if (!record) {
        start_from(plan, plan->since, plan->since_file);
        return be_trust_check_foreign(plan->be, plan->domain, plan->since, error);
    }
    if (stands_on_itself(plan, records, record)) {
        g_set_error(error, BE_ERROR, EINVAL,
                    "what was copied of checkpoint '%s' stands on an older backup '%s', which "
                    "this one would replace; take another name",
                    plan->since, plan->name);
        return FALSE;
    }
    start_from(plan, record->name, base_name(record));
    if (!be_trust_check(plan->be, plan->domain, plan->running, record, error)) {
        return FALSE;
    }
    g_ptr_array_find(records, record, &index);
    plan->base = g_ptr_array_steal_index(records, index);
    return TRUE;
}

/* Per disk: what the base does not have is full, and its image says why. */
static gboolean plan_disks(BackupPlan *plan, GError **error)
{
    BeBackup *pub = &plan->backup->pub;
    g_autoptr(BeXmlCheckpoint) base =
        pub->since ? be_checkpoint_read(plan->domain, pub->since, error) : NULL;
    gboolean any = FALSE;

    if (pub->since && !base) {
        return FALSE;
    }
    for (guint i = 0; base && i < pub->disks->len; i++) {
        BeDisk *disk = g_ptr_array_index(pub->disks, i);
        g_autofree char *why = be_checkpoint_why_no_bitmap(g_ptr_array_index(plan->chosen, i));

        disk->has_base = !why && be_xml_checkpoint_disk(base, disk->target);
        any = any || disk->has_base;
        if (!disk->has_base) {
            disk->full_because =
                why ? g_strdup_printf("disk '%s' %s", disk->target, why)
                    : g_strdup_printf("checkpoint '%s' does not have disk '%s'", pub->since,
                                      disk->target);
        }
    }
    if (!any) {
        start_from(plan, NULL, NULL);
    }
    return TRUE;
}

static gboolean plan_base(BackupPlan *plan, GPtrArray *records, GError **error)
{
    gboolean named = plan->since && !g_str_equal(plan->since, "latest");

    if (named && g_str_equal(plan->since, "none")) {
        return TRUE;
    }
    return (named ? find_named(plan, records, error) : find_latest(plan, records, error))
           && plan_disks(plan, error);
}

static gboolean chain_plan(BackupPlan *plan, GError **error)
{
    g_autoptr(GPtrArray) records = NULL;

    be_trust_restore(plan->be, plan->domain, plan->running);
    records = be_trust_records(plan->be, plan->uuid);
    plan->backup->pub.chain = g_strdup(plan->chain);
    plan->marked = g_ptr_array_new();
    if (!plan_checkpoint(plan, records, error) || !plan_base(plan, records, error)) {
        return FALSE;
    }
    if (!plan->backup->pub.since) {
        g_clear_pointer(&plan->base, be_trust_record_free);
    }
    if (plan->record) {
        plan->record->since = g_strdup(plan->backup->pub.since);
    }
    return TRUE;
}

gboolean backup_chain_refuse(const BackupPlan *plan, GError **error)
{
    gboolean since = plan->since && !g_str_equal(plan->since, "none")
                     && !g_str_equal(plan->since, "latest");
    gboolean checkpoint = plan->checkpoint && !g_str_equal(plan->checkpoint, "none");

    if (since || checkpoint) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the domain is off: its backup is full and leaves no checkpoint; start it, or "
                    "mount with -o offline=paused");
    }
    return !since && !checkpoint;
}

/* ---- Steps --------------------------------------------------------------------------------- */

gboolean backup_chain_step_plan(gpointer work, GError **error)
{
    BackupPlan *plan = work;

    /* A machine that was off has no backing chains in its XML before it is held. */
    plan->running = be_domain_read(plan->domain, 0, error);
    if (!plan->running || !chain_plan(plan, error)) {
        return FALSE;
    }
    /* It names the checkpoint: whose record nobody would remove after a crash between. */
    if (!be_journal_write(plan->backup, error)) {
        return FALSE;
    }
    be_crash_point("backup-begin", "journal", "after");
    return !plan->record || be_trust_write(plan->be, plan->record, error);
}

void backup_chain_undo_plan(gpointer work)
{
    BackupPlan *plan = work;

    if (plan->record && !plan->uncertain) {
        be_trust_remove(plan->be, plan->uuid, plan->record->name);
    }
}

static void export_free(gpointer data)
{
    BeTrustExport *row = data;

    g_free((char *)row->bitmap);
    g_free(row);
}

/*
 * The content of the disks has the last word on whether the base tells the truth;
 * if it does not, the backup is taken back before anybody has seen it.
 */
gboolean backup_chain_step_confirm(gpointer work, GError **error)
{
    BackupPlan *plan = work;
    g_autoptr(GPtrArray) exports = g_ptr_array_new_with_free_func(export_free);

    if (!plan->record && !plan->base) {
        return TRUE;
    }
    for (guint i = 0; i < plan->backup->pub.disks->len; i++) {
        const BeDisk *disk = g_ptr_array_index(plan->backup->pub.disks, i);
        BeTrustExport *row = g_new0(BeTrustExport, 1);

        row->target = row->export_name = disk->target;
        row->bitmap = disk->has_base ? backup_bitmap_name(disk->target) : NULL;
        g_ptr_array_add(exports, row);
    }
    return be_trust_confirm(plan->be, plan->backup->socket, exports, plan->base, plan->record,
                            error)
           && (!plan->record || be_trust_begun(plan->be, plan->record, plan->domain, error));
}

/* ---- At the end ---------------------------------------------------------------------------- */

gboolean backup_chain_was_taken(const Backup *backup, char **ret_why)
{
    for (guint i = 0; i < backup->pub.disks->len; i++) {
        const BeDisk *disk = g_ptr_array_index(backup->pub.disks, i);

        if (!be_disk_was_taken(disk)) {
            *ret_why = g_strdup_printf("no image of disk '%s' was read to its end", disk->target);
            return FALSE;
        }
    }
    return TRUE;
}

/* Somebody else may have made one of the same name when ours was not there. */
static gboolean remove_if_ours(Backup *backup, virDomainPtr domain, GError **error)
{
    const char *name = backup->pub.checkpoint;
    g_autoptr(GError) failure = NULL;
    g_autoptr(BeXmlCheckpoint) checkpoint = be_checkpoint_read(domain, name, &failure);

    if (!checkpoint) {
        if (failure->code == ENOENT) {
            return TRUE;
        }
        g_propagate_error(error, g_steal_pointer(&failure));
        return FALSE;
    }
    return !checkpoint->description || !strstr(checkpoint->description, backup->pub.id)
           || be_checkpoint_remove(backup->be, domain, name, error);
}

/* After a crash a newer backup may have the name already: its record is not ours. */
static void remove_record(Backup *backup)
{
    const BeBackup *pub = &backup->pub;
    g_autoptr(BeTrustRecord) record =
        be_trust_find(backup->be, pub->domain_uuid, pub->checkpoint);

    if (record && g_str_equal(record->backup_id, pub->id)) {
        be_trust_remove(backup->be, pub->domain_uuid, pub->checkpoint);
    }
}

static gboolean drop(Backup *backup, virDomainPtr domain, GError **error)
{
    if (domain && !remove_if_ours(backup, domain, error)) {
        return FALSE;
    }
    remove_record(backup);
    return TRUE;
}

/* What was copied since the older backup of this name stands on what is overwritten now. */
static void break_dependents(Backup *backup)
{
    g_autoptr(GPtrArray) records = be_trust_records(backup->be, backup->pub.domain_uuid);

    for (guint i = 0; i < records->len; i++) {
        BeTrustRecord *record = g_ptr_array_index(records, i);
        g_autoptr(GError) error = NULL;

        if (g_str_equal(record->name, backup->pub.checkpoint) || record->broken
            || !stands_on(records, record_named(records, record->since), backup->pub.chain,
                          backup->pub.name)) {
            continue;
        }
        record->broken = g_strdup_printf("copies of it stand on backup '%s', which was made anew",
                                         backup->pub.name);
        if (!be_trust_write(backup->be, record, &error)) {
            g_warning("%s", error->message);
        }
    }
}

/* One that cannot be removed now is one too many, and no harm. */
static void remove_replaced(Backup *backup, virDomainPtr domain)
{
    const char *uuid = backup->pub.domain_uuid;
    g_autoptr(BeTrustRecord) record = be_trust_find(backup->be, uuid, backup->replaces);
    g_autoptr(GError) error = NULL;

    break_dependents(backup);
    if ((record && !be_trust_owns(domain, record))
        || be_checkpoint_remove(backup->be, domain, backup->replaces, &error)) {
        be_trust_remove(backup->be, uuid, backup->replaces);
    } else {
        g_warning("checkpoint '%s', replaced by '%s', cannot be removed: %s", backup->replaces,
                  backup->pub.checkpoint, error->message);
    }
}

static gboolean keep(Backup *backup, virDomainPtr domain, GError **error)
{
    g_autoptr(GError) failure = NULL;

    if (!be_trust_taken(backup->be, backup->pub.domain_uuid, backup->pub.checkpoint,
                             &failure)
        && failure->code != ENOENT) {
        g_propagate_error(error, g_steal_pointer(&failure));
        return FALSE;
    }
    if (backup->replaces && domain) {
        remove_replaced(backup, domain);
    }
    if (domain) {
        be_prune_chain(backup->be, domain, backup->pub.domain_uuid, backup->pub.chain);
    }
    return TRUE;
}

gboolean backup_chain_settle(Backup *backup, GError **error)
{
    g_autoptr(GError) failure = NULL;
    g_autoptr(BeVirDomain) domain = NULL;

    if (!backup->pub.checkpoint) {
        return TRUE;
    }
    domain = be_conn_domain(backup->be->query_conn, backup->pub.domain_uuid, &failure);
    if (!domain && failure->code != ENOENT) {
        g_propagate_error(error, g_steal_pointer(&failure));
        return FALSE;
    }
    return backup->fate == BACKUP_KEEPS ? keep(backup, domain, error)
                                        : drop(backup, domain, error);
}
