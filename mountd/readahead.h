/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * readahead.h - how far the kernel reads ahead of the programs that read a mount.
 */
#pragma once

#include <glib.h>

/**
 * vm_readahead_raise: has the kernel ask for up to 1 MiB, the most of one request, in front
 * of whoever reads a file in sequence, instead of 128 KiB: the next bytes come while a
 * program works on the last, and in an eighth of the requests.  Without the right to say
 * so (root's) it is left as it is, and logged.
 * @mountpoint: canonical path of a mount of ours
 *
 * Does not look at the mount itself, which may not answer yet; any thread.
 * Relies on /sys/class/bdi (Documentation/ABI/testing/sysfs-class-bdi of Linux).
 */
void vm_readahead_raise(const char *mountpoint);
