/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * xml.h - libvirt's XML as plain structs, and the XML we send to libvirt.
 *
 * Pure functions of their arguments: any thread.  Parsed structs are immutable
 * and belong to the caller.  Texts come from libvirt, but names, paths and
 * descriptions in them come from anybody, so everything is bounded: a text over
 * BE_XML_MAX_BYTES is EFBIG, one with a DOCTYPE (where entity attacks live;
 * libvirt never writes one) and one that is not well-formed or not of the kind
 * asked for are EIO.  Nothing is ever fetched from a file or the network.
 */
#pragma once

#include "backend.h"

#define BE_XML_MAX_BYTES ((gsize)8 * 1024 * 1024)

/**
 * BeXmlDevice: what the guest sees.
 */
typedef enum {
    BE_XML_DEVICE_DISK,
    BE_XML_DEVICE_CDROM,
    BE_XML_DEVICE_FLOPPY,
    BE_XML_DEVICE_LUN,
} BeXmlDevice;

/**
 * BeXmlSource: where the bytes of a disk or of one level of its chain are.
 * BE_XML_SOURCE_NONE is an empty drive, BE_XML_SOURCE_OTHER a type that this
 * version does not know.
 */
typedef enum {
    BE_XML_SOURCE_NONE,
    BE_XML_SOURCE_FILE,
    BE_XML_SOURCE_BLOCK,
    BE_XML_SOURCE_DIR,
    BE_XML_SOURCE_NETWORK,
    BE_XML_SOURCE_VOLUME,
    BE_XML_SOURCE_NVME,
    BE_XML_SOURCE_VHOSTUSER,
    BE_XML_SOURCE_OTHER,
} BeXmlSource;

/**
 * be_xml_source_name, be_xml_device_name: the word libvirt uses, "file", "cdrom".
 */
const char *be_xml_source_name(BeXmlSource source);
const char *be_xml_device_name(BeXmlDevice device);

/**
 * BeXmlLevel: one image of a chain.
 */
typedef struct {
    BeXmlSource source;
    char *path;                /* of a file, block device or directory, else NULL */
    char *format;              /* "raw", "qcow2", ...; NULL: not said */
    guint index;               /* libvirt's number for "vda[N]"; 0: none */
    gboolean encrypted;
    gboolean sliced;           /* only a part of the file is the disk (<slices>) */
} BeXmlLevel;

/**
 * BeXmlDisk: one disk of a domain.
 */
typedef struct {
    char *target;              /* "vda": letters, digits and ":_.-", not leading . or - */
    char *bus;                 /* "virtio", or NULL */
    BeXmlDevice device;
    BeXmlLevel top;            /* the active image */
    char *protocol;            /* of a network source: "nbd", "rbd", ..., else NULL */
    char *pool;                /* of a volume source, else NULL */
    char *volume;
    GPtrArray *backing;        /* of BeXmlLevel: below the top, nearest first */
    gboolean backing_complete; /* the XML says where the chain ends */
    gboolean readonly;
    gboolean shareable;
    gboolean transient;
    gboolean mirrored;         /* a block job with a target runs (<mirror>) */
    char *error_policy;        /* "stop", "report", ...; NULL: the default */
} BeXmlDisk;

/**
 * BeXmlDomain: what we need to know of a domain.
 */
typedef struct {
    char *uuid;
    char *name;
    char *type;                /* "kvm", "qemu", "test", ... */
    GPtrArray *disks;          /* of BeXmlDisk, in the order of the XML */
    char *loader;              /* firmware image, or NULL */
    char *loader_type;         /* "pflash", "rom", or NULL */
    char *nvram;               /* path of the variable store, or NULL */
    char *kernel;              /* direct boot, or NULL */
    char *initrd;
    char *dac_label;           /* "+64055:+64055" as written, or NULL */
    gboolean tpm_emulated;
    char *tpm_version;         /* "1.2", "2.0", or NULL: libvirt's default */
    gboolean tpm_encrypted;
    gboolean has_hostdevs;
    gboolean agent_connected;  /* the guest has opened the agent's channel */
    char *agent_socket;        /* QEMU's end of it, of an active domain, or NULL */
    char *agent_alias;         /* NULL only where agent_socket is; letters, digits, "_-" */
} BeXmlDomain;

/**
 * be_xml_domain_parse:
 * @xml: a <domain>, as virDomainGetXMLDesc() gives it (active or inactive)
 *
 * Returns: the domain, to be freed with be_xml_domain_free(); NULL: EFBIG, EIO.
 */
BeXmlDomain *be_xml_domain_parse(const char *xml, GError **error);
void be_xml_domain_free(BeXmlDomain *domain);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeXmlDomain, be_xml_domain_free)

/**
 * be_xml_domain_disk: Returns: the disk of that target (owned by @domain), or NULL.
 */
const BeXmlDisk *be_xml_domain_disk(const BeXmlDomain *domain, const char *target);

/**
 * BeXmlCapabilities: what we need to know of a host.
 */
