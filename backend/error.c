/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * error.c - one table from libvirt's codes to errno; see error.h.
 *
 * Pure functions and thread-local library errors: any thread.
 */
#include "error.h"

#include <errno.h>
#include <libnbd.h>
#include <libvirt/virterror.h>
#include <string.h>

G_DEFINE_QUARK(vmsnapfs-backend-error, be_error)

typedef struct {
    int code;                  /* VIR_ERR_* */
    const char *fragment;      /* only for messages with this text; NULL: all */
    int errnum;
    const char *advice;        /* what the message does not say, or NULL */
} ErrorRow;

/*
 * The first row that fits counts, so rows with a fragment come before the one
 * without.  The man page vmsnapfs(5) carries this table as a contract.
 */
static const ErrorRow error_rows[] = {
    {VIR_ERR_INTERNAL_ERROR, "agent is in frozen state", EBUSY, NULL},
    /* QEMU 7.2 gives the disks up for a memory snapshot and takes them back on resume. */
    {VIR_ERR_INTERNAL_ERROR, "Block node is read-only", EBUSY,
     "the memory of the paused machine was saved, and its disks are not written to until it "
     "is resumed"},
    {VIR_ERR_INTERNAL_ERROR, "paused due to previous migration", EBUSY,
     "the memory of the paused machine was saved, and it can be saved again only when it was "
     "resumed"},
    {VIR_ERR_INTERNAL_ERROR, "client socket is closed", EHOSTUNREACH, NULL},
    {VIR_ERR_NO_MEMORY, NULL, ENOMEM, NULL},
    {VIR_ERR_OVERFLOW, NULL, EOVERFLOW, NULL},
    {VIR_ERR_NO_DOMAIN, NULL, ENOENT, NULL},
    {VIR_ERR_NO_DOMAIN_SNAPSHOT, NULL, ENOENT, NULL},
    {VIR_ERR_NO_DOMAIN_CHECKPOINT, NULL, ENOENT, NULL},
    {VIR_ERR_NO_DOMAIN_BACKUP, NULL, ENOENT, NULL},
    {VIR_ERR_DEVICE_MISSING, NULL, ENOENT, NULL},
    {VIR_ERR_DOM_EXIST, NULL, EEXIST, NULL},
    {VIR_ERR_INVALID_ARG, NULL, EINVAL, NULL},
    {VIR_ERR_XML_ERROR, NULL, EINVAL, NULL},
    {VIR_ERR_XML_DETAIL, NULL, EINVAL, NULL},
    {VIR_ERR_XML_INVALID_SCHEMA, NULL, EINVAL, NULL},
    {VIR_ERR_INVALID_DOMAIN, NULL, EINVAL, NULL},
    {VIR_ERR_INVALID_DOMAIN_SNAPSHOT, NULL, EINVAL, NULL},
    {VIR_ERR_INVALID_DOMAIN_CHECKPOINT, NULL, EINVAL, NULL},
    {VIR_ERR_NO_SUPPORT, NULL, EOPNOTSUPP, NULL},
    {VIR_ERR_OPERATION_UNSUPPORTED, NULL, EOPNOTSUPP, NULL},
    {VIR_ERR_CONFIG_UNSUPPORTED, NULL, EOPNOTSUPP, NULL},
    {VIR_ERR_ARGUMENT_UNSUPPORTED, NULL, EOPNOTSUPP, NULL},
    {VIR_ERR_ACCESS_DENIED, NULL, EACCES, NULL},
    {VIR_ERR_AUTH_FAILED, NULL, EACCES, NULL},
    {VIR_ERR_AUTH_CANCELLED, NULL, EACCES, NULL},
    {VIR_ERR_AUTH_UNAVAILABLE, NULL, EACCES, NULL},
    {VIR_ERR_OPERATION_DENIED, NULL, EROFS, NULL},
    {VIR_ERR_OPERATION_INVALID, "not running", EINVAL, NULL},
    {VIR_ERR_OPERATION_INVALID, "already running", EINVAL, NULL},
    {VIR_ERR_OPERATION_INVALID, "already active", EINVAL, NULL},
    {VIR_ERR_OPERATION_INVALID, NULL, EBUSY, NULL},
    {VIR_ERR_RESOURCE_BUSY, NULL, EBUSY, NULL},
    {VIR_ERR_BLOCK_COPY_ACTIVE, NULL, EBUSY, NULL},
    {VIR_ERR_OPERATION_TIMEOUT, "state change lock", EBUSY, NULL},
    {VIR_ERR_OPERATION_TIMEOUT, NULL, ETIMEDOUT, NULL},
    {VIR_ERR_AGENT_UNRESPONSIVE, NULL, EHOSTDOWN, NULL},
    {VIR_ERR_AGENT_UNSYNCED, NULL, EAGAIN, NULL},
    {VIR_ERR_SNAPSHOT_REVERT_RISKY, NULL, EPERM, NULL},
    {VIR_ERR_CHECKPOINT_INCONSISTENT, NULL, EUCLEAN, NULL},
    {VIR_ERR_OPERATION_ABORTED, NULL, ECANCELED, NULL},
    {VIR_ERR_NO_CONNECT, NULL, EHOSTUNREACH, NULL},
    {VIR_ERR_INVALID_CONN, NULL, EHOSTUNREACH, NULL},
    {VIR_ERR_RPC, NULL, EHOSTUNREACH, NULL},
    {VIR_ERR_SSH, NULL, EHOSTUNREACH, NULL},
    {VIR_ERR_LIBSSH, NULL, EHOSTUNREACH, NULL},
    {VIR_ERR_GNUTLS_ERROR, NULL, EHOSTUNREACH, NULL},
};

