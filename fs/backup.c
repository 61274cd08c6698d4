/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup.c - the rows of domains/<vm>/backups; see def.h for what each is.
 *
 * Any thread.  A backup's item holds a BeBackup, a disk's item the BeDisk of
 * its parent's backup.
 */
#include "fs/backup.h"

#include <errno.h>
#include <string.h>

#include "fs/dir.h"
#include "fs/name.h"
#include "fs/private.h"

/* ---- The collection ------------------------------------------------------- */

static FsItem *backup_item(FsItem *domain, BeBackup *backup)
{
    FsItem *item = fs_item_new(domain, backup->id, fs_name_encode(backup->name, backup->id),
                               be_backup_ref(backup), (GDestroyNotify)be_backup_unref);

    item->time_us = backup->created_us;
    item->owner = backup->owner.uid;
    return item;
}

FsListing *fs_backups_list(Fs *fs, FsItem *item)
{
    g_autoptr(GPtrArray) backups = be_backups(fs->be, item->id);
    FsListing *listing = fs_listing_new();

    for (guint i = 0; i < backups->len; i++) {
        fs_listing_add(listing, backup_item(item, g_ptr_array_index(backups, i)));
    }
    return listing;
}

char *fs_backups_latest(Fs *fs, FsItem *item)
{
    g_autoptr(GPtrArray) backups = be_backups(fs->be, item->id);
    const BeBackup *latest;

    if (backups->len == 0) {
        return NULL;
    }
    latest = g_ptr_array_index(backups, backups->len - 1);
    return fs_name_encode(latest->name, latest->id);
}

static BeJob *begin(const FsAct *act, const char *name, const BeBackupOptions *options)
{
    return be_backup_begin(act->be, act->item->id, name, options, act->caller, act->done,
                           act->user);
}

BeJob *fs_backups_make(const FsAct *act, const char *name, GError **error G_GNUC_UNUSED)
{
    return begin(act, name, NULL);
}

/* Checkpoints are named in a command as the tree shows them. */
static gboolean chain_options(const FsCommand *command, BeBackupOptions *options, char **ret_since,
                              GError **error)
{
    const char *since = g_hash_table_lookup(command->options, "since");
    const char *checkpoint = g_hash_table_lookup(command->options, "checkpoint");

    *ret_since = since ? fs_name_decode(since, error) : NULL;
    options->since = *ret_since;
    options->since_file = since;
    options->checkpoint = checkpoint;
    options->chain = g_hash_table_lookup(command->options, "chain");
    return (!since || *ret_since)
           && (!checkpoint || g_str_equal(checkpoint, "none")
               || fs_name_check_new(checkpoint, error))
           && (!options->chain || fs_name_check_new(options->chain, error));
}

BeJob *fs_backup_run_begin(const FsAct *act, const FsCommand *command, GError **error)
{
    const char *name = g_ptr_array_index(command->words, 0);
    const char *only = g_hash_table_lookup(command->options, "only");
    g_auto(GStrv) targets = only ? g_strsplit(only, ",", -1) : NULL;
    BeBackupOptions options = {.only = (const char *const *)targets,
                               .scratch_dir = g_hash_table_lookup(command->options, "scratch")};
    const char *offline = g_hash_table_lookup(command->options, "offline");
    const char *quiesce = g_hash_table_lookup(command->options, "quiesce");
    g_autofree char *since = NULL;

    if (!fs_name_check_new(name, error)) {
        return NULL;
    }
    if (g_str_equal(name, "latest")) {
        g_set_error(error, BE_ERROR, EINVAL, "'%s' is a name of the tree itself", name);
        return NULL;
    }
    if (quiesce && !be_quiesce_parse(quiesce, &options.quiesce)) {
        g_set_error(error, BE_ERROR, EINVAL, "quiesce is try, require or off");
        return NULL;
    }
    if (offline && !be_offline_way_parse(offline, &options.offline)) {
        g_set_error(error, BE_ERROR, EINVAL, "offline is image or paused");
        return NULL;
    }
    if (targets && targets[0] == NULL) {
        g_set_error(error, BE_ERROR, EINVAL, "only= names no disk");
        return NULL;
    }
    return chain_options(command, &options, &since, error) ? begin(act, name, &options) : NULL;
}

BeJob *fs_backup_drop(const FsAct *act, GError **error G_GNUC_UNUSED)
{
    return be_backup_end(act->be, act->item->data, BE_VERDICT_TAKEN, act->done, act->user);
}

/* ---- One backup ----------------------------------------------------------- */

