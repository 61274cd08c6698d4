/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * boot-tpm.c - the state of the TPM of a machine that boots from a backup.
 *
 * libvirt 9.0 has no way to say in the XML where the state is: it is in a directory
 * named by the machine's UUID, which is the backup's identity.  What is there when the
 * machine starts is taken, and libvirt removes it when the machine goes.  Query workers,
 * and whoever releases a backup.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/backup.h"
#include "backend/error.h"

/* The directories are root's, or the user's own: nobody else can put a link there. */
static gboolean make_directory(const char *path, mode_t mode, GError **error)
{
    /* The umask must not keep the TPM's user out. */
    if (mkdir(path, mode) < 0 ? errno != EEXIST : chmod(path, mode) < 0) {
        be_error_set_errno(error, errno, "cannot make '%s'", path);
        return FALSE;
    }
    return TRUE;
}

static gboolean write_state(const char *copy, const char *path, const struct stat *like,
                            GError **error)
{
    g_autofree char *dir = g_path_get_dirname(path);
    g_autofree char *bytes = NULL;
    gsize length;
    int fd;
    gboolean good;

    if (!g_file_get_contents(copy, &bytes, &length, NULL)) {
        g_set_error(error, BE_ERROR, EIO, "cannot read the copy of the TPM's state");
        return FALSE;
    }
    (void)unlink(path);
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    good = fd >= 0 && write(fd, bytes, length) == (ssize_t)length
           && fchown(fd, like->st_uid, like->st_gid) == 0
           && chown(dir, like->st_uid, like->st_gid) == 0;
    if (!good) {
        be_error_set_errno(error, errno, "cannot write the TPM's state to '%s'", path);
    }
    if (fd >= 0) {
        close(fd);
    }
    return good;
}

gboolean backup_boot_tpm_make(const Backup *backup, GError **error)
{
    g_autofree char *copy = backup_extra_path(backup, BE_EXTRA_TPM);
    g_autoptr(BeXmlDomain) xml = NULL;
    g_autofree char *original = NULL, *path = NULL, *inner = NULL, *outer = NULL;
    struct stat like;

    if (!backup->pub.extras[BE_EXTRA_TPM]) {
        return TRUE;
    }
    xml = be_xml_domain_parse(backup->pub.domain_xml, error);
    if (!xml) {
        return FALSE;
    }
    /* Whose the state is only the original shows: it is a setting of libvirt's. */
    original = backup_tpm_path(backup->be, xml, xml->uuid);
    if (xml->tpm_encrypted || lstat(original, &like) < 0) {
        return TRUE;
    }
    path = backup_tpm_path(backup->be, xml, backup->pub.id);
    inner = g_path_get_dirname(path);
    outer = g_path_get_dirname(inner);
    return make_directory(outer, 0711, error) && make_directory(inner, 0700, error)
           && write_state(copy, path, &like, error);
}

void backup_boot_tpm_remove(const Backup *backup)
{
    static const char *const versions[] = {"2.0", "1.2"};

    for (gsize i = 0; i < G_N_ELEMENTS(versions); i++) {
        const BeXmlDomain like = {.tpm_version = (char *)versions[i]};
        g_autofree char *path = backup_tpm_path(backup->be, &like, backup->pub.id);
        g_autofree char *inner = g_path_get_dirname(path);
        g_autofree char *outer = g_path_get_dirname(inner);

        if (access(inner, F_OK) == 0) {
            be_dirs_remove(inner);
            (void)rmdir(outer);
        }
    }
}
