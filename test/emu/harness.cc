#include "test/emu/harness.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <csignal>
#include <cstring>
#include <exception>
#include <string>
#include <utility>
#include <vector>

// A report ends the process: one test, one report. Leaks are not looked for, since a test's process
// ends without unwinding. Sanitizers' libraries call these: they must be seen outside of the
// program.
#define ZC_SANITIZER_OPTIONS extern "C" [[gnu::visibility("default")]] const char*
ZC_SANITIZER_OPTIONS __asan_default_options() {
  return "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0:exitcode=66";
}
ZC_SANITIZER_OPTIONS __ubsan_default_options() { return "print_stacktrace=1:exitcode=66"; }
ZC_SANITIZER_OPTIONS __tsan_default_options() {
  return "halt_on_error=1:exitcode=66:report_thread_leaks=0:history_size=4";
}

namespace zc::test {

namespace {

constexpr unsigned kTimeoutSeconds = 300;

struct Test {
  std::string name;
  std::function<void()> body;
  std::string report;  // of a planted defect
};

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

int n_failures = 0;
const Mode* running_mode = nullptr;

// Marks in what a process of tests prints: a test begins, a test has passed or failed.
constexpr char kMark = '\x01';

void print_mark(const char* what, size_t index) {
  std::fflush(nullptr);
  const std::string line = format("%c%s %zu\n", kMark, what, index);
  if (write(STDOUT_FILENO, line.data(), line.size()) < 0) _exit(2);
}

// Runs tests one after the other; what ends one ends them all.
[[noreturn]] void run_child(const std::vector<const Test*>& batch) {
  const emu::Settings settings = emu::settings();
  for (size_t i = 0; i < batch.size(); ++i) {
    print_mark("begin", i);
    alarm(kTimeoutSeconds);
    n_failures = 0;
    emu::settings() = settings;
    try {
      batch[i]->body();
    } catch (const std::exception& e) {
      fail_test("%s", e.what());
    }
    print_mark(n_failures > 0 ? "failed" : "passed", i);
  }
  _exit(0);
}

struct Outcome {
  bool has_run = false;
  bool passed = false;
  std::string reason;
  std::string output;
};

std::string describe_end(int status) {
  if (WIFSIGNALED(status))
    return WTERMSIG(status) == SIGALRM ? format("still ran after %u s", kTimeoutSeconds)
                                       : format("ended by signal %d", WTERMSIG(status));
  return format("ended with exit code %d", WEXITSTATUS(status));
}

// Runs a batch in one process. Tests behind one that ends the process have not run.
std::vector<Outcome> run_batch(const std::vector<const Test*>& batch) {
  std::fflush(nullptr);
  int ends[2];
  ZC_CHECK(pipe(ends) == 0, ErrorCode::kInternal, "no pipe");
  const pid_t child = fork();
  ZC_CHECK(child >= 0, ErrorCode::kInternal, "no process");
  if (child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    run_child(batch);
  }
  close(ends[1]);
  std::string printed;
  char chunk[4096];
  for (ssize_t n; (n = read(ends[0], chunk, sizeof(chunk))) > 0;)
    printed.append(chunk, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);

  std::vector<Outcome> outcomes(batch.size());
  Outcome* running = nullptr;
  for (size_t at = 0; at < printed.size();) {
    const size_t mark = printed.find(kMark, at);
    if (running) running->output += printed.substr(at, mark - at);
    if (mark == std::string::npos) break;
    const size_t end = printed.find('\n', mark);
    char what[8];
    size_t index;
    if (std::sscanf(printed.c_str() + mark + 1, "%7s %zu", what, &index) != 2) break;
    Outcome& outcome = outcomes.at(index);
    outcome.has_run = true;
    const bool begins = !std::strcmp(what, "begin");
    if (!begins) {
      outcome.passed = !std::strcmp(what, "passed");
      outcome.reason = "a check failed";
    }
    running = begins ? &outcome : nullptr;
    at = end + 1;
  }
  if (running) running->reason = describe_end(status);
  return outcomes;
}

// Whether a test did what it should, which a planted defect does by failing.
Outcome judge(const Test& test, Outcome outcome) {
  if (test.report.empty()) return outcome;
  if (outcome.passed) {
    outcome.passed = false;
    outcome.reason = "the planted defect was not found";
  } else if (outcome.output.find(test.report) == std::string::npos) {
    outcome.reason = "the planted defect was found, but not as '" + test.report + "'";
  } else {
    outcome.passed = true;
  }
  return outcome;
}

}  // namespace

void Mode::enter() const {
  emu::Settings& s = emu::settings();
  s.async = async;
  s.schedule = schedule;
  s.seed = seed;
}

void each_mode(const std::function<void()>& body) {
  for (const Mode& mode : kModes) {
    running_mode = &mode;
    mode.enter();
    try {
      body();
    } catch (const std::exception& e) {
      fail_test("%s", e.what());
    }
  }
  running_mode = nullptr;
}

bool add_test(std::string name, std::function<void()> body) {
  tests().push_back({std::move(name), std::move(body), ""});
  return true;
}

bool add_defect(std::string name, std::string report, std::function<void()> body) {
  tests().push_back({std::move(name), std::move(body), std::move(report)});
  return true;
}

void fail_test(const char* fmt, ...) {
  ++n_failures;
  if (running_mode) std::fprintf(stderr, "[%s] ", running_mode->name);
  va_list args;
  va_start(args, fmt);
  std::vfprintf(stderr, fmt, args);
  va_end(args);
  std::fputc('\n', stderr);
}

void expect_error(const char* text, const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& e) {
    if (!std::strstr(e.what(), text))
      fail_test("an error that says '%s', expected '%s'", e.what(), text);
    return;
  }
  fail_test("no error, expected '%s'", text);
}

int run_tests(int argc, char** argv) {
  const std::string filter = argc > 1 ? argv[1] : "";
  std::vector<const Test*> waiting;
  for (const Test& test : tests())
    if (test.name.find(filter) != std::string::npos) waiting.push_back(&test);
  // Whatever the order in which files were linked; planted defects last, a process each.
  std::sort(waiting.begin(), waiting.end(), [](const Test* a, const Test* b) {
    return std::make_pair(!a->report.empty(), a->name) <
           std::make_pair(!b->report.empty(), b->name);
  });
  int n_passed = 0;
  int n_failed = 0;
  while (!waiting.empty()) {
    size_t n = 0;
    while (n < waiting.size() && waiting[n]->report.empty()) ++n;
    n = std::max<size_t>(n, 1);
    const std::vector<Outcome> outcomes = run_batch({waiting.data(), waiting.data() + n});
    ZC_CHECK(outcomes[0].has_run, ErrorCode::kInternal, "a process of tests did not begin");
    std::vector<const Test*> left;
    for (size_t i = 0; i < waiting.size(); ++i) {
      if (i >= outcomes.size() || !outcomes[i].has_run) {
        left.push_back(waiting[i]);
        continue;
      }
      const Outcome outcome = judge(*waiting[i], outcomes[i]);
      ++(outcome.passed ? n_passed : n_failed);
      if (!outcome.passed)
        std::printf("FAILED %s: %s\n%s\n", waiting[i]->name.c_str(), outcome.reason.c_str(),
                    outcome.output.c_str());
    }
    waiting = left;
  }
  std::printf("%d passed, %d failed\n", n_passed, n_failed);
  return n_failed > 0;
}

}  // namespace zc::test
