/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * objects.c - the lists of snapshots and checkpoints; see objects.h.
 *
 * Any thread asks; query workers, and the workers of actions that have changed
 * something, read.  `lock` guards the table and what its entries know; lists
 * and objects are immutable, and an object whose XML is the same as before is
 * the same object in the new list.
 */
#include "backend/objects.h"

#include <libvirt/virterror.h>
#include <string.h>

#include "backend/error.h"
#include "backend/fresh.h"
#include "backend/owner.h"

static const BeObjectOps *const kinds[BE_OBJECT_KINDS] = {
    [BE_SNAPSHOTS] = &be_snapshot_ops,
    [BE_CHECKPOINTS] = &be_checkpoint_ops,
};

/* What is known of one domain's objects of one kind; owned by its BeFresh. */
typedef struct {
    BeObjects *objects;
    BeObjectKind kind;
    char *uuid;
    BeFresh *fresh;            /* constant; not a reference */

    /* guarded by the lock of the table */
    gint64 start_us;           /* when the reading of `all` began */
    BeObjectList *all;
    BeObjectList *shown;       /* without what is hidden */
    GHashTable *digests;       /* name -> digest of the XML of that object of `all` */
    GHashTable *hidden;        /* set of names */
} Entry;

struct BeObjects {
    Be *be;
    GMutex lock;
    GHashTable *entries;       /* "KIND UUID" -> Entry; guarded by lock */
    gboolean stopped;          /* guarded by lock */
    BeFresh *asked;            /* a reference: the list waited for last, or NULL; guarded by lock */
};

/* ---- Objects and lists ----------------------------------------------------------- */

BeObject *be_object_ref(BeObject *object)
{
    g_atomic_ref_count_inc(&object->refs);
    return object;
}

void be_object_unref(BeObject *object)
{
    if (!object || !g_atomic_ref_count_dec(&object->refs)) {
        return;
    }
    kinds[object->kind]->clear(object);
    g_free(object->id);
    g_free(object->domain_uuid);
    g_free(object->name);
    g_free(object->parent);
    g_free(object->description);
    g_free(object);
}

static void unref_object(gpointer object)
{
    be_object_unref(object);
}

BeObjectList *be_object_list_ref(BeObjectList *list)
{
    g_atomic_ref_count_inc(&list->refs);
    return list;
}

void be_object_list_unref(BeObjectList *list)
{
    if (!list || !g_atomic_ref_count_dec(&list->refs)) {
        return;
    }
    if (list->attached) {
        list->free_attached(list->attached);
    }
    g_hash_table_unref(list->by_name);
    g_ptr_array_unref(list->objects);
    g_free(list->current);
    g_free(list);
}

static BeObjectList *list_new(void)
{
    BeObjectList *list = g_new0(BeObjectList, 1);

    g_atomic_ref_count_init(&list->refs);
    list->objects = g_ptr_array_new_with_free_func(unref_object);
    list->by_name = g_hash_table_new(g_str_hash, g_str_equal);
    return list;
}

static void list_add(BeObjectList *list, BeObject *object)
{
    if (g_hash_table_insert(list->by_name, object->name, object)) {
        g_ptr_array_add(list->objects, object);
    } else {
        be_object_unref(object);
    }
}

BeObject *be_object_list_find(const BeObjectList *list, const char *name)
{
    return g_hash_table_lookup(list->by_name, name);
}

gpointer be_object_list_attached(BeObjectList *list)
{
    return g_atomic_pointer_get(&list->attached);
}

gpointer be_object_list_attach(BeObjectList *list, gpointer data, GDestroyNotify free_data)
{
    static GMutex lock;
    gboolean first;

    g_mutex_lock(&lock);
    first = list->attached == NULL;
    if (first) {
        list->free_attached = free_data;
        g_atomic_pointer_set(&list->attached, data);
    }
    g_mutex_unlock(&lock);
    if (!first) {
        free_data(data);
    }
    return be_object_list_attached(list);
}

static gint by_age(gconstpointer a, gconstpointer b)
{
    const BeObject *const *one = a, *const *two = b;

    if ((*one)->created_us != (*two)->created_us) {
        return (*one)->created_us < (*two)->created_us ? -1 : 1;
    }
    return strcmp((*one)->name, (*two)->name);
}

