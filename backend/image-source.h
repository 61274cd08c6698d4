/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image-source.h - a source that reads a chain of images straight from the files, and
 * what is not plain there from a server.  For image-stream.c.
 */
#pragma once

#include "backend/image-stream.h"
#include "backend/nbd.h"

/**
 * be_stream_new_image_source:
 * @images: its chain gets a reference; the server's end frees what its check() looks at
 * @rests: let go of them when nobody has the stream open any more; the next who reads
 *   takes them again.  Else they are kept from the first read to the end of the stream
 * @server: shows the same disk; is opened when something has to be read from it
 */
BeStream *be_stream_new_image_source(const BeImageSource *images, gboolean rests,
                                     const BeNbdExport *server);
