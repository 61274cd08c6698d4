/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backend-objects.h - the part of backend.h about snapshots: what libvirt keeps of
 * a domain under names of their own.
 *
 * To be had by including backend.h, whose rules on threads and errors hold here.
 */
#pragma once

#include "backend/backend.h"

/**
 * BeObjectKind: what libvirt keeps of a domain under names of their own.
 */
typedef enum {
    BE_SNAPSHOTS,
    BE_CHECKPOINTS,
    BE_OBJECT_KINDS,           /* how many there are */
} BeObjectKind;

/**
 * BeObject: what all of them have; immutable.  A BeSnapshot begins with one.
 */
typedef struct {
    gatomicrefcount refs;
    Be *be;                    /* the host that has it */
    BeObjectKind kind;
    char *id;                  /* of kind, domain, name and time: no two ever share one */
    char *domain_uuid;
    char *name;                /* libvirt's name, raw bytes */
    char *parent;              /* a name, or NULL */
    char *description;         /* or NULL */
    gint64 created_us;         /* real time; libvirt knows whole seconds */
    uid_t owner;               /* who made it through us; (uid_t)-1: nobody did */
    gboolean made;             /* through us: what follows is known */
    BeConsistency consistency;
    gint64 frozen_us;          /* how long the guest was frozen for it; 0: not at all */
} BeObject;

BeObject *be_object_ref(BeObject *object);
void be_object_unref(BeObject *object);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeObject, be_object_unref)

/**
 * BeObjectList: all objects of a kind of one domain at one moment; immutable,
 * oldest first.
 */
typedef struct {
    gatomicrefcount refs;
    GPtrArray *objects;        /* of BeObject */
    GHashTable *by_name;       /* char * -> BeObject */
    char *current;             /* the name of the current one, or NULL */
    gpointer attached;         /* see be_object_list_attach() */
    GDestroyNotify free_attached;
} BeObjectList;

BeObjectList *be_object_list_ref(BeObjectList *list);
void be_object_list_unref(BeObjectList *list);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeObjectList, be_object_list_unref)

/**
 * be_object_list_find: Returns: (transfer none): the object, or NULL.
 */
BeObject *be_object_list_find(const BeObjectList *list, const char *name);

/**
 * be_object_list_attach: keeps @data (transfer full) as long as the list, to be
 * freed with @free_data; what was made of a list need not be made twice.
 * be_object_list_attached: what was attached, or NULL.
 * Returns: what is attached: @data, or what another thread was quicker with.
 */
gpointer be_object_list_attach(BeObjectList *list, gpointer data, GDestroyNotify free_data);
gpointer be_object_list_attached(BeObjectList *list);

/**
 * be_objects: the newest list, possibly stale or empty when it was not read
 * yet (see be_objects_refresh()).  A list that did not change is the same one.
 * Returns: a new reference, never NULL.
 */
BeObjectList *be_objects(Be *be, BeObjectKind kind, const char *uuid);

/**
 * be_objects_are_fresh, be_objects_are_stale, be_objects_refresh: what
 * be_is_fresh(), be_is_stale() and be_refresh() are for the list of domains.
 * No event tells of snapshots, so each list is read when it is asked for.
 */
gboolean be_objects_are_fresh(Be *be, BeObjectKind kind, const char *uuid);
gboolean be_objects_are_stale(Be *be, BeObjectKind kind, const char *uuid);
void be_objects_refresh(Be *be, BeObjectKind kind, const char *uuid, BeRefreshDone done,
                        gpointer user);

/**
 * BePart: where a snapshot keeps the memory or the state of a disk.
 */
typedef enum {
    BE_PART_UNSAID,            /* in a request: as is usual */
    BE_PART_NONE,              /* it is no part of the snapshot */
    BE_PART_INTERNAL,          /* inside the disk's image */
    BE_PART_EXTERNAL,          /* in a file of its own; of a disk: what is below its overlay */
    BE_PART_MANUAL,            /* a disk that somebody else takes care of */
} BePart;

const char *be_part_name(BePart part);

/**
 * be_part_parse: "none", "internal", "external".  Returns: FALSE for anything else.
 */
gboolean be_part_parse(const char *word, BePart *ret_part);

/**
 * BeSnapshot: one snapshot of a domain, as libvirt describes it; immutable.
 */
typedef struct {
    BeObject object;           /* first: a BeObject of the kind BE_SNAPSHOTS is one of these */
    char *state;               /* of the domain: "running", "shutoff", "disk-snapshot", ... */
    BePart memory;
    char *memory_file;         /* of external memory, else NULL */
    GPtrArray *files;          /* of BeSnapshotFile; the memory file is the last */
    struct BeFiles *guest_files; /* be_snapshot_guest_files() has it */
} BeSnapshot;

/**
 * be_snapshot_guest_files: the guest's files as of the snapshot; see backend-files.h.
 * Where an appliance has to be started for a path, its errno is also one of those of
 * be_snapshot_file_prepare(), or EBUSY while snapshots of the machine are being deleted.
 * Returns: (transfer none): valid as long as the snapshot, and to be asked only by who
 * has that.
 */
struct BeFiles *be_snapshot_guest_files(BeSnapshot *snapshot);

/**
 * BeSnapshotFile: something of a snapshot that can be read: a disk, or its memory.
 */
typedef struct {
    char *target;              /* "vda"; "memory" for the memory file */
    BePart part;               /* BE_PART_NONE for the memory file */
} BeSnapshotFile;

