// What libstdc++ or we use of a C library newer than the oldest we publish for. Compiled into what
// is published alone, see zc_portable in CMakeLists.txt; there the linker names what is missing.
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

extern "C" {

// glibc 2.32. False: reference counts are atomic even before there are threads.
char __libc_single_threaded = 0;

// glibc 2.33; an inline function of its headers before.
int fstat(int fd, struct stat* facts) noexcept {
  return static_cast<int>(syscall(SYS_fstat, fd, facts));
}
}
