/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * journal.c - what we are about to do, on disk before we do it.
 *
 * One record (record.h) for each backup, and a mark for each guest that is about
 * to be frozen.  Workers; blocks on the local file system.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "backend/backup.h"
#include "backend/error.h"
#include "backend/extents.h"
#include "backend/record.h"

#define KIND "journal"

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
        add_int(builder, "has-base", disk->has_base);
        add_string(builder, "full-because", disk->full_because);
        json_builder_end_object(builder);
    }
    json_builder_end_array(builder);
}

static JsonNode *record_of(const Backup *backup)
{
    const BeBackup *pub = &backup->pub;
    g_autoptr(JsonBuilder) builder = json_builder_new();

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
    add_string(builder, "chain", pub->chain);
    add_string(builder, "since", pub->since);
    add_string(builder, "base", pub->base);
    add_string(builder, "checkpoint", pub->checkpoint);
    add_string(builder, "replaces", backup->replaces);
    add_int(builder, "fate", backup->fate);
    add_string(builder, "domain-xml", pub->domain_xml);
    add_string(builder, "backup-xml", pub->backup_xml);
    add_disks(builder, pub->disks);
    json_builder_end_object(builder);
    return json_builder_get_root(builder);
}

gboolean be_journal_write(Backup *backup, GError **error)
{
    g_autoptr(JsonNode) record = record_of(backup);

    return be_record_write(backup->be, KIND, backup->pub.id, json_node_get_object(record), error);
}

void be_journal_remove(Be *be, const char *id)
{
    be_record_remove(be, KIND, id);
}

/* ---- Marks ----------------------------------------------------------------------- */

#define MARK_SUFFIX ".frozen"

static char *mark_path(Be *be, const char *uuid)
{
    g_autofree char *dir = be_record_dir(be, KIND);
    g_autofree char *name = g_strconcat(uuid, MARK_SUFFIX, NULL);

    return g_build_filename(dir, name, NULL);
}

gboolean be_journal_mark(Be *be, const char *uuid, GError **error)
{
    g_autofree char *path = mark_path(be, uuid);
    g_autofree char *dir = be_record_dir(be, KIND);
    gboolean fresh = access(path, F_OK) < 0;
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    gboolean synced = fd >= 0 && fsync(fd) == 0;

    if (!synced) {
        be_error_set_errno(error, errno, "cannot write the journal's mark '%s'", path);
    }
    if (fd >= 0) {
        close(fd);
    }
    synced = synced && be_dirs_sync(dir, error);
    if (fresh && !synced) {
        (void)unlink(path);    /* nothing is frozen then */
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

gboolean be_journal_is_marked(Be *be, const char *uuid)
{
    g_autofree char *path = mark_path(be, uuid);

    return access(path, F_OK) == 0;
}

GPtrArray *be_journal_marks(Be *be)
{
    GPtrArray *uuids = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *path = be_record_dir(be, KIND);
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

static gboolean load_disk(Backup *backup, JsonObject *disk)
{
    const char *target = disk ? be_record_get_string(disk, "target") : NULL;
    gint64 size = disk ? be_record_get_int(disk, "size") : -1;
    gint64 allocated = disk ? be_record_get_int(disk, "allocated") : -1;
    BeDisk *loaded;

    if (!target || !backup->socket || size < 0 || (guint64)size >= BE_EXTENTS_SIZE_MAX
        || allocated < 0) {
        return FALSE;
    }
    backup_add_disk(backup, target, (guint64)size, (guint64)allocated, NULL);
    loaded = g_ptr_array_index(backup->pub.disks, backup->pub.disks->len - 1);
    loaded->has_base = be_record_get_int(disk, "has-base") != 0 && backup->pub.base;
    loaded->full_because = g_strdup(be_record_get_string(disk, "full-because"));
    backup_open_disk(backup, loaded);
    return TRUE;
}

static gboolean load_disks(Backup *backup, JsonObject *object)
{
    JsonArray *disks = be_record_get_array(object, "disks");

    for (guint i = 0; disks && i < json_array_get_length(disks); i++) {
        if (!load_disk(backup, be_record_element(disks, i))) {
            return FALSE;
        }
    }
    return TRUE;
}

static void load_public(BeBackup *pub, JsonObject *object)
{
    pub->created_us = be_record_get_int(object, "created-us");
    pub->owner.uid = (uid_t)be_record_get_int(object, "uid");
    pub->owner.gid = (gid_t)be_record_get_int(object, "gid");
    pub->owner.pid = (pid_t)be_record_get_int(object, "pid");
    pub->consistency =
        (BeConsistency)CLAMP(be_record_get_int(object, "consistency"), 0, BE_CONSISTENCY_OFFLINE);
    pub->frozen_us = be_record_get_int(object, "frozen-us");
    pub->chain = g_strdup(be_record_get_string(object, "chain"));
    pub->since = g_strdup(be_record_get_string(object, "since"));
    pub->base = g_strdup(be_record_get_string(object, "base"));
    pub->checkpoint = g_strdup(be_record_get_string(object, "checkpoint"));
    pub->domain_xml = g_strdup(be_record_get_string(object, "domain-xml"));
    pub->backup_xml = g_strdup(be_record_get_string(object, "backup-xml"));
}

Backup *be_journal_parse(Be *be, JsonObject *object)
{
    const char *id = be_record_get_string(object, "id");
    const char *name = be_record_get_string(object, "name");
    const char *uuid = be_record_get_string(object, "domain-uuid");
    const char *domain_name = be_record_get_string(object, "domain-name");
    Backup *backup;

    if (!id || !name || !uuid || !domain_name) {
        return NULL;
    }
    backup = backup_new(be, id, name, uuid, domain_name);
    load_public(&backup->pub, object);
    backup->stage =
        (BackupStage)CLAMP(be_record_get_int(object, "stage"), BACKUP_BEGUN, BACKUP_DOOMED);
    backup->fate =
        (BackupFate)CLAMP(be_record_get_int(object, "fate"), BACKUP_UNDECIDED, BACKUP_DROPS);
    backup->replaces = g_strdup(be_record_get_string(object, "replaces"));
    backup->run_path = g_strdup(be_record_get_string(object, "run-path"));
    backup->scratch_path = g_strdup(be_record_get_string(object, "scratch-path"));
    backup->socket = g_strdup(be_record_get_string(object, "socket"));
    backup_open_extras(backup);
    if (g_strcmp0(be_record_get_string(object, "kind"), "live") == 0
        && !load_disks(backup, object)) {
        be_backup_unref(&backup->pub);
        return NULL;
    }
    return backup;
}

static void unref_backup(gpointer backup)
{
    be_backup_unref(backup);
}

GPtrArray *be_journal_load(Be *be)
{
    GPtrArray *backups = g_ptr_array_new_with_free_func(unref_backup);
    g_autoptr(GPtrArray) records = be_record_load(be, KIND);

    for (guint i = 0; i < records->len; i++) {
        const BeRecord *record = g_ptr_array_index(records, i);
        Backup *backup = be_journal_parse(be, record->object);

        if (backup) {
            g_ptr_array_add(backups, backup);
        } else {
            be_record_set_aside(be, KIND, record->id, "it lacks what every backup has");
        }
    }
    return backups;
}
