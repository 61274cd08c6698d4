/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * auto.h - g_autoptr() for libvirt's types.
 */
#pragma once

#include <glib.h>
#include <libvirt/libvirt.h>

static inline void be_auto_connect(virConnect *conn)
{
    if (conn) {
        virConnectClose(conn);
    }
}

static inline void be_auto_domain(virDomain *domain)
{
    if (domain) {
        virDomainFree(domain);
    }
}

static inline void be_auto_checkpoint(virDomainCheckpoint *checkpoint)
{
    if (checkpoint) {
        virDomainCheckpointFree(checkpoint);
    }
}

typedef virConnect BeVirConnect;
typedef virDomain BeVirDomain;
typedef virDomainCheckpoint BeVirCheckpoint;

G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeVirConnect, be_auto_connect)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeVirDomain, be_auto_domain)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeVirCheckpoint, be_auto_checkpoint)
