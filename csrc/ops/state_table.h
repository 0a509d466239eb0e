#pragma once

#include <cstdint>

#include "csrc/math/hd.h"
#include "csrc/ops/kv_table.h"

// The state table of one sequence: int32 words among those of the page tables, written by
// lib/cache, read by the ops of recurrent layers. A recurrent layer, counted among its kind from 0,
// has 1 + n_heads words: the address of its convolution page, then one address for each value head.
// An address counts units of 64 bytes from the start of the pool; all pages hold float32.
//
//   convolution page   (width - 1, channels): the last inputs of each channel, the oldest first
//   head page          (key_dim, value_dim): the state S of one value head; of a scan (state_dim, head_dim)
namespace zc {

// Word of a layer's convolution page in a state table; those of its heads follow it.
ZC_HD int64_t state_word(int64_t layer, int64_t n_heads) { return layer * (1 + n_heads); }

ZC_HD int64_t conv_page_bytes(int64_t width, int64_t channels) {
  return (width - 1) * channels * int64_t{sizeof(float)};
}
ZC_HD int64_t head_page_bytes(int64_t key_dim, int64_t value_dim) {
  return key_dim * value_dim * int64_t{sizeof(float)};
}

}  // namespace zc
