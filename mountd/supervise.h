/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * supervise.h - keeps one vmsnapfs process running for each host.
 *
 * Main thread, with GLib's default main context.  No call blocks, except
 * vm_supervisor_run().
 */
#pragma once

#include "mountd/hosts.h"

/**
 * VmSupervisorConfig: the strings are copied.
 */
typedef struct {
    const char *program;       /* the vmsnapfs to run */
    const char *log;           /* --log= of the children, or NULL */
    gboolean debug;
} VmSupervisorConfig;

typedef struct VmSupervisor VmSupervisor;

VmSupervisor *vm_supervisor_new(const VmSupervisorConfig *config);
void vm_supervisor_free(VmSupervisor *supervisor);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmSupervisor, vm_supervisor_free)

/**
 * vm_supervisor_set_hosts: starts the hosts that are new, ends those that are
 * gone; one that has changed keeps running with its old settings until its next
 * start.
 * @hosts: (element VmHost): the elements are taken over
 */
void vm_supervisor_set_hosts(VmSupervisor *supervisor, GPtrArray *hosts);

/**
 * vm_supervisor_stop: ends all processes and starts no more; harmless when
 * called again.
 */
void vm_supervisor_stop(VmSupervisor *supervisor);

/**
 * vm_supervisor_run: until vm_supervisor_stop() was called and all is over.
 * Returns: FALSE when a process had to be killed.
 */
gboolean vm_supervisor_run(VmSupervisor *supervisor);
