/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * journal.c - what we are about to do, on disk before we do it.
 *
 * One JSON file for each backup, below the host's state directory, written
 * whole, synced and renamed into place; so a reader finds the old one or the
 * new one.  Workers; blocks on the local file system.
 */
#include <errno.h>
#include <fcntl.h>
#include <json-glib/json-glib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/backup.h"
#include "backend/error.h"
#include "backend/nbd.h"

#define RECORD_MAX (16 * 1024 * 1024)
#define SUFFIX ".json"

static char *journal_dir(Be *be)
{
    return g_build_filename(be->state_dir, "journal", NULL);
}

static char *record_path(Be *be, const char *id)
{
    g_autofree char *dir = journal_dir(be);
    g_autofree char *name = g_strconcat(id, SUFFIX, NULL);

    return g_build_filename(dir, name, NULL);
}

/* ---- Writing ------------------------------------------------------------------- */

static void add_string(JsonBuilder *builder, const char *key, const char *value)
{
    if (value) {
        json_builder_set_member_name(builder, key);
        json_builder_add_string_value(builder, value);
    }
}

static void add_int(JsonBuilder *builder, const char *key, gint64 value)
{
    json_builder_set_member_name(builder, key);
    json_builder_add_int_value(builder, value);
}

static void add_disks(JsonBuilder *builder, const GPtrArray *disks)
{
    json_builder_set_member_name(builder, "disks");
    json_builder_begin_array(builder);
    for (guint i = 0; i < disks->len; i++) {
        const BeDisk *disk = g_ptr_array_index(disks, i);

        json_builder_begin_object(builder);
        add_string(builder, "target", disk->target);
        add_int(builder, "size", (gint64)disk->size);
        add_int(builder, "allocated", (gint64)disk->allocated);
        json_builder_end_object(builder);
    }
    json_builder_end_array(builder);
}

static char *record_text(const Backup *backup)
{
    const BeBackup *pub = &backup->pub;
    g_autoptr(JsonBuilder) builder = json_builder_new();
    g_autoptr(JsonNode) root = NULL;

    json_builder_begin_object(builder);
    add_string(builder, "kind", backup->off ? "offline" : "live");
    add_int(builder, "stage", backup->stage);
    add_string(builder, "id", pub->id);
    add_string(builder, "name", pub->name);
    add_string(builder, "domain-uuid", pub->domain_uuid);
    add_string(builder, "domain-name", pub->domain_name);
    add_int(builder, "created-us", pub->created_us);
    add_int(builder, "uid", pub->owner.uid);
    add_int(builder, "gid", pub->owner.gid);
    add_int(builder, "pid", pub->owner.pid);
    add_int(builder, "consistency", pub->consistency);
    add_int(builder, "frozen-us", pub->frozen_us);
    add_string(builder, "run-path", backup->run_path);
    add_string(builder, "scratch-path", backup->scratch_path);
    add_string(builder, "socket", backup->socket);
    add_string(builder, "domain-xml", pub->domain_xml);
    add_string(builder, "backup-xml", pub->backup_xml);
    add_disks(builder, pub->disks);
    json_builder_end_object(builder);
    root = json_builder_get_root(builder);
    return json_to_string(root, TRUE);
}

static gboolean sync_dir(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    gboolean synced = fd >= 0 && fsync(fd) == 0;

    if (fd >= 0) {
        close(fd);
    }
    return synced;
}

gboolean be_journal_write(Backup *backup, GError **error)
{
    g_autofree char *path = record_path(backup->be, backup->pub.id);
    g_autofree char *dir = journal_dir(backup->be);
    g_autofree char *text = record_text(backup);
    g_autoptr(GError) file_error = NULL;

    if (!g_file_set_contents_full(path, text, -1,
                                  G_FILE_SET_CONTENTS_CONSISTENT | G_FILE_SET_CONTENTS_DURABLE,
                                  0600, &file_error)) {
        g_set_error(error, BE_ERROR, ENOSPC, "cannot write the journal: %s", file_error->message);
        return FALSE;
    }
    if (!sync_dir(dir)) {
        be_error_set_errno(error, errno, "cannot sync the journal '%s'", dir);
        return FALSE;
    }
    return TRUE;
}

void be_journal_remove(Be *be, const char *id)
{
    g_autofree char *path = record_path(be, id);
    g_autofree char *dir = journal_dir(be);

    if (unlink(path) < 0 && errno != ENOENT) {
        g_warning("cannot remove '%s': %s", path, g_strerror(errno));
    }
    sync_dir(dir);
}

/* ---- Marks ----------------------------------------------------------------------- */

#define MARK_SUFFIX ".frozen"

static char *mark_path(Be *be, const char *uuid)
{
    g_autofree char *dir = journal_dir(be);
    g_autofree char *name = g_strconcat(uuid, MARK_SUFFIX, NULL);

    return g_build_filename(dir, name, NULL);
}

gboolean be_journal_mark(Be *be, const char *uuid, GError **error)
{
    g_autofree char *path = mark_path(be, uuid);
    g_autofree char *dir = journal_dir(be);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    gboolean synced = fd >= 0 && fsync(fd) == 0 && sync_dir(dir);

    if (!synced) {
        be_error_set_errno(error, errno, "cannot write the journal's mark '%s'", path);
    }
    if (fd >= 0) {
        close(fd);
    }
    return synced;
}

