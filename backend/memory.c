/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * memory.c - a machine's memory saved, restored, and the plain start.
 *
 * Action workers; the call that saves runs on a thread of its own (save-watch.h).
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <string.h>
#include <sys/stat.h>

#include "backend/domain-read.h"
#include "backend/error.h"
#include "backend/foreign-job.h"
#include "backend/freeze.h"
#include "backend/job.h"
#include "backend/paused.h"
#include "backend/save-watch.h"
#include "backend/xml.h"

/* QEMU has let go of its images before libvirt finishes the file with the memory. */
#define CLOSE_SECONDS 2

typedef struct {
    char *uuid;
    char *path;                /* NULL: libvirt's own place (managed save) */
    gboolean force;
} Memory;

static Memory *memory_new(const char *uuid, const char *path, gboolean force)
{
    Memory *memory = g_new0(Memory, 1);

    memory->uuid = g_strdup(uuid);
    memory->path = g_strdup(path);
    memory->force = force;
    return memory;
}

static void memory_free(gpointer data)
{
    Memory *memory = data;

    g_free(memory->uuid);
    g_free(memory->path);
    g_free(memory);
}

/* ---- What all of them refuse ------------------------------------------------------- */

gboolean be_domain_may_change_state(Be *be, const char *uuid, GError **error)
{
    g_autofree char *held = be_paused_held(be, uuid);

    if (held) {
        g_set_error_literal(error, BE_ERROR, EBUSY, held);
        return FALSE;
    }
    if (be_freeze_is_held(be, uuid)) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "the guest's file systems are frozen by a command; write 'thaw' first");
        return FALSE;
    }
    return TRUE;
}

/* ---- Nobody is left paused --------------------------------------------------------- */

static gboolean has_state(virDomainPtr domain, int wanted)
{
    int state;

    return virDomainGetState(domain, &state, NULL, 0) == 0 && state == wanted;
}

gboolean be_domain_runs(virDomainPtr domain)
{
    return has_state(domain, VIR_DOMAIN_RUNNING);
}

void be_domain_run_on(Be *be, virDomainPtr domain, const char *uuid, const char *after)
{
    BeEvent event = {.kind = BE_EVENT_WARNING, .time_us = g_get_real_time(), .errnum = EIO};
    g_autoptr(GError) error = NULL;
    g_autofree char *text = NULL;

    if (!has_state(domain, VIR_DOMAIN_PAUSED)) {
        return;
    }
    if (virDomainResume(domain) < 0) {
        be_error_from_libvirt(&error, "it cannot be resumed");
        text = g_strdup_printf("THE GUEST IS PAUSED after %s that failed, and %s; write 'resume' "
                               "to 'control' when the cause is gone",
                               after, error->message);
    } else {
        text = g_strdup_printf("%s failed and left the guest paused; it has been resumed", after);
    }
    event.domain_uuid = uuid;
    event.domain_name = virDomainGetName(domain);
    event.text = text;
    g_warning("domain '%s': %s", event.domain_name, text);
    be_notify(be, &event);
}

static virDomainPtr find_domain(Be *be, const Memory *memory, gboolean active, GError **error)
{
    g_autoptr(BeVirDomain) domain = be_conn_domain(be->action_conn, memory->uuid, error);
    int is_active;

    if (!domain || !be_domain_may_change_state(be, memory->uuid, error)) {
        return NULL;
    }
    is_active = virDomainIsActive(domain);
    if (is_active < 0) {
        be_error_from_libvirt(error, "cannot look at the domain");
        return NULL;
    }
    if (is_active != active) {
        g_set_error(error, BE_ERROR, EINVAL,
                    active ? "the domain is not running" : "the domain is running already");
        return NULL;
    }
    return g_steal_pointer(&domain);
}

static gboolean path_is_plain(const char *path, const char *key, GError **error)
{
    g_autofree char *canonical = g_canonicalize_filename(path, "/");

    if (!g_path_is_absolute(path) || !g_str_equal(canonical, path)) {
        g_set_error(error, BE_ERROR, EINVAL, "%s= is an absolute path without detours", key);
        return FALSE;
    }
    return TRUE;
}

/* ---- Save ----------------------------------------------------------------------------- */

typedef struct {
    virDomainPtr domain;
    const char *path;
} Save;

