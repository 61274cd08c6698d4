/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * doctor.h - `vmsnapfs --doctor`.
 */
#pragma once

#include "mountd/options.h"

/**
 * vm_doctor: checks whether vmsnapfs can work for options->uri with the
 * directories of @options, and prints one line for each check to stdout: OK,
 * WARN or BAD, and what to do about it.  Changes nothing.  Blocks, at most about
 * a minute; starts and ends the backend's threads.
 *
 * Returns: the exit code: 1 when something is BAD.
 */
int vm_doctor(const VmOptions *options);
