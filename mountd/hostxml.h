/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * hostxml.h - what --doctor wants to know out of libvirt's XML.
 *
 * Pure functions: any thread.  They read and judge nothing else; text that is
 * no XML gives what was found before the fault.
 */
#pragma once

#include <glib.h>

/**
 * VmHostInfo: from the capabilities of a host.
 */
typedef struct {
    char *emulator;            /* of the host's own architecture if there is one, or NULL */
    char *arch;                /* of the host, or NULL */
    gboolean apparmor;         /* guests are confined by AppArmor */
    gboolean selinux;
    gboolean has_qemu_user;    /* else QEMU runs as libvirt itself */
    guint qemu_uid;
    guint qemu_gid;
} VmHostInfo;

VmHostInfo *vm_host_info_parse(const char *capabilities);
void vm_host_info_free(VmHostInfo *info);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmHostInfo, vm_host_info_free)

typedef enum {
    VM_AGENT_NONE,             /* no channel for it */
    VM_AGENT_DISCONNECTED,
    VM_AGENT_CONNECTED,
} VmAgent;

/**
 * vm_agent_parse: what the XML of a running domain says about its guest agent.
 */
VmAgent vm_agent_parse(const char *domain_xml);
