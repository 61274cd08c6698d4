/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * files-priv.h - what the files of the guest's files share.
 *
 * Threads: any thread submits calls; the thread "files" of one BeFiles lives as
 * long as its appliance, sends the calls, takes the answers, serves the disks
 * to the appliance and runs the callbacks.
 *
 * Locks: a BeFiles's lock, and within it the pool's; a reader's; a disk
 * connection's.  None is held over a callback.
 */
#pragma once

#include <poll.h>

#include "backend/child.h"
#include "backend/files-wire.h"
#include "backend/files.h"

typedef struct FilesCall FilesCall;
typedef struct FilesCache FilesCache;

/**
 * FilesCall: one request to vmsnapfs-files, made by somebody who puts it first
 * in a structure of his own and frees that in done().
 */
struct FilesCall {
    guint32 op;
    guint32 id;
    guint64 offset;
    guint64 size;
    guint64 left;              /* bytes of payload that may still come */
    char *path;                /* freed after done() */
    GList link;

    /* A MORE frame.  FALSE: it makes no sense, and the appliance is ended. */
    gboolean (*more)(FilesCall *call, const guint8 *data, gsize length);
    /* The end; @data is the payload of END.  Frees the structure around the call. */
    void (*done)(FilesCall *call, const guint8 *data, gsize length, const GError *error);
};

struct BeFilesPool {
    Be *be;
    guint max;
    gint64 idle_us;
    char *cache_dir;
    GMutex lock;
    GCond changed;
    GPtrArray *running;        /* of BeFiles with an appliance; guarded by lock, as all below */
    GPtrArray *threads;        /* of BeFiles with a thread, a reference each */
    gboolean stopping;
    guint starts;              /* for stats */
    gboolean tcg;              /* KVM was found not to work */
};

struct BeFiles {
    gatomicrefcount refs;
    BeFilesPool *pool;
    char *name;
    GPtrArray *disks;          /* of BeDisk; borrowed until closed, or with what follows ours */
    BeFilesPrepare prepare;    /* NULL: the disks are borrowed, and have their streams */
    gpointer prepare_user;     /* not touched once closed */
    char *owner;               /* or NULL */
    int kick_fd;               /* eventfd: there is something new for the thread */

    GMutex lock;
    GCond changed;
    GQueue submitted;          /* of FilesCall; guarded by lock, as all below */
    guint flying;              /* calls that the thread has taken and not ended */
    gint64 used_us;            /* monotonic: the last call or answer */
    gboolean running;          /* there is a thread */
    GThread *thread;           /* for comparing alone */
    gboolean closed;
    gboolean evicted;          /* another one wants its place */
    gboolean gives_way;        /* it is to end, whatever it does */
    gboolean preparing;        /* the streams of the disks are being made */
    char **volumes;            /* NULL as long as no appliance has looked */
    gint64 hold_us;            /* no appliance before: the last ones failed */
    GError *hold_error;
    guint crashes;
    gint64 crash_us;
    FilesCache *cache;
};

/**
 * be_files_submit: queues a call; starts the appliance where none runs.  The
 * call fails from inside where that is known to be in vain.
 */
void be_files_submit(BeFiles *files, FilesCall *call);

/**
 * be_files_stopped_locked: why an appliance is to end, or NULL.
 * be_files_refusal_locked: why none is to be started, or NULL.
 */
GError *be_files_stopped_locked(const BeFiles *files);
GError *be_files_refusal_locked(const BeFiles *files);

/**
 * be_files_take: the next call that was submitted, or NULL.
 * be_files_end_taken: ends it.
 * be_files_give_back: it is the next one again.
 */
FilesCall *be_files_take(BeFiles *files);
void be_files_give_back(BeFiles *files, FilesCall *call);
void be_files_end_taken(BeFiles *files, FilesCall *call, const guint8 *data, gsize length,
                        const GError *error);

/**
 * be_files_fail_submitted: fails all that is queued.
 */
