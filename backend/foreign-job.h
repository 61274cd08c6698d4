/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * foreign-job.h - whether an action of ours would have to wait for somebody else's.
 */
#pragma once

#include "backend/private.h"
#include "backend/xml.h"

/**
 * be_domain_is_idle: whether no job and no block job runs on an active domain.
 * libvirt would make an action wait 30 s for the one, and refuse most for the other.
 * @xml: (nullable): whose disks are looked at for block jobs
 *
 * Blocks, but waits for no job; workers.
 * Returns: FALSE: EBUSY, or as be_error_from_libvirt().
 */
gboolean be_domain_is_idle(virDomainPtr domain, const BeXmlDomain *xml, GError **error);
