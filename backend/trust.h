/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * trust.h - whether an increment since a checkpoint would tell the truth.
 *
 * libvirt knows the names of bitmaps and QEMU keeps them; neither knows whether
 * the image that holds one still is the image, or holds what it held.  So a
 * record of each checkpoint of ours is kept in the state directory: which disks,
 * images and sizes it belongs to, and digests of some blocks.  A checkpoint is
 * believed in two halves:
 *
 *   before the backup begins   be_trust_check(): libvirt's own check, and ours
 *   when it has begun          be_trust_confirm(): of the blocks whose digests were
 *                              kept, those that the bitmap calls unchanged must be
 *                              so in the new export: content is what tells a bitmap
 *                              that lies (restored with its image, emptied, missing
 *                              writes)
 *
 * In doubt it is not believed: EUCLEAN and the reason.
 *
 * Everything here blocks, on libvirt and local files; workers, and for one domain
 * only one at a time where something is written.
 */
#pragma once

#include <json-glib/json-glib.h>

#include "backend/private.h"
#include "backend/xml.h"

/**
 * BeTrustImage: one image of a disk's chain when the checkpoint was made.
 */
typedef struct {
    char *path;
    char *identity;            /* what no other file has, not even one of the same name */
    char *content;             /* of one below the top: when it last changed; else NULL */
    gboolean keeps_bitmaps;    /* one of these may be deleted: that is a change, too */
    gboolean as_recorded;      /* be_trust_before_removal(); not on disk */
} BeTrustImage;

/**
 * BeTrustSample: a block of the disk at the moment of the checkpoint.
 */
typedef struct {
    guint64 offset;
    guint32 length;
    char *digest;              /* SHA-256, hexadecimal */
} BeTrustSample;

/**
 * BeTrustRange: bytes of a disk.
 */
typedef struct {
    guint64 offset;
    guint64 length;
} BeTrustRange;

typedef struct {
    char *target;
    char *bitmap;
    guint64 size;              /* virtual, bytes */
    GPtrArray *images;         /* of BeTrustImage, the top first */
    GPtrArray *samples;        /* of BeTrustSample */
    GArray *grown;             /* of BeTrustRange: what be_trust_check() found allocated in
                                  images made since: it must be dirty; not on disk */
} BeTrustDisk;

/**
 * BeTrustRecord: what a checkpoint of ours belongs to.
 */
typedef struct {
    char *domain_uuid;
    char *domain_name;
    char *name;                /* of the checkpoint */
    char *chain;
    char *backup_id;           /* BeBackup.id */
    char *backup_name;
    char *since;               /* the checkpoint that this backup starts from; NULL: full */
    BeCaller owner;
    gint64 created_us;         /* real time */
    gboolean taken;            /* somebody has the backup: it can be a base */
    char *broken;              /* why it never can be one again; NULL: nothing known */
    char *xml;                 /* libvirt's, once the backup has begun; else NULL */
    GPtrArray *disks;          /* of BeTrustDisk */
} BeTrustRecord;

/**
 * be_trust_record_new: everything is copied.  created_us is now.
 * @since: (nullable)
 */
BeTrustRecord *be_trust_record_new(const BeXmlDomain *domain, const char *name, const char *chain,
                                   const char *backup_id, const char *backup_name,
                                   const char *since, const BeCaller *owner);
void be_trust_record_free(BeTrustRecord *record);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeTrustRecord, be_trust_record_free)

/**
 * be_trust_record_add_disk: looks at the images of a disk that gets a bitmap.
 * @size: virtual, in bytes
 *
 * Returns: FALSE: EOPNOTSUPP for a disk that cannot be trusted at any time (remote,
 * an external data file, an unknown format), or the errno of looking at a file: such
 * a disk should be left out of the checkpoint.
 */
gboolean be_trust_record_add_disk(BeTrustRecord *record, const BeXmlDisk *disk, guint64 size,
                                  GError **error);

/**
 * be_trust_record_disk: Returns: (nullable): owned by @record.
 */
BeTrustDisk *be_trust_record_disk(const BeTrustRecord *record, const char *target);

/* ---- On disk -------------------------------------------------------------------- */

/**
 * be_trust_write: before the backup begins, and after each change.
 * Returns: FALSE: as be_record_write().
 */
gboolean be_trust_write(Be *be, const BeTrustRecord *record, GError **error);

/**
 * be_trust_begun: once libvirt has made the checkpoint: keeps its XML, so that it
 * can be defined again.
 * Returns: FALSE: ENOENT when libvirt has no such checkpoint after all, or as
 * be_trust_write().
 */
gboolean be_trust_begun(Be *be, BeTrustRecord *record, virDomainPtr domain, GError **error);

/**
 * be_trust_taken: somebody has the whole backup: its checkpoint can be a base.
 * Returns: FALSE: ENOENT without a record, or as be_trust_write().
 */
gboolean be_trust_taken(Be *be, const char *uuid, const char *name, GError **error);

/**
 * be_trust_remove: the checkpoint is gone; harmless without a record.
 */
void be_trust_remove(Be *be, const char *uuid, const char *name);

/**
 * be_trust_break: what the domain's disks hold went back to an earlier state
 * (revert), or is about to: no checkpoint that there is now can be a base any more.
 * @reason: a clause, "the machine was reverted to snapshot 'x'"
 * Returns: FALSE: as be_trust_write(); the caller should not go on then.
 */