/**
 * be_snapshot_file_prepare: looks at the images, and makes the stream, once for all who
 * want it; starts no process.  @done as long as @snapshot lives.
 * ENOENT, EACCES (the image), EOPNOTSUPP (no local image of a known format), EUCLEAN
 * (somebody has written to the image since the snapshot was made), EIO.
 * @file: one of @snapshot's
 */
void be_snapshot_file_prepare(BeSnapshot *snapshot, BeSnapshotFile *file, BeDone done,
                              gpointer user);

/**
 * be_snapshot_file_disk: Returns: valid as long as the snapshot; NULL as long as
 * be_snapshot_file_prepare() has not succeeded.
 */
const BeDisk *be_snapshot_file_disk(BeSnapshotFile *file);

/**
 * be_snapshot_xml_fetch, be_snapshot_domain_xml_fetch: the snapshot's XML as
 * `virsh snapshot-dumpxml` prints it, and the <domain> in it.  Query jobs.
 * ENOENT, also when another snapshot has that name now; EHOSTUNREACH, ETIMEDOUT.
 */
void be_snapshot_xml_fetch(Be *be, BeSnapshot *snapshot, BeTextDone done, gpointer user);
void be_snapshot_domain_xml_fetch(Be *be, BeSnapshot *snapshot, BeTextDone done, gpointer user);

/**
 * BeRevertTo: the state of the machine after a revert.
 */
typedef enum {
    BE_REVERT_AS_WAS,          /* as the snapshot says; without its memory: off */
    BE_REVERT_RUNNING,
    BE_REVERT_PAUSED,
    BE_REVERT_OFF,
} BeRevertTo;

/**
 * be_revert_to_parse: "running", "paused", "off".  Returns: FALSE for anything else.
 */
gboolean be_revert_to_parse(const char *word, BeRevertTo *ret_to);

typedef struct {
    BeRevertTo to;
    gboolean force;            /* do not keep the memory until the snapshot stands; other disks */
    const char *keep;          /* name of a snapshot of the state that is left, or NULL */
} BeRevertOptions;

/**
 * be_snapshot_revert: goes back to a snapshot.  Where libvirt cannot (external ones,
 * libvirt before 9.9) by new overlays on the snapshot's images: no image that another
 * snapshot needs is written to.  The state that is left is dropped unless it is kept.
 * A failure leaves the machine as it was.
 *
 * ENOENT; EBUSY (a job, a backup or a freeze is in the way; an internal snapshot while
 * checkpoints exist; a managed save image); EINVAL (other disks since, the machine is in
 * between); EEXIST (keep); EUCLEAN (its deletion has begun); ENOSPC; EOPNOTSUPP; EIO;
 * ECANCELED.
 * (libvirt: virDomainRevertToSnapshot, or virDomainSaveFlags, virDomainDefineXMLFlags,
 * virDomainRestoreFlags and virDomainCreateWithFlags.)
 */
BeJob *be_snapshot_revert(Be *be, const char *uuid, const char *name,
                          const BeRevertOptions *options, BeDone done, gpointer user);

typedef struct {
    BePart memory;             /* BE_PART_NONE unless said, or because of `disk` */
    BePart disk;               /* BE_PART_EXTERNAL unless said, or because of `memory` */
    gboolean live;             /* the guest goes on while its memory is saved */
    BeQuiesce quiesce;
    const char *const *only;   /* targets, NULL-terminated, or NULL: all */
    const char *description;   /* or NULL */
} BeSnapshotOptions;

/**
 * be_snapshot_create:
 * @name: a valid name
 * @options: copied; NULL: defaults
 *
 * Makes a snapshot of all disks at one instant.  It is listed by be_objects() before
 * @done is called.  Nothing is left of one that fails.
 * ENOENT, EEXIST, EBUSY at once when a job is in the way, EINVAL for options that do
 * not go together, EOPNOTSUPP for what the machine or a disk cannot do, ENOSPC,
 * EHOSTDOWN (quiesce=require), EHOSTUNREACH, ETIMEDOUT; ECANCELED.
 * (libvirt: virDomainSnapshotCreateXML)
 */
BeJob *be_snapshot_create(Be *be, const char *uuid, const char *name,
                          const BeSnapshotOptions *options, const BeCaller *caller, BeDone done,
                          gpointer user);

/**
 * BeDeleteHow: what goes with a snapshot.
 */
typedef enum {
    BE_DELETE_MERGE,           /* it alone; what stands on it keeps all its data */
    BE_DELETE_CHILDREN,        /* all that stand on it, too */
    BE_DELETE_METADATA,        /* libvirt forgets it, no image is touched */
} BeDeleteHow;

/**
 * be_snapshot_delete: deletes a snapshot.  External ones of a machine that is off by
 * starting it paused; an image on which several branches stand stays as long as they do.
 * The name is hidden meanwhile.
 *
 * ENOENT; EBUSY (a job, a backup or a freeze is in the way, another machine stands on an
 * image); EOPNOTSUPP (data of an internal snapshot would be lost); EIO; ECANCELED: what was
 * written stays, and the snapshot can only be deleted: EUCLEAN for a revert to it.
 * (libvirt: virDomainSnapshotDelete, virDomainBlockCommit; qemu-img commit, rebase.)
 */
BeJob *be_snapshot_delete(Be *be, const char *uuid, const char *name, BeDeleteHow how,
                          BeDone done, gpointer user);

/**
 * be_snapshot_commit: writes what was changed since an external snapshot into its images,
 * has the machine go on on them, and forgets the snapshot.  EINVAL where the machine
 * does not go on from it alone; else as be_snapshot_delete().
 */
BeJob *be_snapshot_commit(Be *be, const char *uuid, const char *name, BeDone done, gpointer user);
