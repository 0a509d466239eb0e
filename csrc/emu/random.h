#pragma once

#include <cstdint>

namespace zc::emu {

// xorshift64: cheap enough to be asked at every switch.
class Random {
 public:
  // Nearby seeds give unrelated streams.
  explicit Random(uint64_t seed = 1)
      : state_(seed * 0x9e3779b97f4a7c15ull ^ 0x5851f42d4c957f2dull) {
    for (int i = 0; i < 4; ++i) next();
  }
  uint32_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<uint32_t>(state_ >> 20);
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>((uint64_t{next()} * n) >> 32); }

 private:
  uint64_t state_;
};

}  // namespace zc::emu
