/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * trust-record.c - the records of checkpoints: what is in one, and on disk.
 *
 * Workers; no state: the record in the state directory is what counts (record.h).
 * The file of a record is named by the domain's UUID and a checksum of the
 * checkpoint's name, for the name is the user's.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "backend/error.h"
#include "backend/record.h"
#include "backend/trust-priv.h"

#define KIND "checkpoints"
#define UUID_LENGTH 36
#define NAME_DIGITS 32

/* A machine may be away for so long, together with its storage, and come back. */
#define AWAY_US (30 * G_TIME_SPAN_DAY)

/* No disk has more blocks than that in its record; ours have 20. */
#define SAMPLES_MAX 1024
#define SAMPLE_BYTES_MAX (1024 * 1024)

/* ---- Memory ---------------------------------------------------------------------- */

static void image_free(gpointer data)
{
    BeTrustImage *image = data;

    g_free(image->path);
    g_free(image->identity);
    g_free(image->content);
    g_free(image);
}

static void sample_free(gpointer data)
{
    BeTrustSample *sample = data;

    g_free(sample->digest);
    g_free(sample);
}

static void disk_free(gpointer data)
{
    BeTrustDisk *disk = data;

    g_free(disk->target);
    g_free(disk->bitmap);
    g_ptr_array_unref(disk->images);
    g_ptr_array_unref(disk->samples);
    g_array_unref(disk->grown);
    g_free(disk);
}

void be_trust_record_free(BeTrustRecord *record)
{
    if (!record) {
        return;
    }
    g_free(record->domain_uuid);
    g_free(record->domain_name);
    g_free(record->name);
    g_free(record->chain);
    g_free(record->backup_id);
    g_free(record->backup_name);
    g_free(record->since);
    g_free(record->broken);
    g_free(record->xml);
    g_ptr_array_unref(record->disks);
    g_free(record);
}

static BeTrustRecord *record_alloc(void)
{
    BeTrustRecord *record = g_new0(BeTrustRecord, 1);

    record->disks = g_ptr_array_new_with_free_func(disk_free);
    return record;
}

BeTrustRecord *be_trust_record_new(const BeXmlDomain *domain, const char *name, const char *chain,
                                   const char *backup_id, const char *backup_name,
                                   const char *since, const BeCaller *owner)
{
    BeTrustRecord *record = record_alloc();

    record->domain_uuid = g_strdup(domain->uuid);
    record->domain_name = g_strdup(domain->name);
    record->name = g_strdup(name);
    record->chain = g_strdup(chain);
    record->backup_id = g_strdup(backup_id);
    record->backup_name = g_strdup(backup_name);
    record->since = g_strdup(since);
    record->owner = *owner;
    record->created_us = g_get_real_time();
    return record;
}

static BeTrustDisk *add_disk(BeTrustRecord *record, const char *target, const char *bitmap,
                             guint64 size)
{
    BeTrustDisk *disk = g_new0(BeTrustDisk, 1);

    disk->target = g_strdup(target);
    disk->bitmap = g_strdup(bitmap);
    disk->size = size;
    disk->images = g_ptr_array_new_with_free_func(image_free);
    disk->samples = g_ptr_array_new_with_free_func(sample_free);
    disk->grown = g_array_new(FALSE, FALSE, sizeof(BeTrustRange));
    g_ptr_array_add(record->disks, disk);
    return disk;
}

void be_trust_disk_add_sample(BeTrustDisk *disk, guint64 offset, guint32 length,
                              const char *sample_digest)
{
    BeTrustSample *sample = g_new0(BeTrustSample, 1);

    sample->offset = offset;
    sample->length = length;
    sample->digest = g_strdup(sample_digest);
    g_ptr_array_add(disk->samples, sample);
}

BeTrustDisk *be_trust_record_disk(const BeTrustRecord *record, const char *target)
{
    for (guint i = 0; i < record->disks->len; i++) {
        BeTrustDisk *disk = g_ptr_array_index(record->disks, i);

        if (g_str_equal(disk->target, target)) {
            return disk;
        }
    }
    return NULL;
}

gboolean be_trust_record_add_disk(BeTrustRecord *record, const BeXmlDisk *disk, guint64 size,
                                  GError **error)
{
    g_autoptr(GPtrArray) images = be_trust_images(disk, error);
    BeTrustDisk *added;

    if (!images) {
        return FALSE;
    }
    added = add_disk(record, disk->target, record->name, size);
    g_ptr_array_unref(added->images);
    added->images = g_steal_pointer(&images);
    return TRUE;
}

