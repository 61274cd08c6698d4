/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * record.c - JSON documents on disk; see record.h.
 *
 * Workers; no locks: a record is replaced by rename(2) alone.  Temporaries are
 * cleaned up at the start only, so that a thread that writes never loses its own.
 */
#include "backend/record.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/error.h"

#define SUFFIX ".json"
#define ASIDE_SUFFIX ".broken"
#define ID_MAX 128

/* What g_file_set_contents_full() puts behind the name while it writes. */
#define TEMPORARY_TAIL 7

/* ---- Names ----------------------------------------------------------------------- */

gboolean be_record_id_is_valid(const char *id)
{
    gsize length = id ? strlen(id) : 0;

    if (length == 0 || length > ID_MAX || id[0] == '.') {
        return FALSE;
    }
    for (const char *p = id; *p; p++) {
        if (!g_ascii_isalnum(*p) && *p != '-' && *p != '_' && *p != '.') {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean check_names(const char *kind, const char *id, GError **error)
{
    if (be_record_id_is_valid(kind) && be_record_id_is_valid(id)) {
        return TRUE;
    }
    g_set_error(error, BE_ERROR, EINVAL, "a record cannot be called '%s'", id ? id : "");
    return FALSE;
}

char *be_record_dir(Be *be, const char *kind)
{
    return g_build_filename(be->state_dir, kind, NULL);
}

static char *path_of(Be *be, const char *kind, const char *id, const char *suffix)
{
    g_autofree char *name = g_strconcat(id, suffix, NULL);

    return g_build_filename(be->state_dir, kind, name, NULL);
}

/* The id of a record's file name, or NULL. */
static char *id_of(const char *name)
{
    g_autofree char *id = NULL;

    if (g_str_has_suffix(name, SUFFIX)) {
        id = g_strndup(name, strlen(name) - strlen(SUFFIX));
    }
    return be_record_id_is_valid(id) ? g_steal_pointer(&id) : NULL;
}

/* "ID.json.X7K2P1" */
static gboolean is_temporary(const char *name)
{
    gsize length = strlen(name);
    g_autofree char *id = NULL;

    if (length <= TEMPORARY_TAIL || name[length - TEMPORARY_TAIL] != '.') {
        return FALSE;
    }
    for (const char *p = name + length - TEMPORARY_TAIL + 1; *p; p++) {
        if (!g_ascii_isalnum(*p)) {
            return FALSE;
        }
    }
    id = g_strndup(name, length - TEMPORARY_TAIL);
    return g_str_has_suffix(id, SUFFIX);
}

/* ---- Writing ----------------------------------------------------------------------- */

static char *text_of(JsonObject *object, gsize *ret_length)
{
    g_autoptr(JsonNode) root = json_node_new(JSON_NODE_OBJECT);
    char *text;

    json_node_set_object(root, object);
    text = json_to_string(root, TRUE);
    *ret_length = strlen(text);
    return text;
}

gboolean be_record_write(Be *be, const char *kind, const char *id, JsonObject *object,
                         GError **error)
{
    g_autofree char *dir = be_record_dir(be, kind);
    g_autoptr(GError) file_error = NULL;
    g_autofree char *path = NULL;
    g_autofree char *text = NULL;
    gboolean existed;
    gsize length;

    if (be->read_only) {
        g_set_error(error, BE_ERROR, EROFS, "this mount is read-only");
        return FALSE;
    }
    if (!check_names(kind, id, error) || !be_dirs_ensure(dir, 0700, error)) {
        return FALSE;
    }
    text = text_of(object, &length);
    if (length > BE_RECORD_MAX_BYTES) {
        g_set_error(error, BE_ERROR, EFBIG, "the record '%s' is too long", id);
        return FALSE;
    }
    path = path_of(be, kind, id, SUFFIX);
    existed = access(path, F_OK) == 0;
    if (!g_file_set_contents_full(path, text, (gssize)length,
                                  G_FILE_SET_CONTENTS_CONSISTENT | G_FILE_SET_CONTENTS_DURABLE,
                                  0600, &file_error)) {
        g_set_error(error, BE_ERROR, ENOSPC, "cannot write the %s: %s", kind, file_error->message);
        return FALSE;
    }
    if (!be_dirs_sync(dir, error)) {
        /* Who is told that it is not there will never remove it. */
        if (!existed) {
            unlink(path);
        }
        return FALSE;
    }
    return TRUE;
}

/* After a rename or unlink, where nobody could do anything about a failure. */
static void sync_kind(Be *be, const char *kind)
{
    g_autofree char *dir = be_record_dir(be, kind);
    g_autoptr(GError) error = NULL;

    if (!be_dirs_sync(dir, &error) && error->code != ENOENT) {
        g_warning("%s", error->message);
    }
}

void be_record_remove(Be *be, const char *kind, const char *id)
{
    g_autofree char *path = path_of(be, kind, id, SUFFIX);

    if (!check_names(kind, id, NULL)) {
        return;
    }
    if (unlink(path) < 0 && errno != ENOENT) {
        g_warning("cannot remove '%s': %s", path, g_strerror(errno));
    }
    sync_kind(be, kind);
}

void be_record_set_aside(Be *be, const char *kind, const char *id, const char *why)
{
    g_autofree char *path = path_of(be, kind, id, SUFFIX);
    g_autofree char *aside = path_of(be, kind, id, ASIDE_SUFFIX);

    g_warning("the record '%s' is set aside: %s", path, why);
    if (rename(path, aside) < 0 && errno != ENOENT) {
        g_warning("cannot rename '%s': %s", path, g_strerror(errno));
    }
    sync_kind(be, kind);
}

static void tidy_kind(Be *be, const char *kind)
{
    g_autofree char *path = be_record_dir(be, kind);
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *file = g_build_filename(path, name, NULL);

        if (is_temporary(name) && unlink(file) < 0) {
            g_warning("cannot remove '%s': %s", file, g_strerror(errno));
        }
    }
}

void be_record_tidy(Be *be)
{
    g_autoptr(GDir) dir = g_dir_open(be->state_dir, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        tidy_kind(be, name);
    }
}

/* ---- Reading ----------------------------------------------------------------------- */

/*
 * Whether the parser, which recurses, can be let on it.  It knows comments and
 * strings in single quotes, too, which could hide brackets: none may be there.
 */
static gboolean is_tame(const char *text, gsize length)
{
    guint depth = 0;
    gboolean quoted = FALSE;

    for (gsize i = 0; i < length; i++) {
        if (text[i] == '"') {
            quoted = !quoted;
        } else if (quoted) {
            i += text[i] == '\\';
        } else if (strchr("'/#", text[i])) {
            return FALSE;
        } else if (text[i] == '{' || text[i] == '[') {
            if (++depth > BE_RECORD_MAX_DEPTH) {
                return FALSE;
            }
        } else if ((text[i] == '}' || text[i] == ']') && depth > 0) {
            depth--;
        }
    }
    return TRUE;
}

JsonObject *be_record_parse(const char *text, gsize length, GError **error)
{
    g_autoptr(JsonParser) parser = json_parser_new();
    g_autoptr(GError) parse_error = NULL;
    JsonNode *root;

    if (length == 0 || length > BE_RECORD_MAX_BYTES
        || !g_utf8_validate(text, (gssize)length, NULL) || !is_tame(text, length)) {
        g_set_error(error, BE_ERROR, EBADMSG, "it is empty, too long, too deep or not JSON text");
        return NULL;
    }
    if (!json_parser_load_from_data(parser, text, (gssize)length, &parse_error)) {
        g_set_error(error, BE_ERROR, EBADMSG, "%s", parse_error->message);
        return NULL;
    }
    root = json_parser_get_root(parser);
    if (!root || !JSON_NODE_HOLDS_OBJECT(root)) {
        g_set_error(error, BE_ERROR, EBADMSG, "it is no JSON object");
        return NULL;
    }
    return json_node_dup_object(root);
}

/* The descriptor of a regular file of a sane size, or -1. */
static int open_record(const char *path, gsize *ret_length, GError **error)
{
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    int errnum = errno;
    struct stat attr;

    if (fd >= 0) {
        errnum = fstat(fd, &attr) < 0 ? errno : 0;
        if (!errnum && (!S_ISREG(attr.st_mode) || attr.st_size > (off_t)BE_RECORD_MAX_BYTES)) {
            errnum = EBADMSG;
        }
    } else if (errnum == ELOOP) {
        errnum = EBADMSG;
    }
    if (errnum) {
        be_error_set_errno(error, errnum, "cannot read the record '%s'", path);
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    *ret_length = (gsize)attr.st_size;
    return fd;
}

static char *read_text(const char *path, gsize *ret_length, GError **error)
{
    gsize length, done = 0;
    int fd = open_record(path, &length, error);
    g_autofree char *text = fd >= 0 ? g_malloc(length + 1) : NULL;
    ssize_t count = 1;

    if (fd < 0) {
        return NULL;
    }
    while (done < length && count > 0) {
        count = read(fd, text + done, length - done);
        done += count > 0 ? (gsize)count : 0;
    }
    if (count < 0) {
        be_error_set_errno(error, errno, "cannot read the record '%s'", path);
        close(fd);
        return NULL;
    }
    close(fd);
    text[done] = '\0';
    *ret_length = done;
    return g_steal_pointer(&text);
}

JsonObject *be_record_read(Be *be, const char *kind, const char *id, GError **error)
{
    g_autofree char *path = path_of(be, kind, id, SUFFIX);
    g_autofree char *text = NULL;
    g_autoptr(GError) read_error = NULL;
    JsonObject *object = NULL;
    gsize length;

    if (!check_names(kind, id, error)) {
        return NULL;
    }
    text = read_text(path, &length, &read_error);
    if (text) {
        object = be_record_parse(text, length, &read_error);
    }
    if (!object) {
        if (read_error->code == EBADMSG && !be->read_only) {
            be_record_set_aside(be, kind, id, read_error->message);
        }
        g_propagate_error(error, g_steal_pointer(&read_error));
    }
    return object;
}

static void record_free(gpointer data)
{
    BeRecord *record = data;

    g_free(record->id);
    json_object_unref(record->object);
    g_free(record);
}

static int compare_ids(gconstpointer a, gconstpointer b)
{
    const BeRecord *const *left = a;
    const BeRecord *const *right = b;

    return strcmp((*left)->id, (*right)->id);
}

static void load_one(Be *be, const char *kind, const char *id, GPtrArray *records)
{
    g_autoptr(GError) error = NULL;
    JsonObject *object = be_record_read(be, kind, id, &error);
    BeRecord *record;

    if (!object) {
        if (error->code != ENOENT && error->code != EBADMSG) {
            g_warning("%s", error->message);
        }
        return;
    }
    record = g_new0(BeRecord, 1);
    record->id = g_strdup(id);
    record->object = object;
    g_ptr_array_add(records, record);
}

GPtrArray *be_record_load_some(Be *be, const char *kind, const char *prefix)
{
    GPtrArray *records = g_ptr_array_new_with_free_func(record_free);
    g_autofree char *path = be_record_dir(be, kind);
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *id = id_of(name);

        if (id && (!prefix || g_str_has_prefix(id, prefix))) {
            load_one(be, kind, id, records);
        }
    }
    g_ptr_array_sort(records, compare_ids);
    return records;
}

GPtrArray *be_record_load(Be *be, const char *kind)
{
    return be_record_load_some(be, kind, NULL);
}

/* ---- Members ------------------------------------------------------------------------- */

static JsonNode *member_of(JsonObject *object, const char *key, GType type)
{
    JsonNode *node = json_object_get_member(object, key);

    return node && json_node_get_value_type(node) == type ? node : NULL;
}

const char *be_record_get_string(JsonObject *object, const char *key)
{
    JsonNode *node = member_of(object, key, G_TYPE_STRING);

    return node ? json_node_get_string(node) : NULL;
}

gint64 be_record_get_int(JsonObject *object, const char *key)
{
    JsonNode *node = member_of(object, key, G_TYPE_INT64);

    return node ? json_node_get_int(node) : 0;
}

gboolean be_record_get_bool(JsonObject *object, const char *key)
{
    JsonNode *node = member_of(object, key, G_TYPE_BOOLEAN);

    return node && json_node_get_boolean(node);
}

JsonObject *be_record_get_object(JsonObject *object, const char *key)
{
    JsonNode *node = json_object_get_member(object, key);

    return node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
}

JsonArray *be_record_get_array(JsonObject *object, const char *key)
{
    JsonNode *node = json_object_get_member(object, key);

    return node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;
}

JsonObject *be_record_element(JsonArray *array, guint index)
{
    JsonNode *node = array && index < json_array_get_length(array)
                         ? json_array_get_element(array, index)
                         : NULL;

    return node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
}

void be_record_set_string(JsonObject *object, const char *key, const char *value)
{
    if (value) {
        json_object_set_string_member(object, key, value);
    }
}
