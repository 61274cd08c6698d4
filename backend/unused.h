/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * unused.h - whether a machine that was started paused is still nobody's.
 *
 * Shared by us (paused.c) and by the process that holds a machine for us
 * (paused-holder.c); knows neither of them.
 */
#pragma once

#include <libvirt/libvirt.h>

#include "backend/backend.h"

typedef enum {
    BE_MACHINE_UNKNOWN,        /* the host does not answer */
    BE_MACHINE_OFF,            /* or gone, or started anew since: not the one that was started */
    BE_MACHINE_STARTING,
    BE_MACHINE_UNUSED,         /* paused, and its guest has never touched a disk */
    BE_MACHINE_USED,           /* it runs or ran: somebody resumed it, and it is his */
} BeMachine;

/**
 * be_machine_look: looks at a machine that was started paused.
 * @id: libvirt's number of that run of it; -1: not known
 * @error: set where the answer is BE_MACHINE_UNKNOWN
 *
 * A machine that somebody resumed and suspended again looks like one that never
 * ran, but for what it did to its disks: firmware reads them first of all.  So one
 * whose guest has never read, written or flushed has nothing to lose.
 * Blocks; workers.  (libvirt: virDomainListGetStats, QEMU: query-blockstats)
 */
BeMachine be_machine_look(virConnectPtr conn, const char *uuid, int id, GError **error);

/**
 * be_machine_destroy_unused: turns it off if it is unused, politely first: QEMU
 * then stores its bitmaps.  Blocks, some seconds; workers.
 *
 * Returns: what it was; BE_MACHINE_OFF when it is off now; BE_MACHINE_UNKNOWN
 * with @error when that is not known or failed.
 */
BeMachine be_machine_destroy_unused(virConnectPtr conn, const char *uuid, int id, GError **error);
