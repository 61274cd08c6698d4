/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * extras.c - what a machine needs besides its disks to be built again: the
 * firmware's variables, the TPM's state, the kernel and initrd of a direct boot.
 *
 * They are small, so they are copied before the backup begins; of a machine that
 * runs they are what a crash would have left.  The copies are in a directory of
 * ours: whoever can write to the scratch directory, which is QEMU's, could put a
 * link to any file of the host there.  Action workers and, after a crash,
 * be_start().
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/backup.h"
#include "backend/error.h"
#include "backend/file-stream.h"
#include "backend/image.h"

/* A variable store has half a MiB, an initrd some hundred: more is no such thing. */
#define EXTRA_MAX ((guint64)1024 * 1024 * 1024)

#define PIECE ((gsize)1024 * 1024)

static const char *const names[BE_EXTRA_COUNT] = {
    [BE_EXTRA_NVRAM] = "nvram",
    [BE_EXTRA_TPM] = "tpm",
    [BE_EXTRA_KERNEL] = "kernel",
    [BE_EXTRA_INITRD] = "initrd",
};

char *backup_tpm_path(const Be *be, const BeXmlDomain *xml, const char *uuid)
{
    gboolean version2 = g_strcmp0(xml->tpm_version, "1.2") != 0;
    g_autofree char *base =
        g_str_has_suffix(be->uri, "/session")
            ? g_build_filename(g_get_user_config_dir(), "libvirt", "qemu", "swtpm", NULL)
            : g_strdup("/var/lib/libvirt/swtpm");

    return g_build_filename(base, uuid, version2 ? "tpm2" : "tpm1.2",
                            version2 ? "tpm2-00.permall" : "tpm-00.permall", NULL);
}

/* Returns: the file on the host, or NULL: the domain has none. */
static char *source_path(const Be *be, const BeXmlDomain *xml, BeExtra extra)
{
    switch (extra) {
    case BE_EXTRA_NVRAM:
        return g_strdup(xml->nvram);
    case BE_EXTRA_TPM:
        return xml->tpm_emulated ? backup_tpm_path(be, xml, xml->uuid) : NULL;
    case BE_EXTRA_KERNEL:
        return g_strdup(xml->kernel);
    case BE_EXTRA_INITRD:
        return g_strdup(xml->initrd);
    case BE_EXTRA_COUNT:
        break;
    }
    return NULL;
}

static char *extras_dir(const Backup *backup)
{
    return g_build_filename(backup->be->state_dir, "extras", backup->pub.id, NULL);
}

char *backup_extra_path(const Backup *backup, BeExtra extra)
{
    g_autofree char *dir = extras_dir(backup);

    return g_build_filename(dir, names[extra], NULL);
}

static int write_all(int fd, const char *bytes, gsize length)
{
    while (length > 0) {
        ssize_t put = write(fd, bytes, length);

        if (put < 0 && errno != EINTR) {
            return errno;
        }
        bytes += MAX(put, 0);
        length -= (gsize)MAX(put, 0);
    }
    return 0;
}

/* Returns: 0 or an errno. */
static int copy_bytes(int from, int to)
{
    g_autofree char *piece = g_malloc(PIECE);
    guint64 done = 0;
    int errnum = 0;

    while (!errnum) {
        ssize_t got = read(from, piece, PIECE);

        if (got == 0) {
            return 0;
        }
        if (got < 0) {
            errnum = errno == EINTR ? 0 : errno;
        } else {
            done += (guint64)got;
            errnum = done > EXTRA_MAX ? EFBIG : write_all(to, piece, (gsize)got);
        }
    }
    return errnum;
}

static void tell_left_out(const Backup *backup, BeExtra extra, const char *why)
{
    g_autofree char *text =
        g_strdup_printf("the backup is without '%s' of the machine: %s", names[extra], why);

    backup_notify((Backup *)backup, BE_EVENT_WARNING, EIO, text);
}

/*
 * One that cannot be read is left out and told: it is no reason to have no backup
 * of the disks.  Our own disk being full is one.
 */
static gboolean copy_one(const Backup *backup, const char *path, BeExtra extra, GError **error)
{
    g_autofree char *copy = backup_extra_path(backup, extra);
    g_autoptr(GError) why = NULL;
    int from = be_image_open(path, &why);
    int to, errnum;

    if (from < 0) {
        tell_left_out(backup, extra, why->message);
        return TRUE;
    }
    to = open(copy, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0400);
    errnum = to >= 0 ? copy_bytes(from, to) : errno;
    close(from);
    if (to >= 0) {
        close(to);
    }
    if (errnum) {
        (void)unlink(copy);
    }
    if (errnum == ENOSPC || errnum == EDQUOT || to < 0) {
        be_error_set_errno(error, errnum, "cannot copy '%s' of the machine to '%s'", names[extra],
                           copy);
        return FALSE;
    }
    if (errnum) {
        tell_left_out(backup, extra, g_strerror(errnum));
    }
    return TRUE;
}

void backup_remove_extras(const Backup *backup)
{
    g_autofree char *dir = extras_dir(backup);

    be_dirs_remove(dir);
}

gboolean backup_step_extras(gpointer work, GError **error)
{
    BackupPlan *plan = work;
    g_autofree char *dir = extras_dir(plan->backup);

    if (!be_dirs_ensure(dir, 0700, error)) {
        return FALSE;
    }
    for (BeExtra extra = 0; extra < BE_EXTRA_COUNT; extra++) {
        g_autofree char *path = source_path(plan->be, plan->xml, extra);

        if (path && !copy_one(plan->backup, path, extra, error)) {
            return FALSE;
        }
    }
    backup_open_extras(plan->backup);
    return TRUE;
}

void backup_open_extras(Backup *backup)
{
    for (BeExtra extra = 0; extra < BE_EXTRA_COUNT; extra++) {
        g_autofree char *copy = backup_extra_path(backup, extra);
        struct stat attr;

        if (lstat(copy, &attr) == 0 && S_ISREG(attr.st_mode)) {
            backup->pub.extras[extra] = be_stream_new_file(copy, (guint64)attr.st_size);
        }
    }
}

void backup_fail_extras(Backup *backup, const char *reason)
{
    for (BeExtra extra = 0; extra < BE_EXTRA_COUNT; extra++) {
        if (backup->pub.extras[extra]) {
            be_stream_fail(backup->pub.extras[extra], reason);
        }
    }
}

void backup_close_extras(Backup *backup)
{
    for (BeExtra extra = 0; extra < BE_EXTRA_COUNT; extra++) {
        if (backup->pub.extras[extra]) {
            be_stream_close(backup->pub.extras[extra]);
        }
    }
}
