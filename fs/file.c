/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * file.c - open files, and the set of them; see file.h.
 *
 * FUSE threads and the timer thread; `files_lock` guards the list alone.
 */
#include "fs/file.h"

#include "fs/control.h"
#include "fs/guest.h"

/* Whether an object must not end under it. */
static gboolean reads_data(const FsFile *file)
{
    struct stat attr;

    if (file->node->def->kind == FS_KIND_GUEST) {
        return fs_guest_attr(file->fs, file->node, &attr) && S_ISREG(attr.st_mode);
    }
    return file->node->def->kind == FS_KIND_STREAM;
}

FsFile *fs_file_new(Fs *fs, FsNode *node, pid_t pid)
{
    FsFile *file = g_new0(FsFile, 1);

    g_atomic_ref_count_init(&file->refs);
    file->fs = fs;
    file->node = fs_node_ref(fs->nodes, node);
    file->pid = pid;
    g_atomic_int_inc(&fs->open_files);
    g_mutex_lock(&fs->files_lock);
    g_hash_table_add(fs->files, file);
    g_mutex_unlock(&fs->files_lock);
    return file;
}

FsFile *fs_file_ref(FsFile *file)
{
    g_atomic_ref_count_inc(&file->refs);
    return file;
}

void fs_file_unref(FsFile *file)
{
    if (!file || !g_atomic_ref_count_dec(&file->refs)) {
        return;
    }
    g_clear_pointer(&file->entries, g_ptr_array_unref);
    g_clear_pointer(&file->text, g_bytes_unref);
    g_clear_pointer(&file->control, fs_control_unref);
    g_clear_pointer(&file->reader, be_reader_free);
    g_clear_pointer(&file->guest, be_file_reader_free);
    fs_guest_list_free(file->list);
    fs_node_unref(file->fs->nodes, file->node);
    g_free(file);
}

void fs_file_close(FsFile *file)
{
    Fs *fs = file->fs;

    g_mutex_lock(&fs->files_lock);
    g_hash_table_remove(fs->files, file);
    g_mutex_unlock(&fs->files_lock);
    g_atomic_int_add(&fs->open_files, -1);
    g_atomic_int_add(&fs->streamed_files, file->streamed ? -1 : 0);
    fs_file_unref(file);
}

pid_t fs_file_reader_of(Fs *fs, FsItem *item)
{
    GHashTableIter iter;
    gpointer key;
    pid_t pid = 0;

    g_mutex_lock(&fs->files_lock);
    g_hash_table_iter_init(&iter, fs->files);
    while (pid == 0 && g_hash_table_iter_next(&iter, &key, NULL)) {
        const FsFile *file = key;

        if (reads_data(file) && fs_item_is_within(file->node->item, item->id)) {
            pid = file->pid ? file->pid : -1;
        }
    }
    g_mutex_unlock(&fs->files_lock);
    return pid;
}
