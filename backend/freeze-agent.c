/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * freeze-agent.c - single calls of a guest's agent; see freeze.h.  Workers.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <stdlib.h>
#include <string.h>

#include "backend/error.h"
#include "backend/freeze.h"
#include "backend/xml.h"

/* Bounds one call of the agent; it counts for the freeze itself, too. */
#define AGENT_SECONDS 5

/* How long the agent of a guest that was restored is waited for. */
#define AGENT_POLLS 20
#define AGENT_POLL_US (50 * 1000)

void be_freeze_bound_agent(virDomainPtr domain, gboolean bound)
{
    (void)virDomainAgentSetResponseTimeout(
        domain, bound ? AGENT_SECONDS : VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0);
}

gboolean be_freeze_ask(virDomainPtr domain, BeConsistency *ret_means, GError **error)
{
    virTypedParameterPtr params = NULL;
    const char *os_id = NULL;
    gboolean answered = TRUE;
    int count = 0;

    be_freeze_bound_agent(domain, TRUE);
    if (virDomainGetGuestInfo(domain, VIR_DOMAIN_GUEST_INFO_OS, &params, &count, 0) == 0) {
        (void)virTypedParamsGetString(params, count, "os.id", &os_id);
    } else if (virGetLastErrorCode() == VIR_ERR_AGENT_UNRESPONSIVE) {
        be_error_from_libvirt(error, "cannot ask the guest agent");
        answered = FALSE;
    }
    be_freeze_bound_agent(domain, FALSE);
    *ret_means = be_freeze_consistency_of(os_id);
    virTypedParamsFree(params, count);
    return answered;
}

gboolean be_freeze_agent_is_gone(const GError *error)
{
    /* The code: the text may be the guest's own. */
    return error->code == EHOSTDOWN
           && (strstr(error->message, "not connected") != NULL
               || strstr(error->message, "disappeared") != NULL);
}

gboolean be_freeze_thaw_once(virDomainPtr domain, GError **error)
{
    int thawed;

    be_freeze_bound_agent(domain, TRUE);
    thawed = virDomainFSThaw(domain, NULL, 0, 0);
    if (thawed < 0) {
        be_error_from_libvirt(error, "cannot thaw the guest");
    }
    be_freeze_bound_agent(domain, FALSE);
    return thawed >= 0;
}

/* The agent's port is open again a moment after the restore, if it was open before. */
static gboolean agent_comes_back(virDomainPtr domain)
{
    gboolean connected = FALSE, possible = TRUE;

    for (guint i = 0; i < AGENT_POLLS && possible && !connected; i++) {
        char *text = virDomainGetXMLDesc(domain, 0);
        g_autoptr(BeXmlDomain) xml = text ? be_xml_domain_parse(text, NULL) : NULL;

        possible = text && strstr(text, "org.qemu.guest_agent.0");
        connected = xml && xml->agent_connected;
        free(text);
        if (possible && !connected) {
            g_usleep(AGENT_POLL_US);
        }
    }
    return connected;
}

void be_freeze_thaw_restored(virDomainPtr domain)
{
    g_autoptr(GError) error = NULL;

    if (agent_comes_back(domain) && !be_freeze_thaw_once(domain, &error)) {
        g_info("not thawed after its memory was restored: %s", error->message);
    }
}
