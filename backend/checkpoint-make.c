/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * checkpoint-make.c - checkpoints that belong to no backup, and their deletion.
 *
 * Submitted from any thread; action workers.  A record (trust.h) is written before
 * libvirt makes a checkpoint, and removed after it deleted one: so what a crash
 * leaves is a record, and be_checkpoints_recover() finds it.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <string.h>

#include "backend/backup.h"
#include "backend/checkpoint.h"
#include "backend/domain-read.h"
#include "backend/error.h"
#include "backend/foreign-job.h"
#include "backend/objects.h"
#include "backend/quiesce.h"
#include "backend/step.h"

/* In the record of a checkpoint that is being deleted. */
#define BEING_DELETED "it is being deleted"

/* What can be refused without asking the host; NULL: nothing. */
static GError *refusal(Be *be, const char *uuid)
{
    g_autofree char *busy = NULL;

    if (be->read_only) {
        return g_error_new(BE_ERROR, EROFS, "this mount is read-only");
    }
    if (!be_host_is_local(be)) {
        return g_error_new(BE_ERROR, EOPNOTSUPP,
                           "checkpoints of a remote host are not there yet; mount on the host "
                           "itself");
    }
    busy = be_domain_busy(be, uuid);
    return busy ? g_error_new_literal(BE_ERROR, EBUSY, busy) : NULL;
}

/* The list is read anew, so that who looks next finds what is; it may be late. */
static void read_list(Be *be, const char *uuid)
{
    g_autoptr(GError) error = NULL;

    if (!be_objects_read(be, BE_CHECKPOINTS, uuid, &error)) {
        g_info("%s", error->message);
    }
}

/* ---- Making ------------------------------------------------------------------------------ */

typedef struct {
    Be *be;
    char *uuid;
    char *name;
    char **only;
    char *description;
    BeQuiesce quiesce;
    BeCaller caller;

    virDomainPtr domain;
    BeXmlDomain *xml;
    BeTrustRecord *record;
    GPtrArray *marked;         /* of const BeXmlDisk, owned by xml */
    char *id;                  /* in its description: how we know it for ours */
} Making;

static void making_free(gpointer data)
{
    Making *making = data;

    if (making->domain) {
        virDomainFree(making->domain);
    }
    be_xml_domain_free(making->xml);
    be_trust_record_free(making->record);
    g_clear_pointer(&making->marked, g_ptr_array_unref);
    g_free(making->uuid);
    g_free(making->name);
    g_strfreev(making->only);
    g_free(making->description);
    g_free(making->id);
    g_free(making);
}

static gboolean read_domain(Making *making, GError **error)
{
    making->domain = be_conn_domain(making->be->action_conn, making->uuid, error);
    if (!making->domain) {
        return FALSE;
    }
    if (virDomainIsActive(making->domain) == 0) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the domain is off: libvirt makes checkpoints of running domains only");
        return FALSE;
    }
    making->xml = be_domain_read(making->domain, 0, error);
    return making->xml != NULL;
}

static gboolean is_free(const Making *making, GError **error)
{
    g_autoptr(GError) failure = NULL;
    g_autoptr(BeXmlCheckpoint) there =
        be_checkpoint_read(making->domain, making->name, &failure);

    if (there) {
        g_set_error(error, BE_ERROR, EEXIST, "the checkpoint '%s' exists", making->name);
    } else if (failure->code != ENOENT) {
        g_propagate_error(error, g_steal_pointer(&failure));
        return FALSE;
    }
    return there == NULL;
}

/* NULL: the disk is in; else why not, to be freed with g_free(). */
static char *mark(Making *making, BeXmlDisk *disk)
{
    g_autofree char *why = be_checkpoint_why_no_bitmap(disk);
    g_autoptr(GError) error = NULL;
    virDomainBlockInfo info;

    if (why) {
        return g_strdup_printf("disk '%s' %s", disk->target, why);
    }
    if (virDomainGetBlockInfo(making->domain, disk->target, &info, 0) < 0) {
        be_error_from_libvirt(&error, disk->target);
    } else if (be_trust_record_add_disk(making->record, disk, info.capacity, &error)) {
        g_ptr_array_add(making->marked, disk);
        return NULL;
    }
    return g_strdup_printf("disk '%s': %s", disk->target, error->message);
}

