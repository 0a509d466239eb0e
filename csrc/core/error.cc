#include "csrc/core/error.h"

#include <cstdarg>
#include <new>
#include <system_error>
#include <utility>

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

Error::Error(ErrorCode code, std::string message, std::string op, std::string argument)
    : code(code), message(std::move(message)), op(std::move(op)), argument(std::move(argument)) {}

Error::Error(const Error& other) = default;
Error::Error(Error&& other) noexcept = default;
Error& Error::operator=(Error&& other) noexcept = default;
Error::~Error() = default;

const char* Error::what() const noexcept { return message.c_str(); }

void throw_internal(const char* message) { throw Error(ErrorCode::kInternal, message); }

Error current_error() noexcept {
  try {
    try {
      throw;
    } catch (const Error& e) {
      return e;
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::system_error& e) {  // no thread to be had
      return {ErrorCode::kOutOfMemory, e.what()};
    } catch (const std::exception& e) {
      return {ErrorCode::kInternal, e.what()};
    }
  } catch (const std::bad_alloc&) {  // thrown, or met while a text was copied
    return {ErrorCode::kOutOfMemory,
            "out of memory"};  // so short that it lies in the string itself
  } catch (...) {
    return {ErrorCode::kInternal, "no exception"};
  }
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