static gboolean lists_equal(const BeObjectList *one, const BeObjectList *two)
{
    if (one->objects->len != two->objects->len || g_strcmp0(one->current, two->current) != 0) {
        return FALSE;
    }
    for (guint i = 0; i < one->objects->len; i++) {
        if (g_ptr_array_index(one->objects, i) != g_ptr_array_index(two->objects, i)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* ---- The table -------------------------------------------------------------------- */

static gboolean read_entry(Be *be, gpointer data, gint64 start_us, GError **error);

static void entry_free(gpointer data)
{
    Entry *entry = data;

    be_object_list_unref(entry->all);
    be_object_list_unref(entry->shown);
    g_hash_table_unref(entry->digests);
    g_hash_table_unref(entry->hidden);
    g_free(entry->uuid);
    g_free(entry);
}

/* The table's reference of an entry is one of its BeFresh, which owns it. */
static void entry_unref(gpointer data)
{
    Entry *entry = data;

    be_fresh_unref(entry->fresh);
}

static Entry *entry_new(BeObjects *objects, BeObjectKind kind, const char *uuid)
{
    Entry *entry = g_new0(Entry, 1);

    entry->objects = objects;
    entry->kind = kind;
    entry->uuid = g_strdup(uuid);
    entry->all = list_new();
    entry->shown = be_object_list_ref(entry->all);
    entry->digests = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    entry->hidden = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    entry->fresh = be_fresh_new(objects->be, FALSE, read_entry, entry, entry_free);
    if (objects->stopped) {
        be_fresh_stop(entry->fresh);
    }
    return entry;
}

/* Returns: the entry, with a reference of its BeFresh for the caller. */
static Entry *entry_get(Be *be, BeObjectKind kind, const char *uuid)
{
    BeObjects *objects = be->objects;
    g_autofree char *key = g_strdup_printf("%d %s", kind, uuid);
    Entry *entry;

    g_mutex_lock(&objects->lock);
    entry = g_hash_table_lookup(objects->entries, key);
    if (!entry) {
        entry = entry_new(objects, kind, uuid);
        g_hash_table_insert(objects->entries, g_steal_pointer(&key), entry);
    }
    be_fresh_ref(entry->fresh);
    g_mutex_unlock(&objects->lock);
    return entry;
}

/* Freed outside of the lock, for a list may have something of its users attached. */
void be_objects_keep_only(Be *be, const BeDomainList *domains)
{
    g_autoptr(GPtrArray) gone = g_ptr_array_new_with_free_func(entry_unref);
    GHashTableIter iter;
    gpointer key, value;

    g_mutex_lock(&be->objects->lock);
    g_hash_table_iter_init(&iter, be->objects->entries);
    while (g_hash_table_iter_next(&iter, &key, &value)) {
        const Entry *entry = value;

        if (!g_hash_table_contains(domains->by_uuid, entry->uuid)) {
            g_hash_table_iter_steal(&iter);
            g_free(key);
            g_ptr_array_add(gone, value);
        }
    }
    g_mutex_unlock(&be->objects->lock);
}

/* ---- What is shown ------------------------------------------------------------------ */

static BeObjectList *without_hidden_locked(const Entry *entry)
{
    BeObjectList *list = list_new();

    for (guint i = 0; i < entry->all->objects->len; i++) {
        BeObject *object = g_ptr_array_index(entry->all->objects, i);

        if (!g_hash_table_contains(entry->hidden, object->name)) {
            list_add(list, be_object_ref(object));
        }
    }
    if (entry->all->current && !g_hash_table_contains(entry->hidden, entry->all->current)) {
        list->current = g_strdup(entry->all->current);
    }
    return list;
}

/* Returns: the list that was shown until now, for the caller to unref unlocked. */
static BeObjectList *show_locked(Entry *entry)
{
    BeObjectList *before = entry->shown;

    entry->shown = g_hash_table_size(entry->hidden) == 0 ? be_object_list_ref(entry->all)
                                                         : without_hidden_locked(entry);
    return before;
}

static void set_hidden(Be *be, BeObjectKind kind, const char *uuid, const char *name,
                       gboolean hide)
{
    Entry *entry = entry_get(be, kind, uuid);
    BeObjectList *before;

    g_mutex_lock(&be->objects->lock);
    if (hide) {
        g_hash_table_add(entry->hidden, g_strdup(name));
    } else {
        g_hash_table_remove(entry->hidden, name);
        g_hash_table_remove(entry->digests, name);
    }
    before = show_locked(entry);
    g_mutex_unlock(&be->objects->lock);
    be_object_list_unref(before);
    be_fresh_unref(entry->fresh);
}

void be_objects_hide(Be *be, BeObjectKind kind, const char *uuid, const char *name)
{
    set_hidden(be, kind, uuid, name, TRUE);
}

void be_objects_unhide(Be *be, BeObjectKind kind, const char *uuid, const char *name)
{
    set_hidden(be, kind, uuid, name, FALSE);
}

/* ---- Reading -------------------------------------------------------------------------- */

/* A reading under way: what it has found so far. */
typedef struct {
    const BeObjectOps *ops;
    Entry *entry;
    BeObjectList *list;
    GHashTable *digests;
} Reading;

/* A digest, because names are of any length and of any bytes. */
char *be_object_identity(BeObjectKind kind, const char *uuid, const char *name,
                         gint64 created_us)
{
    g_autofree char *text = g_strdup_printf("%s %s %" G_GINT64_FORMAT " %s", kinds[kind]->what,
                                            uuid, created_us, name);
    char *id = g_compute_checksum_for_string(G_CHECKSUM_SHA256, text, -1);

    id[32] = '\0';
    return id;
}

/* The object that is known already under that name, if its XML is still the same. */
static BeObject *known_object(const Entry *entry, const char *name, const char *digest)
{
    BeObject *object = NULL;

    g_mutex_lock(&entry->objects->lock);
    if (g_strcmp0(g_hash_table_lookup(entry->digests, name), digest) == 0) {
        object = be_object_list_find(entry->all, name);
        object = object ? be_object_ref(object) : NULL;
    }
    g_mutex_unlock(&entry->objects->lock);
    return object;
}

static BeObject *new_object(const Entry *entry, const char *name, const char *xml, GError **error)
{
    BeObject *object = kinds[entry->kind]->parse(xml, error);
    BeOwner owner;

    if (!object) {
        return NULL;
    }
    g_atomic_ref_count_init(&object->refs);
    object->be = entry->objects->be;
    object->kind = entry->kind;
    g_free(object->name);
    object->name = g_strdup(name);
    object->domain_uuid = g_strdup(entry->uuid);
    object->id = be_object_identity(entry->kind, entry->uuid, name, object->created_us);
    owner = be_owner_get(entry->objects->be, object->id);
    object->owner = owner.uid;
    object->made = owner.known;
    object->consistency = owner.consistency;
    object->frozen_us = owner.frozen_us;
    if (kinds[entry->kind]->owner) {
        object->owner = kinds[entry->kind]->owner(entry->objects->be, entry->uuid, object);
    }
    return object;
}

/* One that is gone meanwhile, or that cannot be understood, is left out. */
static gboolean read_object(const Reading *reading, void *handle, GError **error)
{
    const char *name = reading->ops->name(handle);
    char *xml = reading->ops->xml(handle);
    g_autofree char *digest = NULL;
    g_autoptr(GError) parse_error = NULL;
    BeObject *object;

    if (!xml) {
        g_autoptr(GError) xml_error = NULL;

        be_error_from_libvirt(&xml_error, reading->ops->what);
        if (xml_error->code == ENOENT) {
            return TRUE;
        }
        g_propagate_error(error, g_steal_pointer(&xml_error));
        return FALSE;
    }
    digest = g_compute_checksum_for_string(G_CHECKSUM_SHA1, xml, -1);
    object = known_object(reading->entry, name, digest);
    if (!object) {
        object = new_object(reading->entry, name, xml, &parse_error);
    }
    free(xml);
    if (object) {
        list_add(reading->list, object);
        g_hash_table_insert(reading->digests, g_strdup(name), g_steal_pointer(&digest));
    } else {
        g_info("%s: '%s' is left out: %s", reading->ops->what, name, parse_error->message);
    }
    return TRUE;
}

/* A driver that knows no such objects has none of them. */
static gboolean read_all(Reading *reading, virDomainPtr domain, GError **error)
{
    void **handles = NULL;
    int count = reading->ops->list(domain, &handles);
    gboolean good = TRUE;

    if (count < 0) {
        g_autoptr(GError) list_error = NULL;

        be_error_from_libvirt(&list_error, reading->ops->what);
        if (list_error->code == EOPNOTSUPP) {
            return TRUE;
        }
        g_propagate_error(error, g_steal_pointer(&list_error));
        return FALSE;
    }
    for (int i = 0; i < count; i++) {
        good = good && read_object(reading, handles[i], error);
        reading->ops->free_handle(handles[i]);
    }
    free(handles);
    if (good && count > 0 && reading->ops->current) {
        reading->list->current = reading->ops->current(domain);
    }
    return good;
}

/* Takes what was read in, unless a reading that began later was quicker. */
static void take(Reading *reading, gint64 start_us)
{
    Entry *entry = reading->entry;
    BeObjectList *shown = NULL, *all = NULL;

    g_ptr_array_sort(reading->list->objects, by_age);
    g_mutex_lock(&entry->objects->lock);
    if (start_us >= entry->start_us) {
        entry->start_us = start_us;
        if (!lists_equal(entry->all, reading->list)) {
            GHashTable *digests = entry->digests;

            all = entry->all;
            entry->all = g_steal_pointer(&reading->list);
            entry->digests = reading->digests;
            reading->digests = digests;
            shown = show_locked(entry);
        }
    }
    g_mutex_unlock(&entry->objects->lock);
    be_object_list_unref(shown);
    be_object_list_unref(all);
}

static gboolean read_entry(Be *be, gpointer data, gint64 start_us, GError **error)
{
    Entry *entry = data;
    g_autoptr(GError) domain_error = NULL;
    g_autoptr(BeVirDomain) domain = be_conn_domain(be->query_conn, entry->uuid, &domain_error);
    Reading reading = {.ops = kinds[entry->kind], .entry = entry};
    g_autoptr(BeObjectList) read_now = NULL;
    gboolean good = TRUE;

    if (!domain && domain_error->code != ENOENT) {
        g_propagate_error(error, g_steal_pointer(&domain_error));
        return FALSE;
    }
    reading.list = list_new();
    reading.digests = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    good = !domain || read_all(&reading, domain, error);
    if (good) {
        read_now = be_object_list_ref(reading.list);
        take(&reading, start_us);
        be_owners_keep_only(be, entry->kind, entry->uuid, read_now);
    }
    be_object_list_unref(reading.list);
    g_hash_table_unref(reading.digests);
    return good;
}

/* ---- Asking ------------------------------------------------------------------------------ */

BeObjectList *be_objects(Be *be, BeObjectKind kind, const char *uuid)
{
    Entry *entry = entry_get(be, kind, uuid);
    BeObjectList *list;

    g_mutex_lock(&be->objects->lock);
    list = be_object_list_ref(entry->shown);
    g_mutex_unlock(&be->objects->lock);
    be_fresh_unref(entry->fresh);
    return list;
}

/*
 * A host that is known to hang is not waited for once more in each directory: a walk
 * over a thousand machines would take half an hour.
 */
static gboolean host_hangs(Be *be)
{
    gboolean hangs;

    g_mutex_lock(&be->objects->lock);
    hangs = be->objects->asked && be_fresh_hangs(be->objects->asked);
    g_mutex_unlock(&be->objects->lock);
    return hangs || be_is_stale(be);
}

gboolean be_objects_are_fresh(Be *be, BeObjectKind kind, const char *uuid)
{
    Entry *entry = entry_get(be, kind, uuid);
    gboolean fresh = be_fresh_is_fresh(entry->fresh) || host_hangs(be);

    be_fresh_unref(entry->fresh);
    return fresh;
}

gboolean be_objects_are_stale(Be *be, BeObjectKind kind, const char *uuid)
{
    Entry *entry = entry_get(be, kind, uuid);
    gboolean stale = be_fresh_is_stale(entry->fresh) || host_hangs(be);

    be_fresh_unref(entry->fresh);
    return stale;
}

void be_objects_refresh(Be *be, BeObjectKind kind, const char *uuid, BeRefreshDone done,
                        gpointer user)
{
    Entry *entry = entry_get(be, kind, uuid);
    BeFresh *before;

    be_fresh_wait(entry->fresh, done, user);
    g_mutex_lock(&be->objects->lock);
    before = be->objects->asked;
    be->objects->asked = entry->fresh;
    g_mutex_unlock(&be->objects->lock);
    be_fresh_unref(before);
}

gboolean be_objects_read(Be *be, BeObjectKind kind, const char *uuid, GError **error)
{
    Entry *entry = entry_get(be, kind, uuid);
    gboolean good = be_fresh_read(entry->fresh, error);

    be_fresh_unref(entry->fresh);
    return good;
}

/* ---- Life ---------------------------------------------------------------------------------- */

BeObjects *be_objects_new(Be *be)
{
    BeObjects *objects = g_new0(BeObjects, 1);

    objects->be = be;
    g_mutex_init(&objects->lock);
    objects->entries = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, entry_unref);
    return objects;
}

void be_objects_stop(BeObjects *objects)
{
    g_autoptr(GPtrArray) all = g_ptr_array_new_with_free_func((GDestroyNotify)be_fresh_unref);
    GHashTableIter iter;
    gpointer value;

    g_mutex_lock(&objects->lock);
    objects->stopped = TRUE;
    g_hash_table_iter_init(&iter, objects->entries);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        const Entry *entry = value;

        g_ptr_array_add(all, be_fresh_ref(entry->fresh));
    }
    g_mutex_unlock(&objects->lock);
    for (guint i = 0; i < all->len; i++) {
        be_fresh_stop(g_ptr_array_index(all, i));
    }
}

void be_objects_free(BeObjects *objects)
{
    if (objects) {
        g_hash_table_unref(objects->entries);
        be_fresh_unref(objects->asked);
        g_mutex_clear(&objects->lock);
        g_free(objects);
    }
}
