/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * readings.c - the servers of snapshots' images together; see readings.h.
 *
 * Query workers add, the timer thread removes, action workers stop; nothing is called
 * under the lock.
 */
#include "backend/readings.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include "backend/error.h"
#include "backend/files.h"

#define MARK ".readings"

typedef struct {
    gatomicrefcount refs;
    char *owner;
    gpointer data;
    void (*give_way)(gpointer data);
    GDestroyNotify free_data;
} Reading;

struct BeReadings {
    GMutex lock;
    char *path;                /* guarded by lock; of the sockets; NULL: not made yet */
    int mark_fd;               /* guarded by lock; locked as long as we live */
    GPtrArray *all;            /* of Reading; guarded by lock */
    GPtrArray *stopped;        /* of char *, UUIDs, as often as stopped; guarded by lock */
};

static void reading_unref(gpointer data)
{
    Reading *reading = data;

    if (g_atomic_ref_count_dec(&reading->refs)) {
        reading->free_data(reading->data);
        g_free(reading->owner);
        g_free(reading);
    }
}

BeReadings *be_readings_new(void)
{
    BeReadings *readings = g_new0(BeReadings, 1);

    g_mutex_init(&readings->lock);
    readings->mark_fd = -1;
    readings->all = g_ptr_array_new_with_free_func(reading_unref);
    readings->stopped = g_ptr_array_new_with_free_func(g_free);
    return readings;
}

void be_readings_let_go(BeReadings *readings)
{
    GPtrArray *all;

    if (!readings) {
        return;
    }
    g_mutex_lock(&readings->lock);
    all = readings->all;
    readings->all = g_ptr_array_new_with_free_func(reading_unref);
    g_mutex_unlock(&readings->lock);
    g_ptr_array_unref(all);
}

void be_readings_free(BeReadings *readings)
{
    if (!readings) {
        return;
    }
    g_ptr_array_unref(readings->all);
    g_ptr_array_unref(readings->stopped);
    if (readings->path) {
        be_dirs_remove(readings->path);
        close(readings->mark_fd);
    }
    g_mutex_clear(&readings->lock);
    g_free(readings->path);
    g_free(readings);
}

/* ---- The directory of the sockets ---------------------------------------------------- */

/* The lock on the mark goes with the process, so a dead one's directory is known. */
static int take_mark(const char *dir)
{
    g_autofree char *mark = g_build_filename(dir, MARK, NULL);
    int fd = open(mark, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
        close(fd);
        errno = EBUSY;
        return -1;
    }
    return fd;
}

static gboolean make_directory_locked(Be *be, GError **error)
{
    BeReadings *readings = be->readings;
    g_autofree char *path = NULL;

    if (readings->path) {
        return TRUE;
    }
    path = be_dirs_ensure(be->run_dir, 0711, error) ? be_dirs_random(be->run_dir, error) : NULL;
    if (!path || !be_dirs_private(path, geteuid(), getegid(), error)) {
        return FALSE;
    }
    readings->mark_fd = take_mark(path);
    if (readings->mark_fd < 0) {
        be_error_set_errno(error, errno, "cannot lock '%s'", path);
        be_dirs_remove(path);
        return FALSE;
    }
    readings->path = g_steal_pointer(&path);
    return TRUE;
}

const char *be_readings_directory(Be *be, GError **error)
{
    gboolean made;

    g_mutex_lock(&be->readings->lock);
    made = make_directory_locked(be, error);
    g_mutex_unlock(&be->readings->lock);
    return made ? be->readings->path : NULL;
}

void be_readings_tidy(Be *be)
{
    g_autoptr(GDir) dir = g_dir_open(be->run_dir, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(be->run_dir, name, NULL);
        g_autofree char *mark = g_build_filename(path, MARK, NULL);
        int fd = open(mark, O_RDWR | O_CLOEXEC | O_NOFOLLOW);

        if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0) {
            be_dirs_remove(path);
        }
        if (fd >= 0) {
            close(fd);
        }
    }
}

/* ---- The servers ----------------------------------------------------------------------- */

void be_readings_add(Be *be, const char *owner, gpointer data, void (*give_way)(gpointer data),
                     GDestroyNotify free_data)
{
    Reading *reading = g_new0(Reading, 1);

    g_atomic_ref_count_init(&reading->refs);
    reading->owner = g_strdup(owner);
    reading->data = data;
    reading->give_way = give_way;
    reading->free_data = free_data;
    g_mutex_lock(&be->readings->lock);
    g_ptr_array_add(be->readings->all, reading);
    g_mutex_unlock(&be->readings->lock);
}

void be_readings_remove(Be *be, gpointer data)
{
    BeReadings *readings = be->readings;
    Reading *found = NULL;

    g_mutex_lock(&readings->lock);
    for (guint i = 0; i < readings->all->len && !found; i++) {
        Reading *reading = g_ptr_array_index(readings->all, i);

        if (reading->data == data) {
            found = g_ptr_array_steal_index_fast(readings->all, i);
        }
    }
    g_mutex_unlock(&readings->lock);
    if (found) {
        reading_unref(found);
    }
}

/* ---- Out of the way -------------------------------------------------------------------- */

static GPtrArray *readings_of(BeReadings *readings, const char *uuid)
{
    GPtrArray *found = g_ptr_array_new_with_free_func(reading_unref);

    g_mutex_lock(&readings->lock);
    for (guint i = 0; i < readings->all->len; i++) {
        Reading *reading = g_ptr_array_index(readings->all, i);

        if (g_str_equal(reading->owner, uuid)) {
            g_atomic_ref_count_inc(&reading->refs);
            g_ptr_array_add(found, reading);
        }
    }
    g_mutex_unlock(&readings->lock);
    return found;
}

void be_readings_stop(Be *be, const char *uuid)
{
    g_autoptr(GPtrArray) found = NULL;

    g_mutex_lock(&be->readings->lock);
    g_ptr_array_add(be->readings->stopped, g_strdup(uuid));
    g_mutex_unlock(&be->readings->lock);
    be_files_give_way(be->files_pool, uuid);
    found = readings_of(be->readings, uuid);
    for (guint i = 0; i < found->len; i++) {
        const Reading *reading = g_ptr_array_index(found, i);

        reading->give_way(reading->data);
    }
}

static gboolean find_stopped_locked(const BeReadings *readings, const char *uuid, guint *ret_index)
{
    return g_ptr_array_find_with_equal_func(readings->stopped, uuid, g_str_equal, ret_index);
}

void be_readings_go_on(Be *be, const char *uuid)
{
    guint index;

    g_mutex_lock(&be->readings->lock);
    if (find_stopped_locked(be->readings, uuid, &index)) {
        g_ptr_array_remove_index_fast(be->readings->stopped, index);
    }
    g_mutex_unlock(&be->readings->lock);
}

gboolean be_readings_are_allowed(Be *be, const char *uuid, GError **error)
{
    gboolean stopped;

    g_mutex_lock(&be->readings->lock);
    stopped = find_stopped_locked(be->readings, uuid, NULL);
    g_mutex_unlock(&be->readings->lock);
    if (stopped) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "the snapshots of this machine are being changed; wait for the end of that");
    }
    return !stopped;
}
