/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * checkpoint-list.c - checkpoints as libvirt has them: their list and their texts.
 *
 * On query workers, and on the workers of actions.
 */
#include <errno.h>
#include <libvirt/libvirt.h>

#include "backend/backend-checkpoint.h"
#include "backend/backup.h"
#include "backend/checkpoint.h"
#include "backend/domain-read.h"
#include "backend/error.h"
#include "backend/foreign-job.h"
#include "backend/job.h"
#include "backend/objects.h"

/* ---- The list ---------------------------------------------------------------------- */

static int list_checkpoints(virDomainPtr domain, void ***ret_handles)
{
    virDomainCheckpointPtr *checkpoints = NULL;
    int count = virDomainListAllCheckpoints(domain, &checkpoints, 0);

    *ret_handles = (void **)checkpoints;
    return count;
}

static const char *checkpoint_name(void *handle)
{
    return virDomainCheckpointGetName(handle);
}

static char *checkpoint_xml(void *handle)
{
    return virDomainCheckpointGetXMLDesc(handle, 0);
}

static void checkpoint_free_handle(void *handle)
{
    virDomainCheckpointFree(handle);
}

static char **targets_of(const BeXmlCheckpoint *parsed)
{
    g_autoptr(GPtrArray) targets = g_ptr_array_new();

    for (guint i = 0; i < parsed->disks->len; i++) {
        const BeXmlCheckpointDisk *disk = g_ptr_array_index(parsed->disks, i);

        if (disk->bitmap) {
            g_ptr_array_add(targets, g_strdup(disk->target));
        }
    }
    g_ptr_array_add(targets, NULL);
    return (char **)g_ptr_array_free(g_steal_pointer(&targets), FALSE);
}

static BeObject *parse_checkpoint(const char *xml, GError **error)
{
    g_autoptr(BeXmlCheckpoint) parsed = be_xml_checkpoint_parse(xml, error);
    BeCheckpoint *checkpoint;

    if (!parsed) {
        return NULL;
    }
    checkpoint = g_new0(BeCheckpoint, 1);
    checkpoint->object.name = g_steal_pointer(&parsed->name);
    checkpoint->object.parent = g_steal_pointer(&parsed->parent);
    checkpoint->object.description = g_steal_pointer(&parsed->description);
    checkpoint->object.created_us = parsed->created_s * G_USEC_PER_SEC;
    checkpoint->targets = targets_of(parsed);
    return &checkpoint->object;
}

static void clear_checkpoint(BeObject *object)
{
    BeCheckpoint *checkpoint = (BeCheckpoint *)object;

    g_strfreev(checkpoint->targets);
}

static uid_t owner_of(Be *be, const char *uuid, const BeObject *object)
{
    g_autoptr(BeTrustRecord) record = be_trust_find(be, uuid, object->name);

    return record && be_trust_made(record, object->description) ? record->owner.uid : (uid_t)-1;
}

const BeObjectOps be_checkpoint_ops = {
    .what = "checkpoints",
    .list = list_checkpoints,
    .name = checkpoint_name,
    .xml = checkpoint_xml,
    .free_handle = checkpoint_free_handle,
    .parse = parse_checkpoint,
    .clear = clear_checkpoint,
    .owner = owner_of,
};

/* ---- One of them ------------------------------------------------------------------- */

/* libvirt knows names only, and a name comes back. */
static gboolean is_the_same(const BeCheckpoint *checkpoint, const BeXmlCheckpoint *now,
                            GError **error)
{
    if (now->created_s * G_USEC_PER_SEC == checkpoint->object.created_us) {
        return TRUE;
    }
    g_set_error(error, BE_ERROR, ENOENT, "the checkpoint '%s' is gone; another has its name now",
                checkpoint->object.name);
    return FALSE;
}

char *be_checkpoint_read_same(virDomainPtr domain, const BeCheckpoint *checkpoint, unsigned flags,
                              BeXmlCheckpoint **ret_parsed, GError **error)
{
    g_autoptr(BeVirCheckpoint) found =
        virDomainCheckpointLookupByName(domain, checkpoint->object.name, 0);
    char *xml = found ? virDomainCheckpointGetXMLDesc(found, flags) : NULL;
    g_autoptr(BeXmlCheckpoint) parsed = NULL;
    g_autofree char *text = g_strdup(xml);

    free(xml);
    if (!text) {
        be_error_from_libvirt(error, "cannot look at the checkpoint");
        return NULL;
    }
    parsed = be_xml_checkpoint_parse(text, error);
    if (!parsed || !is_the_same(checkpoint, parsed, error)) {
        return NULL;
    }
    if (ret_parsed) {
        *ret_parsed = g_steal_pointer(&parsed);
    }
    return g_steal_pointer(&text);
}

/* ---- Texts ---------------------------------------------------------------------------- */

typedef struct TextQuery TextQuery;

/* Returns: the text, to be freed with g_free(), or NULL with @error. */
typedef char *(*TextMake)(Be *be, virDomainPtr domain, const TextQuery *query, GError **error);