gboolean fs_backup_show_created(Fs *fs G_GNUC_UNUSED, FsItem *item, GString *out,
                                GError **error G_GNUC_UNUSED)
{
    const BeBackup *backup = item->data;
    g_autofree char *text = fs_time_text(backup->created_us);

    g_string_append_printf(out, "%s\n", text);
    return TRUE;
}

gboolean fs_backup_show_state(Fs *fs G_GNUC_UNUSED, FsItem *item, GString *out, GError **error)
{
    g_autofree char *reason = NULL;
    BeBackupState state = be_backup_state(item->data, &reason);

    if (state == BE_BACKUP_GONE) {
        g_set_error(error, BE_ERROR, ENOENT, "the backup '%s' has ended", item->file_name);
        return FALSE;
    }
    g_string_append(out, be_backup_state_name(state));
    if (reason) {
        g_autofree char *line = fs_escape_line(reason);

        g_string_append_printf(out, ": %s", line);
    }
    g_string_append_c(out, '\n');
    return TRUE;
}

gboolean fs_backup_show_consistency(Fs *fs G_GNUC_UNUSED, FsItem *item, GString *out,
                                    GError **error G_GNUC_UNUSED)
{
    const BeBackup *backup = item->data;

    g_string_append_printf(out, "%s\n", be_consistency_name(backup->consistency));
    return TRUE;
}

gboolean fs_backup_show_backup_xml(Fs *fs G_GNUC_UNUSED, FsItem *item, GString *out,
                                   GError **error G_GNUC_UNUSED)
{
    const BeBackup *backup = item->data;

    g_string_append(out, backup->backup_xml);
    return TRUE;
}

gboolean fs_backup_show_domain_xml(Fs *fs G_GNUC_UNUSED, FsItem *item, GString *out,
                                   GError **error G_GNUC_UNUSED)
{
    const BeBackup *backup = item->data;

    g_string_append(out, backup->domain_xml);
    return TRUE;
}

gboolean fs_backup_show_job(Fs *fs G_GNUC_UNUSED, FsItem *item, GString *out,
                            GError **error G_GNUC_UNUSED)
{
    be_backup_job_print(item->data, out);
    return TRUE;
}

/* What belongs to the machine and is no disk; a row without its stream is not there. */
static BeStream *extra_stream(FsItem *item, BeExtra extra)
{
    const BeBackup *backup = item->data;

    return backup->extras[extra];
}

BeStream *fs_backup_nvram_stream(FsItem *item)
{
    return extra_stream(item, BE_EXTRA_NVRAM);
}

BeStream *fs_backup_tpm_stream(FsItem *item)
{
    return extra_stream(item, BE_EXTRA_TPM);
}

BeStream *fs_backup_kernel_stream(FsItem *item)
{
    return extra_stream(item, BE_EXTRA_KERNEL);
}

BeStream *fs_backup_initrd_stream(FsItem *item)
{
    return extra_stream(item, BE_EXTRA_INITRD);
}

/* Where QEMU's user finds the disks of a backup. */
static GPtrArray *raw_paths(const Fs *fs, FsItem *item)
{
    const BeBackup *backup = item->data;
    GPtrArray *paths = g_ptr_array_new_with_free_func(g_free);

    for (guint i = 0; i < backup->disks->len; i++) {
        const BeDisk *disk = g_ptr_array_index(backup->disks, i);

        g_ptr_array_add(paths, g_strdup_printf("%s/domains/%s/backups/%s/disks/%s.raw",
                                               fs->mountpoint, item->parent->file_name,
                                               item->file_name, disk->target));
    }
    g_ptr_array_add(paths, NULL);
    return paths;
}

void fs_backup_fetch_boot_xml(Fs *fs, FsItem *item, BeTextDone done, gpointer user)
{
    g_autoptr(GPtrArray) paths = raw_paths(fs, item);

    be_backup_boot_fetch(fs->be, item->data, (const char *const *)paths->pdata, done, user);
}

static gboolean show_word(GString *out, const char *word)
{
    g_string_append_printf(out, "%s\n", word ? word : "none");
    return TRUE;
}

gboolean fs_backup_show_since(Fs *fs G_GNUC_UNUSED, FsItem *item, GString *out,
                              GError **error G_GNUC_UNUSED)
{
    const BeBackup *backup = item->data;

    return show_word(out, backup->since);
}

gboolean fs_backup_show_checkpoint(Fs *fs G_GNUC_UNUSED, FsItem *item, GString *out,
                                   GError **error G_GNUC_UNUSED)
{
    const BeBackup *backup = item->data;

    return show_word(out, backup->checkpoint);
}

