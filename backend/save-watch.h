/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * save-watch.h - a call that has QEMU write the guest's memory to a file: its progress
 * in `job`, and its end when nobody wants it any more.
 */
#pragma once

#include <libvirt/libvirt.h>

#include "backend/job.h"

/**
 * BeSaveCall: the call of libvirt, on a thread of its own.
 */
typedef gboolean (*BeSaveCall)(gpointer data, GError **error);

/**
 * be_save_watched: runs @call and waits for it.  When @job is cancelled the save is
 * aborted; libvirt then lets the guest run on and removes the file.
 * @kind, @object: for `job` (be_progress_set())
 *
 * Blocks; action workers.  Returns: what @call did; FALSE with EAGAIN where no thread
 * can be started.
 */
gboolean be_save_watched(virDomainPtr domain, const char *uuid, BeJob *job, const char *kind,
                         const char *object, BeSaveCall call, gpointer data, GError **error);
