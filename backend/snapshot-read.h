/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snapshot-read.h - the data of a snapshot: which images hold it, and its streams.
 */
#pragma once

#include "backend/private.h"
#include "backend/xml.h"

/**
 * be_snapshot_files_new: what can be read of a snapshot: its disks, and, last and with
 * the target "memory", its memory file.
 * Returns: (element BeSnapshotFile): starts and opens nothing.
 */
GPtrArray *be_snapshot_files_new(const BeXmlSnapshot *snapshot);