void be_files_fail_submitted(BeFiles *files, const GError *error);

/**
 * be_files_call_end: ends one call, which is not queued anywhere any more.
 */
void be_files_call_end(FilesCall *call, const guint8 *data, gsize length, const GError *error);

/* ---- files-thread.c ---- */

gpointer be_files_thread(gpointer files);

/* ---- files-appliance.c ---- */

typedef enum {
    FILES_END_IDLE,            /* nobody wants it any more: no failure */
    FILES_END_KVM,             /* it does not start under KVM */
    FILES_END_DIED,            /* of the call that failed; those after it are queued again */
    FILES_END_FAILED,
} FilesEnd;

/**
 * be_files_run: one appliance, from start to end.  @error is set but for
 * FILES_END_IDLE.
 */
FilesEnd be_files_run(BeFiles *files, gboolean tcg, GError **error);

/* ---- files-pool.c ---- */

/**
 * be_files_pool_add, be_files_pool_remove: the thread of an object; with its
 * reference.
 */
void be_files_pool_add(BeFiles *files);
void be_files_pool_remove(BeFiles *files);

/**
 * be_files_pool_enter: has a place for one more appliance, that of an idle one if
 * need be; blocks up to 10 s.  EBUSY.
 */
gboolean be_files_pool_enter(BeFiles *files, GError **error);
void be_files_pool_leave(BeFiles *files);

/**
 * be_files_pool_wants_tcg: whether KVM is not even to be tried.
 * be_files_pool_kvm_fails: it was, and nothing came of it.
 */
gboolean be_files_pool_wants_tcg(BeFilesPool *pool);
void be_files_pool_kvm_fails(BeFilesPool *pool);

/* ---- files-parse.c: pure ---- */

/**
 * files_parse_entries: appends the entries of a payload to @list; names that
 * are no names, and second ones, are left out.
 */
gboolean files_parse_entries(const guint8 *data, gsize length, BeFileList *list);

/**
 * files_parse_xattrs: adds to @by_file: file name -> (attribute's name -> GBytes).
 */
gboolean files_parse_xattrs(const guint8 *data, gsize length, GHashTable *by_file);

/**
 * files_parse_volumes: Returns: the names, NULL when it makes no sense.
 */
char **files_parse_volumes(const guint8 *data, gsize length);

BeFileList *files_list_new(void);
GHashTable *files_xattrs_new(void);
gboolean files_name_is_good(const char *name, gsize length);

/* ---- files-cache.c: under the lock of its BeFiles ---- */

FilesCache *files_cache_new(void);
void files_cache_free(FilesCache *cache);
void files_cache_add(FilesCache *cache, const char *path, BeFileList *list);
BeFileList *files_cache_find(FilesCache *cache, const char *path);

/**
 * files_cache_xattrs: of a directory: file name -> (name -> GBytes), or NULL.
 * files_cache_asks_xattrs: counts who asks for those of single files of a directory;
 * Returns: whether it is worth while to read them all at once.
 */
GHashTable *files_cache_xattrs(FilesCache *cache, const char *path);
void files_cache_add_xattrs(FilesCache *cache, const char *path, GHashTable *by_file);
gboolean files_cache_asks_xattrs(FilesCache *cache, const char *path);

/* ---- files-disk.c ---- */

typedef struct DiskServer DiskServer;

/**
 * disk_server_new: serves streams to NBD clients, one listening socket each.
 * @sockets: (element int): belong to it
 * @disks: (element BeDisk)
 * @kick_fd: an eventfd that wakes whoever polls
 */
DiskServer *disk_server_new(GArray *sockets, GPtrArray *disks, int kick_fd);
void disk_server_free(DiskServer *server);

/**
 * disk_server_poll: appends what to poll(2) for; disk_server_serve() is given the
 * same part of the array afterwards.
 */
void disk_server_poll(DiskServer *server, GArray *fds);
void disk_server_serve(DiskServer *server, const struct pollfd *fds, guint count);
