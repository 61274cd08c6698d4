/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * domain-read.c - see domain-read.h.  Workers.
 */
#include "backend/domain-read.h"

#include <libvirt/libvirt.h>
#include <stdlib.h>

#include "backend/error.h"

BeXmlDomain *be_domain_read(virDomainPtr domain, guint flags, GError **error)
{
    char *text = virDomainGetXMLDesc(domain, flags);
    BeXmlDomain *parsed;

    if (!text) {
        be_error_from_libvirt(error, "cannot read the domain's XML");
        return NULL;
    }
    parsed = be_xml_domain_parse(text, error);
    free(text);
    return parsed;
}
