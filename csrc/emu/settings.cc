#include "csrc/emu/settings.h"

#include <cstdlib>
#include <cstring>

#include "csrc/core/error.h"
#include "csrc/emu/sanitizer.h"

namespace zc::emu {

namespace {

const char* variable(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? value : otherwise;
}

[[noreturn]] void refuse(const char* name, const char* value, const char* expected) {
  throw Error(ErrorCode::kInternal, format("%s is '%s', expected %s", name, value, expected));
}

Settings read_settings() {
  Settings s;
  s.stack_bytes = kSanitized ? 256 * 1024 : 64 * 1024;

  const char* async = variable("ZC_SIMT_ASYNC", "eager");
  if (!std::strcmp(async, "late"))
    s.async = AsyncOrder::kLate;
  else if (!std::strcmp(async, "random"))
    s.async = AsyncOrder::kRandom;
  else if (std::strcmp(async, "eager"))
    refuse("ZC_SIMT_ASYNC", async, "eager, late or random");

  const char* schedule = variable("ZC_SIMT_SCHED", "forward");
  if (!std::strcmp(schedule, "reverse")) {
    s.schedule = ScheduleOrder::kReverse;
  } else if (!std::strncmp(schedule, "random", 6) && (!schedule[6] || schedule[6] == ':')) {
    s.schedule = ScheduleOrder::kRandom;
    if (schedule[6]) s.seed = std::strtoull(schedule + 7, nullptr, 10);
  } else if (std::strcmp(schedule, "forward")) {
    refuse("ZC_SIMT_SCHED", schedule, "forward, reverse or random:SEED");
  }

  const char* threads = variable("ZC_SIMT_THREADS", "1");
  s.n_host_threads = std::atoi(threads);
  if (s.n_host_threads < 1 || s.n_host_threads > 256)
    refuse("ZC_SIMT_THREADS", threads, "1 to 256");

  const char* banks = variable("ZC_SIMT_BANKS", "0");
  s.counts_bank_conflicts = !std::strcmp(banks, "1");
  if (std::strcmp(banks, "0") && std::strcmp(banks, "1")) refuse("ZC_SIMT_BANKS", banks, "0 or 1");
  return s;
}

}  // namespace

Settings& settings() {
  static Settings read = read_settings();
  return read;
}

}  // namespace zc::emu
