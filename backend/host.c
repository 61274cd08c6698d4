/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * host.c - what the host is: QEMU's user, local or remote.
 *
 * Workers; blocks on libvirt or the local file system.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <string.h>
#include <unistd.h>

#include "backend/error.h"
#include "backend/job.h"
#include "backend/private.h"
#include "backend/xml.h"

static gboolean host_identity(Be *be, virConnectPtr conn, GError **error)
{
    BeXmlCapabilities capabilities;
    char *xml = virConnectGetCapabilities(conn);
    gboolean parsed;

    if (!xml) {
        be_error_from_libvirt(error, "cannot read the host's capabilities");
        return FALSE;
    }
    parsed = be_xml_capabilities_parse(xml, &capabilities, error);
    free(xml);
    if (!parsed) {
        return FALSE;
    }
    g_mutex_lock(&be->identity_lock);
    be->qemu_uid = capabilities.has_dac ? capabilities.uid : geteuid();
    be->qemu_gid = capabilities.has_dac ? capabilities.gid : getegid();
    be->identity_known = TRUE;
    g_mutex_unlock(&be->identity_lock);
    return TRUE;
}

gboolean be_host_qemu_identity(Be *be, virConnectPtr conn, const char *dac_label, uid_t *ret_uid,
                               gid_t *ret_gid, GError **error)
{
    gboolean known;

    /* An unprivileged libvirtd runs QEMU as its own user and has no DAC labels. */
    if (geteuid() != 0) {
        *ret_uid = geteuid();
        *ret_gid = getegid();
        return TRUE;
    }
    if (dac_label) {
        return be_xml_dac_parse(dac_label, ret_uid, ret_gid, error);
    }
    g_mutex_lock(&be->identity_lock);
    known = be->identity_known;
    g_mutex_unlock(&be->identity_lock);
    if (!known && !host_identity(be, conn, error)) {
        return FALSE;
    }
    g_mutex_lock(&be->identity_lock);
    *ret_uid = be->qemu_uid;
    *ret_gid = be->qemu_gid;
    g_mutex_unlock(&be->identity_lock);
    return TRUE;
}

/* "driver[+transport]://[server]/path": a server means another host. */
gboolean be_host_uri_is_local(const char *uri)
{
    const char *rest = strstr(uri, "://");

    return !rest || rest[3] == '/' || rest[3] == '\0' || rest[3] == '?';
}

gboolean be_host_is_local(Be *be)
{
    return be_host_uri_is_local(be->uri);
}

static char *make_capabilities(Be *be G_GNUC_UNUSED, virConnectPtr conn,
                               const char *uuid G_GNUC_UNUSED, GError **error)
{
    char *xml = virConnectGetCapabilities(conn);

    if (!xml) {
        be_error_from_libvirt(error, "cannot read the host's capabilities");
    }
    return xml;
}

void be_capabilities_fetch(Be *be, BeTextDone done, gpointer user)
{
    be_text_query(be, NULL, make_capabilities, done, user);
}
