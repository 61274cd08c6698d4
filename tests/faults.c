/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * faults.c - a library to preload that has the n-th call of a kind fail.
 *
 * The file that FAULTS names is the control, shared with the test, which changes
 * it while the daemon runs: so one daemon serves all n.  Kinds: "libvirt", "nbd",
 * and "open", "pread", "write", "fsync", "rename", "mkdir" of the C library.  Allocation is
 * left out: GLib ends the process when there is no memory.
 *
 * A call of libvirt fails as with an invalid object, so that libvirt's own error is
 * set.  Any thread; nothing here waits.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
#include <libvirt/libvirt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As the test packs it: "32sIII". */
typedef struct {
    char kind[32];
    uint32_t nth;
    uint32_t calls;
    uint32_t fired;
} Control;

static Control *control;

__attribute__((constructor)) static void faults_prepare(void)
{
    const char *path = getenv("FAULTS");
    int fd = path && strcmp(program_invocation_short_name, "vmsnapfs") == 0
                 ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC)
                 : -1;
    void *map = fd >= 0 ? mmap(NULL, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                        : MAP_FAILED;

    if (map != MAP_FAILED) {
        control = map;
    }
    if (fd >= 0) {
        close(fd);
    }
}

static int is_armed(const char *kind)
{
    return control && strcmp(control->kind, kind) == 0;
}

