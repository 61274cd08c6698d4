/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * guestfs-read.c - extended attributes, and the bytes of files.
 *
 * The thread of vmsnapfs-files, and a second one that sends bytes while the next ones
 * are being read.  Only one of the two sends at a time.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/guestfs-helper.h"

/* Of one message; larger ones are slower again, and 4 MiB are the most. */
#define READ_SIZE ((guint64)2 * 1024 * 1024)

/* ---- Extended attributes ----------------------------------------------------------------- */

static void append_xattr(GString *out, const char *file, const struct guestfs_xattr *xattr)
{
    gsize file_length = strlen(file), name_length = strlen(xattr->attrname);
    FilesXattr head = {.file_length = (guint16)file_length, .name_length = (guint16)name_length,
                       .value_length = xattr->attrval_len};

    if (file_length <= FILES_NAME_MAX && name_length > 0 && name_length <= FILES_NAME_MAX
        && xattr->attrval_len <= 65536) {
        g_string_append_len(out, (const char *)&head, sizeof(head));
        g_string_append_len(out, file, (gssize)file_length);
        g_string_append_len(out, xattr->attrname, (gssize)name_length);
        g_string_append_len(out, xattr->attrval, xattr->attrval_len);
    }
}

static void send_full(Helper *helper, guint32 id, GString *out, gsize keep)
{
    if (out->len > keep) {
        helper_send(helper, FILES_MORE, id, 0, out->str, out->len);
        g_string_truncate(out, 0);
    }
}

void helper_xattr(Helper *helper, guint32 id, const char *path)
{
    struct guestfs_xattr_list *xattrs = guestfs_lgetxattrs(helper->guestfs, path);
    g_autoptr(GString) out = g_string_new(NULL);

    /* A file system without any is no failure. */
    if (!xattrs && guestfs_last_errno(helper->guestfs) != EOPNOTSUPP) {
        helper_fail_guestfs(helper, id, "cannot read the extended attributes");
        return;
    }
    for (guint i = 0; xattrs && i < xattrs->len; i++) {
        append_xattr(out, "", &xattrs->val[i]);
        send_full(helper, id, out, FILES_FRAME_MAX / 2);
    }
    send_full(helper, id, out, 0);
    helper_send(helper, FILES_END, id, 0, NULL, 0);
    if (xattrs) {
        guestfs_free_xattr_list(xattrs);
    }
}

/*
 * The answer of libguestfs: for each name an entry without a name, whose value
 * is the number of attributes in decimal digits, and then the attributes.
 */
static void send_xattr_batch(Helper *helper, guint32 id, char **names,
                             const struct guestfs_xattr_list *xattrs)
{
    g_autoptr(GString) out = g_string_new(NULL);
    guint name = 0;
    gboolean begun = FALSE;

    for (guint i = 0; i < xattrs->len; i++) {
        const struct guestfs_xattr *xattr = &xattrs->val[i];

        if (!*xattr->attrname) {
            name += begun;
            begun = TRUE;
        }
        if (!names[name]) {
            break;
        }
        if (*xattr->attrname) {
            append_xattr(out, names[name], xattr);
        }
        send_full(helper, id, out, FILES_FRAME_MAX / 2);
    }
    send_full(helper, id, out, 0);
}

static gboolean xattrs_of(Helper *helper, guint32 id, const char *path, char **names, guint count)
{
    char *kept = names[count];
    struct guestfs_xattr_list *xattrs;

    names[count] = NULL;
    xattrs = guestfs_lxattrlist(helper->guestfs, path, names);
    if (xattrs) {
        send_xattr_batch(helper, id, names, xattrs);
        guestfs_free_xattr_list(xattrs);
    }
    names[count] = kept;
    return xattrs != NULL;
}

void helper_xattrs(Helper *helper, guint32 id, const char *path)
{
    struct guestfs_dirent_list *found = guestfs_readdir(helper->guestfs, path);
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    gboolean good = found && found->len <= FILES_ENTRIES_MAX;

    for (guint i = 0; good && i < found->len; i++) {
        if (*found->val[i].name && !strchr(found->val[i].name, '/')) {
            g_ptr_array_add(names, found->val[i].name);
        }
    }
    g_ptr_array_add(names, NULL);
    for (guint i = 0; good && i + 1 < names->len; i += FILES_BATCH) {
        good = xattrs_of(helper, id, path, (char **)&names->pdata[i],
                         MIN(FILES_BATCH, names->len - 1 - i));
    }
    if (good) {
        helper_send(helper, FILES_END, id, 0, NULL, 0);
    } else {
        helper_fail_guestfs(helper, id, "cannot read the extended attributes");
    }
    if (found) {
        guestfs_free_dirent_list(found);
    }
}

/* ---- Bytes ----------------------------------------------------------------------------------- */

typedef struct {
    Helper *helper;
    guint32 id;
    char *bytes;
    gsize size;
    gboolean last;             /* its END follows */
} Sending;

static gpointer send_bytes(gpointer data)
{
    Sending *sending = data;

    for (gsize at = 0; at < sending->size; at += FILES_FRAME_MAX) {
        helper_send_frame(sending->helper, FILES_MORE, sending->id, 0, sending->bytes + at,
                          MIN(FILES_FRAME_MAX, sending->size - at));
    }
    if (sending->last) {
        helper_send_frame(sending->helper, FILES_END, sending->id, 0, NULL, 0);
    }
    free(sending->bytes);
    g_free(sending);
    return NULL;
}

/* While they are being sent, the appliance reads on, be it for the next request. */
static void send_in_background(Helper *helper, guint32 id, char *bytes, gsize size, gboolean last)
{
    Sending *sending = g_new0(Sending, 1);

    sending->helper = helper;
    sending->id = id;
    sending->bytes = bytes;
    sending->size = size;
    sending->last = last;
    helper_flush(helper);
    helper->sender = g_thread_new("send", send_bytes, sending);
}

/*
 * By messages, and not by guestfs_download_offset(): that comes in chunks of 8 KiB, each
 * of which costs the appliance and us several calls of the system.
 */
void helper_read(Helper *helper, guint32 id, const char *path, guint64 offset, guint64 size)
{
    guint64 end = offset + size;

    if (offset > G_MAXINT64 || size == 0 || size > 64 * 1024 * 1024) {
        helper_fail(helper, id, EINVAL, "a read of that size is not done");
        return;
    }
    while (offset < end) {
        size_t got = 0;
        char *bytes = guestfs_pread(helper->guestfs, path, (int)MIN(end - offset, READ_SIZE),
                                    (int64_t)offset, &got);

        if (!bytes) {
            helper_fail_guestfs(helper, id, "cannot read it");
            return;
        }
        if (got == 0) {
            free(bytes);
            helper_send(helper, FILES_END, id, 0, NULL, 0);
            return;
        }
        offset += got;
        send_in_background(helper, id, bytes, got, offset >= end);
    }
}
