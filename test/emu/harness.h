#pragma once

#include <functional>
#include <string>

#include "csrc/core/error.h"
#include "csrc/emu/settings.h"

// Tests of kernels in processes of their own: a crash, a hang or a sanitizer's report ends one test
// and says which; those behind it go on in the next process.
namespace zc::test {

// How this program was built. ThreadSanitizer's build has CUDA threads as its threads.
enum class Build { kPlain, kAsan, kTsan };
#if defined(__SANITIZE_ADDRESS__)
inline constexpr Build kBuild = Build::kAsan;
#elif defined(ZC_EMU_TSAN)
inline constexpr Build kBuild = Build::kTsan;
#else
inline constexpr Build kBuild = Build::kPlain;
#endif

// An order of what the hardware leaves open.
struct Mode {
  const char* name;
  emu::AsyncOrder async;
  emu::ScheduleOrder schedule;
  uint64_t seed;
  void enter() const;
};
inline constexpr Mode kEager = {"eager", emu::AsyncOrder::kEager, emu::ScheduleOrder::kForward, 1};
inline constexpr Mode kLate = {"late", emu::AsyncOrder::kLate, emu::ScheduleOrder::kReverse, 1};
inline constexpr Mode kRandom = {"random", emu::AsyncOrder::kRandom, emu::ScheduleOrder::kRandom,
                                 1};
inline constexpr Mode kModes[] = {
    kEager,
    kLate,
    kRandom,
    {"random:2", emu::AsyncOrder::kRandom, emu::ScheduleOrder::kRandom, 2},
    {"random:3", emu::AsyncOrder::kRandom, emu::ScheduleOrder::kRandom, 3},
};
// Runs body in every mode; a failure names it.
void each_mode(const std::function<void()>& body);

// A test passes when its body returns without a failed check.
bool add_test(std::string name, std::function<void()> body);
// A planted defect: the test passes when running its body fails, and says `report` as it does.
bool add_defect(std::string name, std::string report, std::function<void()> body);

// Notes a failure; the test goes on.
[[gnu::format(printf, 1, 2)]] void fail_test(const char* fmt, ...);
// Checks that body throws an error whose message holds `text`.
void expect_error(const char* text, const std::function<void()>& body);

// Runs the tests whose names hold the argument, all without one. The last line printed is
// `N passed, N failed`.
int run_tests(int argc, char** argv);

}  // namespace zc::test

#define ZC_TEST(name)                                                 \
  static void name();                                                 \
  static const bool added_##name = ::zc::test::add_test(#name, name); \
  static void name()

#define ZC_EXPECT(condition)                                                              \
  do {                                                                                    \
    if (!(condition)) ::zc::test::fail_test("%s:%d: %s", __FILE__, __LINE__, #condition); \
  } while (0)
