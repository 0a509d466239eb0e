// What comes between a layer's first products and its attention: RoPE, then the append. Rows of a
// decode step stay in the cache from one to the other.
namespace zc::cpu {
namespace ZC_ISA {

void rope_append(const OpContext& ctx, const RopeAppendArgs& a) {
  rope(ctx, {a.q, a.q_cos, a.q_sin, a.q_out});
  TensorView k = a.k_out;
  if (!k.defined()) {
    k = a.k;
    k.dtype = a.q_out.dtype;
    k.data = thread_scratch(0, static_cast<size_t>(k.length()));  // read by all threads
  }
  rope(ctx, {a.k, a.cos, a.sin, k});
  append_kv(ctx, {k, a.v, a.pool, a.tables, a.starts, a.cu_seqlens, a.layer});
}

}  // namespace ZC_ISA
}  // namespace zc::cpu
