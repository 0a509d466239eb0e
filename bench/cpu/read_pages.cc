// How fast one thread reads a 16-bit cache without computing anything: its pages of 8 KB (K and V of
// 16 tokens, head_dim 128, 4 KB each) as attention meets them, against the same bytes in one piece.
//   g++ -std=c++20 -O2 -mavx2 bench/cpu/read_pages.cc -o build/read_pages && taskset -c 1 build/read_pages
#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

namespace {

constexpr size_t kBytes = size_t{1} << 28;  // far more than any cache holds
constexpr size_t kPart = 4096;
constexpr size_t kPage = 2 * kPart;
constexpr size_t kPages = kBytes / kPage;
constexpr size_t kHeads = 8;
constexpr size_t kTogether = 16;  // pages whose K is read before their V, as attention does
constexpr int kRepeats = 15;

__m256i sums[8];

void read(const uint8_t* from, size_t bytes) {
  __m256i own[8];
  std::copy(sums, sums + 8, own);
  for (size_t i = 0; i < bytes; i += 256)
    for (size_t j = 0; j < 8; ++j)
      own[j] = _mm256_xor_si256(
          own[j], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i + 32 * j)));
  std::copy(own, own + 8, sums);
}

// Pages in some order; the first four lines of each part are asked for one part ahead, or not.
void read_pages(const uint8_t* memory, const std::vector<size_t>& order, bool ahead) {
  for (size_t first = 0; first < kPages; first += kTogether)
    for (size_t half = 0; half < kPage; half += kPart)
      for (size_t i = first; i < first + kTogether; ++i) {
        if (ahead && i + 1 < kPages)
          for (size_t line = 0; line < 256; line += 64)
            __builtin_prefetch(memory + order[i + 1] * kPage + half + line);
        read(memory + order[i] * kPage + half, kPart);
      }
}

}  // namespace

int main() {
  void* mapped =
      mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return std::perror("mmap"), 1;
  auto* memory = static_cast<uint8_t*>(mapped);
  std::memset(memory, 1, kBytes);

  std::vector<size_t> shuffled(kPages);
  std::iota(shuffled.begin(), shuffled.end(), size_t{0});
  std::shuffle(shuffled.begin(), shuffled.end(), std::mt19937(1));
  std::vector<size_t> by_head;  // heads were given pages in turns
  for (size_t head = 0; head < kHeads; ++head)
    for (size_t page = head; page < kPages; page += kHeads) by_head.push_back(page);

  const struct {
    const char* name;
    const std::vector<size_t>* order;
    bool ahead;
  } cases[] = {{"in one piece", nullptr, false},
               {"a head's pages, 8 pages apart", &by_head, false},
               {"the same, a part's first lines prefetched", &by_head, true},
               {"pages in random order", &shuffled, false},
               {"the same, prefetched", &shuffled, true}};
  std::vector<double> seconds[std::size(cases)];
  for (int repeat = 0; repeat < kRepeats; ++repeat)
    for (size_t c = 0; c < std::size(cases); ++c) {
      const auto start = std::chrono::steady_clock::now();
      if (cases[c].order)
        read_pages(memory, *cases[c].order, cases[c].ahead);
      else
        read(memory, kBytes);
      seconds[c].push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
  double whole = 0;
  for (size_t c = 0; c < std::size(cases); ++c) {
    std::sort(seconds[c].begin(), seconds[c].end());
    const double rate = kBytes / seconds[c][kRepeats / 2] / 1e9;
    if (c == 0) whole = rate;
    std::printf("%-42s %5.1f GB/s  %3.0f%%\n", cases[c].name, rate, 100 * rate / whole);
  }
  volatile int64_t sink = _mm256_extract_epi64(sums[0], 0);  // keeps what was read
  return static_cast<int>(sink & 0);
}