void be_journal_unmark(Be *be, const char *uuid)
{
    g_autofree char *path = mark_path(be, uuid);

    if (unlink(path) < 0 && errno != ENOENT) {
        g_warning("cannot remove '%s': %s", path, g_strerror(errno));
    }
}

GPtrArray *be_journal_marks(Be *be)
{
    GPtrArray *uuids = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *path = journal_dir(be);
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        if (g_str_has_suffix(name, MARK_SUFFIX)) {
            g_ptr_array_add(uuids, g_strndup(name, strlen(name) - strlen(MARK_SUFFIX)));
        }
    }
    return uuids;
}

/* ---- Reading ------------------------------------------------------------------- */

static const char *get_string(JsonObject *object, const char *key)
{
    JsonNode *node = json_object_get_member(object, key);

    return node && json_node_get_value_type(node) == G_TYPE_STRING ? json_node_get_string(node)
                                                                   : NULL;
}

static gint64 get_int(JsonObject *object, const char *key)
{
    JsonNode *node = json_object_get_member(object, key);

    return node && json_node_get_value_type(node) == G_TYPE_INT64 ? json_node_get_int(node) : 0;
}

static void load_disks(Backup *backup, JsonObject *object)
{
    JsonNode *node = json_object_get_member(object, "disks");
    JsonArray *disks = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;

    for (guint i = 0; disks && i < json_array_get_length(disks); i++) {
        JsonNode *element = json_array_get_element(disks, i);
        JsonObject *disk = JSON_NODE_HOLDS_OBJECT(element) ? json_node_get_object(element) : NULL;
        const char *target = disk ? get_string(disk, "target") : NULL;
        guint64 size = disk ? (guint64)get_int(disk, "size") : 0;
        guint64 allocated = disk ? (guint64)get_int(disk, "allocated") : 0;

        if (target && backup->socket) {
            backup_add_disk(backup, target, size, allocated,
                            be_stream_new_nbd(backup->socket, target, size, allocated));
        }
    }
}

static void load_public(BeBackup *pub, JsonObject *object)
{
    pub->created_us = get_int(object, "created-us");
    pub->owner.uid = (uid_t)get_int(object, "uid");
    pub->owner.gid = (gid_t)get_int(object, "gid");
    pub->owner.pid = (pid_t)get_int(object, "pid");
    pub->consistency =
        (BeConsistency)CLAMP(get_int(object, "consistency"), 0, BE_CONSISTENCY_OFFLINE);
    pub->frozen_us = get_int(object, "frozen-us");
    pub->domain_xml = g_strdup(get_string(object, "domain-xml"));
    pub->backup_xml = g_strdup(get_string(object, "backup-xml"));
}

/* NULL where it lacks what every record has. */
static Backup *backup_of(Be *be, JsonObject *object)
{
    const char *id = get_string(object, "id");
    const char *name = get_string(object, "name");
    const char *uuid = get_string(object, "domain-uuid");
    const char *domain_name = get_string(object, "domain-name");
    Backup *backup;

    if (!id || !name || !uuid || !domain_name) {
        return NULL;
    }
    backup = backup_new(be, id, name, uuid, domain_name);
    load_public(&backup->pub, object);
    backup->stage = (BackupStage)CLAMP(get_int(object, "stage"), BACKUP_BEGUN, BACKUP_DOOMED);
    backup->run_path = g_strdup(get_string(object, "run-path"));
    backup->scratch_path = g_strdup(get_string(object, "scratch-path"));
    backup->socket = g_strdup(get_string(object, "socket"));
    if (g_strcmp0(get_string(object, "kind"), "live") == 0) {
        load_disks(backup, object);
    }
    return backup;
}

static Backup *load_record(Be *be, const char *path)
{
    g_autoptr(JsonParser) parser = json_parser_new_immutable();
    g_autoptr(GError) error = NULL;
    JsonNode *root;
    struct stat attr;

    if (lstat(path, &attr) < 0 || !S_ISREG(attr.st_mode) || attr.st_size > RECORD_MAX) {
        return NULL;
    }
    if (!json_parser_load_from_file(parser, path, &error)) {
        g_warning("the journal's record '%s' is broken: %s", path, error->message);
        return NULL;
    }
    root = json_parser_get_root(parser);
    return root && JSON_NODE_HOLDS_OBJECT(root) ? backup_of(be, json_node_get_object(root)) : NULL;
}

static void unref_backup(gpointer backup)
{
    be_backup_unref(backup);
}

GPtrArray *be_journal_load(Be *be)
{
    GPtrArray *backups = g_ptr_array_new_with_free_func(unref_backup);
    g_autofree char *path = journal_dir(be);
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *file = g_build_filename(path, name, NULL);
        Backup *backup = NULL;

        if (g_str_has_suffix(name, SUFFIX)) {
            backup = load_record(be, file);
        } else if (!g_str_has_suffix(name, MARK_SUFFIX) && unlink(file) < 0) {
            /* A record that was being written when we died; never renamed into place. */
            g_warning("cannot remove '%s': %s", file, g_strerror(errno));
        }

        if (backup) {
            g_ptr_array_add(backups, backup);
        }
    }
    return backups;
}
