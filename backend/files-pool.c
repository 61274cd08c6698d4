/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * files-pool.c - what the appliances of a host share: see BeFilesPool.
 *
 * Called by the threads "files"; the pool's lock is never held together with
 * that of an object.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "backend/files-priv.h"

#define PLACE_WAIT_US (10 * G_USEC_PER_SEC)

/* ---- The place ---------------------------------------------------------------------------- */

static gboolean is_idle(BeFiles *files)
{
    gboolean idle;

    g_mutex_lock(&files->lock);
    idle = files->flying == 0 && files->submitted.length == 0;
    g_mutex_unlock(&files->lock);
    return idle;
}

static gint64 used_us(BeFiles *files)
{
    gint64 used;

    g_mutex_lock(&files->lock);
    used = files->used_us;
    g_mutex_unlock(&files->lock);
    return used;
}

/* Has the one end that has been idle longest.  FALSE: all are busy. */
static gboolean evict(GPtrArray *running)
{
    BeFiles *oldest = NULL;

    for (guint i = 0; i < running->len; i++) {
        BeFiles *files = g_ptr_array_index(running, i);

        if (is_idle(files) && (!oldest || used_us(files) < used_us(oldest))) {
            oldest = files;
        }
    }
    if (oldest) {
        g_mutex_lock(&oldest->lock);
        oldest->evicted = TRUE;
        (void)eventfd_write(oldest->kick_fd, 1);
        g_mutex_unlock(&oldest->lock);
    }
    return oldest != NULL;
}

/* With references; under the pool's lock. */
static GPtrArray *copy_of(const GPtrArray *objects)
{
    GPtrArray *copy = g_ptr_array_new_with_free_func((GDestroyNotify)be_files_unref);

    for (guint i = 0; i < objects->len; i++) {
        g_ptr_array_add(copy, be_files_ref(g_ptr_array_index(objects, i)));
    }
    return copy;
}

static gboolean wait_for_place(BeFilesPool *pool, gint64 until_us)
{
    g_autoptr(GPtrArray) running = NULL;

    g_mutex_lock(&pool->lock);
    running = copy_of(pool->running);
    g_mutex_unlock(&pool->lock);
    if (!evict(running)) {
        return FALSE;
    }
    g_mutex_lock(&pool->lock);
    if (pool->running->len >= pool->max) {
        (void)g_cond_wait_until(&pool->changed, &pool->lock,
                                MIN(until_us, g_get_monotonic_time() + G_USEC_PER_SEC / 5));
    }
    g_mutex_unlock(&pool->lock);
    return g_get_monotonic_time() < until_us;
}

gboolean be_files_pool_enter(BeFiles *files, GError **error)
{
    BeFilesPool *pool = files->pool;
    gint64 until_us = g_get_monotonic_time() + PLACE_WAIT_US;
    gboolean entered = FALSE;

    do {
        g_mutex_lock(&pool->lock);
        entered = pool->running->len < pool->max && !pool->stopping;
        if (entered) {
            g_ptr_array_add(pool->running, files);
            pool->starts++;
        }
        g_mutex_unlock(&pool->lock);
    } while (!entered && wait_for_place(pool, until_us));
    if (!entered) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "the files of %u other objects are being read, and more appliances may not "
                    "run at once (-o appliances=); try again when one has ended",
                    pool->max);
    }
    return entered;
}

void be_files_pool_leave(BeFiles *files)
{
    BeFilesPool *pool = files->pool;

    g_mutex_lock(&pool->lock);
    g_ptr_array_remove(pool->running, files);
    g_cond_broadcast(&pool->changed);
    g_mutex_unlock(&pool->lock);
}

/* ---- KVM --------------------------------------------------------------------- */

/*
 * Whether to try KVM.  That there is a device says little, that a machine can
 * be made under it says more; whether one runs, only the start shows.
 */
gboolean be_files_pool_wants_tcg(BeFilesPool *pool)
{
    const char *settings = g_getenv("LIBGUESTFS_BACKEND_SETTINGS");
    int fd = -1, machine = -1;
    gboolean tcg;

    g_mutex_lock(&pool->lock);
    tcg = pool->tcg;
    g_mutex_unlock(&pool->lock);
    if (tcg || (settings && strstr(settings, "force_tcg"))) {
        return TRUE;
    }
    fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    machine = fd >= 0 ? ioctl(fd, KVM_CREATE_VM, 0) : -1;
    if (machine >= 0) {
        close(machine);
    }
    if (fd >= 0) {
        close(fd);
    }
    return machine < 0;
}