typedef struct {
    gboolean has_dac;          /* uid and gid are those QEMU runs with */
    uid_t uid;
    gid_t gid;
    gboolean external_snapshot; /* libvirt reverts to external snapshots itself */
} BeXmlCapabilities;

/**
 * be_xml_capabilities_parse:
 * @xml: virConnectGetCapabilities()
 * @ret: filled on success
 *
 * Returns: FALSE: EFBIG, EIO.
 */
gboolean be_xml_capabilities_parse(const char *xml, BeXmlCapabilities *ret, GError **error);

/**
 * be_xml_dac_parse:
 * @label: "+UID:+GID" or "UID:GID"; a label with names is refused, for names
 *   are the host's to resolve
 *
 * Returns: FALSE: EINVAL.
 */
gboolean be_xml_dac_parse(const char *label, uid_t *ret_uid, gid_t *ret_gid, GError **error);

/**
 * BeXmlBackupDisk: one disk of a backup.  For building it the strings are the
 * caller's; in a parsed backup they are the backup's.
 */
typedef struct {
    char *target;
    gboolean backup;           /* FALSE: this disk is left out */
    char *export_name;         /* of the NBD export; NULL when building: the target */
    char *incremental;         /* the checkpoint it starts from; NULL: full */
    char *export_bitmap;       /* of an incremental one: name of its dirty bitmap, or NULL */
    char *scratch;             /* absolute path, or NULL */
    guint scratch_index;       /* for "vda[N]"; only in a running one; 0: none */
} BeXmlBackupDisk;

/**
 * BeXmlBackup: a running backup.
 */
typedef struct {
    gboolean pull;             /* mode='pull'; else push */
    char *socket;              /* unix socket of the NBD server, or NULL */
    char *incremental;         /* the checkpoint all disks start from that do not say, or NULL */
    GPtrArray *disks;          /* of BeXmlBackupDisk */
} BeXmlBackup;

/**
 * be_xml_backup_build:
 * @socket: absolute path of the unix socket that QEMU shall bind
 * @disks: (element BeXmlBackupDisk): all disks of the domain; scratch files are
 *   qcow2 and made by libvirt
 *
 * Builds the XML of a backup in pull mode for virDomainBackupBegin() (libvirt
 * formatbackup; schema domainbackup.rng).  Every disk must be listed: libvirt
 * backs up one that is not.  Each says for itself whether it is incremental, for a
 * disk that the checkpoint does not have makes libvirt refuse all of it.
 *
 * Returns: the XML, to be freed with g_free(); NULL: EINVAL when a text cannot
 * be in XML (not UTF-8, control characters) or a path is not absolute.
 */
char *be_xml_backup_build(const char *socket, const GPtrArray *disks, GError **error);

/**
 * be_xml_backup_parse:
 * @xml: virDomainBackupGetXMLDesc()
 *
 * Returns: the backup, to be freed with be_xml_backup_free(); NULL: EFBIG, EIO.
 */
BeXmlBackup *be_xml_backup_parse(const char *xml, GError **error);
void be_xml_backup_free(BeXmlBackup *backup);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeXmlBackup, be_xml_backup_free)

/**
 * BeXmlCheckpointDisk: one disk of a checkpoint.  As BeXmlBackupDisk: the caller's
 * when building, else the checkpoint's.
 */
typedef struct {
    char *target;
    char *bitmap;              /* its name; NULL: the checkpoint does not have this disk */
    gboolean has_size;
    guint64 size;              /* bytes changed since, where that was asked for */
} BeXmlCheckpointDisk;

/**
 * BeXmlCheckpoint: a checkpoint of a domain.
 */
typedef struct {
    char *name;
    char *description;         /* or NULL */
    char *parent;              /* name, or NULL */
    gint64 created_s;          /* seconds since the epoch; 0: not said */
    GPtrArray *disks;          /* of BeXmlCheckpointDisk */
    char *domain_uuid;         /* of the domain as it was then; NULL: not said */
    char *domain_xml;          /* the domain as it was then, or NULL */
} BeXmlCheckpoint;

/**
 * be_xml_checkpoint_build:
 * @description: (nullable)
 * @disks: (element BeXmlCheckpointDisk): all disks of the domain; only whether
 *   `bitmap` is NULL counts, for libvirt names each after the checkpoint
 *
 * Builds the XML of a new checkpoint for virDomainBackupBegin() and
 * virDomainCheckpointCreateXML() (libvirt formatcheckpoint; schema
 * domaincheckpoint.rng).
 *
 * Returns: the XML, to be freed with g_free(); NULL: EINVAL as above.
 */
char *be_xml_checkpoint_build(const char *name, const char *description, const GPtrArray *disks,
                              GError **error);

/**
 * be_xml_checkpoint_parse:
 * @xml: virDomainCheckpointGetXMLDesc()
 *
 * Returns: the checkpoint, to be freed with be_xml_checkpoint_free(); NULL: EFBIG,
 * EIO.
 */
BeXmlCheckpoint *be_xml_checkpoint_parse(const char *xml, GError **error);
void be_xml_checkpoint_free(BeXmlCheckpoint *checkpoint);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeXmlCheckpoint, be_xml_checkpoint_free)

