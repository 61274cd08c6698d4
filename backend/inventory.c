/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * inventory.c - the list of domains, read in one call and never waited for.
 *
 * Events only say that something changed; the list is then read again as a
 * whole by a query worker, so there is one mechanism and no event can be
 * missed for longer than a reader looks (0.5 s).  How it is kept fresh, and who
 * waits for it, is fresh.c's.
 *
 * Any thread; the lists are immutable.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <string.h>

#include "backend/backup.h"
#include "backend/error.h"
#include "backend/fresh.h"
#include "backend/objects.h"
#include "backend/owner.h"
#include "backend/private.h"

struct BeInventory {
    Be *be;
    BeFresh *fresh;
    GMutex lock;
    BeDomainList *list;        /* guarded by lock; never NULL */
};

/* ---- Lists ------------------------------------------------------------------- */

BeDomain *be_domain_ref(BeDomain *domain)
{
    g_atomic_ref_count_inc(&domain->refs);
    return domain;
}

void be_domain_unref(BeDomain *domain)
{
    if (domain && g_atomic_ref_count_dec(&domain->refs)) {
        g_free(domain->uuid);
        g_free(domain->name);
        g_free(domain);
    }
}

static BeDomainList *list_new(void)
{
    BeDomainList *list = g_new0(BeDomainList, 1);

    g_atomic_ref_count_init(&list->refs);
    list->domains = g_ptr_array_new_with_free_func((GDestroyNotify)be_domain_unref);
    list->by_uuid = g_hash_table_new(g_str_hash, g_str_equal);
    return list;
}

BeDomainList *be_domain_list_ref(BeDomainList *list)
{
    g_atomic_ref_count_inc(&list->refs);
    return list;
}

void be_domain_list_unref(BeDomainList *list)
{
    if (list && g_atomic_ref_count_dec(&list->refs)) {
        g_hash_table_unref(list->by_uuid);
        g_ptr_array_unref(list->domains);
        g_free(list);
    }
}

static const char *const state_names[] = {
    [BE_DOMAIN_NOSTATE] = "nostate",   [BE_DOMAIN_RUNNING] = "running",
    [BE_DOMAIN_BLOCKED] = "blocked",   [BE_DOMAIN_PAUSED] = "paused",
    [BE_DOMAIN_SHUTDOWN] = "shutdown", [BE_DOMAIN_SHUTOFF] = "shutoff",
    [BE_DOMAIN_CRASHED] = "crashed",   [BE_DOMAIN_PMSUSPENDED] = "pmsuspended",
};

const char *be_domain_state_name(BeDomainState state)
{
    return state < G_N_ELEMENTS(state_names) ? state_names[state] : "nostate";
}

static BeDomainState state_of(int libvirt_state)
{
    switch ((virDomainState)libvirt_state) {
    case VIR_DOMAIN_RUNNING:
        return BE_DOMAIN_RUNNING;
    case VIR_DOMAIN_BLOCKED:
        return BE_DOMAIN_BLOCKED;
    case VIR_DOMAIN_PAUSED:
        return BE_DOMAIN_PAUSED;
    case VIR_DOMAIN_SHUTDOWN:
        return BE_DOMAIN_SHUTDOWN;
    case VIR_DOMAIN_SHUTOFF:
        return BE_DOMAIN_SHUTOFF;
    case VIR_DOMAIN_CRASHED:
        return BE_DOMAIN_CRASHED;
    case VIR_DOMAIN_PMSUSPENDED:
        return BE_DOMAIN_PMSUSPENDED;
    case VIR_DOMAIN_NOSTATE:
        return BE_DOMAIN_NOSTATE;
    }
    return BE_DOMAIN_NOSTATE;
}

