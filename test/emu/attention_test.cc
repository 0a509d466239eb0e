// Two attention kernels, right in every order; and with defects planted one at a time, each found
// by the runs that should find it. (docs of what finds what: CONTRIBUTING.md, "CUDA kernels".)
#include <cmath>
#include <memory>
#include <vector>

#include "csrc/emu/random.h"
#include "test/emu/attention_mma.h"
#include "test/emu/attention_wgmma.h"
#include "test/emu/harness.h"

namespace zc::test {

namespace {

struct Shape {
  int n;
  int n_heads;
  int head_dim;
  bool causal;
};

// Inputs and outputs of exactly their size, outputs NaN.
template <typename T>
struct Tensors {
  explicit Tensors(const Shape& s)
      : shape(s),
        size(static_cast<size_t>(s.n) * s.n_heads * s.head_dim),
        q(new T[size]),
        k(new T[size]),
        v(new T[size]),
        out(new T[size]),
        lse(new float[static_cast<size_t>(s.n) * s.n_heads]) {
    emu::Random random(size);
    const auto next = [&] { return static_cast<float>(random.below(20001)) / 1e4f - 1.0f; };
    for (size_t i = 0; i < size; ++i) {
      q[i] = from_float<T>(2 * next());
      k[i] = from_float<T>(2 * next());
      v[i] = from_float<T>(next());
      out[i].bits = 0xffff;
    }
    for (int i = 0; i < s.n * s.n_heads; ++i) lse[i] = NAN;
  }
  float scale_log2() const {
    return 1.4426950408889634f / std::sqrt(static_cast<float>(shape.head_dim));
  }
  double at(const std::unique_ptr<T[]>& x, int row, int head, int channel) const {
    return to_float(
        x[(static_cast<size_t>(row) * shape.n_heads + head) * shape.head_dim + channel]);
  }

  // Largest errors against attention in double precision; infinite where something is no number.
  void expect_attention(double allowed, double allowed_lse) const {
    const auto [n, n_heads, head_dim, causal] = shape;
    double worst = 0, worst_lse = 0;
    std::vector<double> scores(n), sums(head_dim);
    for (int head = 0; head < n_heads; ++head)
      for (int row = 0; row < n; ++row) {
        const int n_keys = causal ? row + 1 : n;
        double highest = -INFINITY, sum = 0;
        for (int key = 0; key < n_keys; ++key) {
          scores[key] = 0;
          for (int c = 0; c < head_dim; ++c)
            scores[key] += at(q, row, head, c) * at(k, key, head, c);
          scores[key] /= std::sqrt(static_cast<double>(head_dim));
          highest = std::max(highest, scores[key]);
        }
        std::fill(sums.begin(), sums.end(), 0.0);
        for (int key = 0; key < n_keys; ++key) {
          const double weight = std::exp(scores[key] - highest);
          sum += weight;
          for (int c = 0; c < head_dim; ++c) sums[c] += weight * at(v, key, head, c);
        }
        const auto larger = [](double a, double b) {
          return b <= a ? a : std::isnan(b) ? INFINITY : b;
        };
        for (int c = 0; c < head_dim; ++c)
          worst = larger(worst, std::fabs(at(out, row, head, c) - sums[c] / sum));
        worst_lse = larger(worst_lse, std::fabs(lse[static_cast<size_t>(head) * n + row] -
                                                (highest + std::log(sum))));
      }
    if (!(worst <= allowed) || !(worst_lse <= allowed_lse))
      fail_test("n %d, %d heads of %d%s: wrong result, out differs by %g (allowed %g), lse by %g",
                n, n_heads, head_dim, causal ? ", causal" : "", worst, allowed, worst_lse);
  }

