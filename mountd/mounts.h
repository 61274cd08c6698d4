/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * mounts.h - the mounts of this process, from /proc/self/mountinfo.
 */
#pragma once

#include <glib.h>

#define VM_FSTYPE "fuse.vmsnapfs"

/**
 * VmMount: one line of mountinfo, unescaped.
 */
typedef struct {
    guint id;
    guint parent;
    char *device;              /* "MAJOR:MINOR", the same for all bind mounts */
    char *root;                /* what of the file system is mounted, "/" if all */
    char *mountpoint;
    char *fstype;
    char *source;
} VmMount;

void vm_mount_free(VmMount *mount);

/**
 * vm_mounts_parse: reads the text of a mountinfo file (proc(5)).  Lines that
 * are no mount are left out.
 *
 * Returns: (element VmMount): the mounts in the order of the file.
 */
GPtrArray *vm_mounts_parse(const char *text);

/**
 * vm_mounts_read: vm_mounts_parse() of /proc/self/mountinfo.
 */
GPtrArray *vm_mounts_read(GError **error);

/**
 * vm_mounts_at: what somebody who opens @mountpoint gets: of the mounts that
 * are stacked there, the uppermost.
 *
 * Returns: (transfer none): an element of @mounts, or NULL.
 */
const VmMount *vm_mounts_at(GPtrArray *mounts, const char *mountpoint);
