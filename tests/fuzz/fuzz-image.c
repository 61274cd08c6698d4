/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * fuzz-image.c - libFuzzer target: the qcow2 header parser on any bytes.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_auto(BeImageHeader) header = {.version = 0};
    g_autoptr(GError) error = NULL;

    if (!be_image_header_parse(data, size, &header, &error)) {
        g_assert_nonnull(error);
        return 0;
    }
    g_assert_no_error(error);
    g_assert_cmpuint(header.size % 512, ==, 0);
    g_assert_true(!header.backing_name || strlen(header.backing_name) <= 1023);
    return 0;
}