GPtrArray *be_trust_images_new(void)
{
    return g_ptr_array_new_with_free_func(image_free);
}

/* ---- JSON ------------------------------------------------------------------------- */

static JsonArray *format_images(const GPtrArray *images)
{
    JsonArray *array = json_array_new();

    for (guint i = 0; i < images->len; i++) {
        const BeTrustImage *image = g_ptr_array_index(images, i);
        JsonObject *object = json_object_new();

        json_object_set_string_member(object, "path", image->path);
        json_object_set_string_member(object, "identity", image->identity);
        be_record_set_string(object, "content", image->content);
        json_object_set_boolean_member(object, "keeps-bitmaps", image->keeps_bitmaps);
        json_array_add_object_element(array, object);
    }
    return array;
}

static JsonArray *format_samples(const GPtrArray *samples)
{
    JsonArray *array = json_array_new();

    for (guint i = 0; i < samples->len; i++) {
        const BeTrustSample *sample = g_ptr_array_index(samples, i);
        JsonObject *object = json_object_new();

        json_object_set_int_member(object, "offset", (gint64)sample->offset);
        json_object_set_int_member(object, "length", sample->length);
        json_object_set_string_member(object, "digest", sample->digest);
        json_array_add_object_element(array, object);
    }
    return array;
}

static JsonArray *format_disks(const GPtrArray *disks)
{
    JsonArray *array = json_array_new();

    for (guint i = 0; i < disks->len; i++) {
        const BeTrustDisk *disk = g_ptr_array_index(disks, i);
        JsonObject *object = json_object_new();

        json_object_set_string_member(object, "target", disk->target);
        json_object_set_string_member(object, "bitmap", disk->bitmap);
        json_object_set_int_member(object, "size", (gint64)disk->size);
        json_object_set_array_member(object, "images", format_images(disk->images));
        json_object_set_array_member(object, "samples", format_samples(disk->samples));
        json_array_add_object_element(array, object);
    }
    return array;
}

JsonObject *be_trust_format(const BeTrustRecord *record)
{
    JsonObject *object = json_object_new();

    json_object_set_string_member(object, "domain-uuid", record->domain_uuid);
    json_object_set_string_member(object, "domain-name", record->domain_name);
    json_object_set_string_member(object, "checkpoint", record->name);
    json_object_set_string_member(object, "chain", record->chain);
    json_object_set_string_member(object, "backup-id", record->backup_id);
    json_object_set_string_member(object, "backup", record->backup_name);
    be_record_set_string(object, "since", record->since);
    json_object_set_int_member(object, "uid", record->owner.uid);
    json_object_set_int_member(object, "gid", record->owner.gid);
    json_object_set_int_member(object, "pid", record->owner.pid);
    json_object_set_int_member(object, "created-us", record->created_us);
    json_object_set_boolean_member(object, "taken", record->taken);
    be_record_set_string(object, "broken", record->broken);
    be_record_set_string(object, "xml", record->xml);
    json_object_set_array_member(object, "disks", format_disks(record->disks));
    return object;
}

static gboolean parse_images(BeTrustDisk *disk, JsonArray *array)
{
    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        JsonObject *object = be_record_element(array, i);
        const char *path = object ? be_record_get_string(object, "path") : NULL;
        const char *identity = object ? be_record_get_string(object, "identity") : NULL;
        BeTrustImage *image;

        if (!path || !identity) {
            return FALSE;
        }
        image = g_new0(BeTrustImage, 1);
        image->path = g_strdup(path);
        image->identity = g_strdup(identity);
        image->content = g_strdup(be_record_get_string(object, "content"));
        image->keeps_bitmaps = be_record_get_bool(object, "keeps-bitmaps");
        g_ptr_array_add(disk->images, image);
    }
    return disk->images->len > 0;
}

static gboolean parse_samples(BeTrustDisk *disk, JsonArray *array)
{
    if (array && json_array_get_length(array) > SAMPLES_MAX) {
        return FALSE;
    }
    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        JsonObject *object = be_record_element(array, i);
        const char *sample_digest = object ? be_record_get_string(object, "digest") : NULL;
        gint64 offset = object ? be_record_get_int(object, "offset") : -1;
        gint64 length = object ? be_record_get_int(object, "length") : 0;

        if (!sample_digest || offset < 0 || length <= 0 || length > SAMPLE_BYTES_MAX
            || (guint64)offset + (guint64)length > disk->size) {
            return FALSE;
        }
        be_trust_disk_add_sample(disk, (guint64)offset, (guint32)length, sample_digest);
    }
    return TRUE;
}

