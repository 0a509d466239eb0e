#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "csrc/emu/site.h"

namespace zc::emu {

// A block's shared memory: its dynamic bytes, then the kernel's own arrays in the order in which
// they are first met. Every block begins with 0xff everywhere, which is NaN in f32, f16 and bf16,
// so that what is read before it was written shows. Between arrays lie a few bytes that nobody may
// touch.
//
// An address is what PTX calls one: 32 bits, counted from kSharedBase.
class SharedMemory {
 public:
  SharedMemory() = default;
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // Empties it for a block. Throws kInternal when a block cannot have that much.
  void begin(size_t dynamic_bytes);
  // Throws kInternal when the block wrote between two arrays or past the last one.
  void check_margins() const;

  unsigned char* base() const { return memory_; }
  // The array with this id, which is the same for all threads of a block.
  void* variable(unsigned id, size_t bytes, size_t alignment);

  // Whether bytes at an offset lie within the dynamic memory or within one array.
  bool holds(size_t offset, size_t bytes) const;
  bool contains(const void* p) const {
    return static_cast<const unsigned char*>(p) >= memory_ &&
           static_cast<const unsigned char*>(p) < memory_ + capacity_;
  }
  size_t dynamic_bytes() const { return dynamic_bytes_; }

 private:
  struct Variable {
    unsigned id;
    size_t offset;
    size_t bytes;
  };
  void claim(size_t offset, size_t bytes);

  unsigned char* memory_ = nullptr;
  size_t capacity_ = 0;
  size_t dynamic_bytes_ = 0;
  size_t used_bytes_ = 0;  // with the last margin
  std::vector<Variable> variables_;
};

inline constexpr uint32_t kSharedBase = 1024;  // the address of the first byte; 0 is none

// Where an address lies in the running block. Throws kInternal unless `bytes` from there on are the
// block's, and the address is a multiple of `alignment`.
unsigned char* shared_at(uint32_t address, uint32_t bytes, uint32_t alignment, const char* what,
                         Site site);

unsigned next_variable_id();
void* shared_variable(unsigned id, size_t bytes, size_t alignment);
// A type of its own for every declaration gives it an id of its own.
template <typename Tag>
void* shared_variable(size_t bytes, size_t alignment) {
  static const unsigned id = next_variable_id();
  return shared_variable(id, bytes, alignment);
}

}  // namespace zc::emu

namespace zc::simt {

// Where a generic pointer into shared memory lies in the shared address space.
uint32_t smem_u32(const void* p, emu::Site site = emu::Site::here());

}  // namespace zc::simt
