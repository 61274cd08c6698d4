/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * kvm.c - a library to preload that has the daemon believe in KVM: the device opens, and
 * a machine can be made under it.  Whether one runs, only its start shows.
 *
 * Any thread; nothing here waits.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int open(const char *path, int flags, ...)
{
    va_list arguments;
    mode_t mode;

    va_start(arguments, flags);
    mode = va_arg(arguments, mode_t);
    va_end(arguments);
    return REAL(open)(strcmp(path, "/dev/kvm") == 0 ? "/dev/null" : path, flags, mode);
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    void *argument;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    return request == KVM_CREATE_VM ? fcntl(fd, F_DUPFD_CLOEXEC, 0)
                                    : REAL(ioctl)(fd, request, argument);
}
