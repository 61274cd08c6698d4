/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qcow2.c - qcow2 headers made by hand; see qcow2.h.
 */
#include "qcow2.h"

#include <string.h>

void qcow2_put32(Qcow2Header *header, gsize at, guint32 value)
{
    value = GUINT32_TO_BE(value);
    memcpy(header->data + at, &value, sizeof value);
}

void qcow2_put64(Qcow2Header *header, gsize at, guint64 value)
{
    value = GUINT64_TO_BE(value);
    memcpy(header->data + at, &value, sizeof value);
}

Qcow2Header qcow2_plain(void)
{
    Qcow2Header header = {.length = QCOW2_HEADER_BYTES};

    qcow2_put32(&header, 0, 0x514649fb);
    qcow2_put32(&header, 4, 3);
    qcow2_put32(&header, 20, 12);
    qcow2_put64(&header, 24, 1024 * 1024);
    qcow2_put32(&header, 96, 4);
    qcow2_put32(&header, 100, 104);
    return header;
}

Qcow2Header qcow2_backed(const char *name, const char *format)
{
    Qcow2Header header = qcow2_plain();
    gsize at = 104;

    if (format) {
        qcow2_put32(&header, at, 0xe2792aca);
        qcow2_put32(&header, at + 4, (guint32)strlen(format));
        memcpy(header.data + at + 8, format, strlen(format));
        at += 8 + (strlen(format) + 7) / 8 * 8;
    }
    at += 8;
    qcow2_put64(&header, 8, at);
    qcow2_put32(&header, 16, (guint32)strlen(name));
    memcpy(header.data + at, name, strlen(name));
    return header;
}