struct TextQuery {
    BeCheckpoint *checkpoint;  /* a reference */
    char *target;
    TextMake make;
    BeTextDone done;
    gpointer user;
};

static void query_free(gpointer data)
{
    TextQuery *query = data;

    be_object_unref(&query->checkpoint->object);
    g_free(query->target);
    g_free(query);
}

static void query_run(Be *be, gpointer data)
{
    const TextQuery *query = data;
    g_autoptr(GError) error = NULL;
    g_autoptr(BeVirDomain) domain =
        be_conn_domain(be->query_conn, query->checkpoint->object.domain_uuid, &error);
    g_autofree char *text = domain ? query->make(be, domain, query, &error) : NULL;

    query->done(text, error, query->user);
}

static void fetch(Be *be, BeCheckpoint *checkpoint, const char *target, TextMake make,
                  BeTextDone done, gpointer user)
{
    TextQuery *query = g_new0(TextQuery, 1);

    be_object_ref(&checkpoint->object);
    query->checkpoint = checkpoint;
    query->target = g_strdup(target);
    query->make = make;
    query->done = done;
    query->user = user;
    be_query(be, query_run, query, query_free);
}

static char *make_xml(Be *be G_GNUC_UNUSED, virDomainPtr domain, const TextQuery *query,
                      GError **error)
{
    return be_checkpoint_read_same(domain, query->checkpoint, 0, NULL, error);
}

static char *make_domain_xml(Be *be G_GNUC_UNUSED, virDomainPtr domain, const TextQuery *query,
                             GError **error)
{
    g_autoptr(BeXmlCheckpoint) parsed = NULL;
    g_autofree char *xml = be_checkpoint_read_same(domain, query->checkpoint, 0, &parsed, error);

    if (xml && !parsed->domain_xml) {
        g_set_error(error, BE_ERROR, ENOENT, "the checkpoint has no XML of its domain");
    }
    return xml ? g_steal_pointer(&parsed->domain_xml) : NULL;
}

static gboolean check(Be *be, virDomainPtr domain, const char *name, GError **error)
{
    g_autoptr(BeXmlDomain) xml = be_domain_read(domain, 0, error);
    g_autoptr(BeTrustRecord) record = NULL;

    if (!xml) {
        return FALSE;
    }
    record = be_trust_find(be, xml->uuid, name);
    return record ? be_trust_check(be, domain, xml, record, error)
                  : be_trust_check_foreign(be, domain, name, error);
}

static char *make_valid(Be *be, virDomainPtr domain, const TextQuery *query, GError **error)
{
    g_autofree char *xml = be_checkpoint_read_same(domain, query->checkpoint, 0, NULL, error);
    g_autoptr(GError) why = NULL;

    if (!xml) {
        return NULL;
    }
    return check(be, domain, query->checkpoint->object.name, &why)
               ? g_strdup("yes\n")
               : g_strdup_printf("%s\n", why->message);
}

/*
 * libvirt asks QEMU, for which a job in the domain would make it wait 30 s; a
 * backup does not.
 */
static gboolean can_be_asked(Be *be, virDomainPtr domain, const char *uuid)
{
    Backup *backup;

    if (virDomainIsActive(domain) != 1) {
        return FALSE;
    }
    backup = be_backups_in_the_way(be, uuid);
    if (!backup) {
        return be_domain_is_idle(domain, NULL, NULL);
    }
    be_backup_unref(&backup->pub);
    return TRUE;
}

static char *make_changed(Be *be, virDomainPtr domain, const TextQuery *query, GError **error)
{
    gboolean ask = can_be_asked(be, domain, query->checkpoint->object.domain_uuid);
    g_autoptr(BeXmlCheckpoint) parsed = NULL;
    g_autofree char *xml =
        be_checkpoint_read_same(domain, query->checkpoint,
                                ask ? VIR_DOMAIN_CHECKPOINT_XML_SIZE : 0, &parsed, error);
    const BeXmlCheckpointDisk *disk = xml ? be_xml_checkpoint_disk(parsed, query->target) : NULL;

    if (!xml) {
        return NULL;
    }
    return disk && disk->has_size ? g_strdup_printf("%" G_GUINT64_FORMAT "\n", disk->size)
                                  : g_strdup("unknown\n");
}

void be_checkpoint_xml_fetch(Be *be, BeCheckpoint *checkpoint, BeTextDone done, gpointer user)
{
    fetch(be, checkpoint, NULL, make_xml, done, user);
}

void be_checkpoint_domain_xml_fetch(Be *be, BeCheckpoint *checkpoint, BeTextDone done,
                                    gpointer user)
{
    fetch(be, checkpoint, NULL, make_domain_xml, done, user);
}

void be_checkpoint_valid_fetch(Be *be, BeCheckpoint *checkpoint, BeTextDone done, gpointer user)
{
    fetch(be, checkpoint, NULL, make_valid, done, user);
}

void be_checkpoint_changed_fetch(Be *be, BeCheckpoint *checkpoint, const char *target,
                                 BeTextDone done, gpointer user)
{
    fetch(be, checkpoint, target, make_changed, done, user);
}
