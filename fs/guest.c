/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * guest.c - the guest's files in the mount; see guest.h.
 *
 * Entered by FUSE threads; the answers come on the thread of the appliance, or at
 * once where the backend has them.  Nothing here waits and nothing is locked.
 *
 * All of it is hostile.  Names are checked by the backend; links are rewritten
 * (guest-link.c); devices, sockets and fifos show as empty files; set-uid and
 * set-gid bits are taken off (and the mount is nosuid).  Owners and modes are the
 * guest's, and the kernel goes by them as if its users were the host's: what
 * keeps the host's users out is the directory above, `files`, that is the mount
 * owner's alone.  On a mount that is not root's, all belongs to its owner.
 */
#include "fs/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "fs/attr.h"
#include "fs/file.h"
#include "fs/guest-link.h"
#include "fs/name.h"
#include "fs/stream.h"
#include "fs/xattr.h"

#define BLOCK_SIZE_HINT (128 * 1024)
#define XATTR_LIST_MAX 65536

/* What the item of a node stands for. */
typedef struct {
    BeFiles *files;            /* valid as long as the object's item */
    char *path;                /* "root/etc/fstab" */
    guint depth;               /* directories between the file system's root and its parent */
    gboolean is_volume;
    struct stat attr;          /* but for file systems; as shown */
    char *target;              /* of a link, as shown; NULL: it leads out */
} FsGuest;

struct FsGuestList {
    BeFileList *list;          /* of a directory of the guest; or */
    char **volumes;            /* of `files`: the file names */
};

static const FsGuest *guest_of(const FsNode *node)
{
    return node->def->files ? NULL : node->item->data;
}

/* The backup or snapshot that all of this is part of. */
static FsItem *object_of(const FsNode *node)
{
    return node->def->files ? node->item : node->item->parent;
}

static void guest_free(gpointer data)
{
    FsGuest *guest = data;

    g_free(guest->path);
    g_free(guest->target);
    g_free(guest);
}

/* ---- Attributes --------------------------------------------------------------------- */

static mode_t shown_mode(mode_t mode)
{
    mode_t bits = mode & 01777;

    if (S_ISDIR(mode)) {
        return S_IFDIR | bits;
    }
    if (S_ISLNK(mode)) {
        return S_IFLNK | 0777;
    }
    return S_IFREG | bits;
}

/* Equal for two names of one file, different in another file system or object. */
static guint64 inode_of(const char *object_id, const char *path, const struct stat *attr)
{
    g_autofree char *volume = g_strndup(path, strcspn(path, "/"));
    g_autofree char *device = g_strdup_printf("%" G_GINT64_MODIFIER "x", (guint64)attr->st_dev);
    g_autofree char *number = g_strdup_printf("%" G_GINT64_MODIFIER "x", (guint64)attr->st_ino);
    const char *const parts[] = {"guest", object_id, volume, device, number, NULL};

    return fs_name_inode(parts);
}

static void set_attr(const Fs *fs, FsGuest *guest, const char *object_id, const BeFileInfo *info)
{
    struct stat *attr = &guest->attr;

    *attr = info->attr;
    attr->st_ino = inode_of(object_id, guest->path, &info->attr);
    attr->st_dev = 0;
    attr->st_rdev = 0;
    attr->st_mode = shown_mode(info->attr.st_mode);
    attr->st_blksize = BLOCK_SIZE_HINT;
    attr->st_nlink = MAX(attr->st_nlink, 1);
    if (fs->guest_owner) {
        attr->st_uid = fs->uid;
        attr->st_gid = fs->gid;
    }
    if (S_ISLNK(attr->st_mode)) {
        attr->st_size = guest->target ? (off_t)strlen(guest->target) : attr->st_size;
    } else if (!S_ISREG(info->attr.st_mode) && !S_ISDIR(info->attr.st_mode)) {
        attr->st_size = 0;
        attr->st_blocks = 0;
    }
}

gboolean fs_guest_attr(Fs *fs G_GNUC_UNUSED, const FsNode *node, struct stat *attr)
{
    const FsGuest *guest = guest_of(node);

    if (!guest || guest->is_volume) {
        return FALSE;
    }
    *attr = guest->attr;
    return TRUE;
}

gboolean fs_guest_is_certain(const FsNode *node)
{
    const FsGuest *guest = guest_of(node);

    return !guest || !guest->is_volume || be_files_volume_known(guest->files, guest->path) == 1;
}

/* ---- Items ------------------------------------------------------------------------------ */

