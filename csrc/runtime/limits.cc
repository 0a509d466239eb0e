#include "csrc/runtime/limits.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <memory>
#include <string>
#include <thread>

namespace zc {

namespace {

// The line that a file begins with; "" where there is none.
std::string first_line(const std::string& file) {
  const std::unique_ptr<FILE, int (*)(FILE*)> opened(std::fopen(file.c_str(), "r"), std::fclose);
  char line[64] = {};
  if (!opened || !std::fgets(line, sizeof(line), opened.get())) return "";
  return line;
}

// The whole number that a file holds; -1 without one: no file, "max", or v1's own -1.
int64_t number_in(const std::string& file) {
  long long number = -1;
  std::sscanf(first_line(file).c_str(), "%lld", &number);
  return number;
}

// Whether a line of /proc/self/cgroup, "4:cpu,cpuacct:/docker/8a1c" or "0::/user.slice", names the
// group of this controller; "": of version 2, whose one hierarchy has all of them.
bool names_group(const std::string& controllers, const std::string& controller) {
  if (controller.empty()) return controllers.empty();
  return ("," + controllers + ",").find("," + controller + ",") != std::string::npos;
}

// Calls f(folder) for the control group of this process that has the controller, and for those
// around it, as far as they are to be seen here: a container may see its own as the outermost.
template <typename F>
void each_group(const std::string& controller, const F& f) {
  const std::string mount = "/sys/fs/cgroup" + (controller.empty() ? "" : "/" + controller);
  const std::unique_ptr<FILE, int (*)(FILE*)> groups(std::fopen("/proc/self/cgroup", "r"),
                                                     std::fclose);
  char text[4096];
  while (groups && std::fgets(text, sizeof(text), groups.get())) {
    const std::string line(text);
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    if (!names_group(line.substr(first + 1, second - first - 1), controller)) continue;
    std::string group = line.substr(second + 1, line.find('\n') - second - 1);
    while (group.size() > 1) {
      f(mount + group);
      group.resize(group.rfind('/'));
    }
    f(mount);
    return;
  }
}

// Processors' worth of time, rounded up.
int64_t granted_processors() {
  int64_t granted = std::numeric_limits<int64_t>::max();
  const auto grant = [&](int64_t time, int64_t period) {
    if (time > 0 && period > 0) granted = std::min(granted, (time + period - 1) / period);
  };
  each_group("", [&](const std::string& group) {
    long long time = 0;
    long long period = 0;
    // "150000 100000" or "max 100000", in microseconds
    if (std::sscanf(first_line(group + "/cpu.max").c_str(), "%lld %lld", &time, &period) == 2)
      grant(time, period);
  });
  each_group("cpu", [&](const std::string& group) {
    grant(number_in(group + "/cpu.cfs_quota_us"), number_in(group + "/cpu.cfs_period_us"));
  });
  return granted;
}

}  // namespace

int64_t usable_memory_bytes() {
  int64_t bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  const auto limit = [&](const std::string& file) {
    const int64_t most = number_in(file);
    if (most > 0) bytes = std::min(bytes, most);
  };
  each_group("", [&](const std::string& group) { limit(group + "/memory.max"); });
  each_group("memory", [&](const std::string& group) { limit(group + "/memory.limit_in_bytes"); });
  return bytes;
}

int usable_processors() {
  const int64_t present = std::thread::hardware_concurrency();  // in the affinity mask; 0: unknown
  return static_cast<int>(std::max<int64_t>(1, std::min(present, granted_processors())));
}

}  // namespace zc