static void add_domain(Be *be, BeDomainList *list, virDomainPtr virt, int state)
{
    const char *name = virDomainGetName(virt);
    unsigned int id = virDomainGetID(virt);
    char uuid[VIR_UUID_STRING_BUFLEN];
    BeDomain *domain;

    if (!name || virDomainGetUUIDString(virt, uuid) < 0
        || (be->domains_glob && !g_pattern_match_simple(be->domains_glob, name))
        || g_hash_table_contains(list->by_uuid, uuid)) {
        return;
    }
    domain = g_new0(BeDomain, 1);
    g_atomic_ref_count_init(&domain->refs);
    domain->uuid = g_strdup(uuid);
    domain->name = g_strdup(name);
    domain->id = id == (unsigned int)-1 ? -1 : (int)id;
    domain->state = state_of(state);
    domain->seen_us = g_get_real_time();
    g_ptr_array_add(list->domains, domain);
    g_hash_table_insert(list->by_uuid, domain->uuid, domain);
}

static gint by_name(gconstpointer a, gconstpointer b)
{
    const BeDomain *const *one = a, *const *two = b;

    return strcmp((*one)->name, (*two)->name);
}

/* ---- Reading ------------------------------------------------------------------ */

/* All domains with their states in one call; drivers without it are asked one by one. */
static BeDomainList *read_by_stats(Be *be, virConnectPtr conn)
{
    virDomainStatsRecordPtr *records = NULL;
    int count = virConnectGetAllDomainStats(conn, VIR_DOMAIN_STATS_STATE, &records, 0);
    BeDomainList *list;

    if (count < 0) {
        return NULL;
    }
    list = list_new();
    for (int i = 0; i < count; i++) {
        int state = VIR_DOMAIN_NOSTATE;

        (void)virTypedParamsGetInt(records[i]->params, records[i]->nparams, "state.state", &state);
        add_domain(be, list, records[i]->dom, state);
    }
    virDomainStatsRecordListFree(records);
    return list;
}

static BeDomainList *read_by_list(Be *be, virConnectPtr conn, GError **error)
{
    virDomainPtr *domains = NULL;
    int count = virConnectListAllDomains(conn, &domains, 0);
    BeDomainList *list;

    if (count < 0) {
        be_error_from_libvirt(error, "cannot list the domains");
        return NULL;
    }
    list = list_new();
    for (int i = 0; i < count; i++) {
        int state = VIR_DOMAIN_NOSTATE;

        if (virDomainGetState(domains[i], &state, NULL, 0) == 0) {
            add_domain(be, list, domains[i], state);
        }
        virDomainFree(domains[i]);
    }
    free(domains);
    return list;
}

static BeDomainList *read_list(Be *be, GError **error)
{
    g_autoptr(BeVirConnect) conn = be_conn_get(be->query_conn, error);
    BeDomainList *list;

    if (!conn) {
        return NULL;
    }
    list = read_by_stats(be, conn);
    if (!list) {
        list = read_by_list(be, conn, error);
    }
    if (list) {
        g_ptr_array_sort(list->domains, by_name);
    }
    return list;
}

static void tell_domain(Be *be, BeEventKind kind, const BeDomain *domain)
{
    BeEvent event = {.kind = kind, .time_us = g_get_real_time(), .domain_uuid = domain->uuid,
                     .domain_name = domain->name, .text = be_domain_state_name(domain->state)};

    be_notify(be, &event);
}

static gboolean same_domain(const BeDomain *one, const BeDomain *two)
{
    return one->id == two->id && one->state == two->state && g_str_equal(one->name, two->name);
}

/* What differs between two lists, to the observer and to the backups. */
static void tell_differences(Be *be, const BeDomainList *before, const BeDomainList *after)
{
    for (guint i = 0; i < after->domains->len; i++) {
        const BeDomain *now = g_ptr_array_index(after->domains, i);
        const BeDomain *was = g_hash_table_lookup(before->by_uuid, now->uuid);

        if (!was) {
            tell_domain(be, BE_EVENT_DOMAIN_ADDED, now);
        } else if (!same_domain(was, now)) {
            tell_domain(be, BE_EVENT_DOMAIN_STATE, now);
            be_backups_check(be, now->uuid);
        }
    }
    for (guint i = 0; i < before->domains->len; i++) {
        const BeDomain *was = g_ptr_array_index(before->domains, i);

        if (!g_hash_table_contains(after->by_uuid, was->uuid)) {
            tell_domain(be, BE_EVENT_DOMAIN_REMOVED, was);
            be_backups_check(be, was->uuid);
            be_owners_forget(be, was->uuid);
        }
    }
}

