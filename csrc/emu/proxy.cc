#include "csrc/emu/proxy.h"

#include <cstring>
#include <utility>

#include "csrc/emu/mbarrier.h"
#include "csrc/emu/order.h"
#include "csrc/emu/scheduler.h"

namespace zc::emu {

ProxyScope::ProxyScope(Block& block, void* context, const void* token)
    : block_(block), issuer_(tsan::current_context()) {
  tsan::switch_to(context);
  tsan::acquire(token);
}

ProxyScope::~ProxyScope() {
  tsan::release(&block_);  // acquired when the grid has ended
  tsan::switch_to(issuer_);
}

void write_by_proxy(Block& block, uint32_t to, uint32_t bytes, uint32_t barrier, Site site,
                    std::function<void()> write) {
  const tsan::IgnoreAccesses ignore;
  ++block.stats.bulk_copies;
  tsan::release(&block.tokens->bulk_issued);
  unsigned char* destination = block.shared.base() + (to - kSharedBase);
  const auto operation = [=, write = std::move(write)](Block& b) {
    {
      const ProxyScope proxy(b, b.next_proxy(), &b.tokens->bulk_issued);
      tsan::note_write(destination, bytes);
      write();
      tsan::release(&b.tokens->async_written);
      tsan::release(mbarrier_token(b, barrier));
    }
    mbarrier_complete_bytes(b, barrier, bytes, site);
  };
  if (is_late(block)) {
    std::memset(destination, 0xff, bytes);
    block.async.push(operation);
  } else {
    operation(block);
  }
}

void arrive_by_proxy(Block& block, uint32_t barrier, Site site, std::function<void()> finish) {
  const tsan::IgnoreAccesses ignore;
  tsan::release(&block.tokens->bulk_issued);
  const auto operation = [=, finish = std::move(finish)](Block& b) {
    {
      const ProxyScope proxy(b, b.next_proxy(), &b.tokens->bulk_issued);
      finish();
      tsan::release(mbarrier_token(b, barrier));
    }
    mbarrier_complete_arrival(b, barrier, site);
  };
  if (is_late(block))
    block.async.push(operation);
  else
    operation(block);
}

}  // namespace zc::emu

namespace zc::simt {

void fence_async() { emu::tsan::release(&emu::current->block->tokens->fenced); }

}  // namespace zc::simt