/**
 * be_xml_checkpoint_disk: Returns: the disk of that target if the checkpoint has
 * it (owned by @checkpoint), else NULL.
 */
const BeXmlCheckpointDisk *be_xml_checkpoint_disk(const BeXmlCheckpoint *checkpoint,
                                                  const char *target);

/**
 * be_xml_checkpoint_without: the same checkpoint without one of its disks, to be
 * redefined: libvirt deletes none of which one bitmap is missing.
 *
 * Returns: the XML, to be freed with g_free(); NULL: EFBIG, EIO; ENOENT where the
 * checkpoint does not have the disk.
 */
char *be_xml_checkpoint_without(const char *xml, const char *target, GError **error);

/**
 * be_xml_checkpoint_with_parent: the same checkpoint with another parent, or none, to
 * be defined again where the old one is gone: libvirt refuses an unknown one.
 * @parent: (nullable)
 *
 * Returns: the XML, to be freed with g_free(); NULL: EFBIG, EIO.
 */
char *be_xml_checkpoint_with_parent(const char *xml, const char *parent, GError **error);

/**
 * BeXmlBootDisk: a disk of a throw-away machine; the strings are the caller's.
 */
typedef struct {
    char *target;
    char *overlay;             /* a qcow2 image, absolute path */
} BeXmlBootDisk;

/**
 * be_xml_boot_build: the XML of a machine that is a copy of another, made to be
 * thrown away: nothing that belongs to the host or to the original is in it but
 * what it boots from (kernel, firmware), its network cards are not connected, its
 * drives are empty.
 * @domain_xml: of the original
 * @disks: (element BeXmlBootDisk): its disks; the others are left out
 * @nvram: (nullable): a copy of the firmware's variable store
 *
 * Returns: the XML, to be freed with g_free(); NULL: EINVAL for a text that
 * cannot be in XML or a path that is not absolute; EFBIG, EIO for @domain_xml.
 */
char *be_xml_boot_build(const char *domain_xml, const char *name, const char *uuid,
                        const GPtrArray *disks, const char *nvram, GError **error);

/**
 * be_xml_copy_build: the <disk> that virDomainBlockCopy() copies to.
 * @path: absolute
 *
 * Returns: the XML, to be freed with g_free(); NULL: EINVAL for a text that cannot be
 * in XML or a path that is not absolute.
 */
char *be_xml_copy_build(const char *path, const char *format, GError **error);

/**
 * BeXmlSnapshotDisk: one disk of a snapshot.
 */
typedef struct {
    char *target;
    BePart part;
    BeXmlLevel overlay;        /* of an external one: what the domain went on with */
} BeXmlSnapshotDisk;

/**
 * BeXmlSnapshot: a snapshot as libvirt keeps it.
 */
typedef struct {
    char *name;
    char *description;         /* or NULL */
    char *parent;              /* or NULL */
    char *state;               /* "running", "shutoff", "disk-snapshot", ... */
    gint64 created_s;          /* seconds since the epoch */
    BePart memory;
    char *memory_file;         /* or NULL */
    GPtrArray *disks;          /* of BeXmlSnapshotDisk */
    BeXmlDomain *domain;       /* as it was; NULL: a snapshot without (libvirt before 0.9.5) */
} BeXmlSnapshot;

/**
 * be_xml_snapshot_parse:
 * @xml: virDomainSnapshotGetXMLDesc()
 *
 * What a snapshot does not say is filled in as libvirt does: a disk that is not
 * listed is in an internal snapshot, and in no other.
 *
 * Returns: the snapshot, to be freed with be_xml_snapshot_free(); NULL: EFBIG, EIO.
 */
BeXmlSnapshot *be_xml_snapshot_parse(const char *xml, GError **error);
void be_xml_snapshot_free(BeXmlSnapshot *snapshot);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeXmlSnapshot, be_xml_snapshot_free)

/**
 * be_xml_snapshot_new: one without disks, to be filled in and built.
 * @description: (nullable)
 */
BeXmlSnapshot *be_xml_snapshot_new(const char *name, const char *description);

/**
 * be_xml_snapshot_build: the XML of a new snapshot for virDomainSnapshotCreateXML()
 * (libvirt formatsnapshot; schema domainsnapshot.rng): its name, description, memory
 * and disks; overlays are qcow2 files that libvirt makes.
 *
 * Returns: the XML, to be freed with g_free(); NULL: EINVAL when a text cannot
 * be in XML (not UTF-8, control characters) or a path is not absolute.
 */
char *be_xml_snapshot_build(const BeXmlSnapshot *snapshot, GError **error);

/**
 * be_xml_snapshot_disk: Returns: the disk of that target (owned by @snapshot), or NULL.
 */
const BeXmlSnapshotDisk *be_xml_snapshot_disk(const BeXmlSnapshot *snapshot, const char *target);

/**
 * be_xml_snapshot_domain_text: the <domain> of a snapshot's XML as a text of its own.
 *
 * Returns: to be freed with g_free(); NULL: EFBIG, EIO, ENOENT (it has none).
 */
char *be_xml_snapshot_domain_text(const char *xml, GError **error);
