#pragma once

#include <cstdio>
#include <exception>
#include <string>

namespace zc {

enum class ErrorCode {
#define ZC_ERROR_CODE(name, text) name,
#include "csrc/core/error_codes.def"
#undef ZC_ERROR_CODE
};

// The text that JavaScript branches on, e.g. "ERR_ZC_SHAPE".
const char* error_code_name(ErrorCode code);

// The one exception type of the native side. `argument` names what was wrong, "" when nothing does.
// Nothing of it is inline: kernels are compiled for several instruction sets (csrc/math/hd.h).
class Error : public std::exception {
 public:
  Error(ErrorCode code, std::string message, std::string op = "", std::string argument = "");
  Error(const Error& other);
  Error(Error&& other) noexcept;
  Error& operator=(Error&& other) noexcept;
  ~Error() override;

  const char* what() const noexcept override;

  ErrorCode code;
  std::string message;
  std::string op;
  std::string argument;
};

// The exception that is being handled, as the one type: for use within a catch block. What says
// that there is no memory needs none.
Error current_error() noexcept;

// Throws kInternal. For functions that are always inlined: not even a message is made in them.
[[noreturn]] void throw_internal(const char* message);

// printf into a std::string.
[[gnu::format(printf, 1, 2)]] std::string format(const char* fmt, ...);

}  // namespace zc

// Throws zc::Error{code, printf-style message} unless `cond` holds.
#define ZC_CHECK(cond, code, ...)                           \
  do {                                                      \
    if (!(cond)) [[unlikely]]                               \
      throw ::zc::Error((code), ::zc::format(__VA_ARGS__)); \
  } while (0)
