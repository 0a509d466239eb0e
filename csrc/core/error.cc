#include "csrc/core/error.h"

#include <cstdarg>

namespace zc {

const char* error_code_name(ErrorCode code) {
  switch (code) {
#define ZC_ERROR_CODE(name, text) \
  case ErrorCode::name:           \
    return text;
#include "csrc/core/error_codes.def"
#undef ZC_ERROR_CODE
  }
  return "ERR_ZC_INTERNAL";
}

std::string format(const char* fmt, ...) {
  va_list args;
  va_start(args, fmt);
  va_list again;
  va_copy(again, args);
  const int length = std::vsnprintf(nullptr, 0, fmt, args);
  va_end(args);
  std::string text(length > 0 ? static_cast<size_t>(length) : 0, '\0');
  std::vsnprintf(text.data(), text.size() + 1, fmt, again);
  va_end(again);
  return text;
}

}  // namespace zc
