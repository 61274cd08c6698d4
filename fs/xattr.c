/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * xattr.c - extended attributes; see xattr.h.  FUSE threads, never blocks.
 */
#include "fs/xattr.h"

#include <errno.h>
#include <string.h>

#define PREFIX "user.vmsnapfs."

typedef struct {
    const char *wanted;        /* after the prefix */
    GString *value;
    gboolean found;
} Search;

static void collect_value(const char *name, const char *value, gpointer user)
{
    Search *search = user;

    if (g_str_equal(search->wanted, name)) {
        g_string_assign(search->value, value);
        search->found = TRUE;
    }
}

static void collect_name(const char *name, const char *value G_GNUC_UNUSED, gpointer user)
{
    GString *out = user;

    g_string_append(out, PREFIX);
    g_string_append_len(out, name, (gssize)strlen(name) + 1);
}

void fs_xattr_reply(FsReq *req, const void *data, gsize size)
{
    if (req->size == 0) {
        fs_req_xattr_size(req, size);
    } else if (size > req->size) {
        fs_req_error(req, ERANGE);
    } else {
        (void)fs_req_buf(req, data, size);
    }
}

void fs_xattr_get(FsReq *req, const char *name)
{
    g_autoptr(GString) value = g_string_new(NULL);
    Search search = {.value = value};

    if (g_str_has_prefix(name, PREFIX) && req->node->def->xattrs) {
        search.wanted = name + strlen(PREFIX);
        req->node->def->xattrs(req->node->item, collect_value, &search);
    }
    if (search.found) {
        fs_xattr_reply(req, value->str, value->len);
    } else {
        fs_req_error(req, g_str_has_prefix(name, "user.") ? ENODATA : EOPNOTSUPP);
    }
    fs_req_unref(req);
}

void fs_xattr_list(FsReq *req)
{
    g_autoptr(GString) names = g_string_new(NULL);

    if (req->node->def->xattrs) {
        req->node->def->xattrs(req->node->item, collect_name, names);
    }
    fs_xattr_reply(req, names->str, names->len);
    fs_req_unref(req);
}
