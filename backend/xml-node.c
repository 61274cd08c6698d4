/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * xml-node.c - the little of libxml2 that we need; see xml-node.h.
 *
 * Pure functions: any thread, no locks.  Without XML_PARSE_HUGE libxml2 itself
 * bounds the depth (256) and the length of names and texts, and without
 * XML_PARSE_NOENT no entity is expanded in a text; one in an attribute would be,
 * which is why a DOCTYPE ends the parser before any entity can be declared.
 *
 * Where libxml2 has no memory for a small node we end as GLib does for a small
 * allocation: a document with a missing attribute would be a wrong order to
 * libvirt.
 */
#include "xml-node.h"

#include <errno.h>
#include <libxml/parser.h>
#include <string.h>

#include "xml.h"

G_DEFINE_AUTOPTR_CLEANUP_FUNC(xmlParserCtxt, xmlFreeParserCtxt)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(xmlBuffer, xmlBufferFree)

enum { MAX_TARGET = 64 };

/* ---- Reading ------------------------------------------------------------ */

/* SAX hook: called where a DOCTYPE begins, before its declarations are read. */
static void refuse_doctype(void *data, const xmlChar *name, const xmlChar *external_id,
                           const xmlChar *system_id)
{
    xmlParserCtxt *ctxt = data;

    (void)name;
    (void)external_id;
    (void)system_id;
    ctxt->wellFormed = 0;
    xmlStopParser(ctxt);
}

/* The parser's globals must exist before two threads parse at once. */
static void init_parser(void)
{
    static gsize done;

    if (g_once_init_enter(&done)) {
        xmlInitParser();
        g_once_init_leave(&done, 1);
    }
}

static xmlDoc *parse_text(const char *xml, size_t length, const char *root_name, GError **error)
{
    const int options = XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING;
    g_autoptr(xmlParserCtxt) ctxt = NULL;
    xmlErrorPtr why = NULL;
    xmlDoc *doc = NULL;

    init_parser();
    ctxt = xmlNewParserCtxt();
    if (!ctxt) {
        g_set_error(error, BE_ERROR, ENOMEM, "no memory to read the <%s> XML", root_name);
        return NULL;
    }
    ctxt->sax->internalSubset = refuse_doctype;
    doc = xmlCtxtReadMemory(ctxt, xml, (int)length, NULL, NULL, options);
    if (!doc) {
        why = xmlCtxtGetLastError(ctxt);
        g_set_error(error, BE_ERROR, EIO, "the <%s> XML is broken at line %d", root_name,
                    why ? why->line : 0);
    }
    return doc;
}

xmlDoc *xml_read_document(const char *xml, const char *root_name, GError **error)
{
    size_t length = strnlen(xml, BE_XML_MAX_BYTES + 1);
    g_autoptr(xmlDoc) doc = NULL;
    const xmlNode *root = NULL;

    if (length > BE_XML_MAX_BYTES) {
        g_set_error(error, BE_ERROR, EFBIG, "the <%s> XML is larger than %" G_GSIZE_FORMAT " MiB",
                    root_name, BE_XML_MAX_BYTES / 1024 / 1024);
        return NULL;
    }
    doc = parse_text(xml, length, root_name, error);
    if (!doc) {
        return NULL;
    }
    root = xmlDocGetRootElement(doc);
    if (!root || !xml_is_element(root, root_name)) {
        g_set_error(error, BE_ERROR, EIO, "the XML is not a <%s>", root_name);
        return NULL;
    }
    return g_steal_pointer(&doc);
}

gboolean xml_is_element(const xmlNode *node, const char *name)
{
    return node->type == XML_ELEMENT_NODE && strcmp((const char *)node->name, name) == 0;
}

xmlNode *xml_child(const xmlNode *node, const char *name)
{
    for (xmlNode *n = node ? node->children : NULL; n; n = n->next) {
        if (xml_is_element(n, name)) {
            return n;
        }
    }
    return NULL;
}

/* Moves libxml2's allocation into GLib's; NULL stays NULL. */
static char *take_string(xmlChar *text)
{
    char *copy = g_strdup((const char *)text);

    if (text) {
        xmlFree(text);
    }
    return copy;
}