static gboolean call_save(gpointer data, GError **error)
{
    const Save *save = data;
    int saved = save->path ? virDomainSaveFlags(save->domain, save->path, NULL, 0)
                           : virDomainManagedSave(save->domain, 0);

    if (saved < 0) {
        be_error_from_libvirt(error, "the machine cannot be saved");
    }
    return saved == 0;
}

static gboolean may_save(virDomainPtr domain, const Memory *memory, GError **error)
{
    struct stat attr;

    if (!be_domain_is_idle(domain, NULL, error)) {
        return FALSE;
    }
    if (!memory->path) {
        if (virDomainIsPersistent(domain) == 0) {
            g_set_error(error, BE_ERROR, EOPNOTSUPP,
                        "the domain is transient and would be gone; save to=PATH");
            return FALSE;
        }
        return TRUE;
    }
    if (!path_is_plain(memory->path, "to", error)) {
        return FALSE;
    }
    if (lstat(memory->path, &attr) == 0) {
        g_set_error(error, BE_ERROR, EEXIST, "'%s' exists", memory->path);
        return FALSE;
    }
    return TRUE;
}

static gboolean run_save(Be *be, BeJob *job, gpointer data, GError **error)
{
    const Memory *memory = data;
    g_autoptr(BeVirDomain) domain = find_domain(be, memory, TRUE, error);
    Save save = {.domain = domain, .path = memory->path};
    gboolean ran, saved;

    if (!domain || !may_save(domain, memory, error)) {
        return FALSE;
    }
    ran = be_domain_runs(domain);
    saved = be_save_watched(domain, memory->uuid, job, "action", "save", call_save, &save, error);
    if (!saved && ran) {
        be_domain_run_on(be, domain, memory->uuid, "the save");
    }
    (void)be_inventory_read(be, NULL);
    return saved;
}

/* ---- Restore ---------------------------------------------------------------------------- */

static char *saved_xml(virDomainPtr domain, const char *path, GError **error)
{
    char *xml = virDomainSaveImageGetXMLDesc(virDomainGetConnect(domain), path, 0);

    if (!xml) {
        be_error_from_libvirt(error, "no saved memory can be read from this file");
    }
    return xml;
}

static BeXmlDomain *parse_and_free(char *xml, GError **error)
{
    BeXmlDomain *parsed = xml ? be_xml_domain_parse(xml, error) : NULL;

    free(xml);
    return parsed;
}

/*
 * The memory knows what was on the disks when it was saved.  A guest that finds
 * other content there destroys its file systems.
 */
static gboolean disk_is_as_then(const BeXmlDisk *then, const BeXmlDisk *now,
                                const struct stat *saved, GError **error)
{
    struct stat attr;

    if (!now || g_strcmp0(then->top.path, now->top.path) != 0) {
        g_set_error(error, BE_ERROR, EUCLEAN,
                    "disk '%s' was on '%s' when the memory was saved, and is not now", then->target,
                    then->top.path ? then->top.path : "no local image");
        return FALSE;
    }
    if (!then->readonly && then->top.path && stat(then->top.path, &attr) == 0
        && attr.st_mtim.tv_sec > saved->st_mtim.tv_sec + CLOSE_SECONDS) {
        g_set_error(error, BE_ERROR, EUCLEAN,
                    "disk '%s' was written to after the memory was saved: its guest would destroy "
                    "it; restore ... force restores it all the same",
                    then->target);
        return FALSE;
    }
    return TRUE;
}

