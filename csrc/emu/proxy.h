#pragma once

#include <cstdint>
#include <functional>

#include "csrc/emu/site.h"

// The asynchronous proxies: units of the hardware that read and write shared memory for a thread
// that goes on, as bulk copies and wgmma do. To ThreadSanitizer each is a context of its own,
// ordered behind what the issuing thread did before and in front of what its waiters do next.
namespace zc::emu {

struct Block;

inline constexpr int kProxies = 8;

// While it lives, accesses count as another context's, ordered behind what was released on a token.
class ProxyScope {
 public:
  ProxyScope(Block& block, void* context, const void* token);
  ~ProxyScope();
  ProxyScope(const ProxyScope&) = delete;
  ProxyScope& operator=(const ProxyScope&) = delete;

 private:
  const Block& block_;
  void* issuer_;
};

// Writes `bytes` at a shared address by `write`, now or later (settings().async), and counts them
// on an mbarrier. Until then the bytes are NaN.
void write_by_proxy(Block& block, uint32_t to, uint32_t bytes, uint32_t barrier, Site site,
                    std::function<void()> write);

// Does what is left of a thread's own copies, now or later, and arrives at an mbarrier.
void arrive_by_proxy(Block& block, uint32_t barrier, Site site, std::function<void()> finish);

}  // namespace zc::emu

namespace zc::simt {

// What this thread has written to shared memory becomes visible to the proxies.
void fence_async();

}  // namespace zc::simt