void be_files_pool_kvm_fails(BeFilesPool *pool)
{
    g_mutex_lock(&pool->lock);
    pool->tcg = TRUE;
    g_mutex_unlock(&pool->lock);
    g_warning("an appliance does not start under KVM here; from now on without it");
}

/* ---- The pool ---------------------------------------------------------------- */

BeFilesPool *be_files_pool_new(Be *be, guint max, guint idle_seconds)
{
    BeFilesPool *pool = g_new0(BeFilesPool, 1);
    const char *cache_dir = g_getenv("LIBGUESTFS_CACHEDIR");
    g_autofree char *all_hosts = g_path_get_dirname(be->state_dir);

    pool->be = be;
    pool->max = max ? max : 2;
    pool->idle_us = (gint64)(idle_seconds ? idle_seconds : 60) * G_USEC_PER_SEC;
    pool->cache_dir = cache_dir && *cache_dir == '/'
                          ? g_strdup(cache_dir)
                          : g_build_filename(all_hosts, "appliance", NULL);
    pool->running = g_ptr_array_new();
    pool->threads = g_ptr_array_new();
    g_mutex_init(&pool->lock);
    g_cond_init(&pool->changed);
    return pool;
}

void be_files_pool_add(BeFiles *files)
{
    BeFilesPool *pool = files->pool;

    g_mutex_lock(&pool->lock);
    g_ptr_array_add(pool->threads, be_files_ref(files));
    g_mutex_unlock(&pool->lock);
}

void be_files_pool_remove(BeFiles *files)
{
    BeFilesPool *pool = files->pool;

    g_mutex_lock(&pool->lock);
    g_ptr_array_remove_fast(pool->threads, files);
    g_cond_broadcast(&pool->changed);
    g_mutex_unlock(&pool->lock);
    be_files_unref(files);
}

void be_files_pool_stop(BeFilesPool *pool)
{
    g_autoptr(GPtrArray) threads = NULL;

    g_mutex_lock(&pool->lock);
    pool->stopping = TRUE;
    threads = copy_of(pool->threads);
    g_mutex_unlock(&pool->lock);
    for (guint i = 0; i < threads->len; i++) {
        be_files_close(g_ptr_array_index(threads, i));
    }
    g_mutex_lock(&pool->lock);
    while (pool->threads->len > 0) {
        g_cond_wait(&pool->changed, &pool->lock);
    }
    g_mutex_unlock(&pool->lock);
}

static void give_way(BeFiles *files)
{
    g_mutex_lock(&files->lock);
    if (files->running) {
        files->gives_way = TRUE;
        (void)eventfd_write(files->kick_fd, 1);
    }
    while (files->running && files->gives_way && !files->closed) {
        g_cond_wait(&files->changed, &files->lock);
    }
    g_mutex_unlock(&files->lock);
}

void be_files_give_way(BeFilesPool *pool, const char *owner)
{
    g_autoptr(GPtrArray) threads = NULL;

    g_mutex_lock(&pool->lock);
    threads = copy_of(pool->threads);
    g_mutex_unlock(&pool->lock);
    for (guint i = 0; i < threads->len; i++) {
        BeFiles *files = g_ptr_array_index(threads, i);

        if (g_strcmp0(files->owner, owner) == 0) {
            give_way(files);
        }
    }
}

void be_files_pool_free(BeFilesPool *pool)
{
    if (!pool) {
        return;
    }
    be_files_pool_stop(pool);
    g_ptr_array_unref(pool->running);
    g_ptr_array_unref(pool->threads);
    g_cond_clear(&pool->changed);
    g_mutex_clear(&pool->lock);
    g_free(pool->cache_dir);
    g_free(pool);
}

void be_files_print(Be *be, GString *out)
{
    BeFilesPool *pool = be->files_pool;

    g_mutex_lock(&pool->lock);
    g_string_append_printf(out, "appliances: %u\nappliance-starts: %u\nappliance-kvm: %s\n",
                           pool->running->len, pool->starts, pool->tcg ? "no" : "if it works");
    g_mutex_unlock(&pool->lock);
}
