/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * boot.c - a throw-away machine that boots straight from a backup.
 *
 * Its disks are empty overlays on the backup's raw files, its variable store is
 * a copy: both are in the backup's scratch directory and go with it, as does the state
 * of its TPM, which is where libvirt looks for it (boot-tpm.c).  There is
 * one such machine for a backup, named after it and with its identity for a UUID,
 * so that its images are never made anew under a machine that runs.  Query worker.
 */
#include <errno.h>
#include <fcntl.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/backup.h"
#include "backend/error.h"
#include "backend/qemu-img.h"

typedef struct {
    Backup *backup;            /* a reference */
    char **raws;               /* absolute path of each disk's raw file */
    BeTextDone done;
    gpointer user;
} BootRequest;

static void request_free(gpointer data)
{
    BootRequest *request = data;

    be_backup_unref(&request->backup->pub);
    g_strfreev(request->raws);
    g_free(request);
}

static void boot_disk_free(gpointer data)
{
    BeXmlBootDisk *disk = data;

    g_free(disk->target);
    g_free(disk->overlay);
    g_free(disk);
}

static char *scratch_file(const Backup *backup, const char *what, const char *suffix)
{
    g_autofree char *file = g_strconcat("boot-", what, suffix, NULL);

    return g_build_filename(backup->scratch_path, file, NULL);
}

static GPtrArray *overlays(const Backup *backup)
{
    GPtrArray *disks = g_ptr_array_new_with_free_func(boot_disk_free);

    for (guint i = 0; i < backup->pub.disks->len; i++) {
        const BeDisk *from = g_ptr_array_index(backup->pub.disks, i);
        BeXmlBootDisk *disk = g_new0(BeXmlBootDisk, 1);

        disk->target = g_strdup(from->target);
        disk->overlay = scratch_file(backup, from->target, ".qcow2");
        g_ptr_array_add(disks, disk);
    }
    return disks;
}

/* Returns: 1 yes, 0 no, -1 with @error. */
static int is_running(virConnectPtr conn, const char *uuid, GError **error)
{
    virDomainPtr domain = virDomainLookupByUUIDString(conn, uuid);
    const virError *last = virGetLastError();

    if (domain) {
        virDomainFree(domain);
        return 1;
    }
    if (last && last->code == VIR_ERR_NO_DOMAIN) {
        return 0;
    }
    be_error_from_libvirt(error, "cannot look for the machine that boots from the backup");
    return -1;
}

/*
 * The directory is QEMU's: what we write must be a file that we made, or a link
 * put there would have us write to any file of the host.
 */
static int open_fresh(const char *fresh, GError **error)
{
    int fd;

    (void)unlink(fresh);
    fd = open(fresh, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        be_error_set_errno(error, errno, "cannot make '%s'", fresh);
    }
    return fd;
}

/* Gives the file to QEMU's user, whom the directory belongs to; closes @fd. */
static gboolean hand_over(const Backup *backup, int fd, const char *fresh, const char *path,
                          GError **error)
{
    struct stat attr;
    gboolean given = stat(backup->scratch_path, &attr) == 0
                     && fchown(fd, attr.st_uid, attr.st_gid) == 0 && rename(fresh, path) == 0;

    if (!given) {
        be_error_set_errno(error, errno, "cannot make '%s'", path);
        (void)unlink(fresh);
    }
    close(fd);
    return given;
}

/*
 * -u: the raw file is not opened, which would be a request to ourselves; its size
 * and format are known.
 */
static gboolean make_overlay(const Backup *backup, const char *overlay, const char *raw,
                             guint64 size, GError **error)
{
    g_autofree char *fresh = g_strconcat(overlay, ".new", NULL);
    g_autofree char *bytes = g_strdup_printf("%" G_GUINT64_FORMAT, size);
    int fd = open_fresh(fresh, error);
    g_autofree char *opened = g_strdup_printf("/proc/%d/fd/%d", (int)getpid(), fd);
    const char *const argv[] = {"create", "-q", "-u", "-f", "qcow2", "-F", "raw",
                                "-b", raw, opened, bytes, NULL};

    if (fd < 0) {
        return FALSE;
    }
    if (!be_qemu_img(NULL, argv, error)) {
        close(fd);
        (void)unlink(fresh);
        return FALSE;
    }
    return hand_over(backup, fd, fresh, overlay, error);
}

static gboolean make_nvram(const Backup *backup, const char *path, GError **error)
{
    g_autofree char *copy = backup_extra_path(backup, BE_EXTRA_NVRAM);
    g_autofree char *fresh = g_strconcat(path, ".new", NULL);
    g_autofree char *bytes = NULL;
    gsize length;
    int fd = open_fresh(fresh, error);

    if (fd < 0) {
        return FALSE;
    }
    if (!g_file_get_contents(copy, &bytes, &length, NULL)
        || write(fd, bytes, length) != (ssize_t)length) {
        g_set_error(error, BE_ERROR, EIO, "cannot copy the variable store to '%s'", path);
        close(fd);
        (void)unlink(fresh);
        return FALSE;
    }
    return hand_over(backup, fd, fresh, path, error);
}

static gboolean make_files(const BootRequest *request, const GPtrArray *disks, const char *nvram,
                           GError **error)
{
    const Backup *backup = request->backup;

    for (guint i = 0; i < disks->len; i++) {
        const BeXmlBootDisk *disk = g_ptr_array_index(disks, i);
        const BeDisk *from = g_ptr_array_index(backup->pub.disks, i);

        if (!make_overlay(backup, disk->overlay, request->raws[i], from->size, error)) {
            return FALSE;
        }
    }
    return (!nvram || make_nvram(backup, nvram, error)) && backup_boot_tpm_make(backup, error);
}

static char *boot_xml(Be *be, const BootRequest *request, GError **error)
{
    const Backup *backup = request->backup;
    const BeBackup *pub = &backup->pub;
    g_autoptr(GPtrArray) disks = overlays(backup);
    g_autofree char *name = g_strdup_printf("%s-boot-%.8s", pub->domain_name, pub->id);
    g_autofree char *nvram =
        pub->extras[BE_EXTRA_NVRAM] ? scratch_file(backup, "nvram", "") : NULL;
    g_autoptr(BeVirConnect) conn = be_conn_get(be->query_conn, error);
    int running = conn ? is_running(conn, pub->id, error) : -1;

    if (running < 0) {
        return NULL;
    }
    if (be_backup_state(&request->backup->pub, NULL) != BE_BACKUP_RUNNING) {
        g_set_error(error, BE_ERROR, EIO, "the backup '%s' is no good any more", pub->name);
        return NULL;
    }
    if (!running && !make_files(request, disks, nvram, error)) {
        return NULL;
    }
    return be_xml_boot_build(pub->domain_xml, name, pub->id, disks, nvram, error);
}

static void run(Be *be, gpointer data)
{
    const BootRequest *request = data;
    g_autoptr(GError) error = NULL;
    g_autofree char *xml = boot_xml(be, request, &error);

    request->done(xml, error, request->user);
}

void be_backup_boot_fetch(Be *be, BeBackup *backup, const char *const *raws, BeTextDone done,
                          gpointer user)
{
    BootRequest *request = g_new0(BootRequest, 1);

    request->backup = (Backup *)be_backup_ref(backup);
    request->raws = g_strdupv((char **)raws);
    request->done = done;
    request->user = user;
    be_query(be, run, request, request_free);
}
