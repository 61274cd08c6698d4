/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snapshot.h - snapshots inside the backend: libvirt's handles and XML of them.
 */
#pragma once

#include "backend/private.h"
#include "backend/xml.h"

/**
 * be_snapshots_load: reads what an earlier process left half made, before the first
 * action of this one.
 * be_snapshots_recover: finds out what came of it, as far as the host answers: one
 * that libvirt has made stays, of all others the files are removed.  Query worker;
 * after each connect.
 */
BeSnapshotsLeft *be_snapshots_left_new(void);
void be_snapshots_left_free(BeSnapshotsLeft *left);
void be_snapshots_load(Be *be);
void be_snapshots_recover(Be *be);

/**
 * be_snapshot_find: libvirt's handle of @snapshot, and that it is still the one
 * that is meant: libvirt knows names only, and a name comes back.
 * @ret_xml: (optional): its XML, to be freed with free()
 *
 * Blocks; workers.
 * Returns: to be freed with virDomainSnapshotFree(); NULL: ENOENT, or as
 * be_error_from_libvirt().
 */
virDomainSnapshotPtr be_snapshot_find(virDomainPtr domain, const BeSnapshot *snapshot,
                                      char **ret_xml, GError **error);