static gboolean parse_disks(BeTrustRecord *record, JsonArray *array)
{
    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        JsonObject *object = be_record_element(array, i);
        const char *target = object ? be_record_get_string(object, "target") : NULL;
        const char *bitmap = object ? be_record_get_string(object, "bitmap") : NULL;
        gint64 size = object ? be_record_get_int(object, "size") : -1;
        BeTrustDisk *disk;

        if (!target || !bitmap || size < 0 || be_trust_record_disk(record, target)) {
            return FALSE;
        }
        disk = add_disk(record, target, bitmap, (guint64)size);
        if (!parse_images(disk, be_record_get_array(object, "images"))
            || !parse_samples(disk, be_record_get_array(object, "samples"))) {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean parse_members(BeTrustRecord *record, JsonObject *object)
{
    record->domain_uuid = g_strdup(be_record_get_string(object, "domain-uuid"));
    record->domain_name = g_strdup(be_record_get_string(object, "domain-name"));
    record->name = g_strdup(be_record_get_string(object, "checkpoint"));
    record->chain = g_strdup(be_record_get_string(object, "chain"));
    record->backup_id = g_strdup(be_record_get_string(object, "backup-id"));
    record->backup_name = g_strdup(be_record_get_string(object, "backup"));
    record->since = g_strdup(be_record_get_string(object, "since"));
    record->owner.uid = (uid_t)be_record_get_int(object, "uid");
    record->owner.gid = (gid_t)be_record_get_int(object, "gid");
    record->owner.pid = (pid_t)be_record_get_int(object, "pid");
    record->created_us = be_record_get_int(object, "created-us");
    record->taken = be_record_get_bool(object, "taken");
    record->broken = g_strdup(be_record_get_string(object, "broken"));
    record->xml = g_strdup(be_record_get_string(object, "xml"));
    return record->domain_uuid && record->domain_name && record->name && record->chain
           && record->backup_id && record->backup_name;
}

BeTrustRecord *be_trust_parse(JsonObject *object)
{
    g_autoptr(BeTrustRecord) record = record_alloc();

    if (!parse_members(record, object)
        || !parse_disks(record, be_record_get_array(object, "disks"))) {
        return NULL;
    }
    return g_steal_pointer(&record);
}

/* ---- On disk ------------------------------------------------------------------------ */

static char *record_id(const char *uuid, const char *name)
{
    g_autofree char *sum = g_compute_checksum_for_string(G_CHECKSUM_SHA256, name, -1);

    return g_strdup_printf("%s.%.*s", uuid, NAME_DIGITS, sum);
}

gboolean be_trust_write(Be *be, const BeTrustRecord *record, GError **error)
{
    g_autofree char *id = record_id(record->domain_uuid, record->name);
    g_autoptr(JsonObject) object = be_trust_format(record);

    return be_record_write(be, KIND, id, object, error);
}

gboolean be_trust_begun(Be *be, BeTrustRecord *record, virDomainPtr domain, GError **error)
{
    virDomainCheckpointPtr checkpoint = virDomainCheckpointLookupByName(domain, record->name, 0);
    char *xml = checkpoint ? virDomainCheckpointGetXMLDesc(checkpoint, 0) : NULL;

    if (!xml) {
        be_error_from_libvirt(error, "the checkpoint is not there after all");
    }
    if (checkpoint) {
        virDomainCheckpointFree(checkpoint);
    }
    if (!xml) {
        return FALSE;
    }
    g_free(record->xml);
    record->xml = g_strdup(xml);
    free(xml);
    return be_trust_write(be, record, error);
}

gboolean be_trust_taken(Be *be, const char *uuid, const char *name, GError **error)
{
    g_autoptr(GMutexLocker) locker G_GNUC_UNUSED = g_mutex_locker_new(&be->trust_lock);
    g_autoptr(BeTrustRecord) record = be_trust_find(be, uuid, name);

    if (!record) {
        g_set_error(error, BE_ERROR, ENOENT, "there is no record of checkpoint '%s'", name);
        return FALSE;
    }
    record->taken = TRUE;
    return be_trust_write(be, record, error);
}

gboolean be_trust_break_one(Be *be, BeTrustRecord *record, const char *reason, GError **error)
{
    g_autoptr(GMutexLocker) locker G_GNUC_UNUSED = g_mutex_locker_new(&be->trust_lock);
    g_autoptr(BeTrustRecord) newest = be_trust_find(be, record->domain_uuid, record->name);

    if (!record->broken) {
        record->broken = g_strdup(reason);
    }
    if (!newest || newest->broken) {
        return TRUE;
    }
    newest->broken = g_strdup(reason);
    return be_trust_write(be, newest, error);
}

void be_trust_remove(Be *be, const char *uuid, const char *name)
{
    g_autofree char *id = record_id(uuid, name);

    be_record_remove(be, KIND, id);
}

gboolean be_trust_break(Be *be, const char *uuid, const char *reason, GError **error)
{
    g_autoptr(GPtrArray) records = be_trust_records(be, uuid);

    for (guint i = 0; i < records->len; i++) {
        BeTrustRecord *record = g_ptr_array_index(records, i);

        if (!record->broken && !be_trust_break_one(be, record, reason, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static void free_record(gpointer record)
{
    be_trust_record_free(record);
}

static int by_age(gconstpointer a, gconstpointer b)
{
    const BeTrustRecord *const *left = a;
    const BeTrustRecord *const *right = b;

    if ((*left)->created_us != (*right)->created_us) {
        return (*left)->created_us < (*right)->created_us ? -1 : 1;
    }
    return strcmp((*left)->name, (*right)->name);
}

/* Whether the record is where it belongs: its own domain and name say so. */
static BeTrustRecord *record_of(Be *be, const BeRecord *raw)
{
    BeTrustRecord *record = be_trust_parse(raw->object);
    g_autofree char *id = record ? record_id(record->domain_uuid, record->name) : NULL;

    if (g_strcmp0(id, raw->id) != 0) {
        be_trust_record_free(record);
        record = NULL;
        if (!be->read_only) {
            be_record_set_aside(be, KIND, raw->id, "it is no record of a checkpoint");
        }
    }
    return record;
}

GPtrArray *be_trust_records(Be *be, const char *uuid)
{
    GPtrArray *records = g_ptr_array_new_with_free_func(free_record);
    g_autoptr(GPtrArray) raw = be_record_load_some(be, KIND, uuid);

    for (guint i = 0; i < raw->len; i++) {
        BeTrustRecord *record = record_of(be, g_ptr_array_index(raw, i));

        if (record) {
            g_ptr_array_add(records, record);
        }
    }
    g_ptr_array_sort(records, by_age);
    return records;
}

BeTrustRecord *be_trust_find(Be *be, const char *uuid, const char *name)
{
    g_autofree char *id = record_id(uuid, name);
    g_autoptr(JsonObject) object = be_record_read(be, KIND, id, NULL);
    BeTrustRecord *record = object ? be_trust_parse(object) : NULL;

    if (object && !record && !be->read_only) {
        be_record_set_aside(be, KIND, id, "it is no record of a checkpoint");
    }
    return record;
}

gboolean be_trust_made(const BeTrustRecord *record, const char *description)
{
    return description && strstr(description, record->backup_id);
}

/* Storage that is not there now may come back; a file that is not there is gone. */
static gboolean has_an_image(const BeTrustRecord *record)
{
    for (guint i = 0; i < record->disks->len; i++) {
        const BeTrustDisk *disk = g_ptr_array_index(record->disks, i);
        const BeTrustImage *image = g_ptr_array_index(disk->images, 0);
        g_autofree char *dir = g_path_get_dirname(image->path);

        if (access(image->path, F_OK) == 0 || errno != ENOENT || access(dir, F_OK) != 0) {
            return TRUE;
        }
    }
    return FALSE;
}

void be_trust_tidy(Be *be)
{
    gint64 now_us = g_get_real_time();
    g_autoptr(GPtrArray) records = NULL;

    if (be->read_only || !be_host_is_local(be)) {
        return;
    }
    records = be_trust_records(be, NULL);
    for (guint i = 0; i < records->len; i++) {
        const BeTrustRecord *record = g_ptr_array_index(records, i);
        g_autoptr(BeDomain) domain = be_domain_find(be, record->domain_uuid);

        if (!domain && now_us - record->created_us > AWAY_US && !has_an_image(record)) {
            g_message("forgetting checkpoint '%s' of machine '%s', which is gone with its images",
                      record->name, record->domain_name);
            be_trust_remove(be, record->domain_uuid, record->name);
        }
    }
}