static gboolean choose_disks(Making *making, GError **error)
{
    g_autofree char *first = NULL;

    for (char **target = making->only; target && *target; target++) {
        if (!be_xml_domain_disk(making->xml, *target)) {
            g_set_error(error, BE_ERROR, EINVAL, "the domain has no disk '%s'", *target);
            return FALSE;
        }
    }
    for (guint i = 0; i < making->xml->disks->len; i++) {
        BeXmlDisk *disk = g_ptr_array_index(making->xml->disks, i);
        gboolean named =
            making->only
            && g_strv_contains((const char *const *)making->only, disk->target);
        g_autofree char *why = !making->only || named ? mark(making, disk) : NULL;

        if (why && named) {
            g_set_error(error, BE_ERROR, EOPNOTSUPP, "no checkpoint: %s", why);
            return FALSE;
        }
        if (why && !first && disk->device == BE_XML_DEVICE_DISK) {
            first = g_steal_pointer(&why);
        }
    }
    if (making->marked->len == 0) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "no disk can hold a checkpoint: %s",
                    first ? first : "the domain has none");
    }
    return making->marked->len > 0;
}

static char *build_xml(const Making *making, GError **error)
{
    g_autofree BeXmlCheckpointDisk *rows = g_new0(BeXmlCheckpointDisk, making->xml->disks->len);
    g_autoptr(GPtrArray) disks = g_ptr_array_new();
    g_autofree char *description = g_strdup_printf(
        "%s%sby vmsnapfs (%s)", making->description ? making->description : "",
        making->description ? " - " : "", making->id);

    for (guint i = 0; i < making->xml->disks->len; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(making->xml->disks, i);

        rows[i].target = disk->target;
        rows[i].bitmap = g_ptr_array_find(making->marked, disk, NULL) ? making->name : NULL;
        g_ptr_array_add(disks, &rows[i]);
    }
    return be_xml_checkpoint_build(making->name, description, disks, error);
}

static gboolean step_record(gpointer work, GError **error)
{
    Making *making = work;

    return be_trust_write(making->be, making->record, error);
}

static void undo_record(gpointer work)
{
    Making *making = work;

    be_trust_remove(making->be, making->uuid, making->name);
}

static gboolean step_create(gpointer work, GError **error)
{
    Making *making = work;
    g_autofree char *xml = build_xml(making, error);
    g_autoptr(BeVirCheckpoint) made = NULL;
    BeWindow window;

    if (!xml
        || !be_quiesce_begin(making->be, making->domain, making->uuid, making->quiesce,
                             making->xml->agent_connected, &window, error)) {
        return FALSE;
    }
    made = virDomainCheckpointCreateXML(making->domain, xml, 0);
    if (!made) {
        be_error_from_libvirt(error, "libvirt cannot make the checkpoint");
    }
    be_quiesce_end(making->be, making->domain, making->uuid, "checkpoint-create", &window);
    return made != NULL;
}

/* Somebody else's of that name was there first: not ours to remove. */
static void undo_create(gpointer work)
{
    Making *making = work;
    g_autoptr(GError) error = NULL;
    g_autoptr(BeXmlCheckpoint) made = be_checkpoint_read(making->domain, making->name, NULL);

    if (made && made->description && strstr(made->description, making->id)
        && !be_checkpoint_remove(making->be, making->domain, making->name, &error)) {
        g_warning("%s", error->message);
    }
}

static gboolean step_keep(gpointer work, GError **error)
{
    Making *making = work;

    return be_trust_begun(making->be, making->record, making->domain, error);
}

static const BeStep create_steps[] = {
    {"record", step_record, undo_record},
    {"create", step_create, undo_create},
    {"keep", step_keep, NULL},
    {NULL, NULL, NULL},
};

static gboolean run_create(Be *be, BeJob *job, gpointer data, GError **error)
{
    Making *making = data;
    gboolean made;

    if (!read_domain(making, error) || !be_domain_is_idle(making->domain, making->xml, error)
        || !is_free(making, error)) {
        return FALSE;
    }
    making->id = g_uuid_string_random();
    making->marked = g_ptr_array_new();
    making->record = be_trust_record_new(making->xml, making->name, "", making->id, "", NULL,
                                         &making->caller);
    made = choose_disks(making, error)
           && be_steps_run("checkpoint-create", create_steps, making, job, error);
    read_list(be, making->uuid);
    return made;
}