static FsItem *item_new(FsItem *object, FsGuest *guest, char *file_name)
{
    const char *const parts[] = {"guest", object->id, guest->path, NULL};
    g_autofree char *id = g_strdup_printf("%s/%" G_GINT64_MODIFIER "x", object->id,
                                          fs_name_inode(parts));
    FsItem *item = fs_item_new(object, id, file_name, guest, guest_free);

    item->is_part = TRUE;
    item->ino = guest->is_volume ? 0 : guest->attr.st_ino;
    return item;
}

static FsItem *volume_item(FsItem *object, BeFiles *files, const char *name)
{
    FsGuest *guest = g_new0(FsGuest, 1);

    guest->files = files;
    guest->path = g_strdup(name);
    guest->is_volume = TRUE;
    return item_new(object, guest, fs_name_encode(name, NULL));
}

static FsItem *file_item(const Fs *fs, const FsNode *parent, const BeFileInfo *info,
                         const char *name)
{
    const FsGuest *above = guest_of(parent);
    FsItem *object = object_of(parent);
    FsGuest *guest = g_new0(FsGuest, 1);

    guest->files = above->files;
    guest->path = g_strdup_printf("%s/%s", above->path, name);
    guest->depth = above->is_volume ? 0 : above->depth + 1;
    if (info->target) {
        guest->target = fs->links_raw ? g_strdup(info->target)
                                      : fs_guest_link(info->target, guest->depth,
                                                      info->target_plain);
    }
    set_attr(fs, guest, object->id, info);
    return item_new(object, guest, g_strdup(name));
}

/* ---- Failures ------------------------------------------------------------------------------ */

static void cancelled(FsReq *req, gpointer data G_GNUC_UNUSED)
{
    fs_req_error(req, EINTR);
}

/* A name that is not there is no failure to speak of. */
static void fail(FsReq *req, const GError *error)
{
    if (error->code == ENOENT && req->name) {
        fs_req_error(req, ENOENT);
    } else {
        fs_req_fail(req, fs_error_errno(error), "%s", error->message);
    }
}

void fs_guest_refuse(FsReq *req, gboolean removal)
{
    if (removal) {
        fs_guard_removal_refused(req->fs->guard, object_of(req->node));
    } else {
        fs_guard_creation_refused(req->fs->guard, object_of(req->node));
    }
    fs_req_fail(req, req->fs->read_only ? EROFS : EPERM, "the guest's files are shown read-only");
    fs_req_unref(req);
}

/* ---- Lookup ---------------------------------------------------------------------------------- */

static void reply_entry(FsReq *req, const FsDef *def, FsItem *item)
{
    fs_req_entry(req, fs_node_lookup(req->fs->nodes, req->node, def, item));
    fs_item_unref(item);
}

static void lookup_done(const BeFileInfo *info, const GError *error, gpointer user)
{
    FsReq *req = user;

    if (error) {
        fail(req, error);
    } else {
        reply_entry(req, req->node->def, file_item(req->fs, req->node, info, req->name));
    }
    fs_req_unref(req);
}

static void lookup_volume(FsReq *req)
{
    BeFiles *files = req->node->def->files(req->node->item);
    g_autofree char *name = fs_name_decode(req->name, NULL);

    if (!name || be_files_volume_known(files, name) == 0) {
        fs_req_error(req, ENOENT);
    } else {
        reply_entry(req, req->node->def->child, volume_item(req->node->item, files, name));
    }
    fs_req_unref(req);
}

void fs_guest_lookup(FsReq *req)
{
    const FsGuest *guest = guest_of(req->node);
    g_autofree char *path = NULL;

    if (!guest) {
        lookup_volume(req);
        return;
    }
    if (!S_ISDIR(guest->attr.st_mode) && !guest->is_volume) {
        fs_req_error(req, ENOTDIR);
        fs_req_unref(req);
        return;
    }
    path = g_strdup_printf("%s/%s", guest->path, req->name);
    fs_req_on_cancel(req, cancelled, NULL);
    be_files_stat(guest->files, path, lookup_done, req);
}

void fs_guest_readlink(FsReq *req)
{
    const FsGuest *guest = guest_of(req->node);

    if (!guest || !S_ISLNK(guest->attr.st_mode)) {
        fs_req_error(req, EINVAL);
    } else if (guest->target) {
        fs_req_readlink(req, guest->target);
    } else {
        fs_req_fail(req, EPERM,
                    "this link leads out of the guest's tree; links=raw shows its own text");
    }
    fs_req_unref(req);
}

/* ---- Listing ----------------------------------------------------------------- */

void fs_guest_list_free(FsGuestList *list)
{
    if (list) {
        be_file_list_unref(list->list);
        g_strfreev(list->volumes);
        g_free(list);
    }
}

static void reply_opendir(FsReq *req, FsGuestList *list)
{
    FsFile *file = fs_file_new(req->fs, req->node, req->caller.pid);

    file->list = list;
    req->fi.cache_readdir = list->list != NULL;
    req->fi.keep_cache = list->list != NULL;
    fs_req_open(req, file);
}

