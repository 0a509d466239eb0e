#include "csrc/emu/tensor_map.h"

#include <cstring>

#include "csrc/emu/mbarrier.h"
#include "csrc/emu/proxy.h"
#include "csrc/emu/scheduler.h"

namespace zc::simt {

void tma_load_3d(uint32_t to, const TensorMap* map, uint32_t barrier, int c0, int c1, int c2,
                 emu::Site site) {
  const TensorMap m = *map;
  const int first[3] = {c0, c1, c2};
  const uint32_t element_bytes = static_cast<uint32_t>(m.strides[0]);
  const uint32_t row_bytes = m.box[0] * element_bytes;
  const uint32_t bytes = row_bytes * m.box[1] * m.box[2];
  emu::shared_at(to, bytes, 128, "tensor copy", site);
  emu::mbarrier_check(barrier, site);
  if (m.swizzle && row_bytes > static_cast<uint32_t>(m.swizzle))
    emu::fail("%s:%d: tensor copy: rows of %u bytes, swizzled over %d", site.file, site.line,
              row_bytes, m.swizzle);
  if (reinterpret_cast<uintptr_t>(m.base) % 16 != 0 || m.strides[1] % 16 != 0 ||
      m.strides[2] % 16 != 0)
    emu::fail("%s:%d: tensor copy: base or strides are no multiples of 16 bytes", site.file,
              site.line);

  emu::Block& block = *emu::current->block;
  unsigned char* shared = block.shared.base();
  const auto write = [=] {
    uint32_t offset = to - emu::kSharedBase;
    for (uint32_t i2 = 0; i2 < m.box[2]; ++i2)
      for (uint32_t i1 = 0; i1 < m.box[1]; ++i1)
        for (uint32_t i0 = 0; i0 < m.box[0]; ++i0, offset += element_bytes) {
          // A negative coordinate becomes a huge one, outside too.
          const uint64_t at[3] = {static_cast<uint64_t>(int64_t{first[0]} + i0),
                                  static_cast<uint64_t>(int64_t{first[1]} + i1),
                                  static_cast<uint64_t>(int64_t{first[2]} + i2)};
          unsigned char* destination = shared + emu::swizzled(offset, m.swizzle);
          if (at[0] < m.sizes[0] && at[1] < m.sizes[1] && at[2] < m.sizes[2]) {
            const unsigned char* from =
                m.base + at[0] * m.strides[0] + at[1] * m.strides[1] + at[2] * m.strides[2];
            std::memcpy(destination, from, element_bytes);
          } else {
            std::memset(destination, 0, element_bytes);
          }
        }
  };
  emu::write_by_proxy(block, to, bytes, barrier, site, write);
}

}  // namespace zc::simt
