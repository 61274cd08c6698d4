/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * foreign-job.c - jobs of other programs in our way; see foreign-job.h.  Workers.
 */
#include "backend/foreign-job.h"

#include <errno.h>
#include <libvirt/libvirt.h>

#include "backend/error.h"

static gboolean disk_is_idle(virDomainPtr domain, const BeXmlDisk *disk, GError **error)
{
    virDomainBlockJobInfo info;
    int found = disk->top.source == BE_XML_SOURCE_NONE
                    ? 0
                    : virDomainGetBlockJobInfo(domain, disk->target, &info, 0);

    if (found < 0) {
        be_error_from_libvirt(error, "cannot ask for block jobs");
    } else if (found > 0) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "a block job runs on disk '%s' (virsh blockjob); wait for its end or abort it",
                    disk->target);
    }
    return found == 0;
}

gboolean be_domain_is_idle(virDomainPtr domain, const BeXmlDomain *xml, GError **error)
{
    virDomainJobInfo info;

    if (virDomainGetJobInfo(domain, &info) < 0) {
        be_error_from_libvirt(error, "cannot ask for the domain's job");
        return FALSE;
    }
    if (info.type != VIR_DOMAIN_JOB_NONE) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "a job of another program runs on this domain since %llu s (virsh domjobinfo)",
                    info.timeElapsed / 1000);
        return FALSE;
    }
    for (guint i = 0; xml && i < xml->disks->len; i++) {
        if (!disk_is_idle(domain, g_ptr_array_index(xml->disks, i), error)) {
            return FALSE;
        }
    }
    return TRUE;
}
