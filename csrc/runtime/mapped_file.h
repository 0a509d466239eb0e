#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace zc {

// A file mapped read-only into memory; the mapping lives as long as the object.
class MappedFile {
 public:
  // Throws kIo when the file cannot be opened or mapped.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  const char* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace zc