BeJob *be_checkpoint_create(Be *be, const char *uuid, const char *name,
                            const BeCheckpointOptions *options, const BeCaller *caller,
                            BeDone done, gpointer user)
{
    GError *error = refusal(be, uuid);
    g_autofree char *what = g_strdup_printf("checkpoint %s", name);
    Making *making;

    if (error || !be_checkpoint_check_name(name, &error)) {
        return be_job_refuse(be, error, done, user);
    }
    making = g_new0(Making, 1);
    making->be = be;
    making->uuid = g_strdup(uuid);
    making->name = g_strdup(name);
    making->only = options ? g_strdupv((char **)options->only) : NULL;
    making->description = options ? g_strdup(options->description) : NULL;
    making->quiesce = options && options->quiesce ? options->quiesce : be->quiesce;
    making->caller = *caller;
    return be_job_submit(be, uuid, BE_JOB_AT_ONCE, what, run_create, making, making_free, done,
                         user);
}

/* ---- Deleting ------------------------------------------------------------------------------ */

typedef struct {
    Be *be;
    BeCheckpoint *checkpoint;  /* a reference */
    BeCheckpointRemoval how;
    virDomainPtr domain;
    GPtrArray *records;        /* of BeTrustRecord: of the whole domain */
} Deleting;

static void deleting_free(gpointer data)
{
    Deleting *deleting = data;

    if (deleting->domain) {
        virDomainFree(deleting->domain);
    }
    g_clear_pointer(&deleting->records, g_ptr_array_unref);
    be_object_unref(&deleting->checkpoint->object);
    g_free(deleting);
}

static BeTrustRecord *record_named(const Deleting *deleting, const char *name)
{
    for (guint i = 0; i < deleting->records->len; i++) {
        BeTrustRecord *record = g_ptr_array_index(deleting->records, i);

        if (g_str_equal(record->name, name)) {
            return record;
        }
    }
    return NULL;
}

/* Written down first, so that a start after a crash goes on with it. */
static gboolean delete_one(Deleting *deleting, const char *name, GError **error)
{
    BeTrustRecord *record = record_named(deleting, name);
    gboolean gone;

    g_free(record->broken);
    record->broken = g_strdup(BEING_DELETED);
    if (!be_trust_write(deleting->be, record, error)) {
        return FALSE;
    }
    be_crash_point("checkpoint-delete", "remove", "before");
    gone = deleting->how == BE_CHECKPOINT_METADATA
               ? be_checkpoint_forget(deleting->domain, name, error)
               : be_checkpoint_remove(deleting->be, deleting->domain, name, error);
    be_crash_point("checkpoint-delete", "remove", "after");
    if (gone) {
        be_trust_remove(deleting->be, record->domain_uuid, name);
    }
    return gone;
}

/*
 * @list is oldest first, so parents come before their children: what descends from
 * @checkpoint, in the order of their making.
 */
static GPtrArray *family_of(const BeCheckpoint *checkpoint, const BeObjectList *list)
{
    g_autoptr(GHashTable) members = g_hash_table_new(g_str_hash, g_str_equal);
    GPtrArray *family = g_ptr_array_new();
    gboolean more = TRUE;

    g_hash_table_add(members, checkpoint->object.name);
    g_ptr_array_add(family, checkpoint->object.name);
    while (more) {
        more = FALSE;
        for (guint i = 0; i < list->objects->len; i++) {
            const BeObject *object = g_ptr_array_index(list->objects, i);

            if (object->parent && g_hash_table_contains(members, object->parent)
                && g_hash_table_add(members, object->name)) {
                g_ptr_array_add(family, object->name);
                more = TRUE;
            }
        }
    }
    return family;
}

static GError *refusal_of_foreign(const char *name)
{
    return g_error_new(BE_ERROR, EPERM,
                       "the checkpoint '%s' was made by another program, and is left to it (virsh "
                       "checkpoint-delete)",
                       name);
}

