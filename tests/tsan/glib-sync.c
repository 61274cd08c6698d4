/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * glib-sync.c - GLib's synchronisation in a form that ThreadSanitizer can see.
 *
 * Debian's GLib is not instrumented and its mutexes are futexes, so without this
 * every lock of ours would look like none.  In a -Db_sanitize=thread
 * build our code, and only ours, calls these instead (glib-sync.h): mutexes and
 * conditions become pthread's, which the sanitizer knows; what is handed to a
 * thread pool or a main context is marked as handed over.
 */
#include "glib-sync.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

/* The compiler has included the header already; here the real ones are meant. */
#undef g_atomic_rc_box_release
#undef g_atomic_rc_box_release_full
#undef g_thread_pool_free
#undef g_thread_pool_new
#undef g_thread_pool_push
#undef g_source_set_callback
#undef g_once_init_enter
#undef g_once_init_leave

void __tsan_acquire(void *address);
void __tsan_release(void *address);

#define name ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* ---- Mutexes and conditions ------------------------------------------------- */

static pthread_mutex_t *mutex_of(GMutex *mutex)
{
    pthread_mutex_t *made, *expected = NULL;
    pthread_mutex_t *found = __atomic_load_n((pthread_mutex_t **)&mutex->p, __ATOMIC_ACQUIRE);

    if (found) {
        return found;
    }
    made = malloc(sizeof(*made));
    pthread_mutex_init(made, NULL);
    if (__atomic_compare_exchange_n((pthread_mutex_t **)&mutex->p, &expected, made, 0,
                                    __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        return made;
    }
    pthread_mutex_destroy(made);
    free(made);
    return expected;
}

void tsan_g_mutex_init(GMutex *mutex)
{
    mutex->p = NULL;
}

void tsan_g_mutex_clear(GMutex *mutex)
{
    pthread_mutex_t *real = mutex->p;

    if (real) {
        pthread_mutex_destroy(real);
        free(real);
        mutex->p = NULL;
    }
}

void tsan_g_mutex_lock(GMutex *mutex)
{
    pthread_mutex_lock(mutex_of(mutex));
}

gboolean tsan_g_mutex_trylock(GMutex *mutex)
{
    return pthread_mutex_trylock(mutex_of(mutex)) == 0;
}

void tsan_g_mutex_unlock(GMutex *mutex)
{
    pthread_mutex_unlock(mutex_of(mutex));
}

static pthread_cond_t *cond_of(GCond *cond)
{
    pthread_cond_t *found = __atomic_load_n((pthread_cond_t **)&cond->p, __ATOMIC_ACQUIRE);
    pthread_cond_t *made, *expected = NULL;
    pthread_condattr_t attr;

    if (found) {
        return found;
    }
    made = malloc(sizeof(*made));
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(made, &attr);
    if (__atomic_compare_exchange_n((pthread_cond_t **)&cond->p, &expected, made, 0,
                                    __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        return made;
    }
    pthread_cond_destroy(made);
    free(made);
    return expected;
}

void tsan_g_cond_init(GCond *cond)
{
    cond->p = NULL;
}

void tsan_g_cond_clear(GCond *cond)
{
    pthread_cond_t *real = cond->p;

    if (real) {
        pthread_cond_destroy(real);
        free(real);
        cond->p = NULL;
    }
}

void tsan_g_cond_wait(GCond *cond, GMutex *mutex)
{
    pthread_cond_wait(cond_of(cond), mutex_of(mutex));
}

gboolean tsan_g_cond_wait_until(GCond *cond, GMutex *mutex, gint64 end_time)
{
    struct timespec end = {.tv_sec = end_time / G_USEC_PER_SEC,
                           .tv_nsec = end_time % G_USEC_PER_SEC * 1000};

    return pthread_cond_timedwait(cond_of(cond), mutex_of(mutex), &end) != ETIMEDOUT;
}

void tsan_g_cond_signal(GCond *cond)
{
    pthread_cond_signal(cond_of(cond));
}

void tsan_g_cond_broadcast(GCond *cond)
{
    pthread_cond_broadcast(cond_of(cond));
}

/* ---- Thread pools -------------------------------------------------------------- */

typedef struct {
    GFunc func;
    gpointer user;
} Pool;

static void pool_main(gpointer data, gpointer user)
{
    Pool *pool = user;

    __tsan_acquire(data);
    pool->func(data, pool->user);
    __tsan_release(pool);
}

/* The wrapper lives as long as the process: a pool of ours does, too. */
GThreadPool *tsan_g_thread_pool_new(GFunc func, gpointer user, gint max_threads, gboolean exclusive,
                               GError **error)
{
    Pool *pool = malloc(sizeof(*pool));

    pool->func = func;
    pool->user = user;
    return g_thread_pool_new(pool_main, pool, max_threads, exclusive, error);
}

gboolean tsan_g_thread_pool_push(GThreadPool *pool, gpointer data, GError **error)
{
    __tsan_release(data);
    return g_thread_pool_push(pool, data, error);
}

/* Whoever has waited for the pool's end has seen what its threads did. */
void tsan_g_thread_pool_free(GThreadPool *pool, gboolean immediate, gboolean wait)
{
    Pool *ours = pool->user_data;

    g_thread_pool_free(pool, immediate, wait);
    if (wait) {
        __tsan_acquire(ours);
    }
}

/* ---- Sources -------------------------------------------------------------------- */

typedef struct {
    GSourceFunc func;
    gpointer data;
    GDestroyNotify destroy;
} Callback;

static gboolean callback_main(gpointer data)
{
    Callback *callback = data;

    __tsan_acquire(callback);
    return callback->func(callback->data);
}

static void callback_free(gpointer data)
{
    Callback *callback = data;

    __tsan_acquire(callback);
    if (callback->destroy) {
        callback->destroy(callback->data);
    }
    free(callback);
}

void tsan_g_source_set_callback(GSource *source, GSourceFunc func, gpointer data,
                           GDestroyNotify destroy)
{
    Callback *callback = malloc(sizeof(*callback));

    callback->func = func;
    callback->data = data;
    callback->destroy = destroy;
    __tsan_release(callback);
    g_source_set_callback(source, callback_main, callback, callback_free);
}

/* ---- Reference counted boxes ------------------------------------------------------- */

/* Whoever gives the last reference back has seen what the others did before. */
void tsan_g_atomic_rc_box_release(gpointer box)
{
    __tsan_release(box);
    __tsan_acquire(box);
    g_atomic_rc_box_release(box);
}

void tsan_g_atomic_rc_box_release_full(gpointer box, GDestroyNotify clear)
{
    __tsan_release(box);
    __tsan_acquire(box);
    g_atomic_rc_box_release_full(box, clear);
}

/* ---- Once ---------------------------------------------------------------------------- */

/* Whoever finds it made sees what was made. */
gboolean tsan_g_once_init_enter(gsize *location)
{
    gboolean first = g_once_init_enter(location);

    if (!first) {
        __tsan_acquire(location);
    }
    return first;
}

void tsan_g_once_init_leave(gsize *location, gsize result)
{
    __tsan_release(location);
    g_once_init_leave(location, result);
}
