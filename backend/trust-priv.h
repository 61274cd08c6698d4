/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * trust-priv.h - what trust.c, trust-record.c, trust-image.c, trust-below.c and
 * trust-sample.c share.
 */
#pragma once

#include <sys/stat.h>

#include "backend/trust.h"

/* ---- trust-record.c ---- */

/* Returns: an empty array that owns its BeTrustImage. */
GPtrArray *be_trust_images_new(void);

void be_trust_disk_add_sample(BeTrustDisk *disk, guint64 offset, guint32 length,
                              const char *digest);

/* ---- trust-image.c ---- */

/* Looks at the images of a disk now, the top first.  NULL: EOPNOTSUPP, or the errno
 * of looking at a file; see be_trust_record_add_disk(). */
GPtrArray *be_trust_images(const BeXmlDisk *disk, GError **error);

/* What a file that is no block device contains, as far as its size and time tell. */
char *be_trust_content(const struct statx *attr);
/* What no other file has; never NULL. */
char *be_trust_identity(const struct statx *attr);

/* Whether the chain of a disk now is one that the recorded one can have become
 * without anything being written beside the bitmap.  Pure.
 * @now: (element BeTrustImage)
 * @ret_holder: the image of @now in which the bitmap must be; so it must in all above.
 * @ret_grown: how many images of @now were made after the checkpoint.
 * Returns: NULL, or why not, to be freed with g_free(). */
char *be_trust_compare(const BeTrustDisk *disk, const GPtrArray *now, guint *ret_holder,
                       guint *ret_grown);