static gboolean all_ours(const Deleting *deleting, const GPtrArray *names, GError **error)
{
    for (guint i = 0; i < names->len; i++) {
        const char *name = g_ptr_array_index(names, i);

        const BeTrustRecord *record = record_named(deleting, name);

        if (!record || !be_trust_owns(deleting->domain, record)) {
            g_propagate_error(error, refusal_of_foreign(name));
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean delete_all(Deleting *deleting, GError **error)
{
    const char *uuid = deleting->checkpoint->object.domain_uuid;
    g_autoptr(BeObjectList) list = NULL;
    g_autoptr(GPtrArray) names = NULL;

    if (deleting->how == BE_CHECKPOINT_CHILDREN) {
        if (!be_objects_read(deleting->be, BE_CHECKPOINTS, uuid, error)) {
            return FALSE;
        }
        list = be_objects(deleting->be, BE_CHECKPOINTS, uuid);
        names = family_of(deleting->checkpoint, list);
    } else {
        names = g_ptr_array_new();
        g_ptr_array_add(names, deleting->checkpoint->object.name);
    }
    if (!all_ours(deleting, names, error)) {
        return FALSE;
    }
    for (guint i = names->len; i > 0; i--) {
        if (!delete_one(deleting, g_ptr_array_index(names, i - 1), error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean run_delete(Be *be, BeJob *job, gpointer data, GError **error)
{
    Deleting *deleting = data;
    const BeObject *object = &deleting->checkpoint->object;
    g_autofree char *xml = NULL;
    gboolean gone;

    deleting->domain = be_conn_domain(be->action_conn, object->domain_uuid, error);
    if (!deleting->domain) {
        return FALSE;
    }
    xml = be_checkpoint_read_same(deleting->domain, deleting->checkpoint, 0, NULL, error);
    if (!xml
        || (virDomainIsActive(deleting->domain) == 1
            && !be_domain_is_idle(deleting->domain, NULL, error))) {
        return FALSE;
    }
    (void)be_job_no_return(job);
    deleting->records = be_trust_records(be, object->domain_uuid);
    gone = delete_all(deleting, error);
    read_list(be, object->domain_uuid);
    return gone;
}

BeJob *be_checkpoint_delete(Be *be, BeCheckpoint *checkpoint, BeCheckpointRemoval how,
                            BeDone done, gpointer user)
{
    GError *error = checkpoint->object.owner == (uid_t)-1
                        ? refusal_of_foreign(checkpoint->object.name)
                        : refusal(be, checkpoint->object.domain_uuid);
    g_autofree char *what = g_strdup_printf("deletion of checkpoint %s", checkpoint->object.name);
    Deleting *deleting;

    if (error) {
        return be_job_refuse(be, error, done, user);
    }
    deleting = g_new0(Deleting, 1);
    deleting->be = be;
    be_object_ref(&checkpoint->object);
    deleting->checkpoint = checkpoint;
    deleting->how = how;
    return be_job_submit(be, checkpoint->object.domain_uuid, BE_JOB_AT_ONCE, what, run_delete,
                         deleting, deleting_free, done, user);
}

/* ---- After a crash ------------------------------------------------------------ */

/* Whether the fate of a record that an earlier process left half-way is settled. */
static gboolean recover_one(Be *be, BeTrustRecord *record, GError **error)
{
    g_autoptr(BeTrustRecord) now = be_trust_find(be, record->domain_uuid, record->name);
    g_autoptr(GError) failure = NULL;
    g_autoptr(BeVirDomain) domain = be_conn_domain(be->query_conn, record->domain_uuid, &failure);
    g_autoptr(BeXmlCheckpoint) there =
        domain ? be_checkpoint_read(domain, record->name, &failure) : NULL;

    if (!now || !g_str_equal(now->backup_id, record->backup_id)) {
        return TRUE;           /* a newer one has the name */
    }
    if (!there && failure->code != ENOENT) {
        g_propagate_error(error, g_steal_pointer(&failure));
        return FALSE;
    }
    if (there && !record->broken && there->description
        && strstr(there->description, record->backup_id)) {
        return be_trust_begun(be, record, domain, error);
    }
    if (there && record->broken && !be_checkpoint_remove(be, domain, record->name, error)) {
        return FALSE;
    }
    be_trust_remove(be, record->domain_uuid, record->name);
    return TRUE;
}

GPtrArray *be_checkpoints_load(Be *be)
{
    GPtrArray *records = be_trust_records(be, NULL);

    for (guint i = records->len; i > 0; i--) {
        const BeTrustRecord *record = g_ptr_array_index(records, i - 1);
        gboolean half_made = !record->xml && (!record->backup_name || !*record->backup_name);

        if (!half_made && g_strcmp0(record->broken, BEING_DELETED) != 0) {
            g_ptr_array_remove_index(records, i - 1);
        }
    }
    return records;
}

void be_checkpoints_recover(Be *be, GPtrArray *records)
{
    for (guint i = records->len; i > 0; i--) {
        BeTrustRecord *record = g_ptr_array_index(records, i - 1);
        g_autoptr(GError) error = NULL;

        if (recover_one(be, record, &error)) {
            g_ptr_array_remove_index(records, i - 1);
        } else {
            g_warning("what is left of checkpoint '%s' cannot be looked at: %s", record->name,
                      error->message);
        }
    }
}