gboolean fs_backup_show_chain(Fs *fs G_GNUC_UNUSED, FsItem *item, GString *out,
                              GError **error G_GNUC_UNUSED)
{
    const BeBackup *backup = item->data;

    return show_word(out, backup->chain);
}

static void xattrs_but_since(const BeBackup *backup, FsXattrAdd add, gpointer user)
{
    g_autofree char *created = fs_time_text(backup->created_us);
    g_autofree char *frozen =
        g_strdup_printf("%" G_GINT64_FORMAT, (backup->frozen_us + 999) / 1000);

    add("uuid", backup->domain_uuid, user);
    add("created", created, user);
    add("consistency", be_consistency_name(backup->consistency), user);
    add("frozen_ms", frozen, user);
    add("checkpoint", backup->checkpoint ? backup->checkpoint : "none", user);
    add("chain", backup->chain ? backup->chain : "none", user);
}

void fs_backup_xattrs(FsItem *item, FsXattrAdd add, gpointer user)
{
    const BeBackup *backup = item->data;

    xattrs_but_since(backup, add, user);
    add("since", backup->since ? backup->since : "none", user);
}

static gboolean parse_end(const FsCommand *command, BeVerdict *ret_verdict, gboolean *ret_force,
                          GError **error)
{
    gboolean keep = FALSE, drop = FALSE;

    *ret_force = FALSE;
    for (guint i = 0; i < command->words->len; i++) {
        const char *word = g_ptr_array_index(command->words, i);

        if (g_str_equal(word, "force")) {
            *ret_force = TRUE;
        } else if (g_str_equal(word, "keep")) {
            keep = TRUE;
        } else if (g_str_equal(word, "drop")) {
            drop = TRUE;
        } else {
            g_set_error(error, BE_ERROR, EINVAL,
                        "'%s' is no word of 'end'; allowed: keep, drop, force", word);
            return FALSE;
        }
    }
    if (keep && drop) {
        g_set_error(error, BE_ERROR, EINVAL, "the checkpoint is kept or dropped, not both");
        return FALSE;
    }
    *ret_verdict = keep ? BE_VERDICT_KEEP : drop ? BE_VERDICT_DROP : BE_VERDICT_TAKEN;
    return TRUE;
}

static BeJob *run_end(const FsAct *act, const FsCommand *command, GError **error)
{
    BeVerdict verdict;
    gboolean force;

    if (!parse_end(command, &verdict, &force, error)) {
        return NULL;
    }
    if (!fs_dir_may_end(act->fs, act->item, act->caller, error)
        || (!force && !fs_dir_item_unused(act->fs, act->item, FS_BACKUP_FORCE, error))) {
        return NULL;
    }
    return be_backup_end(act->be, act->item->data, verdict, act->done, act->user);
}

/* A number of bytes, with K, M, G or T (powers of 1024) behind it or without. */
static gboolean parse_bytes(const char *text, guint64 *ret_bytes)
{
    static const char units[] = "KMGT";
    const char *unit;
    char *end;
    guint64 value;
    guint shift;

    if (!g_ascii_isdigit(*text)) {
        return FALSE;
    }
    errno = 0;
    value = g_ascii_strtoull(text, &end, 10);
    if (errno) {
        return FALSE;
    }
    if (*end) {
        unit = strchr(units, g_ascii_toupper(*end));
        shift = unit ? 10 * (guint)(unit - units + 1) : 0;
        if (!unit || end[1] || value > (guint64)G_MAXINT64 >> shift) {
            return FALSE;
        }
        value <<= shift;
    }
    *ret_bytes = value;
    return value <= G_MAXINT64;
}

static BeJob *run_rate(const FsAct *act, const FsCommand *command, GError **error)
{
    const char *word = g_ptr_array_index(command->words, 0);
    guint64 bytes;

    if (!parse_bytes(word, &bytes)) {
        g_set_error(error, BE_ERROR, EINVAL,
                    "'%s' is no rate; a number of bytes per second, as 10M, or 0", word);
        return NULL;
    }
    be_backup_set_rate(act->item->data, bytes, error);
    return NULL;
}

const FsVerb fs_backup_verbs[] = {
    {"end", 0, 2, NULL,
     "end [keep|drop] [force] [async]   end the backup, as rmdir; keep or drop its checkpoint "
     "whether it was taken or not; force: also under readers",
     run_end},
    {"rate", 1, 1, NULL, "rate BYTES_PER_SECOND   read no faster, as 10M or 1G; 0: no limit",
     run_rate},
    {NULL, 0, 0, NULL, NULL, NULL},
};

