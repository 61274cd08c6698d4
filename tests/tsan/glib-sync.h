/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * glib-sync.h - included before everything else in a -Db_sanitize=thread build;
 * see glib-sync.c.
 */
#pragma once

#include <glib.h>

void tsan_g_mutex_init(GMutex *mutex);
void tsan_g_mutex_clear(GMutex *mutex);
void tsan_g_mutex_lock(GMutex *mutex);
gboolean tsan_g_mutex_trylock(GMutex *mutex);
void tsan_g_mutex_unlock(GMutex *mutex);
void tsan_g_cond_init(GCond *cond);
void tsan_g_cond_clear(GCond *cond);
void tsan_g_cond_wait(GCond *cond, GMutex *mutex);
gboolean tsan_g_cond_wait_until(GCond *cond, GMutex *mutex, gint64 end_time);
void tsan_g_cond_signal(GCond *cond);
void tsan_g_cond_broadcast(GCond *cond);
GThreadPool *tsan_g_thread_pool_new(GFunc func, gpointer user, gint max_threads, gboolean exclusive,
                                    GError **error);
void tsan_g_thread_pool_free(GThreadPool *pool, gboolean immediate, gboolean wait);
gboolean tsan_g_thread_pool_push(GThreadPool *pool, gpointer data, GError **error);
void tsan_g_source_set_callback(GSource *source, GSourceFunc func, gpointer data,
                                GDestroyNotify destroy);
void tsan_g_atomic_rc_box_release(gpointer box);
void tsan_g_atomic_rc_box_release_full(gpointer box, GDestroyNotify clear);
gboolean tsan_g_once_init_enter(gsize *location);
void tsan_g_once_init_leave(gsize *location, gsize result);

#define g_mutex_init tsan_g_mutex_init
#define g_mutex_clear tsan_g_mutex_clear
#define g_mutex_lock tsan_g_mutex_lock
#define g_mutex_trylock tsan_g_mutex_trylock
#define g_mutex_unlock tsan_g_mutex_unlock
#define g_cond_init tsan_g_cond_init
#define g_cond_clear tsan_g_cond_clear
#define g_cond_wait tsan_g_cond_wait
#define g_cond_wait_until tsan_g_cond_wait_until
#define g_cond_signal tsan_g_cond_signal
#define g_cond_broadcast tsan_g_cond_broadcast
#define g_thread_pool_free tsan_g_thread_pool_free
#define g_thread_pool_new tsan_g_thread_pool_new
#define g_thread_pool_push tsan_g_thread_pool_push
#define g_source_set_callback tsan_g_source_set_callback
#undef g_atomic_rc_box_release
#define g_atomic_rc_box_release tsan_g_atomic_rc_box_release
#undef g_atomic_rc_box_release_full
#define g_atomic_rc_box_release_full tsan_g_atomic_rc_box_release_full
#undef g_once_init_enter
#define g_once_init_enter tsan_g_once_init_enter
#undef g_once_init_leave
#define g_once_init_leave tsan_g_once_init_leave