gboolean be_trust_break(Be *be, const char *uuid, const char *reason, GError **error);

/**
 * be_trust_break_one: the same of one; @record is told, too.
 */
gboolean be_trust_break_one(Be *be, BeTrustRecord *record, const char *reason, GError **error);

/**
 * be_trust_tidy: removes the records of machines that are gone, together with their
 * images, and are 30 days old.  Those of a machine that is only not defined now stay,
 * for it may come back, as may its storage: after a reboot, or on another host.
 * Query worker, once, after the inventory was read.
 */
void be_trust_tidy(Be *be);

/**
 * be_trust_records: of a domain (NULL: of all), oldest first.
 * Returns: (element BeTrustRecord): never NULL.
 */
GPtrArray *be_trust_records(Be *be, const char *uuid);

/**
 * be_trust_find: Returns: to be freed with be_trust_record_free(), or NULL.
 */
BeTrustRecord *be_trust_find(Be *be, const char *uuid, const char *name);

/**
 * be_trust_parse: a record from its JSON; pure, for any input; NULL: it lacks what
 * every record has.
 */
BeTrustRecord *be_trust_parse(JsonObject *object);
JsonObject *be_trust_format(const BeTrustRecord *record);

/**
 * be_trust_made: whether the checkpoint that has this description is the one of the
 * record: another program may have deleted ours and made one of its name.  Pure.
 * @description: (nullable)
 */
gboolean be_trust_made(const BeTrustRecord *record, const char *description);

/**
 * be_trust_owns: the same of the checkpoint that libvirt has now; TRUE if it has none.
 */
gboolean be_trust_owns(virDomainPtr domain, const BeTrustRecord *record);

/**
 * be_trust_before_removal: a checkpoint is about to be deleted, and with it its bitmap
 * in images below the top, to which nobody else may write: looks at what they are.
 * be_trust_after_removal: keeps what they are now, of those that were as recorded.
 * Of checkpoints that another program deletes nobody knows: that is a write.
 *
 * Returns: (element BeTrustRecord): for be_trust_after_removal(), which frees it.
 */
GPtrArray *be_trust_before_removal(Be *be, const char *uuid);
void be_trust_after_removal(Be *be, GPtrArray *records);

/* ---- Checks ---------------------------------------------------------------------- */

/**
 * be_trust_check: the first half: whether an increment may start from a checkpoint,
 * as far as that can be known before.  Disks that the domain has no more do not
 * count; of all others each must be what it was.  Whether it was taken is not looked
 * at.  Bounded: at most a few seconds unless libvirt hangs.
 * @xml: the domain as it is now: of a running one with its backing chains
 * @record: its disks get what be_trust_confirm() wants to know of them (`grown`): hand
 *   it this one, not one that was read again
 *
 * Returns: TRUE; FALSE: EUCLEAN with the reason in @error, EBUSY when it cannot be
 * said while a job runs in the domain, or another errno when it cannot be said.
 */
gboolean be_trust_check(Be *be, virDomainPtr domain, const BeXmlDomain *xml,
                        const BeTrustRecord *record, GError **error);

/**
 * be_trust_check_foreign: the same of a checkpoint that another program made: only
 * what libvirt can say.
 */
gboolean be_trust_check_foreign(Be *be, virDomainPtr domain, const char *name, GError **error);

/**
 * be_trust_base: the newest checkpoint of a chain that was taken and is valid.
 * @why: (nullable): gets a sentence for each newer one that was passed over
 * Returns: to be freed with be_trust_record_free(); NULL: there is none: full.
 */
BeTrustRecord *be_trust_base(Be *be, virDomainPtr domain, const BeXmlDomain *xml,
                             const char *chain, GString *why);

/**
 * BeTrustExport: one disk of a backup that has begun.
 */
typedef struct {
    const char *target;
    const char *export_name;
    const char *bitmap;        /* BeXmlBackupDisk.export_bitmap; NULL: this disk is full */
} BeTrustExport;

/**
 * be_trust_confirm: the second half, as one step after the backup began and before
 * anybody sees it; reads a few 64 KiB blocks of each disk.
 * @socket: of the backup's NBD server
 * @exports: (element BeTrustExport)
 * @base: (nullable): the checkpoint that the backup starts from, as be_trust_check()
 *   left it
 * @record: (nullable): the checkpoint that this backup made: gets its samples, and is
 *   to be written by the caller, with be_trust_begun()
 *
 * Returns: FALSE: EUCLEAN: @base does not tell the truth: it is marked, and the
 * backup must be made again without it; ETIMEDOUT, EIO: the export cannot be read.
 */
gboolean be_trust_confirm(Be *be, const char *socket, const GPtrArray *exports,
                          BeTrustRecord *base, BeTrustRecord *record, GError **error);

/**
 * be_trust_restore: gives a domain back those checkpoints of ours that libvirt has
 * forgotten while their bitmaps are still there (undefined and defined again; the
 * same storage on another host), parents first.  What cannot be given back stays a
 * record, and be_trust_check() says why.
 * Returns: how many it gave back.
 */
guint be_trust_restore(Be *be, virDomainPtr domain, const BeXmlDomain *xml);
