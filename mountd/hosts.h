/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * hosts.h - the configuration of vmsnapfs-mountd.
 *
 * Main thread.  Errors are in the domains G_KEY_FILE_ERROR and G_FILE_ERROR.
 */
#pragma once

#include <glib.h>

/**
 * VmHost: one [host NAME] group.
 */
typedef struct {
    char *name;
    char *uri;                 /* never with a password */
    char *mountpoint;          /* absolute, canonical */
    char *options;             /* as behind -o, or NULL */
} VmHost;

void vm_host_free(VmHost *host);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmHost, vm_host_free)

/**
 * vm_host_equal: whether a process started for one would be the same for the
 * other.
 */
gboolean vm_host_equal(const VmHost *a, const VmHost *b);

/**
 * vm_hosts_parse: reads the text of a configuration file.
 *
 * Returns: (element VmHost): the hosts in the order of the file, or NULL with a
 * sentence that names the group and key that is wrong.
 */
GPtrArray *vm_hosts_parse(const char *text, GError **error);

/**
 * vm_hosts_load: vm_hosts_parse() of a file.
 */
GPtrArray *vm_hosts_load(const char *path, GError **error);
