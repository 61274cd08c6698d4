/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * guestfs-read.c - extended attributes, and the bytes of files.
 *
 * The thread of vmsnapfs-files; a long read has a second one: libguestfs writes
 * into a pipe without a pause, and that thread empties it into the daemon's
 * socket.  Only one of the two sends at a time.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backend/guestfs-helper.h"

/* Up to here one message with all bytes is quicker than a stream of chunks. */
#define SMALL_READ (512 * 1024)
#define PUMP_SIZE (256 * 1024)

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

static void read_small(Helper *helper, guint32 id, const char *path, guint64 offset, guint64 size)
{
    size_t got = 0;
    g_autofree char *bytes =
        guestfs_pread(helper->guestfs, path, (int)size, (int64_t)offset, &got);

    if (!bytes) {
        helper_fail_guestfs(helper, id, "cannot read it");
        return;
    }
    helper_send(helper, FILES_MORE, id, 0, bytes, got);
    helper_send(helper, FILES_END, id, 0, NULL, 0);
}

typedef struct {
    Helper *helper;
    guint32 id;
    int fd;
} Pump;

static gpointer pump(gpointer data)
{
    Pump *work = data;
    g_autofree char *buffer = g_malloc(PUMP_SIZE);
    ssize_t got;

    while ((got = read(work->fd, buffer, PUMP_SIZE)) != 0) {
        if (got > 0) {
            helper_send(work->helper, FILES_MORE, work->id, 0, buffer, (gsize)got);
        } else if (errno != EINTR) {
            break;
        }
    }
    return NULL;
}

static void read_stream(Helper *helper, guint32 id, const char *path, guint64 offset, guint64 size)
{
    int ends[2];
    Pump work = {.helper = helper, .id = id};
    g_autofree char *name = NULL;
    GThread *thread;
    int result;

    if (pipe2(ends, O_CLOEXEC) < 0) {
        helper_fail(helper, id, errno, "no pipe");
        return;
    }
    (void)fcntl(ends[0], F_SETPIPE_SZ, 1024 * 1024);
    work.fd = ends[0];
    name = g_strdup_printf("/dev/fd/%d", ends[1]);
    thread = g_thread_new("pump", pump, &work);
    result = guestfs_download_offset(helper->guestfs, path, name, (int64_t)offset, (int64_t)size);
    close(ends[1]);
    g_thread_join(thread);
    close(ends[0]);
    if (result < 0) {
        helper_fail_guestfs(helper, id, "cannot read it");
    } else {
        helper_send(helper, FILES_END, id, 0, NULL, 0);
    }
}

void helper_read(Helper *helper, guint32 id, const char *path, guint64 offset, guint64 size)
{
    if (offset > G_MAXINT64 || size > 64 * 1024 * 1024) {
        helper_fail(helper, id, EINVAL, "a read of that size is not done");
    } else if (size <= SMALL_READ) {
        read_small(helper, id, path, offset, size);
    } else {
        read_stream(helper, id, path, offset, size);
    }
}
