#pragma once

namespace zc::emu {

// A place in the source. As the defaulted last parameter of a function it is the caller's.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

}  // namespace zc::emu
