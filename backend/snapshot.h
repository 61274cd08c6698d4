/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snapshot.h - snapshots inside the backend: libvirt's handles and XML of them.
 */
#pragma once

#include "backend/private.h"
#include "backend/xml.h"

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
