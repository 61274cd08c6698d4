/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qcow2.h - qcow2 headers made by hand, for tests of what reads them.
 *
 * Pure functions.
 */
#pragma once

#include <glib.h>

#define QCOW2_HEADER_BYTES 4096

/**
 * Qcow2Header: the first cluster of an image.
 */
typedef struct {
    guint8 data[QCOW2_HEADER_BYTES];
    gsize length;
} Qcow2Header;

void qcow2_put32(Qcow2Header *header, gsize at, guint32 value);
void qcow2_put64(Qcow2Header *header, gsize at, guint64 value);

/**
 * qcow2_plain: a version 3 header of a 1 MiB disk without a backing file.
 */
Qcow2Header qcow2_plain(void);

/**
 * qcow2_backed: the same with a backing file.
 * @format: its recorded format, or NULL for none
 */
Qcow2Header qcow2_backed(const char *name, const char *format);