static gboolean disks_are_as_then(const BeXmlDomain *then, const BeXmlDomain *now,
                                  const struct stat *saved, GError **error)
{
    for (guint i = 0; i < then->disks->len; i++) {
        const BeXmlDisk *disk = g_ptr_array_index(then->disks, i);

        if (disk->device == BE_XML_DEVICE_DISK
            && !disk_is_as_then(disk, be_xml_domain_disk(now, disk->target), saved, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean no_managed_save(virDomainPtr domain, GError **error)
{
    int saved = virDomainHasManagedSaveImage(domain, 0);

    if (saved < 0) {
        be_error_from_libvirt(error, "cannot ask for a managed save image");
    } else if (saved) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "the machine has a managed save image, which holds newer memory; 'start' uses "
                    "it");
    }
    return saved == 0;
}

static gboolean may_restore(virDomainPtr domain, const Memory *memory, GError **error)
{
    g_autoptr(BeXmlDomain) then = NULL;
    g_autoptr(BeXmlDomain) now = NULL;
    struct stat saved;

    if (!path_is_plain(memory->path, "from", error) || !no_managed_save(domain, error)) {
        return FALSE;
    }
    if (stat(memory->path, &saved) < 0) {
        be_error_set_errno(error, errno, "'%s'", memory->path);
        return FALSE;
    }
    then = parse_and_free(saved_xml(domain, memory->path, error), error);
    if (!then) {
        return FALSE;
    }
    if (g_strcmp0(then->uuid, memory->uuid) != 0) {
        g_set_error(error, BE_ERROR, EINVAL, "'%s' holds the memory of another machine, '%s'",
                    memory->path, then->name);
        return FALSE;
    }
    now = be_domain_read(domain, VIR_DOMAIN_XML_INACTIVE, error);
    return now && (memory->force || disks_are_as_then(then, now, &saved, error));
}

static gboolean run_restore(Be *be, BeJob *job, gpointer data, GError **error)
{
    const Memory *memory = data;
    g_autoptr(BeVirDomain) domain = find_domain(be, memory, FALSE, error);

    if (!domain || !be_host_is_local(be)) {
        if (domain) {
            g_set_error(error, BE_ERROR, EOPNOTSUPP, "files of a remote host cannot be looked at");
        }
        return FALSE;
    }
    if (!may_restore(domain, memory, error)) {
        return FALSE;
    }
    if (!be_job_no_return(job)) {
        g_set_error(error, BE_ERROR, ECANCELED, "cancelled");
        return FALSE;
    }
    if (virDomainRestoreFlags(virDomainGetConnect(domain), memory->path, NULL, 0) < 0) {
        be_error_from_libvirt(error, "the memory cannot be restored");
        return FALSE;
    }
    be_freeze_thaw_restored(domain);
    return be_inventory_read(be, error);
}

/* ---- Start --------------------------------------------------------------------------------- */

static gboolean run_start(Be *be, BeJob *job, gpointer data, GError **error)
{
    const Memory *memory = data;
    g_autoptr(BeVirDomain) domain = find_domain(be, memory, FALSE, error);
    int saved;

    if (!domain) {
        return FALSE;
    }
    saved = virDomainHasManagedSaveImage(domain, 0);
    if (!be_job_no_return(job)) {
        g_set_error(error, BE_ERROR, ECANCELED, "cancelled");
        return FALSE;
    }
    if (virDomainCreate(domain) < 0) {
        be_error_from_libvirt(error, "the machine cannot be started");
        return FALSE;
    }
    if (saved > 0) {
        be_freeze_thaw_restored(domain);
    }
    return be_inventory_read(be, error);
}

/* ---- Submitting ------------------------------------------------------------------------------ */

static BeJob *submit(Be *be, const char *what, BeJobRun run, Memory *memory, BeDone done,
                     gpointer user)
{
    g_autofree char *busy = be_domain_busy(be, memory->uuid);
    GError *error = NULL;

    if (be->read_only) {
        error = g_error_new(BE_ERROR, EROFS, "this mount is read-only");
    } else if (busy) {
        error = g_error_new_literal(BE_ERROR, EBUSY, busy);
    }
    if (error) {
        memory_free(memory);
        return be_job_refuse(be, error, done, user);
    }
    return be_job_submit(be, memory->uuid, BE_JOB_AT_ONCE, what, run, memory, memory_free, done,
                         user);
}

BeJob *be_domain_save(Be *be, const char *uuid, const char *to, BeDone done, gpointer user)
{
    return submit(be, "save", run_save, memory_new(uuid, to, FALSE), done, user);
}

BeJob *be_domain_restore(Be *be, const char *uuid, const char *from, gboolean force, BeDone done,
                         gpointer user)
{
    return submit(be, "restore", run_restore, memory_new(uuid, from, force), done, user);
}

BeJob *be_domain_start(Be *be, const char *uuid, BeDone done, gpointer user)
{
    return submit(be, "start", run_start, memory_new(uuid, NULL, FALSE), done, user);
}
