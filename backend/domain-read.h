/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * domain-read.h - a domain as libvirt describes it now.
 */
#pragma once

#include "backend/private.h"
#include "backend/xml.h"

/**
 * be_domain_read: reads and parses a domain's XML.
 * @flags: virDomainXMLFlags; 0 is the running machine where it runs
 *
 * Blocks, but waits for no job; workers.
 * Returns: to be freed with be_xml_domain_free(), or NULL: as be_error_from_libvirt()
 * or be_xml_domain_parse().  (libvirt: virDomainGetXMLDesc)
 */
BeXmlDomain *be_domain_read(virDomainPtr domain, guint flags, GError **error);