static void opendir_done(BeFileList *found, const GError *error, gpointer user)
{
    FsReq *req = user;

    if (error) {
        fail(req, error);
    } else {
        FsGuestList *list = g_new0(FsGuestList, 1);

        list->list = be_file_list_ref(found);
        reply_opendir(req, list);
    }
    fs_req_unref(req);
}

static void volumes_done(const char *const *names, const GError *error, gpointer user)
{
    FsReq *req = user;

    if (error) {
        fail(req, error);
    } else {
        FsGuestList *list = g_new0(FsGuestList, 1);
        GPtrArray *encoded = g_ptr_array_new();

        for (guint i = 0; names[i]; i++) {
            g_ptr_array_add(encoded, fs_name_encode(names[i], NULL));
        }
        g_ptr_array_add(encoded, NULL);
        list->volumes = (char **)g_ptr_array_free(encoded, FALSE);
        reply_opendir(req, list);
    }
    fs_req_unref(req);
}

void fs_guest_opendir(FsReq *req)
{
    const FsGuest *guest = guest_of(req->node);

    fs_req_on_cancel(req, cancelled, NULL);
    if (guest) {
        be_files_list(guest->files, guest->path, opendir_done, req);
    } else {
        be_files_volumes(req->node->def->files(req->node->item), volumes_done, req);
    }
}

/* One reply: entries, and the nodes that the kernel gets with it. */
typedef struct {
    FsReq *req;
    char *buffer;
    gsize used;
    GPtrArray *nodes;          /* of FsNode, each looked up once */
} Page;

/* FALSE: the page is full. */
static gboolean page_add(Page *page, const char *name, const struct fuse_entry_param *entry,
                         off_t next)
{
    FsReq *req = page->req;
    char *at = page->buffer + page->used;
    gsize room = req->size - page->used;
    gsize need = req->plus ? fuse_add_direntry_plus(req->fuse, at, room, name, entry, next)
                           : fuse_add_direntry(req->fuse, at, room, name, &entry->attr, next);

    if (need > room) {
        return FALSE;
    }
    page->used += need;
    return TRUE;
}

static gboolean page_add_plain(Page *page, const char *name, guint64 ino, off_t next)
{
    struct fuse_entry_param entry = {.attr = {.st_ino = ino, .st_mode = S_IFDIR}};

    return page_add(page, name, &entry, next);
}

static void forget(FsReq *req, FsNode *node)
{
    fs_node_forget(req->fs->nodes, node->number, 1);
    fs_node_unref(req->fs->nodes, node);
}

static gboolean page_add_file(Page *page, const BeFileInfo *info, off_t next)
{
    FsReq *req = page->req;
    struct fuse_entry_param entry = {0};
    g_autoptr(FsItem) item = file_item(req->fs, req->node, info, info->name);
    FsNode *node = NULL;

    entry.attr = ((FsGuest *)item->data)->attr;
    if (req->plus) {
        node = fs_node_lookup(req->fs->nodes, req->node, req->node->def, item);
        entry.ino = node->number;
        entry.attr_timeout = fs_attr_timeout(node);
        entry.entry_timeout = fs_entry_timeout(node);
    }
    if (!page_add(page, info->name, &entry, next)) {
        if (node) {
            forget(req, node);
        }
        return FALSE;
    }
    if (node) {
        g_ptr_array_add(page->nodes, node);
    }
    return TRUE;
}

static gboolean page_add_index(Page *page, guint64 index)
{
    const FsNode *node = page->req->node;
    const FsGuestList *list = page->req->file->list;
    off_t next = (off_t)index + 1;

    if (index == 0) {
        return page_add_plain(page, ".", node->ino, next);
    }
    if (index == 1) {
        return page_add_plain(page, "..", node->parent->ino, next);
    }
    if (list->volumes) {
        g_autofree char *name = fs_name_decode(list->volumes[index - 2], NULL);
        g_autoptr(FsItem) item =
            volume_item(node->item, node->def->files(node->item), name ? name : "root");

        return page_add_plain(page, list->volumes[index - 2],
                              fs_node_child_ino(node, node->def->child, item), next);
    }
    return page_add_file(page, g_ptr_array_index(list->list->infos, index - 2), next);
}

