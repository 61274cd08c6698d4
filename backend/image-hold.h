/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image-hold.h - a chain of images that is held open, locked and leased while somebody
 * reads it, and can be let go of in between.
 */
#pragma once

#include "backend/image-map.h"

typedef struct BeImageHold BeImageHold;

/**
 * be_image_hold_new:
 * @chain: (element BeImage): gets a reference
 * @check: (nullable): called each time before the images are opened, under their lease:
 *   whether they still hold what they did; its @user outlives every other call
 *
 * Opens nothing.  Returns: to free with be_image_hold_free(), which lets go of it.
 */
BeImageHold *be_image_hold_new(GPtrArray *chain, gboolean (*check)(gpointer user, GError **error),
                               gpointer user);
void be_image_hold_free(BeImageHold *hold);

/**
 * be_image_hold_take: the map of the images, which stays until be_image_hold_give().
 * Opens it where nobody has it, and then blocks: workers.
 * Returns: NULL: the errnos of be_image_map_open() and of the check
 */
BeImageMap *be_image_hold_take(BeImageHold *hold, GError **error);

/**
 * be_image_hold_take_open: the same without blocking: NULL where it is not open.
 */
BeImageMap *be_image_hold_take_open(BeImageHold *hold);
void be_image_hold_give(BeImageHold *hold);

/**
 * be_image_hold_rest: closes the images, as soon as nobody has them: until the next who
 * takes them there is neither lock nor lease.  Blocks on local files; workers.
 */
void be_image_hold_rest(BeImageHold *hold);
