#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

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

// Bytes of a mapped file that somebody looks at. When they are let go of, this process holds their
// pages no longer: a file that was copied would count beside its copy else. Whoever looks there
// again has them read again.
class MappedRange {
 public:
  MappedRange(std::shared_ptr<const MappedFile> file, int64_t offset, int64_t bytes)
      : file_(std::move(file)), offset_(offset), bytes_(bytes) {}
  ~MappedRange();
  MappedRange(const MappedRange&) = delete;
  MappedRange& operator=(const MappedRange&) = delete;

  const char* data() const { return file_->data() + offset_; }

 private:
  std::shared_ptr<const MappedFile> file_;
  int64_t offset_;
  int64_t bytes_;
};

}  // namespace zc
