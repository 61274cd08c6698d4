/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * unused.c - whether a machine that was started paused is still nobody's; see
 * unused.h.  Workers, and the holder's only thread.
 */
#include "backend/unused.h"

#include <errno.h>
#include <libvirt/virterror.h>
#include <string.h>

#include "backend/auto.h"
#include "backend/error.h"

/* A virDomainPtr keeps the id of the day it was looked up, so look it up anew. */
static virDomainPtr find(virConnectPtr conn, const char *uuid, gboolean *ret_gone, GError **error)
{
    virDomainPtr domain = virDomainLookupByUUIDString(conn, uuid);
    virErrorPtr err = domain ? NULL : virGetLastError();

    *ret_gone = err && err->code == VIR_ERR_NO_DOMAIN;
    if (!domain && !*ret_gone) {
        be_error_from_libvirt(error, "cannot find the domain");
    }
    return domain;
}

static gboolean is_request_count(const char *field)
{
    return g_str_has_prefix(field, "block.")
           && (g_str_has_suffix(field, ".rd.reqs") || g_str_has_suffix(field, ".wr.reqs")
               || g_str_has_suffix(field, ".fl.reqs"));
}

/* Requests of the guest to its disks: 0, more, or -1 with @error. */
static int guest_requests(virDomainPtr domain, GError **error)
{
    virDomainPtr domains[] = {domain, NULL};
    virDomainStatsRecordPtr *records = NULL;
    gboolean counted = FALSE, any = FALSE;

    if (virDomainListGetStats(domains, VIR_DOMAIN_STATS_BLOCK, &records, 0) < 0) {
        be_error_from_libvirt(error, "cannot ask what the machine did to its disks");
        return -1;
    }
    for (int i = 0; records[0] && i < records[0]->nparams; i++) {
        const virTypedParameter *param = &records[0]->params[i];

        if (is_request_count(param->field)) {
            counted = TRUE;
            any = any || param->type != VIR_TYPED_PARAM_ULLONG || param->value.ul > 0;
        }
    }
    virDomainStatsRecordListFree(records);
    if (!counted) {
        g_set_error(error, BE_ERROR, EAGAIN,
                    "libvirt does not say what the machine did to its disks");
        return -1;
    }
    return any;
}

static BeMachine look_at(virDomainPtr domain, int id, GError **error)
{
    int state, reason, requests;

    if (virDomainGetState(domain, &state, &reason, 0) < 0) {
        be_error_from_libvirt(error, "cannot look at the domain");
        return BE_MACHINE_UNKNOWN;
    }
    if (state == VIR_DOMAIN_SHUTOFF || state == VIR_DOMAIN_CRASHED
        || (id >= 0 && virDomainGetID(domain) != (unsigned)id)) {
        return BE_MACHINE_OFF;
    }
    if (state == VIR_DOMAIN_PAUSED && reason == VIR_DOMAIN_PAUSED_STARTING_UP) {
        return BE_MACHINE_STARTING;
    }
    if (state != VIR_DOMAIN_PAUSED) {
        return BE_MACHINE_USED;
    }
    requests = guest_requests(domain, error);
    if (requests < 0) {
        return BE_MACHINE_UNKNOWN;
    }
    return requests == 0 ? BE_MACHINE_UNUSED : BE_MACHINE_USED;
}

BeMachine be_machine_look(virConnectPtr conn, const char *uuid, int id, GError **error)
{
    gboolean gone;
    g_autoptr(BeVirDomain) domain = find(conn, uuid, &gone, error);

    if (!domain) {
        return gone ? BE_MACHINE_OFF : BE_MACHINE_UNKNOWN;
    }
    return look_at(domain, id, error);
}

BeMachine be_machine_destroy_unused(virConnectPtr conn, const char *uuid, int id, GError **error)
{
    gboolean gone;
    g_autoptr(BeVirDomain) domain = find(conn, uuid, &gone, error);
    BeMachine machine;

    if (!domain) {
        return gone ? BE_MACHINE_OFF : BE_MACHINE_UNKNOWN;
    }
    machine = look_at(domain, id, error);
    if (machine != BE_MACHINE_UNUSED) {
        return machine;
    }
    if (virDomainDestroyFlags(domain, VIR_DOMAIN_DESTROY_GRACEFUL) < 0
        && virDomainDestroy(domain) < 0) {
        be_error_from_libvirt(error, "the paused machine cannot be turned off");
        return BE_MACHINE_UNKNOWN;
    }
    return BE_MACHINE_OFF;
}
