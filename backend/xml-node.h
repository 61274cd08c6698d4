/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * xml-node.h - the little of libxml2 that xml.c and its siblings need.
 *
 * Private to them.  Pure functions: any thread, no locks.  Strings returned are
 * GLib's, to be freed with g_free().
 */
#pragma once

#include <libxml/tree.h>

#include "backend.h"
#include "xml.h"

G_DEFINE_AUTOPTR_CLEANUP_FUNC(xmlDoc, xmlFreeDoc)

/**
 * xml_read_document:
 * @root_name: what the root element must be
 *
 * Returns: the document; NULL: EFBIG over BE_XML_MAX_BYTES; EIO for a text that
 * is not well-formed, has a DOCTYPE or another root; ENOMEM.
 */
xmlDoc *xml_read_document(const char *xml, const char *root_name, GError **error);

/**
 * xml_is_element: whether @node is an element of that name (the local part: what
 * libvirt writes itself has no name space).
 */
gboolean xml_is_element(const xmlNode *node, const char *name);

/**
 * xml_child: Returns: the first child element of that name, or NULL; NULL for a
 * NULL @node, so that paths can be written as nested calls.
 */
xmlNode *xml_child(const xmlNode *node, const char *name);

/**
 * xml_attribute: Returns: its value, or NULL when there is none or no @node.
 */
char *xml_attribute(const xmlNode *node, const char *name);
gboolean xml_attribute_is(const xmlNode *node, const char *name, const char *value);

/**
 * xml_attribute_uint: Returns: a decimal number, or 0 for anything else.
 */
guint xml_attribute_uint(const xmlNode *node, const char *name);

/**
 * xml_attribute_u64: Returns: whether there is a decimal number; it is in @ret.
 */
gboolean xml_attribute_u64(const xmlNode *node, const char *name, guint64 *ret);

/**
 * xml_content: Returns: the text of an element exactly as it is (names and paths
 * may end in a space), or NULL when it is empty or there is no @node.
 */
char *xml_content(const xmlNode *node);

/**
 * xml_target_is_valid: whether @target is a disk target as libvirt's schema
 * allows them.  Targets become parts of paths, so every parser asks this.
 */
gboolean xml_target_is_valid(const char *target);

/**
 * xml_word_index: Returns: which of @count @words it is; @otherwise: none, or NULL.
 */
int xml_word_index(const char *word, const char *const *words, size_t count, int otherwise);

/**
 * xml_read_domain: what be_xml_domain_parse() returns, of a <domain> that is a
 * part of something else.
 */
BeXmlDomain *xml_read_domain(const xmlNode *root, GError **error);

/**
 * xml_read_level: fills @level, which is zero, from a <disk> or <backingStore>:
 * all but its format.  To be emptied with xml_level_clear().
 */
void xml_read_level(const xmlNode *node, BeXmlLevel *level);
void xml_level_clear(BeXmlLevel *level);

/**
 * xml_new_document: a document with an empty root element, in @ret_root.
 */
xmlDoc *xml_new_document(const char *root_name, xmlNode **ret_root);
xmlNode *xml_add_child(xmlNode *parent, const char *name);

/**
 * xml_add_text: a child element with a text that has passed xml_check_text();
 * libxml2 escapes it.
 */
void xml_add_text(xmlNode *parent, const char *name, const char *text);

/**
 * xml_set_attribute: @value must have passed xml_check_text(); libxml2 escapes it.
 */
void xml_set_attribute(xmlNode *node, const char *name, const char *value);

/**
 * xml_check_text, xml_check_path: whether a text of ours can be written into
 * XML and, for a path, is absolute.
 * @what: names it in the message, "scratch file"
 *
 * Returns: FALSE: EINVAL.
 */
gboolean xml_check_text(const char *text, const char *what, GError **error);
gboolean xml_check_path(const char *path, const char *what, GError **error);

/**
 * xml_write_document: Returns: the text, without an XML declaration, as libvirt's
 * own dumps are.
 */
char *xml_write_document(xmlDoc *doc);

/**
 * xml_write_element: Returns: the same for one element of a document.
 */
char *xml_write_element(xmlNode *node);
