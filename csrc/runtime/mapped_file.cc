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

}  // namespace zc
