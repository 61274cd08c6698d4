/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image.c - the chain of a local disk image; see image.h.
 *
 * Any thread, no locks; blocks on local files.
 */
#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <json-glib/json-glib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"

enum {
    FIRST_READ = 64 * 1024,
    MAX_CLUSTER = 2 * 1024 * 1024,
    SECTOR = 512,
    MIN_ALLOCATED = 4096,
    /* Of address space, for the L2 tables of a chain; QEMU's default for one image. */
    CACHE_OF_ONE = 32 * 1024 * 1024,
    CACHE_OF_ALL = 8 * CACHE_OF_ONE,
    /* Linux takes no argument of 128 KiB or more (MAX_ARG_STRLEN). */
    MAX_ARGUMENT = 128 * 1024 - 1,
};

/* Bits 0 to 4 of QEMU 7.2: dirty, corrupt, data file, compression, extended L2. */
#define KNOWN_INCOMPATIBLE 0x1fU

static const char format_raw[] = "raw";
static const char format_qcow2[] = "qcow2";

/* ---- One image ---------------------------------------------------------- */

static void image_free(gpointer data)
{
    BeImage *image = data;

    g_free(image->path);
    g_free(image);
}

/*
 * O_PATH opens the name without opening the file, so that its kind is known
 * before a driver or the other end of a fifo hears of us.
 */
int be_image_open(const char *path, GError **error)
{
    int name_fd = open(path, O_PATH | O_CLOEXEC);
    g_autofree char *name = NULL;
    struct stat st;
    int fd = -1;

    if (name_fd < 0 || fstat(name_fd, &st) < 0) {
        be_error_set_errno(error, errno, "cannot open the image '%s'", path);
    } else if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "'%s' is neither a file nor a block device",
                    path);
    } else {
        name = g_strdup_printf("/proc/self/fd/%d", name_fd);
        fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        if (fd < 0) {
            be_error_set_errno(error, errno, "cannot open the image '%s'", path);
        }
    }
    if (name_fd >= 0) {
        close(name_fd);
    }
    return fd;
}

/* Reads @length bytes from @from on, fewer only at the end; FALSE with errno. */
static gboolean read_at(int fd, GByteArray *bytes, gsize from, gsize length)
{
    g_byte_array_set_size(bytes, (guint)(from + length));
    while (length > 0) {
        ssize_t got = pread(fd, bytes->data + from, length, (off_t)from);

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return FALSE;
        }
        if (got == 0) {
            break;
        }
        from += (gsize)got;
        length -= (gsize)got;
    }
    g_byte_array_set_size(bytes, (guint)from);
    return TRUE;
}

/* The first cluster; 64 KiB nearly always are. */
static gboolean read_header(int fd, const char *path, BeImageHeader *ret, GError **error)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();

    if (!read_at(fd, bytes, 0, FIRST_READ)) {
        be_error_set_errno(error, errno, "cannot read the image '%s'", path);
        return FALSE;
    }
    /* Byte 23 is the low one of the cluster bits: over 16 means more than that. */
    if (bytes->len == FIRST_READ && bytes->data[23] > 16
        && !read_at(fd, bytes, FIRST_READ, MAX_CLUSTER - FIRST_READ)) {
        be_error_set_errno(error, errno, "cannot read the image '%s'", path);
        return FALSE;
    }
    if (!be_image_header_parse(bytes->data, bytes->len, ret, error)) {
        g_prefix_error(error, "'%s' is ", path);
        return FALSE;
    }
    return TRUE;
}

/* What a well-formed header asks for that we do not give. */
static gboolean check_features(const char *path, const BeImageHeader *header, GError **error)
{
    guint64 unknown = header->incompatible & ~(guint64)KNOWN_INCOMPATIBLE;

    if (header->crypt_method != 0) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "the image '%s' is encrypted", path);
    } else if (header->corrupt) {
        g_set_error(error, BE_ERROR, EIO,
                    "the image '%s' is marked corrupt; repair it with qemu-img check -r all", path);
    } else if (header->external_data) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the image '%s' keeps its data in another file ('%s')", path,
                    header->data_file ? header->data_file : "");
    } else if (unknown != 0) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the image '%s' has qcow2 features that are not known (0x%" G_GINT64_MODIFIER
                    "x)",
                    path, unknown);
    } else {
        return TRUE;
    }
    return FALSE;
}

static gboolean measure_file(int fd, BeImage *image, GError **error)
{
    struct stat st;
    off_t end = -1;

    if (fstat(fd, &st) < 0 || (end = lseek(fd, 0, SEEK_END)) < 0) {
        be_error_set_errno(error, errno, "cannot find the size of the image '%s'", image->path);
        return FALSE;
    }
    image->block_device = S_ISBLK(st.st_mode);
    image->dev = image->block_device ? st.st_rdev : st.st_dev;
    image->ino = image->block_device ? 0 : st.st_ino;
    image->allocated = image->block_device ? (guint64)end : (guint64)st.st_blocks * SECTOR;
    /* QEMU counts whole sectors, and fills the last one with zeroes. */
    image->size = ((guint64)end + SECTOR - 1) / SECTOR * SECTOR;
    return TRUE;
}