/*
 * ENOTCONN, ECONNABORTED, ENOSYS and ESTALE mean "the daemon is dead" to every
 * user of a FUSE mount; whatever says so here means the host or the server.
 */
static int errno_for_users(int errnum)
{
    switch (errnum) {
    case ENOTCONN:
    case ECONNABORTED:
    case ECONNREFUSED:
    case ECONNRESET:
    case EPIPE:
        return EHOSTUNREACH;
    case ENOSYS:
        return EOPNOTSUPP;
    case ESTALE:
        return EIO;
    default:
        return errnum;
    }
}

/* Returns: NULL when no row fits. */
static const ErrorRow *find_row(int code, const char *message)
{
    for (size_t i = 0; i < G_N_ELEMENTS(error_rows); i++) {
        const ErrorRow *row = &error_rows[i];

        if (row->code == code
            && (!row->fragment || (message && strstr(message, row->fragment)))) {
            return row;
        }
    }
    return NULL;
}

int be_error_errno_of_libvirt(int code, const char *message, int int1)
{
    const ErrorRow *row;

    if (code == VIR_ERR_SYSTEM_ERROR) {
        return int1 > 0 && int1 < 4096 ? errno_for_users(int1) : EIO;
    }
    row = find_row(code, message);
    return row ? row->errnum : EIO;
}

void be_error_from_libvirt(GError **error, const char *what)
{
    virErrorPtr err = virGetLastError();
    const ErrorRow *row = err ? find_row(err->code, err->message) : NULL;

    if (!err) {
        g_set_error(error, BE_ERROR, EIO, "%s: libvirt failed without a reason", what);
        return;
    }
    g_set_error(error, BE_ERROR, be_error_errno_of_libvirt(err->code, err->message, err->int1),
                "%s: %s%s%s", what, err->message ? err->message : "no message",
                row && row->advice ? "; " : "", row && row->advice ? row->advice : "");
}

void be_error_from_nbd(GError **error, const char *what)
{
    int errnum = nbd_get_errno();
    const char *text = nbd_get_error();

    g_set_error(error, BE_ERROR, errnum > 0 ? errno_for_users(errnum) : EIO, "%s: %s", what,
                text ? text : "no message");
}

void be_error_set_errno(GError **error, int errnum, const char *format, ...)
{
    g_autofree char *what = NULL;
    va_list args;

    va_start(args, format);
    what = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, BE_ERROR, errno_for_users(errnum), "%s: %s", what, g_strerror(errnum));
}
