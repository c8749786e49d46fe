/* Has one change of a file under a folder fail, below Python and safetensors: LD_PRELOAD it, then call fault_arm. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static int at, error, lasting;
static int *calls; /* In memory that the process that forked sees, too. */

void fault_arm(const char *folder, int number, int code, int stays, int *counter) {
    strncpy(root, folder, sizeof root - 1);
    at = number, error = code, lasting = stays, calls = counter;
    *calls = 0;
}

static int under(const char *path) {
    return root[0] && path && !strncmp(path, root, strlen(root));
}

static int under_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!root[0] || fd < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return under(path);
}

/* A full disk stays full; a moment's error of a disk is over with the call. */
static int fails(int ours) {
    if (!ours) return 0;
    int number = ++*calls;
    if (at && (number == at || (lasting && number > at))) {
        errno = error;
        return 1;
    }
    return 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t count) {
    return fails(under_fd(fd)) ? -1 : REAL(write)(fd, data, count);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    return fails(under_fd(fd)) ? -1 : REAL(writev)(fd, parts, count);
}

int fsync(int fd) { return fails(under_fd(fd)) ? -1 : REAL(fsync)(fd); }

int rename(const char *from, const char *to) { return fails(under(to)) ? -1 : REAL(rename)(from, to); }

int mkdir(const char *path, mode_t mode) { return fails(under(path)) ? -1 : REAL(mkdir)(path, mode); }

#define OPEN(name)                                                          \
    int name(const char *path, int flags, ...) {                            \
        va_list more;                                                       \
        va_start(more, flags);                                              \
        mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;           \
        va_end(more);                                                       \
        int changes = flags & (O_WRONLY | O_RDWR | O_CREAT);                \
        return fails(changes && under(path)) ? -1 : REAL(name)(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
