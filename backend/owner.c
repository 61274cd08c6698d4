/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * owner.c - who made what; see owner.h.
 *
 * Any thread; `lock` guards the table and is not held while a file is touched.
 */
#include "backend/owner.h"

#include <errno.h>

#include "backend/record.h"

#define KIND "owners"

typedef struct {
    BeObjectKind kind;
    char *domain_uuid;
    BeOwner owner;
} Row;

struct BeOwners {
    GMutex lock;
    GHashTable *rows;          /* object id -> Row; guarded by lock */
};

static void row_free(gpointer data)
{
    Row *row = data;

    g_free(row->domain_uuid);
    g_free(row);
}

BeOwners *be_owners_new(void)
{
    BeOwners *owners = g_new0(BeOwners, 1);

    g_mutex_init(&owners->lock);
    owners->rows = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, row_free);
    return owners;
}

void be_owners_free(BeOwners *owners)
{
    if (owners) {
        g_hash_table_unref(owners->rows);
        g_mutex_clear(&owners->lock);
        g_free(owners);
    }
}

static void add_row(Be *be, BeObjectKind kind, const char *domain_uuid, const char *object_id,
                    const BeOwner *owner)
{
    Row *row = g_new0(Row, 1);

    row->kind = kind;
    row->domain_uuid = g_strdup(domain_uuid);
    row->owner = *owner;
    g_mutex_lock(&be->owners->lock);
    g_hash_table_replace(be->owners->rows, g_strdup(object_id), row);
    g_mutex_unlock(&be->owners->lock);
}

static void load_one(Be *be, const BeRecord *record)
{
    const char *uuid = be_record_get_string(record->object, "domain-uuid");
    gint64 kind = be_record_get_int(record->object, "kind");
    gint64 uid = be_record_get_int(record->object, "uid");
    gint64 consistency = be_record_get_int(record->object, "consistency");
    BeOwner owner = {.uid = (uid_t)uid,
                     .known = be_record_get_bool(record->object, "known"),
                     .frozen_us = be_record_get_int(record->object, "frozen-us")};

    if (!uuid || kind < 0 || kind >= BE_OBJECT_KINDS || uid < 0 || uid >= (gint64)(uid_t)-1
        || consistency < 0 || consistency > BE_CONSISTENCY_OFFLINE) {
        be_record_set_aside(be, KIND, record->id, "no owner that makes sense");
        return;
    }
    owner.consistency = (BeConsistency)consistency;
    add_row(be, (BeObjectKind)kind, uuid, record->id, &owner);
}

void be_owners_load(Be *be)
{
    g_autoptr(GPtrArray) records = be_record_load(be, KIND);

    for (guint i = 0; i < records->len; i++) {
        load_one(be, g_ptr_array_index(records, i));
    }
}

BeOwner be_owner_get(Be *be, const char *object_id)
{
    BeOwner owner = {.uid = (uid_t)-1};
    const Row *row;

    g_mutex_lock(&be->owners->lock);
    row = g_hash_table_lookup(be->owners->rows, object_id);
    if (row) {
        owner = row->owner;
    }
    g_mutex_unlock(&be->owners->lock);
    return owner;
}

gboolean be_owner_set(Be *be, BeObjectKind kind, const char *domain_uuid, const char *object_id,
                      const BeOwner *owner, GError **error)
{
    g_autoptr(JsonObject) object = json_object_new();

    be_record_set_string(object, "domain-uuid", domain_uuid);
    json_object_set_int_member(object, "kind", kind);
    json_object_set_int_member(object, "uid", owner->uid);
    json_object_set_boolean_member(object, "known", owner->known);
    json_object_set_int_member(object, "consistency", owner->consistency);
    json_object_set_int_member(object, "frozen-us", owner->frozen_us);
    if (!be_record_write(be, KIND, object_id, object, error)) {
        return FALSE;
    }
    add_row(be, kind, domain_uuid, object_id, owner);
    return TRUE;
}

/* ---- Forgetting ------------------------------------------------------------- */

typedef gboolean (*RowTest)(const char *object_id, const Row *row, gconstpointer user);

static void forget_where(Be *be, RowTest is_gone, gconstpointer user)
{
    g_autoptr(GPtrArray) gone = g_ptr_array_new_with_free_func(g_free);
    GHashTableIter iter;
    gpointer id, value;

    g_mutex_lock(&be->owners->lock);
    g_hash_table_iter_init(&iter, be->owners->rows);
    while (g_hash_table_iter_next(&iter, &id, &value)) {
        if (is_gone(id, value, user)) {
            g_ptr_array_add(gone, g_strdup(id));
            g_hash_table_iter_remove(&iter);
        }
    }
    g_mutex_unlock(&be->owners->lock);
    for (guint i = 0; i < gone->len; i++) {
        be_record_remove(be, KIND, g_ptr_array_index(gone, i));
    }
}

typedef struct {
    BeObjectKind kind;
    const char *domain_uuid;
    const BeObjectList *list;
} Listed;

static gboolean is_not_listed(const char *object_id, const Row *row, gconstpointer user)
{
    const Listed *listed = user;

    if (row->kind != listed->kind || !g_str_equal(row->domain_uuid, listed->domain_uuid)) {
        return FALSE;
    }
    for (guint i = 0; i < listed->list->objects->len; i++) {
        const BeObject *object = g_ptr_array_index(listed->list->objects, i);

        if (g_str_equal(object->id, object_id)) {
            return FALSE;
        }
    }
    return TRUE;
}

void be_owners_keep_only(Be *be, BeObjectKind kind, const char *domain_uuid,
                         const BeObjectList *list)
{
    Listed listed = {.kind = kind, .domain_uuid = domain_uuid, .list = list};

    if (!be->read_only) {
        forget_where(be, is_not_listed, &listed);
    }
}

static gboolean is_of_domain(const char *object_id G_GNUC_UNUSED, const Row *row,
                             gconstpointer user)
{
    return g_str_equal(row->domain_uuid, user);
}

void be_owners_forget(Be *be, const char *domain_uuid)
{
    if (!be->read_only) {
        forget_where(be, is_of_domain, domain_uuid);
    }
}

/* The UUIDs of all domains that own something. */
static GPtrArray *all_domains(BeOwners *owners)
{
    g_autoptr(GHashTable) uuids = g_hash_table_new(g_str_hash, g_str_equal);
    GPtrArray *all = g_ptr_array_new_with_free_func(g_free);
    GHashTableIter iter;
    gpointer value;

    g_mutex_lock(&owners->lock);
    g_hash_table_iter_init(&iter, owners->rows);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        const Row *row = value;

        if (g_hash_table_add(uuids, row->domain_uuid)) {
            g_ptr_array_add(all, g_strdup(row->domain_uuid));
        }
    }
    g_mutex_unlock(&owners->lock);
    return all;
}

void be_owners_tidy(Be *be)
{
    g_autoptr(GPtrArray) uuids = all_domains(be->owners);

    for (guint i = 0; i < uuids->len; i++) {
        const char *uuid = g_ptr_array_index(uuids, i);
        g_autoptr(GError) error = NULL;
        g_autoptr(BeVirDomain) domain = be_conn_domain(be->query_conn, uuid, &error);

        if (!domain && error->code == ENOENT) {
            be_owners_forget(be, uuid);
        }
    }
}