static int fails(const char *kind)
{
    uint32_t call;

    if (!is_armed(kind)) {
        return 0;
    }
    call = __atomic_add_fetch(&control->calls, 1, __ATOMIC_SEQ_CST);
    if (call != control->nth) {
        return 0;
    }
    __atomic_store_n(&control->fired, 1, __ATOMIC_SEQ_CST);
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define FAULT(kind, type, name, parameters, arguments, failure)                                    \
    type name parameters                                                                           \
    {                                                                                              \
        return fails(kind) ? (failure) : REAL(name) arguments;                                     \
    }

#define LIBVIRT(type, name, parameters, arguments, invalid)                                        \
    FAULT("libvirt", type, name, parameters, arguments, REAL(name) invalid)

#define DOM virDomainPtr dom
#define FLAGS unsigned int flags

LIBVIRT(int, virDomainAbortJob, (DOM), (dom), (NULL))
LIBVIRT(int, virDomainAgentSetResponseTimeout, (DOM, int timeout, FLAGS), (dom, timeout, flags),
        (NULL, timeout, flags))
LIBVIRT(char *, virDomainBackupGetXMLDesc, (DOM, FLAGS), (dom, flags), (NULL, flags))
LIBVIRT(int, virDomainFSFreeze, (DOM, const char **points, unsigned int n, FLAGS),
        (dom, points, n, flags), (NULL, points, n, flags))
LIBVIRT(int, virDomainFSThaw, (DOM, const char **points, unsigned int n, FLAGS),
        (dom, points, n, flags), (NULL, points, n, flags))
LIBVIRT(int, virDomainGetBlockInfo,
        (DOM, const char *disk, virDomainBlockInfoPtr info, FLAGS), (dom, disk, info, flags),
        (NULL, disk, info, flags))
LIBVIRT(int, virDomainGetJobInfo, (DOM, virDomainJobInfoPtr info), (dom, info), (NULL, info))
LIBVIRT(int, virDomainGetJobStats,
        (DOM, int *type, virTypedParameterPtr *params, int *n, FLAGS),
        (dom, type, params, n, flags), (NULL, type, params, n, flags))
LIBVIRT(int, virDomainGetState, (DOM, int *state, int *reason, FLAGS),
        (dom, state, reason, flags), (NULL, state, reason, flags))
LIBVIRT(char *, virDomainGetXMLDesc, (DOM, FLAGS), (dom, flags), (NULL, flags))
LIBVIRT(int, virDomainHasManagedSaveImage, (DOM, FLAGS), (dom, flags), (NULL, flags))
LIBVIRT(int, virDomainIsActive, (DOM), (dom), (NULL))
LIBVIRT(int, virDomainSuspend, (DOM), (dom), (NULL))
LIBVIRT(int, virDomainSetBlockThreshold,
        (DOM, const char *device, unsigned long long threshold, FLAGS),
        (dom, device, threshold, flags), (NULL, device, threshold, flags))
LIBVIRT(int, virDomainListAllCheckpoints, (DOM, virDomainCheckpointPtr **list, FLAGS),
        (dom, list, flags), (NULL, list, flags))
LIBVIRT(int, virDomainListAllSnapshots, (DOM, virDomainSnapshotPtr **list, FLAGS),
        (dom, list, flags), (NULL, list, flags))
LIBVIRT(virDomainSnapshotPtr, virDomainSnapshotCreateXML, (DOM, const char *xml, FLAGS),
        (dom, xml, flags), (NULL, xml, flags))
LIBVIRT(virDomainSnapshotPtr, virDomainSnapshotLookupByName, (DOM, const char *name, FLAGS),
        (dom, name, flags), (NULL, name, flags))
LIBVIRT(char *, virDomainSnapshotGetXMLDesc, (virDomainSnapshotPtr snapshot, FLAGS),
        (snapshot, flags), (NULL, flags))
LIBVIRT(int, virDomainSnapshotDelete, (virDomainSnapshotPtr snapshot, FLAGS), (snapshot, flags),
        (NULL, flags))
LIBVIRT(int, virDomainRevertToSnapshot, (virDomainSnapshotPtr snapshot, FLAGS), (snapshot, flags),
        (NULL, flags))
LIBVIRT(virDomainCheckpointPtr, virDomainCheckpointCreateXML, (DOM, const char *xml, FLAGS),
        (dom, xml, flags), (NULL, xml, flags))
LIBVIRT(virDomainCheckpointPtr, virDomainCheckpointLookupByName, (DOM, const char *name, FLAGS),
        (dom, name, flags), (NULL, name, flags))
LIBVIRT(char *, virDomainCheckpointGetXMLDesc, (virDomainCheckpointPtr checkpoint, FLAGS),
        (checkpoint, flags), (NULL, flags))
LIBVIRT(int, virDomainCheckpointDelete, (virDomainCheckpointPtr checkpoint, FLAGS),
        (checkpoint, flags), (NULL, flags))
LIBVIRT(virDomainPtr, virDomainLookupByUUIDString, (virConnectPtr conn, const char *uuid),
        (conn, uuid), (NULL, uuid))
LIBVIRT(int, virConnectListAllDomains, (virConnectPtr conn, virDomainPtr **list, FLAGS),
        (conn, list, flags), (NULL, list, flags))
LIBVIRT(int, virConnectGetAllDomainStats,
        (virConnectPtr conn, unsigned int stats, virDomainStatsRecordPtr **list, FLAGS),
        (conn, stats, list, flags), (NULL, stats, list, flags))
LIBVIRT(char *, virConnectGetCapabilities, (virConnectPtr conn), (conn), (NULL))

/* As on a host so busy that QEMU does nothing yet. */
static void stop_qemu(DOM)
{
    char path[256] = "", text[32] = "";
    int fd;

    snprintf(path, sizeof(path), "/run/libvirt/qemu/%s.pid", virDomainGetName(dom));
    fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (read(fd, text, sizeof(text) - 1) > 0 && atoi(text) > 1) {
            kill(atoi(text), SIGSTOP);
        }
        close(fd);
    }
}

/* "begin": QEMU is stopped when it is to begin. */
int virDomainBackupBegin(DOM, const char *backup, const char *checkpoint, FLAGS)
{
    if (fails("begin")) {
        stop_qemu(dom);
    }
    return REAL(virDomainBackupBegin)(fails("libvirt") ? NULL : dom, backup, checkpoint, flags);
}

/*
 * "stuck": a save fails, and libvirt cannot have the guest run on; "paused": it only has
 * not.  As qemuDomainSaveInternal() of libvirt 9.0, which writes that into its log alone.
 */
int virDomainManagedSave(DOM, FLAGS)
{
    if (fails("paused") || is_armed("stuck")) {
        REAL(virDomainSuspend)(dom);
        return REAL(virDomainManagedSave)(NULL, flags);
    }
    return REAL(virDomainManagedSave)(dom, flags);
}

