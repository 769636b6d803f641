/* Makes chosen calls of the C library fail, in a process that is told to.

   cc -shared -fPIC -o faults.so faults.c -ldl
   LD_PRELOAD=faults.so python ...

   From Python: ctypes.CDLL(None).faults_arm(calls, path, nth, count, error).
   All that writes goes through here, Python and tensorstore alike. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char wanted_call[32], wanted_path[512];
static volatile int nth, count, error, seen, fired, armed, log_to = -1;

void faults_arm(const char *call, const char *path, int first, int times,
                int code) {
  armed = 0;
  snprintf(wanted_call, sizeof wanted_call, "%s", call);
  snprintf(wanted_path, sizeof wanted_path, "%s", path);
  nth = first, count = times, error = code, seen = fired = 0;
  armed = 1;
}

int faults_disarm(void) {
  armed = 0;
  return fired;
}

/* From here on all calls are written to a file, one a line; -1: no more. */
void faults_log(int fd) { log_to = fd; }

/* Whether this call is to fail; sets errno. */
static int fails(const char *call, const char *path) {
  if (log_to >= 0 && path) {
    char line[4200];
    int length = snprintf(line, sizeof line, "%s %s\n", call, path);
    syscall(SYS_write, log_to, line, length);
  }
  if (!armed || !path || strcmp(call, wanted_call) ||
      !strstr(path, wanted_path))
    return 0;
  int number = __sync_fetch_and_add(&seen, 1);
  if (number < nth || (count && number >= nth + count)) return 0;
  __sync_fetch_and_add(&fired, 1);
  errno = error;
  return 1;
}

static int fails_fd(const char *call, int fd) {
  if (log_to < 0 && (!armed || strcmp(call, wanted_call))) return 0;
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return fails(call, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define WRITES (O_WRONLY | O_RDWR | O_CREAT)
#define OPEN(name, before, args)                           \
  {                                                        \
    mode_t mode = 0;                                       \
    if (flags & O_CREAT) {                                 \
      va_list list;                                        \
      va_start(list, flags);                               \
      mode = va_arg(list, mode_t);                         \
      va_end(list);                                        \
    }                                                      \
    if (fails(flags & WRITES ? "open" : "read", path)) return -1; \
    return NEXT(name) args;                                \
  }

int open(const char *path, int flags, ...) OPEN(open, , (path, flags, mode))
int open64(const char *path, int flags, ...)
  OPEN(open64, , (path, flags, mode))
int openat(int at, const char *path, int flags, ...)
  OPEN(openat, , (at, path, flags, mode))
int openat64(int at, const char *path, int flags, ...)
  OPEN(openat64, , (at, path, flags, mode))

ssize_t write(int fd, const void *data, size_t size) {
  return fails_fd("write", fd) ? -1 : NEXT(write)(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  return fails_fd("write", fd) ? -1 : NEXT(pwrite)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  return fails_fd("write", fd) ? -1 : NEXT(pwrite64)(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
  return fails_fd("write", fd) ? -1 : NEXT(writev)(fd, parts, n);
}
ssize_t read(int fd, void *data, size_t size) {
  return fails_fd("read", fd) ? -1 : NEXT(read)(fd, data, size);
}
ssize_t pread(int fd, void *data, size_t size, off_t at) {
  return fails_fd("read", fd) ? -1 : NEXT(pread)(fd, data, size, at);
}
ssize_t pread64(int fd, void *data, size_t size, off64_t at) {
  return fails_fd("read", fd) ? -1 : NEXT(pread64)(fd, data, size, at);
}
int fsync(int fd) { return fails_fd("fsync", fd) ? -1 : NEXT(fsync)(fd); }
int fdatasync(int fd) {
  return fails_fd("fsync", fd) ? -1 : NEXT(fdatasync)(fd);
}
int ftruncate(int fd, off_t size) {
  return fails_fd("write", fd) ? -1 : NEXT(ftruncate)(fd, size);
}
int mkdir(const char *path, mode_t mode) {
  return fails("mkdir", path) ? -1 : NEXT(mkdir)(path, mode);
}
int mkdirat(int at, const char *path, mode_t mode) {
  return fails("mkdir", path) ? -1 : NEXT(mkdirat)(at, path, mode);
}
int rename(const char *from, const char *to) {
  return fails("rename", to) ? -1 : NEXT(rename)(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
  return fails("rename", to) ? -1 : NEXT(renameat)(a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned how) {
  return fails("rename", to) ? -1 : NEXT(renameat2)(a, from, b, to, how);
}
int unlink(const char *path) {
  return fails("unlink", path) ? -1 : NEXT(unlink)(path);
}
int unlinkat(int at, const char *path, int flags) {
  return fails("unlink", path) ? -1 : NEXT(unlinkat)(at, path, flags);
}
int rmdir(const char *path) {
  return fails("unlink", path) ? -1 : NEXT(rmdir)(path);
}
