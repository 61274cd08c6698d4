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
} ErrorRow;

/*
 * The first row that fits counts, so rows with a fragment come before the one
 * without.  The man page vmsnapfs(5) carries this table as a contract.
 */
static const ErrorRow error_rows[] = {
    {VIR_ERR_INTERNAL_ERROR, "agent is in frozen state", EBUSY},
    {VIR_ERR_INTERNAL_ERROR, "client socket is closed", EHOSTUNREACH},
    {VIR_ERR_NO_MEMORY, NULL, ENOMEM},
    {VIR_ERR_OVERFLOW, NULL, EOVERFLOW},
    {VIR_ERR_NO_DOMAIN, NULL, ENOENT},
    {VIR_ERR_NO_DOMAIN_SNAPSHOT, NULL, ENOENT},
    {VIR_ERR_NO_DOMAIN_CHECKPOINT, NULL, ENOENT},
    {VIR_ERR_NO_DOMAIN_BACKUP, NULL, ENOENT},
    {VIR_ERR_DEVICE_MISSING, NULL, ENOENT},
    {VIR_ERR_DOM_EXIST, NULL, EEXIST},
    {VIR_ERR_INVALID_ARG, NULL, EINVAL},
    {VIR_ERR_XML_ERROR, NULL, EINVAL},
    {VIR_ERR_XML_DETAIL, NULL, EINVAL},
    {VIR_ERR_XML_INVALID_SCHEMA, NULL, EINVAL},
    {VIR_ERR_INVALID_DOMAIN, NULL, EINVAL},
    {VIR_ERR_INVALID_DOMAIN_SNAPSHOT, NULL, EINVAL},
    {VIR_ERR_INVALID_DOMAIN_CHECKPOINT, NULL, EINVAL},
    {VIR_ERR_NO_SUPPORT, NULL, EOPNOTSUPP},
    {VIR_ERR_OPERATION_UNSUPPORTED, NULL, EOPNOTSUPP},
    {VIR_ERR_CONFIG_UNSUPPORTED, NULL, EOPNOTSUPP},
    {VIR_ERR_ARGUMENT_UNSUPPORTED, NULL, EOPNOTSUPP},
    {VIR_ERR_ACCESS_DENIED, NULL, EACCES},
    {VIR_ERR_AUTH_FAILED, NULL, EACCES},
    {VIR_ERR_AUTH_CANCELLED, NULL, EACCES},
    {VIR_ERR_AUTH_UNAVAILABLE, NULL, EACCES},
    {VIR_ERR_OPERATION_DENIED, NULL, EROFS},
    {VIR_ERR_OPERATION_INVALID, "not running", EINVAL},
    {VIR_ERR_OPERATION_INVALID, "already running", EINVAL},
    {VIR_ERR_OPERATION_INVALID, "already active", EINVAL},
    {VIR_ERR_OPERATION_INVALID, NULL, EBUSY},
    {VIR_ERR_RESOURCE_BUSY, NULL, EBUSY},
    {VIR_ERR_BLOCK_COPY_ACTIVE, NULL, EBUSY},
    {VIR_ERR_OPERATION_TIMEOUT, "state change lock", EBUSY},
    {VIR_ERR_OPERATION_TIMEOUT, NULL, ETIMEDOUT},
    {VIR_ERR_AGENT_UNRESPONSIVE, NULL, EHOSTDOWN},
    {VIR_ERR_AGENT_UNSYNCED, NULL, EAGAIN},
    {VIR_ERR_SNAPSHOT_REVERT_RISKY, NULL, EPERM},
    {VIR_ERR_CHECKPOINT_INCONSISTENT, NULL, EUCLEAN},
    {VIR_ERR_OPERATION_ABORTED, NULL, ECANCELED},
    {VIR_ERR_NO_CONNECT, NULL, EHOSTUNREACH},
    {VIR_ERR_INVALID_CONN, NULL, EHOSTUNREACH},
    {VIR_ERR_RPC, NULL, EHOSTUNREACH},
    {VIR_ERR_SSH, NULL, EHOSTUNREACH},
    {VIR_ERR_LIBSSH, NULL, EHOSTUNREACH},
    {VIR_ERR_GNUTLS_ERROR, NULL, EHOSTUNREACH},
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

int be_error_errno_of_libvirt(int code, const char *message, int int1)
{
    if (code == VIR_ERR_SYSTEM_ERROR) {
        return int1 > 0 && int1 < 4096 ? errno_for_users(int1) : EIO;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(error_rows); i++) {
        const ErrorRow *row = &error_rows[i];

        if (row->code == code
            && (!row->fragment || (message && strstr(message, row->fragment)))) {
            return row->errnum;
        }
    }
    return EIO;
}

void be_error_from_libvirt(GError **error, const char *what)
{
    virErrorPtr err = virGetLastError();

    if (!err) {
        g_set_error(error, BE_ERROR, EIO, "%s: libvirt failed without a reason", what);
        return;
    }
    g_set_error(error, BE_ERROR, be_error_errno_of_libvirt(err->code, err->message, err->int1),
                "%s: %s", what, err->message ? err->message : "no message");
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
