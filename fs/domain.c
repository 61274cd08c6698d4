/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * domain.c - the rows of domains/<vm>; see def.h for what each function is.
 *
 * Any thread.  The item's data is the BeDomain of the listing it came from;
 * what changes is asked from the newest inventory, by UUID.
 */
#include "fs/domain.h"

#include <errno.h>
#include <string.h>

#include "fs/backup.h"
#include "fs/checkpoint.h"
#include "fs/machine.h"
#include "fs/name.h"
#include "fs/private.h"
#include "fs/prune.h"
#include "fs/snapshot.h"

static FsItem *domain_item(BeDomain *domain)
{
    return fs_item_new(NULL, domain->uuid, fs_name_encode(domain->name, domain->uuid),
                       be_domain_ref(domain), (GDestroyNotify)be_domain_unref);
}

static FsListing *listing_of(const BeDomainList *domains)
{
    FsListing *listing = fs_listing_new();

    for (guint i = 0; i < domains->domains->len; i++) {
        fs_listing_add(listing, domain_item(g_ptr_array_index(domains->domains, i)));
    }
    return listing;
}

FsListing *fs_domains_list(Fs *fs, FsItem *item G_GNUC_UNUSED)
{
    g_autoptr(BeDomainList) domains = be_domains(fs->be);
    FsListing *listing;

    g_mutex_lock(&fs->domains_lock);
    if (!fs->domains || fs->domains_generation != domains->generation) {
        g_clear_pointer(&fs->domains, fs_listing_unref);
        fs->domains = listing_of(domains);
        fs->domains_generation = domains->generation;
    }
    listing = fs_listing_ref(fs->domains);
    g_mutex_unlock(&fs->domains_lock);
    return listing;
}

static gboolean is_fresh(const FsFresh *fresh G_GNUC_UNUSED, Fs *fs, FsItem *item G_GNUC_UNUSED)
{
    return be_is_fresh(fs->be);
}

static gboolean is_stale(const FsFresh *fresh G_GNUC_UNUSED, Fs *fs, FsItem *item G_GNUC_UNUSED)
{
    return be_is_stale(fs->be);
}

static void refresh(const FsFresh *fresh G_GNUC_UNUSED, Fs *fs, FsItem *item G_GNUC_UNUSED,
                    BeRefreshDone done, gpointer user)
{
    be_refresh(fs->be, done, user);
}

const FsFresh fs_domains_fresh = {
    .is_fresh = is_fresh, .is_stale = is_stale, .refresh = refresh};

static BeDomain *domain_of(Fs *fs, FsItem *item, GError **error)
{
    BeDomain *domain = be_domain_find(fs->be, item->id);

    if (!domain) {
        g_set_error(error, BE_ERROR, ENOENT, "the domain '%s' is gone", item->file_name);
    }
    return domain;
}

gboolean fs_domain_show_uuid(Fs *fs G_GNUC_UNUSED, FsItem *item, GString *out,
                             GError **error G_GNUC_UNUSED)
{
    g_string_append_printf(out, "%s\n", item->id);
    return TRUE;
}

gboolean fs_domain_show_id(Fs *fs, FsItem *item, GString *out, GError **error)
{
    g_autoptr(BeDomain) domain = domain_of(fs, item, error);

    if (!domain) {
        return FALSE;
    }
    if (domain->id >= 0) {
        g_string_append_printf(out, "%d\n", domain->id);
    } else {
        g_string_append(out, "-\n");
    }
    return TRUE;
}

gboolean fs_domain_show_state(Fs *fs, FsItem *item, GString *out, GError **error)
{
    g_autoptr(BeDomain) domain = domain_of(fs, item, error);

    if (domain) {
        g_string_append_printf(out, "%s\n", be_domain_state_name(domain->state));
    }
    return domain != NULL;
}

gboolean fs_item_show_failures(Fs *fs, FsItem *item, GString *out, GError **error G_GNUC_UNUSED)
{
    fs_failures_print(fs->failures, item->id, out);
    return TRUE;
}

void fs_domain_fetch_xml(Fs *fs, FsItem *item, BeTextDone done, gpointer user)
{
    be_domain_xml_fetch(fs->be, item->id, done, user);
}

void fs_domain_fetch_job(Fs *fs, FsItem *item, BeTextDone done, gpointer user)
{
    be_domain_job_fetch(fs->be, item->id, done, user);
}

void fs_domain_xattrs(FsItem *item, FsXattrAdd add, gpointer user)
{
    add("uuid", item->id, user);
}

static BeJob *run_suspend(const FsAct *act, const FsCommand *command G_GNUC_UNUSED,
                          GError **error G_GNUC_UNUSED)
{
    return be_domain_suspend(act->be, act->item->id, act->done, act->user);
}