int virDomainResume(DOM)
{
    return REAL(virDomainResume)(is_armed("stuck") || fails("libvirt") ? NULL : dom);
}

#define NBD struct nbd_handle *nbd

FAULT("nbd", struct nbd_handle *, nbd_create, (void), (), NULL)
FAULT("nbd", int, nbd_add_meta_context, (NBD, const char *name), (nbd, name), -1)
FAULT("nbd", int, nbd_set_export_name, (NBD, const char *name), (nbd, name), -1)
FAULT("nbd", int, nbd_aio_connect_unix, (NBD, const char *path), (nbd, path), -1)
FAULT("nbd", int, nbd_aio_notify_read, (NBD), (nbd), -1)
FAULT("nbd", int, nbd_aio_notify_write, (NBD), (nbd), -1)
FAULT("nbd", int, nbd_aio_command_completed, (NBD, uint64_t cookie), (nbd, cookie), -1)
FAULT("nbd", int, nbd_can_meta_context, (NBD, const char *name), (nbd, name), -1)
FAULT("nbd", int64_t, nbd_get_size, (NBD), (nbd), -1)

/* Who refuses a command frees what its callbacks own, as libnbd does. */
int64_t nbd_aio_pread(NBD, void *buffer, size_t count, uint64_t offset,
                      nbd_completion_callback completion, uint32_t flags)
{
    if (!fails("nbd")) {
        return REAL(nbd_aio_pread)(nbd, buffer, count, offset, completion, flags);
    }
    if (completion.free) {
        completion.free(completion.user_data);
    }
    return -1;
}

int64_t nbd_aio_block_status(NBD, uint64_t count, uint64_t offset, nbd_extent_callback extent,
                             nbd_completion_callback completion, uint32_t flags)
{
    if (!fails("nbd")) {
        return REAL(nbd_aio_block_status)(nbd, count, offset, extent, completion, flags);
    }
    if (extent.free) {
        extent.free(extent.user_data);
    }
    if (completion.free) {
        completion.free(completion.user_data);
    }
    return -1;
}

/* ---- The C library ------------------------------------------------------------ */

static int with_errno(int errnum)
{
    errno = errnum;
    return -1;
}

/* Only files: GLib's wake-ups and the kernel's requests are writes, too. */
static int is_file(int fd)
{
    struct stat attr;

    return fd > STDERR_FILENO && fstat(fd, &attr) == 0 && S_ISREG(attr.st_mode);
}

/* "statvfs": as on a network file system that hangs, below a directory called "hung". */
int statvfs(const char *path, struct statvfs *space)
{
    while (is_armed("statvfs") && strstr(path, "/hung/")) {
        __atomic_store_n(&control->fired, 1, __ATOMIC_SEQ_CST);
        usleep(10000);
    }
    return REAL(statvfs)(path, space);
}

ssize_t write(int fd, const void *data, size_t size)
{
    if (control && is_file(fd) && fails("write")) {
        return with_errno(ENOSPC);
    }
    return REAL(write)(fd, data, size);
}

/* What is read of images; libfuse reads in other ways. */
ssize_t pread(int fd, void *data, size_t size, off_t offset)
{
    if (control && is_file(fd) && fails("pread")) {
        return with_errno(EIO);
    }
    return REAL(pread)(fd, data, size, offset);
}

FAULT("fsync", int, fsync, (int fd), (fd), with_errno(EIO))
FAULT("fsync", int, fdatasync, (int fd), (fd), with_errno(EIO))
FAULT("rename", int, rename, (const char *from, const char *to), (from, to), with_errno(EIO))
FAULT("mkdir", int, mkdir, (const char *path, mode_t mode), (path, mode), with_errno(ENOSPC))

int open(const char *path, int flags, ...)
{
    va_list arguments;
    mode_t mode;

    va_start(arguments, flags);
    mode = va_arg(arguments, mode_t);
    va_end(arguments);
    return fails("open") ? with_errno(EMFILE) : REAL(open)(path, flags, mode);
}