void fs_guest_readdir(FsReq *req)
{
    const FsGuestList *list = req->file->list;
    guint64 count =
        2 + (list->volumes ? g_strv_length(list->volumes) : list->list->infos->len);
    g_autofree char *buffer = g_malloc(req->size);
    g_autoptr(GPtrArray) nodes = g_ptr_array_new();
    Page page = {.req = req, .buffer = buffer, .nodes = nodes};
    gboolean taken;

    for (guint64 i = (guint64)MAX(req->offset, 0); i < count && page_add_index(&page, i); i++) {
        continue;
    }
    taken = fs_req_buf(req, buffer, page.used);
    for (guint i = 0; i < nodes->len; i++) {
        FsNode *node = g_ptr_array_index(nodes, i);

        if (taken) {
            fs_node_unref(req->fs->nodes, node);
        } else {
            forget(req, node);
        }
    }
    fs_req_unref(req);
}

/* ---- Bytes ------------------------------------------------------------------- */

void fs_guest_open(FsReq *req)
{
    const FsGuest *guest = guest_of(req->node);
    FsFile *file;

    if (!guest || guest->is_volume || !S_ISREG(guest->attr.st_mode)) {
        fs_req_error(req, guest && S_ISLNK(guest->attr.st_mode) ? ELOOP : EISDIR);
        fs_req_unref(req);
        return;
    }
    file = fs_file_new(req->fs, req->node, req->caller.pid);
    file->guest =
        be_file_reader_new(guest->files, guest->path, (guint64)MAX(guest->attr.st_size, 0));
    req->fi.keep_cache = 1;
    req->fi.direct_io = (req->fi.flags & O_DIRECT) != 0;
    fs_req_open(req, file);
    fs_req_unref(req);
}

static void read_done(const struct iovec *iov, int count, int errnum, gpointer user)
{
    FsReq *req = user;

    if (errnum) {
        fs_req_fail(req, errnum, "cannot read %" G_GSIZE_FORMAT " bytes at %" G_GINT64_FORMAT,
                    req->size, (gint64)req->offset);
    } else {
        fs_req_iov(req, iov, count);
    }
    fs_req_unref(req);
}

void fs_guest_read(FsReq *req)
{
    fs_req_on_cancel(req, cancelled, NULL);
    be_file_reader_read(req->file->guest, (guint64)req->offset, req->size, read_done, req);
}

/* libguestfs tells nothing of holes: all is data. */
void fs_guest_lseek(FsReq *req)
{
    const FsGuest *guest = guest_of(req->node);
    off_t size = guest ? guest->attr.st_size : 0;

    if (req->whence != SEEK_DATA && req->whence != SEEK_HOLE) {
        fs_req_error(req, EINVAL);
    } else if (req->offset < 0 || req->offset >= size) {
        fs_req_error(req, ENXIO);
    } else {
        fs_req_lseek(req, req->whence == SEEK_DATA ? req->offset : size);
    }
    fs_req_unref(req);
}

/* ---- Extended attributes ----------------------------------------------------- */

static void xattr_get_done(GHashTable *xattrs, const GError *error, gpointer user)
{
    FsReq *req = user;
    GBytes *value = xattrs ? g_hash_table_lookup(xattrs, req->data) : NULL;

    if (error) {
        fail(req, error);
    } else if (!value) {
        fs_req_error(req, ENODATA);
    } else {
        gsize size;
        const void *data = g_bytes_get_data(value, &size);

        fs_xattr_reply(req, data, size);
    }
    g_free(g_steal_pointer(&req->data));
    fs_req_unref(req);
}

void fs_guest_getxattr(FsReq *req, const char *name)
{
    const FsGuest *guest = guest_of(req->node);

    if (!guest || guest->is_volume) {
        fs_req_error(req, ENODATA);
        fs_req_unref(req);
        return;
    }
    req->data = g_strdup(name);
    fs_req_on_cancel(req, cancelled, NULL);
    be_files_xattrs(guest->files, guest->path, xattr_get_done, req);
}

static void xattr_list_done(GHashTable *xattrs, const GError *error, gpointer user)
{
    FsReq *req = user;
    g_autoptr(GString) names = g_string_new(NULL);
    GHashTableIter iter;
    gpointer name;

    if (error) {
        fail(req, error);
        fs_req_unref(req);
        return;
    }
    g_hash_table_iter_init(&iter, xattrs);
    while (g_hash_table_iter_next(&iter, &name, NULL)) {
        if (names->len + strlen(name) + 1 <= XATTR_LIST_MAX) {
            g_string_append_len(names, name, (gssize)strlen(name) + 1);
        }
    }
    fs_xattr_reply(req, names->str, names->len);
    fs_req_unref(req);
}

void fs_guest_listxattr(FsReq *req)
{
    const FsGuest *guest = guest_of(req->node);

    if (!guest || guest->is_volume) {
        fs_xattr_reply(req, "", 0);
        fs_req_unref(req);
        return;
    }
    fs_req_on_cancel(req, cancelled, NULL);
    be_files_xattrs(guest->files, guest->path, xattr_list_done, req);
}
