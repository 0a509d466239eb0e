#include "csrc/runtime/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "csrc/core/error.h"

namespace zc {

MappedFile::MappedFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ZC_CHECK(fd >= 0, ErrorCode::kIo, "%s: cannot be opened: %s", path.c_str(), std::strerror(errno));
  struct stat status {};
  const bool regular = fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  void* data = MAP_FAILED;
  if (regular && status.st_size > 0)
    data = mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
  const int reason = errno;
  close(fd);
  ZC_CHECK(regular, ErrorCode::kIo, "%s: not a regular file", path.c_str());
  ZC_CHECK(status.st_size > 0, ErrorCode::kIo, "%s: the file is empty", path.c_str());
  ZC_CHECK(data != MAP_FAILED, ErrorCode::kIo, "%s: cannot be mapped: %s", path.c_str(),
           std::strerror(reason));
  data_ = static_cast<const char*>(data);
  bytes_ = status.st_size;
}

MappedFile::~MappedFile() { munmap(const_cast<char*>(data_), static_cast<size_t>(bytes_)); }

MappedRange::~MappedRange() {
  // Pages that are the range's alone.
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(data());
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t end = (begin + static_cast<uintptr_t>(bytes_)) / page * page;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

}  // namespace zc
