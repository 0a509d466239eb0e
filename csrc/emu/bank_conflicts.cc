#include "csrc/emu/bank_conflicts.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <string>

#include "csrc/core/error.h"
#include "csrc/emu/scheduler.h"
#include "csrc/emu/settings.h"

namespace zc::emu {

namespace {

constexpr uint32_t kBanks = 32;

std::mutex report_mutex;
std::map<std::string, uint64_t>& report() {
  static std::map<std::string, uint64_t> cycles_of_site;
  return cycles_of_site;
}

// Cycles beyond the first of one phase: the most different words of one bank.
int conflicts_of_phase(const uint32_t* addresses, uint32_t lanes, int n_lanes,
                       uint32_t words_each) {
  uint32_t words[32];
  int n = 0;
  for (int lane = 0; lane < n_lanes; ++lane)
    if ((lanes >> lane) & 1u)
      for (uint32_t w = 0; w < words_each; ++w) words[n++] = addresses[lane] / 4 + w;
  std::sort(words, words + n);
  n = static_cast<int>(std::unique(words, words + n) - words);
  int of_bank[kBanks] = {};
  int most = 1;
  for (int i = 0; i < n; ++i) most = std::max(most, ++of_bank[words[i] % kBanks]);
  return most - 1;
}

void count(Block& block, const WarpAccess& access, Site site) {
  const uint32_t words_each = access.bytes / 4;
  const int lanes_a_phase = static_cast<int>(32 / words_each);
  int cycles = 0;
  for (int first = 0; first < 32; first += lanes_a_phase) {
    const uint32_t lanes =
        lanes_a_phase == 32 ? access.lanes : (access.lanes >> first) & ((1u << lanes_a_phase) - 1u);
    if (lanes)
      cycles += conflicts_of_phase(access.addresses + first, lanes, lanes_a_phase, words_each);
  }
  if (cycles == 0) return;
  block.stats.shared_conflicts += static_cast<uint64_t>(cycles);
  const std::lock_guard lock(report_mutex);
  report()[format("%s:%d", site.file, site.line)] += static_cast<uint64_t>(cycles);
}

}  // namespace

int conflicts_of_16_byte_rows(const uint32_t (&addresses)[8]) {
  // Almost always none: eight rows in eight different groups of four banks.
  uint32_t groups = 0;
  for (const uint32_t address : addresses) groups |= 1u << ((address >> 4) & 7u);
  return groups == 0xffu ? 0 : conflicts_of_phase(addresses, 0xffu, 8, 4);
}

void note_shared_access(const void* p, uint32_t bytes, Site site) {
  const tsan::IgnoreAccesses ignore;
  Thread& me = *current;
  Block& block = *me.block;
  const uint32_t address = static_cast<uint32_t>(
      static_cast<size_t>(static_cast<const unsigned char*>(p) - block.shared.base()) +
      kSharedBase);
  shared_at(address, bytes, bytes, "shared memory", site);
  if (!settings().counts_bank_conflicts) return;

  AccessLog& log = block.accesses;
  AccessLog::SiteLog& at = log.sites[{site.file, site.line, me.warp_index}];
  const uint64_t n = at.n_accesses[me.lane]++;
  // Accesses before at.first are complete and counted.
  while (at.open.size() <= n - at.first) at.open.push_back({});
  WarpAccess& access = at.open[n - at.first];
  access.bytes = bytes;
  access.lanes |= 1u << me.lane;
  access.addresses[me.lane] = address;
  while (!at.open.empty() && at.open.front().lanes == ~0u) {
    count(block, at.open.front(), site);
    at.open.pop_front();
    ++at.first;
  }
}

void finish_shared_accesses(Block& block) {
  const tsan::IgnoreAccesses ignore;
  for (const auto& [key, site_log] : block.accesses.sites)
    for (const WarpAccess& access : site_log.open)
      count(block, access, {std::get<0>(key), std::get<1>(key)});
  block.accesses.sites.clear();
}

std::vector<std::string> take_conflict_sites() {
  const std::lock_guard lock(report_mutex);
  std::vector<std::string> lines;
  for (const auto& [site, cycles] : report())
    lines.push_back(site + ": " + std::to_string(cycles) + " cycles");
  report().clear();
  return lines;
}

}  // namespace zc::emu