static gboolean lists_equal(const BeDomainList *one, const BeDomainList *two)
{
    if (one->domains->len != two->domains->len) {
        return FALSE;
    }
    for (guint i = 0; i < one->domains->len; i++) {
        const BeDomain *a = g_ptr_array_index(one->domains, i);
        const BeDomain *b = g_ptr_array_index(two->domains, i);

        if (!g_str_equal(a->uuid, b->uuid) || !same_domain(a, b)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* Takes @fresh in (transfer full) where it differs from what is known. */
static void take_list(BeInventory *inventory, BeDomainList *fresh)
{
    g_autoptr(BeDomainList) before = NULL;

    g_mutex_lock(&inventory->lock);
    if (lists_equal(inventory->list, fresh)) {
        g_mutex_unlock(&inventory->lock);
        be_domain_list_unref(fresh);
        return;
    }
    before = inventory->list;
    fresh->generation = before->generation + 1;
    inventory->list = be_domain_list_ref(fresh);
    g_mutex_unlock(&inventory->lock);
    tell_differences(inventory->be, before, fresh);
    be_objects_keep_only(inventory->be, fresh);
    be_domain_list_unref(fresh);
}

static gboolean read_inventory(Be *be, gpointer data, gint64 start_us G_GNUC_UNUSED,
                               GError **error)
{
    BeDomainList *list = read_list(be, error);

    if (!list) {
        return FALSE;
    }
    take_list(data, list);
    return TRUE;
}

/* ---- Asking ---------------------------------------------------------------------- */

gboolean be_inventory_read(Be *be, GError **error)
{
    return be_fresh_read(be->inventory->fresh, error);
}

gboolean be_is_fresh(Be *be)
{
    return be_fresh_is_fresh(be->inventory->fresh);
}

void be_refresh(Be *be, BeRefreshDone done, gpointer user)
{
    be_fresh_wait(be->inventory->fresh, done, user);
}

void be_inventory_touch(Be *be)
{
    be_fresh_touch(be->inventory->fresh);
}

gboolean be_is_stale(Be *be)
{
    return be_fresh_is_stale(be->inventory->fresh);
}

BeDomainList *be_domains(Be *be)
{
    BeDomainList *list;

    g_mutex_lock(&be->inventory->lock);
    list = be_domain_list_ref(be->inventory->list);
    g_mutex_unlock(&be->inventory->lock);
    return list;
}

BeDomain *be_domain_find(Be *be, const char *uuid)
{
    g_autoptr(BeDomainList) list = be_domains(be);
    BeDomain *domain = g_hash_table_lookup(list->by_uuid, uuid);

    return domain ? be_domain_ref(domain) : NULL;
}

/* ---- Life ------------------------------------------------------------------------ */

BeInventory *be_inventory_new(Be *be)
{
    BeInventory *inventory = g_new0(BeInventory, 1);

    inventory->be = be;
    g_mutex_init(&inventory->lock);
    inventory->list = list_new();
    /* A host that is away is looked for even when nobody asks. */
    inventory->fresh = be_fresh_new(be, TRUE, read_inventory, inventory, NULL);
    return inventory;
}

void be_inventory_stop(BeInventory *inventory)
{
    be_fresh_stop(inventory->fresh);
}

void be_inventory_free(BeInventory *inventory)
{
    if (!inventory) {
        return;
    }
    be_fresh_unref(inventory->fresh);
    be_domain_list_unref(inventory->list);
    g_mutex_clear(&inventory->lock);
    g_free(inventory);
}