static const char *known_format(const char *format)
{
    if (g_strcmp0(format, format_raw) == 0) {
        return format_raw;
    }
    return g_strcmp0(format, format_qcow2) == 0 ? format_qcow2 : NULL;
}

static gboolean check_format(const char *path, const char *format, GError **error)
{
    if (!format) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "no format is recorded for the image '%s', and it is not guessed", path);
        return FALSE;
    }
    if (!known_format(format)) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the image '%s' has the format '%s'; only raw and qcow2 are read", path,
                    format);
        return FALSE;
    }
    return TRUE;
}

/*
 * Fills a new image whose path and format are set; @ret_header only of a qcow2
 * one, for a raw one has no backing file by definition.
 */
static gboolean inspect_file(int fd, BeImage *image, BeImageHeader *ret_header, GError **error)
{
    if (!measure_file(fd, image, error)) {
        return FALSE;
    }
    if (image->format == format_raw) {
        return TRUE;
    }
    if (!read_header(fd, image->path, ret_header, error)
        || !check_features(image->path, ret_header, error)) {
        return FALSE;
    }
    image->size = ret_header->size;
    image->dirty = ret_header->dirty;
    return TRUE;
}

static BeImage *inspect_image(const char *path, const char *format, BeImageHeader *ret_header,
                              GError **error)
{
    BeImage *image = NULL;
    int fd = -1;

    if (!check_format(path, format, error)) {
        return NULL;
    }
    fd = be_image_open(path, error);
    if (fd < 0) {
        return NULL;
    }
    image = g_new0(BeImage, 1);
    image->path = g_strdup(path);
    image->format = known_format(format);
    if (!inspect_file(fd, image, ret_header, error)) {
        g_clear_pointer(&image, image_free);
    }
    close(fd);
    return image;
}

/* ---- Chain -------------------------------------------------------------- */

/*
 * Where a recorded backing name leads, by QEMU's rules (block.c: path_has_protocol,
 * bdrv_get_full_backing_filename): a ':' before the first '/' makes a protocol;
 * a relative name begins in the directory of the image that names it.  "file:" is
 * cut off, but a relative name behind it would begin in QEMU's own directory,
 * which is nobody's intention.
 */
static char *backing_path(const BeImage *image, const char *name, GError **error)
{
    const char *path = g_str_has_prefix(name, "file:") ? name + strlen("file:") : name;
    g_autofree char *directory = NULL;

    if (path == name && name[strcspn(name, ":/")] == ':') {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the image '%s' has a backing file that is not a local file: '%s'",
                    image->path, name);
        return NULL;
    }
    if (*path == '/') {
        return g_strdup(path);
    }
    if (path != name) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the image '%s' has a backing file without a directory: '%s'", image->path,
                    name);
        return NULL;
    }
    directory = g_path_get_dirname(image->path);
    return g_build_filename(directory, name, NULL);
}

static gboolean is_in_chain(const GPtrArray *chain, const BeImage *image)
{
    for (guint i = 0; i < chain->len; i++) {
        const BeImage *other = g_ptr_array_index(chain, i);

        if (other->block_device == image->block_device && other->dev == image->dev
            && other->ino == image->ino) {
            return TRUE;
        }
    }
    return FALSE;
}

static gboolean add_level(GPtrArray *chain, const char *path, const char *format,
                          BeImageHeader *ret_header, GError **error)
{
    BeImage *image = NULL;

    if (chain->len >= BE_IMAGE_MAX_LEVELS) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "the chain of images has more than %d levels",
                    BE_IMAGE_MAX_LEVELS);
        return FALSE;
    }
    image = inspect_image(path, format, ret_header, error);
    if (!image) {
        return FALSE;
    }
    if (is_in_chain(chain, image)) {
        g_set_error(error, BE_ERROR, ELOOP, "the image '%s' is below itself in its chain", path);
        image_free(image);
        return FALSE;
    }
    g_ptr_array_add(chain, image);
    return TRUE;
}