/* ---- Its disks ------------------------------------------------------------ */

/* What a file in maps/ is of; a disk's other files have the BeDisk itself. */
typedef struct {
    const BeDisk *disk;        /* the parent's backup has it */
    gboolean dirty;
} Map;

static void add_disk(FsListing *listing, FsItem *item, const BeDisk *disk, const char *directory,
                     const char *suffix, gpointer data, GDestroyNotify free_data)
{
    g_autofree char *id =
        g_strdup_printf("%s/%s/%s%s", item->id, directory, disk->target, suffix);
    g_autofree char *name = fs_name_encode(disk->target, id);

    fs_listing_add(listing,
                   fs_item_new(item, id, g_strconcat(name, suffix, NULL), data, free_data));
}

/* One file for each disk; directory and @suffix tell the views of a disk apart. */
static FsListing *list_disks(FsItem *item, const char *directory, const char *suffix)
{
    const BeBackup *backup = item->data;
    FsListing *listing = fs_listing_new();

    for (guint i = 0; i < backup->disks->len; i++) {
        BeDisk *disk = g_ptr_array_index(backup->disks, i);

        add_disk(listing, item, disk, directory, suffix, disk, NULL);
    }
    return listing;
}

FsListing *fs_backup_disks_list(Fs *fs G_GNUC_UNUSED, FsItem *item)
{
    return list_disks(item, "disks", ".raw");
}

FsListing *fs_backup_full_list(Fs *fs G_GNUC_UNUSED, FsItem *item)
{
    return list_disks(item, "full", ".qcow2");
}

BeStream *fs_backup_full_stream(FsItem *item)
{
    return be_disk_full(item->data);
}

void fs_backup_full_prepare(FsItem *item, BeDone done, gpointer user)
{
    be_disk_full_prepare(item->data, done, user);
}

FsListing *fs_backup_incremental_list(Fs *fs G_GNUC_UNUSED, FsItem *item)
{
    return list_disks(item, "incremental", ".qcow2");
}

BeStream *fs_backup_incremental_stream(FsItem *item)
{
    return be_disk_incremental(item->data);
}

void fs_backup_incremental_prepare(FsItem *item, BeDone done, gpointer user)
{
    be_disk_incremental_prepare(item->data, done, user);
}

static void add_map(FsListing *listing, FsItem *item, const BeDisk *disk, gboolean dirty)
{
    Map *map = g_new0(Map, 1);

    map->disk = disk;
    map->dirty = dirty;
    add_disk(listing, item, disk, "maps", dirty ? ".dirty.json" : ".json", map, g_free);
}

FsListing *fs_backup_maps_list(Fs *fs G_GNUC_UNUSED, FsItem *item)
{
    const BeBackup *backup = item->data;
    FsListing *listing = fs_listing_new();

    for (guint i = 0; i < backup->disks->len; i++) {
        const BeDisk *disk = g_ptr_array_index(backup->disks, i);

        add_map(listing, item, disk, FALSE);
        if (disk->has_base) {
            add_map(listing, item, disk, TRUE);
        }
    }
    return listing;
}

void fs_backup_fetch_map(Fs *fs G_GNUC_UNUSED, FsItem *item, BeTextDone done, gpointer user)
{
    const Map *map = item->data;

    if (map->dirty) {
        be_disk_dirty_map_fetch(map->disk, done, user);
    } else {
        be_stream_map_fetch(map->disk->stream, done, user);
    }
}

BeStream *fs_backup_disk_stream(FsItem *item)
{
    const BeDisk *disk = item->data;

    return disk->stream;
}

/* `since` is the disk's own here: others of the backup may have a base. */
void fs_backup_increment_xattrs(FsItem *item, FsXattrAdd add, gpointer user)
{
    const BeBackup *backup = item->parent->data;
    const BeDisk *disk = item->data;

    xattrs_but_since(backup, add, user);
    add("since", disk->has_base ? backup->since : "none", user);
    if (disk->full_because) {
        add("full_because", disk->full_because, user);
    }
}

void fs_backup_disk_xattrs(FsItem *item, FsXattrAdd add, gpointer user)
{
    fs_backup_xattrs(item->parent, add, user);
}

/* ---- The guest's files ------------------------------------------------------ */

BeFiles *fs_backup_files(FsItem *item)
{
    return be_backup_files(item->data);
}