char *xml_attribute(const xmlNode *node, const char *name)
{
    return node ? take_string(xmlGetNoNsProp(node, (const xmlChar *)name)) : NULL;
}

gboolean xml_attribute_is(const xmlNode *node, const char *name, const char *value)
{
    g_autofree char *text = xml_attribute(node, name);

    return g_strcmp0(text, value) == 0;
}

guint xml_attribute_uint(const xmlNode *node, const char *name)
{
    g_autofree char *text = xml_attribute(node, name);
    guint64 value = 0;

    if (!text || !g_ascii_string_to_unsigned(text, 10, 0, G_MAXUINT, &value, NULL)) {
        return 0;
    }
    return (guint)value;
}

gboolean xml_attribute_u64(const xmlNode *node, const char *name, guint64 *ret)
{
    g_autofree char *text = xml_attribute(node, name);

    return text && g_ascii_string_to_unsigned(text, 10, 0, G_MAXUINT64, ret, NULL);
}

char *xml_content(const xmlNode *node)
{
    g_autofree char *text = node ? take_string(xmlNodeGetContent(node)) : NULL;

    return text && *text ? g_steal_pointer(&text) : NULL;
}

gboolean xml_target_is_valid(const char *target)
{
    size_t length = target ? strnlen(target, MAX_TARGET + 1) : 0;

    if (length == 0 || length > MAX_TARGET || *target == '.' || *target == '-') {
        return FALSE;
    }
    for (const char *p = target; *p; p++) {
        if (!g_ascii_isalnum(*p) && !strchr(":_.-", *p)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* ---- Writing ------------------------------------------------------------ */

static void need(const void *pointer)
{
    if (G_UNLIKELY(!pointer)) {
        g_error("no memory for XML");
    }
}

xmlDoc *xml_new_document(const char *root_name, xmlNode **ret_root)
{
    xmlDoc *doc = NULL;
    xmlNode *root = NULL;

    init_parser();
    doc = xmlNewDoc((const xmlChar *)"1.0");
    need(doc);
    root = xmlNewDocNode(doc, NULL, (const xmlChar *)root_name, NULL);
    need(root);
    xmlDocSetRootElement(doc, root);
    *ret_root = root;
    return doc;
}

xmlNode *xml_add_child(xmlNode *parent, const char *name)
{
    xmlNode *node = xmlNewChild(parent, NULL, (const xmlChar *)name, NULL);

    need(node);
    return node;
}

void xml_add_text(xmlNode *parent, const char *name, const char *text)
{
    need(xmlNewTextChild(parent, NULL, (const xmlChar *)name, (const xmlChar *)text));
}

void xml_set_attribute(xmlNode *node, const char *name, const char *value)
{
    need(xmlNewProp(node, (const xmlChar *)name, (const xmlChar *)value));
}

/*
 * libxml2 escapes what has a meaning in XML, but writes what XML 1.0 cannot
 * hold at all (control characters, bytes that are not UTF-8) as it is.
 */
gboolean xml_check_text(const char *text, const char *what, GError **error)
{
    gboolean good = text && *text && g_utf8_validate(text, -1, NULL);

    for (const char *p = text; good && *p; p = g_utf8_next_char(p)) {
        gunichar c = g_utf8_get_char(p);

        good = c >= 0x20 && c != 0x7f && c != 0xfffe && c != 0xffff;
    }
    if (!good) {
        g_set_error(error, BE_ERROR, EINVAL, "the %s cannot be written into XML", what);
    }
    return good;
}

gboolean xml_check_path(const char *path, const char *what, GError **error)
{
    if (!xml_check_text(path, what, error)) {
        return FALSE;
    }
    if (*path != '/') {
        g_set_error(error, BE_ERROR, EINVAL, "the %s '%s' is not an absolute path", what, path);
        return FALSE;
    }
    return TRUE;
}

char *xml_write_document(xmlDoc *doc)
{
    return xml_write_element(xmlDocGetRootElement(doc));
}

char *xml_write_element(xmlNode *node)
{
    g_autoptr(xmlBuffer) buffer = xmlBufferCreate();

    need(buffer);
    if (xmlNodeDump(buffer, node->doc, node, 0, 1) < 0) {
        need(NULL);
    }
    return g_strconcat((const char *)xmlBufferContent(buffer), "\n", NULL);
}