GPtrArray *be_image_chain_inspect(const char *path, const char *format, GError **error)
{
    g_autoptr(GPtrArray) chain = g_ptr_array_new_with_free_func(image_free);
    g_autofree char *next_path = g_strdup(path);
    g_autofree char *next_format = g_strdup(format);

    if (*path != '/') {
        g_set_error(error, BE_ERROR, EINVAL, "the path of the image '%s' is not absolute", path);
        return NULL;
    }
    while (next_path) {
        g_auto(BeImageHeader) header = {.version = 0};

        if (!add_level(chain, next_path, next_format, &header, error)) {
            return NULL;
        }
        g_clear_pointer(&next_path, g_free);
        g_clear_pointer(&next_format, g_free);
        if (header.backing_name) {
            next_path = backing_path(chain->pdata[chain->len - 1], header.backing_name, error);
            if (!next_path) {
                return NULL;
            }
            next_format = g_steal_pointer(&header.backing_format);
        }
    }
    return g_steal_pointer(&chain);
}

static gboolean image_equal(const BeImage *a, const BeImage *b)
{
    return strcmp(a->path, b->path) == 0 && a->format == b->format
           && a->block_device == b->block_device && a->dev == b->dev && a->ino == b->ino
           && a->size == b->size;
}

gboolean be_image_chain_equal(const GPtrArray *a, const GPtrArray *b)
{
    if (a->len != b->len) {
        return FALSE;
    }
    for (guint i = 0; i < a->len; i++) {
        if (!image_equal(a->pdata[i], b->pdata[i])) {
            return FALSE;
        }
    }
    return TRUE;
}

guint64 be_image_chain_size(const GPtrArray *chain)
{
    const BeImage *top = g_ptr_array_index(chain, 0);

    return top->size;
}

guint64 be_image_chain_allocated(const GPtrArray *chain)
{
    guint64 size = be_image_chain_size(chain);
    guint64 sum = 0;

    for (guint i = 0; i < chain->len && sum < size; i++) {
        const BeImage *image = g_ptr_array_index(chain, i);

        sum = image->allocated > size - sum ? size : sum + image->allocated;
    }
    return sum > 0 ? MAX(sum, MIN_ALLOCATED) : 0;
}

/* ---- For QEMU ----------------------------------------------------------- */

static JsonObject *file_node(const BeImage *image, const char *locking)
{
    JsonObject *node = json_object_new();

    json_object_set_string_member(node, "driver", image->block_device ? "host_device" : "file");
    json_object_set_string_member(node, "filename", image->path);
    json_object_set_string_member(node, "locking", locking);
    return node;
}

static void set_qcow2_members(JsonObject *node, JsonObject *backing, guint levels)
{
    if (backing) {
        json_object_set_object_member(node, "backing", backing);
    } else {
        json_object_set_null_member(node, "backing");
    }
    /* QEMU reserves up to 32 MiB for each image: a long chain of large ones would
     * need more memory than a helper may have (child-exec.c). */
    if (levels > CACHE_OF_ALL / CACHE_OF_ONE) {
        json_object_set_int_member(node, "l2-cache-size", CACHE_OF_ALL / levels);
    }
}

/* Takes @backing, which is NULL for the last of the @levels images. */
static JsonObject *format_node(const BeImage *image, JsonObject *backing, guint levels,
                               const char *locking)
{
    JsonObject *node = json_object_new();

    json_object_set_string_member(node, "driver", image->format);
    json_object_set_object_member(node, "file", file_node(image, locking));
    if (image->format == format_qcow2) {
        set_qcow2_members(node, backing, levels);
    }
    return node;
}

/*
 * json-glib 1.6 leaves the one control character 0x1f as it is (its loop ends
 * before it), and QEMU's parser refuses it.  It can only be inside a string.
 */
static char *generate(JsonNode *root)
{
    g_autofree char *text = json_to_string(root, FALSE);
    g_auto(GStrv) parts = g_strsplit(text, "\x1f", -1);

    return g_strjoinv("\\u001f", parts);
}

static char *chain_json(const GPtrArray *chain, const char *locking, GError **error)
{
    g_autoptr(JsonNode) root = json_node_new(JSON_NODE_OBJECT);
    JsonObject *tree = NULL;
    g_autofree char *text = NULL;

    for (guint i = 0; i < chain->len; i++) {
        const BeImage *image = g_ptr_array_index(chain, i);

        if (!g_utf8_validate(image->path, -1, NULL)) {
            g_set_error(error, BE_ERROR, EOPNOTSUPP, "the path of the image '%s' is not UTF-8",
                        image->path);
            return NULL;
        }
    }
    for (guint i = chain->len; i-- > 0;) {
        tree = format_node(g_ptr_array_index(chain, i), tree, chain->len, locking);
    }
    json_node_take_object(root, tree);
    text = generate(root);
    if (strlen(text) + strlen("json:") > MAX_ARGUMENT) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the paths of the chain of images are too long for a command line");
        return NULL;
    }
    return g_strconcat("json:", text, NULL);
}

char *be_image_chain_json(const GPtrArray *chain, GError **error)
{
    return chain_json(chain, "auto", error);
}

char *be_image_chain_json_unlocked(const GPtrArray *chain, GError **error)
{
    return chain_json(chain, "off", error);
}
