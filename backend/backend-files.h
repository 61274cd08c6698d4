/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backend-files.h - the part of backend.h about the guest's own files.
 *
 * To be had by including backend.h, whose rules on threads and errors hold here.
 */
#pragma once

#include <sys/stat.h>

#include "backend/backend.h"
#include "backend/backend-streams.h"

/**
 * BeFiles: the file systems on the disks of one point in time, read by an
 * appliance (a small virtual machine of libguestfs) that starts when somebody
 * first asks for something in them, and ends when nobody has for a while.
 *
 * A path is "VOLUME/name/name": the first component is "root" (the tree as the
 * guest sees it) or the name of a file system; no component is a link.
 *
 * The callbacks below come from the appliance's thread, or, as the one other
 * exception to the rule above, from inside the call, where the answer is known.
 * ENOENT, EACCES (locked), EBUSY (too many appliances), EIO with a sentence (the
 * appliance died, hung, or found the file system broken), ETIMEDOUT,
 * EOPNOTSUPP (not installed).
 */
typedef struct BeFiles BeFiles;

/**
 * be_files_program: Returns: (transfer full): the program that appliances are run by, beside
 * our own, where that is in a build tree, or where it was installed; NULL: it is not there.
 */
char *be_files_program(void);

/**
 * be_backup_files: Returns: (transfer none): valid as long as the backup.
 */
BeFiles *be_backup_files(BeBackup *backup);

/**
 * BeFileInfo: one file of the guest; immutable.
 */
typedef struct {
    char *name;                /* bytes as the guest has them: no '/', no NUL, 1 to 255 */
    struct stat attr;          /* as the guest's kernel sees it; st_dev tells file systems apart */
    char *target;              /* of a link: its text; else NULL */
    gboolean target_plain;     /* each ".." in the text stands behind directories alone */
} BeFileInfo;

/**
 * BeFileList: a directory of the guest, without "." and ".."; immutable.
 */
typedef struct {
    gatomicrefcount refs;
    GPtrArray *infos;          /* of BeFileInfo */
    GHashTable *by_name;       /* name -> BeFileInfo */
} BeFileList;

BeFileList *be_file_list_ref(BeFileList *list);
void be_file_list_unref(BeFileList *list);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeFileList, be_file_list_unref)

/**
 * be_files_volume_known: whether there is a file system of that name: 1 yes,
 * 0 no; -1: it would be a likely name, and no appliance has looked yet.
 */
int be_files_volume_known(BeFiles *files, const char *name);

/**
 * be_files_volumes: the names of the file systems, "root" first.
 * @names: NULL-terminated, valid during the call; NULL on failure
 */
typedef void (*BeFilesVolumesDone)(const char *const *names, const GError *error, gpointer user);
void be_files_volumes(BeFiles *files, BeFilesVolumesDone done, gpointer user);

/**
 * be_files_stat: one file; @info is valid during the call.
 */
typedef void (*BeFileDone)(const BeFileInfo *info, const GError *error, gpointer user);
void be_files_stat(BeFiles *files, const char *path, BeFileDone done, gpointer user);

/**
 * be_files_list: a directory with the attributes of all that is in it; kept for
 * be_files_stat().  EFBIG: more than a million entries.
 */
typedef void (*BeFileListDone)(BeFileList *list, const GError *error, gpointer user);
void be_files_list(BeFiles *files, const char *path, BeFileListDone done, gpointer user);

/**
 * be_files_xattrs: the extended attributes of one file.
 * @xattrs: name -> GBytes, valid during the call; NULL on failure
 */
typedef void (*BeFileXattrsDone)(GHashTable *xattrs, const GError *error, gpointer user);
void be_files_xattrs(BeFiles *files, const char *path, BeFileXattrsDone done, gpointer user);

/**
 * BeFileReader: one open file of the guest, with its own read-ahead.  Starts
 * nothing; the first read does.  Keeps @files.
 */
typedef struct BeFileReader BeFileReader;
BeFileReader *be_file_reader_new(BeFiles *files, const char *path, guint64 size);
void be_file_reader_free(BeFileReader *reader);

/**
 * be_file_reader_read: as be_reader_read(), of at most 1 MiB; may call @done
 * from inside.
 */
void be_file_reader_read(BeFileReader *reader, guint64 offset, gsize length, BeReadDone done,
                         gpointer user);