  Shape shape;
  size_t size;
  std::unique_ptr<T[]> q, k, v, out;
  std::unique_ptr<float[]> lse;
};

template <typename T>
constexpr double kAllowed = std::is_same_v<T, bf16> ? 1e-2 : 1.5e-3;

template <int kHeadDim, typename T, attention_mma::Defect kDefect>
void run_mma(int n, int n_heads, bool causal) {
  using namespace attention_mma;
  Tensors<T> x({n, n_heads, kHeadDim, causal});
  const Params p = {x.q.get(), x.k.get(), x.v.get(),      x.out.get(), x.lse.get(),
                    n,         n_heads,   x.scale_log2(), causal};
  simt::launch(&attention_kernel<kHeadDim, T, kDefect>,
               dim3(static_cast<unsigned>((n + kTile - 1) / kTile), static_cast<unsigned>(n_heads)),
               kThreads, shared_bytes<kHeadDim>(), p);
  x.expect_attention(kAllowed<T>, 1e-5);
}

template <attention_wgmma::Defect kDefect>
void run_wgmma(int n, int n_heads, bool causal) {
  using namespace attention_wgmma;
  Tensors<bf16> x({n, n_heads, kHeadDim, causal});
  const auto map = [&](const std::unique_ptr<bf16[]>& tensor) {
    return simt::TensorMap{reinterpret_cast<const unsigned char*>(tensor.get()),
                           {kHeadDim, static_cast<uint64_t>(n_heads), static_cast<uint64_t>(n)},
                           {2, kHeadDim * 2, static_cast<uint64_t>(n_heads) * kHeadDim * 2},
                           {kHeadDim, 1, kTile},
                           128};
  };
  simt::launch(&attention_kernel<kDefect>,
               dim3(static_cast<unsigned>((n + kTile - 1) / kTile), static_cast<unsigned>(n_heads)),
               kThreads, kSharedBytes, map(x.q), map(x.k), map(x.v),
               Params{x.out.get(), x.lse.get(), n, n_heads, x.scale_log2(), causal});
  x.expect_attention(kAllowed<bf16>, 1e-5);
}

ZC_TEST(attention_mma_right) {
  using attention_mma::Defect;
  emu::take_stats();
  each_mode([] {
    run_mma<64, f16, Defect::kNone>(1, 1, true);
    run_mma<64, bf16, Defect::kNone>(63, 2, false);
    run_mma<64, f16, Defect::kNone>(64, 1, true);
    run_mma<64, bf16, Defect::kNone>(200, 2, true);
    run_mma<128, f16, Defect::kNone>(131, 1, false);
  });
  const emu::Stats stats = emu::take_stats();
  ZC_EXPECT(stats.ldmatrix > 0 && stats.ldmatrix_conflicts == 0);
}

ZC_TEST(attention_wgmma_right) {
  using attention_wgmma::Defect;
  each_mode([] {
    run_wgmma<Defect::kNone>(1, 1, true);
    run_wgmma<Defect::kNone>(65, 2, false);
    run_wgmma<Defect::kNone>(200, 2, true);
    run_wgmma<Defect::kNone>(256, 1, false);
  });
}

// Plants a defect in the builds and modes that must find it, and says by what.
template <attention_mma::Defect kDefect>
void plant_mma(const char* name, const Mode& mode, const char* report) {
  add_defect(format("defect_mma_%s_%s", name, mode.name), report, [&mode] {
    mode.enter();
    run_mma<64, bf16, kDefect>(203, 2, true);
  });
}
template <attention_wgmma::Defect kDefect>
void plant_wgmma(const char* name, const Mode& mode, const char* report) {
  add_defect(format("defect_wgmma_%s_%s", name, mode.name), report, [&mode] {
    mode.enter();
    run_wgmma<kDefect>(256, 2, false);
  });
}

const char* const kWrong = "wrong result";
const char* const kRace = "ThreadSanitizer: data race";

bool plant_all() {
  {
    using enum attention_mma::Defect;
    if (kBuild == Build::kPlain) {
      plant_mma<kWaitsForOneGroupLess>("waits_for_one_group_less", kLate, kWrong);
      plant_mma<kWaitsForOneGroupLess>("waits_for_one_group_less", kRandom, kWrong);
      plant_mma<kNoBarrierBehindWait>("no_barrier_behind_wait", kEager, kWrong);
      plant_mma<kNoBarrierBehindWait>("no_barrier_behind_wait", kLate, kWrong);
      plant_mma<kNoBarrierBehindWait>("no_barrier_behind_wait", kRandom, kWrong);
      plant_mma<kNoBarrierBeforeRefill>("no_barrier_before_refill", kEager, kWrong);
      plant_mma<kNoBarrierBeforeRefill>("no_barrier_before_refill", kLate, kWrong);
      plant_mma<kWarpSkipsBarrier>("warp_skips_barrier", kEager, "divergent __syncthreads");
      plant_mma<kWarpSkipsBarrier>("warp_skips_barrier", kLate, "divergent __syncthreads");
      plant_mma<kWarpSkipsBarrier>("warp_skips_barrier", kRandom, "divergent __syncthreads");
      plant_mma<kShuffleInBranch>("shuffle_in_branch", kEager, "exited");
      plant_mma<kShuffleInBranch>("shuffle_in_branch", kLate, "exited");
      plant_mma<kShuffleInBranch>("shuffle_in_branch", kRandom, "exited");
    }
    if (kBuild == Build::kAsan)
      plant_mma<kStoresRowsBeyond>("stores_rows_beyond", kEager, "heap-buffer-overflow");
    if (kBuild == Build::kTsan) {
      plant_mma<kNoBarrierBehindWait>("no_barrier_behind_wait", kEager, kRace);
      plant_mma<kNoBarrierBeforeRefill>("no_barrier_before_refill", kEager, kRace);
    }
  }
  {
    using enum attention_wgmma::Defect;
    if (kBuild == Build::kPlain) {
      plant_wgmma<kDoesNotWaitForEmpty>("does_not_wait_for_empty", kEager, "emulator: ");
      plant_wgmma<kDoesNotWaitForEmpty>("does_not_wait_for_empty", kLate, "emulator: ");
      plant_wgmma<kDoesNotWaitForEmpty>("does_not_wait_for_empty", kRandom, "emulator: ");
      plant_wgmma<kExpectsHalfTheBytes>("expects_half_the_bytes", kEager, "announced and not");
      plant_wgmma<kExpectsHalfTheBytes>("expects_half_the_bytes", kLate, "emulator: ");
      plant_wgmma<kNoWgmmaWait>("no_wgmma_wait", kLate, kWrong);
      plant_wgmma<kNoWgmmaWait>("no_wgmma_wait", kRandom, kWrong);
    }
    if (kBuild == Build::kTsan) {
      plant_wgmma<kDoesNotWaitForEmpty>("does_not_wait_for_empty", kEager, kRace);
      plant_wgmma<kReleasesBeforeWait>("releases_before_wait", kEager, kRace);
    }
  }
  return true;
}
const bool planted = plant_all();

}  // namespace

}  // namespace zc::test