static BeJob *run_resume(const FsAct *act, const FsCommand *command G_GNUC_UNUSED,
                         GError **error G_GNUC_UNUSED)
{
    return be_domain_resume(act->be, act->item->id, act->done, act->user);
}

#define FREEZE_SECONDS 30
#define FREEZE_SECONDS_MAX 60

static BeJob *run_freeze(const FsAct *act, const FsCommand *command, GError **error)
{
    const char *timeout = g_hash_table_lookup(command->options, "timeout");
    const char *const *mountpoints = NULL;
    guint64 seconds = FREEZE_SECONDS;

    if (timeout
        && !g_ascii_string_to_unsigned(timeout, 10, 1, FREEZE_SECONDS_MAX, &seconds, NULL)) {
        g_set_error(error, BE_ERROR, EINVAL, "timeout is a number of seconds from 1 to %d",
                    FREEZE_SECONDS_MAX);
        return NULL;
    }
    if (command->words->len > 0) {
        g_ptr_array_add(command->words, NULL);
        mountpoints = (const char *const *)command->words->pdata;
    }
    return be_domain_freeze(act->be, act->item->id, mountpoints, (guint)seconds, act->done,
                            act->user);
}

static BeJob *run_thaw(const FsAct *act, const FsCommand *command G_GNUC_UNUSED,
                       GError **error G_GNUC_UNUSED)
{
    return be_domain_thaw(act->be, act->item->id, act->done, act->user);
}

static const char *const backup_keys[] = {"only", "scratch", "quiesce", "offline", "since",
                                          "checkpoint", "chain", NULL};
static const char *const checkpoint_keys[] = {"only", "quiesce", "description", NULL};
static const char *const freeze_keys[] = {"timeout", NULL};

const FsVerb fs_domain_verbs[] = {
    {"backup", 1, 1, backup_keys,
     "backup NAME [since=CHECKPOINT|latest|none] [checkpoint=NAME|none] [chain=NAME] "
     "[only=TARGET,...] [quiesce=try|require|off] [scratch=DIR] [offline=image|paused] [async]   "
     "start a backup, as mkdir backups/NAME",
     fs_backup_run_begin},
    {"snapshot", 1, 2, fs_snapshot_keys,
     "snapshot NAME [live] [memory=none|internal|external] [disk=internal|external] "
     "[quiesce=try|require|off] [only=TARGET,...] [description=TEXT] [async]   make a snapshot, "
     "as mkdir snapshots/NAME",
     fs_snapshot_run_create},
    {"prune", 0, 1, fs_prune_keys,
     "prune [keep-last=N] [keep-daily=N] [keep-weekly=N] [keep-monthly=N] [chain=NAME] [dry-run]   "
     "remove checkpoints that backups have left",
     fs_prune_run},
    {"checkpoint", 1, 1, checkpoint_keys,
     "checkpoint NAME [only=TARGET,...] [quiesce=try|require|off] [description=TEXT] [async]   "
     "make a checkpoint, as mkdir checkpoints/NAME",
     fs_checkpoint_run_create},
    {"freeze", 0, 64, freeze_keys,
     "freeze [timeout=SECONDS] [MOUNTPOINT...]   freeze the guest's file systems; thaws itself "
     "after the timeout (30 s, at most 60)",
     run_freeze},
    {"thaw", 0, 0, NULL, "thaw   thaw them", run_thaw},
    {"suspend", 0, 0, NULL, "suspend   stop the virtual CPUs", run_suspend},
    {"resume", 0, 0, NULL, "resume   let them go on", run_resume},
    {"save", 0, 0, fs_save_keys,
     "save [to=PATH] [async]   save its memory, to a new file or where the next start takes it "
     "from, and turn it off",
     fs_machine_run_save},
    {"restore", 0, 1, fs_restore_keys,
     "restore from=PATH [force] [async]   go on from a memory that was saved; force: also if its "
     "disks were written to since",
     fs_machine_run_restore},
    {"start", 0, 0, NULL, "start [async]   start it, from its managed save image if it has one",
     fs_machine_run_start},
    {"copy", 1, 1, fs_copy_keys,
     "copy DISK to=PATH [format=qcow2|raw] [async]   copy a disk of the running machine to a new "
     "image, and go on on that",
     fs_machine_run_copy},
    {"pull", 1, 1, NULL, "pull DISK [async]   copy what is below its active image into that",
     fs_machine_run_pull},
    {"commit", 1, 1, fs_commit_keys,
     "commit DISK [base=PATH] [top=PATH] [async]   merge its images, from the active one or top, "
     "down into the lowest or base",
     fs_machine_run_commit},
    {NULL, 0, 0, NULL, NULL, NULL},
};
