#pragma once

#include "csrc/cuda/mixed_attention/work_plan.h"

// The warp that reads tables and brings the consumers their units, a ring of slots ahead of them
// and on into the block's next items, so that no consumer waits for an address.
namespace zc::cuda::mixed {

// A page weighs what its bytes do and so much more. It takes nearly as many instructions whatever
// its formats are, and those are a multiprocessor's own to run, while all share the memory.
inline constexpr int kComputeBytes = 4096;

// A segment's part in one split, as one lane keeps it.
struct LaneSegment {
  Layout layout;
  int32_t n_tokens;
  int32_t pages_begin;  // word of the table with the segment's first page
  int32_t params_unit;
  int32_t n_unseen;  // units in front that no column sees
  int32_t n_units;   // behind them
  int32_t weight;    // of all units, in units of a page address (2^31 of which no pool has)
  int32_t seen_from[kColumns];  // with a sliding window: the columns' first tokens
  int32_t first_unit;
  int32_t own_units;  // of the split
};

// What one lane copies of a unit: one page, or its K or V part.
struct Part {
  bool exists;
  int page;  // of the unit
  int slot;  // of the unit
  int to;    // byte of the slot
  int from;  // byte of the page
  int n_bytes;
};

// What one consumer is given in one round.
struct Unit {
  bool exists;
  int n_behind;  // it, in its segment, that are the consumer's as well
  Layout layout;
  int32_t unit;  // of its segment
  int32_t n_tokens;
  int32_t pages_begin;
  int32_t source;  // the lane that has its segment
  Part part;       // for this lane to copy
  bool has_page;   // that part
  int32_t page;    // what the table has for it, not yet looked at
};

template <int kDim>
ZC_DEVICE Part part_of(Layout layout, int index) {
  const int in_slot = layout.in_slot<kDim>();
  const int bytes = layout.page_bytes();
  if (in_slot == 0) {
    const int k_bytes = format_bits(layout.k_format()) * 2 * kDim;
    return {index < 2,
            0,
            index & 1,
            0,
            index == 0 ? 0 : k_bytes,
            index == 0 ? k_bytes : bytes - k_bytes};
  }
  return {index < layout.pages(),           index, slot_of(in_slot, index),
          place_of(in_slot, index) * bytes, 0,     bytes};
}

template <typename Block>
class Producer {
 public:
  using Memory = BlockMemory<Block>;
  static constexpr int kDim = Block::kDim;
  static constexpr bool kBulk = Block::kBulk;
  static constexpr int kStages = Block::kStages;
  static constexpr int kConsumers = Block::kConsumers;

  ZC_DEVICE Producer(const Params& p, Memory& memory)
      : p_(p),
        memory_(memory),
        lane_(static_cast<int>(threadIdx.x) & 31),
        consumer_(lane_ >> 2),
        part_(lane_ & 3) {}

  // Everything that this block's items need, in order.
  ZC_DEVICE void run(const WorkLine& line) {
    const int piece = line.piece_of(static_cast<int>(blockIdx.x) / line.team);
    // Blocks may be left over, and a batch may be nothing.
    if (piece >= 0 && line.cost() > 0) {
      if (lane_ < 2) memory_.piece[lane_] = line.piece_begin(piece + lane_);
      __syncwarp();
      ZC_NO_UNROLL for (int seq = line.sequence_at(memory_.piece[0]);
                        seq < line.n_seqs && line.cost_before[seq] < memory_.piece[1]; ++seq)
          push_sequence(line, seq);
    }
    push_mark(kQuit, 0);
  }

 private:
  // The splits of a sequence that begin in the block's piece of the line.
  ZC_DEVICE void push_sequence(const WorkLine& line, int seq) {
    const SequenceWork work = seq < kKeptWorks ? memory_.works[seq] : sequence_work(p_, seq);
    const int64_t before = line.cost_before[seq];
    const auto splits_before = [&](int64_t place) {
      const int64_t n = (place - before + work.split_cost - 1) / work.split_cost;
      return n < work.n_splits_in_line ? n : work.n_splits_in_line;
    };
    const int member = static_cast<int>(blockIdx.x) % line.team;
    const int64_t end_index = splits_before(memory_.piece[1]);
    int64_t index = memory_.piece[0] > before ? splits_before(memory_.piece[0]) : 0;
    if (index >= end_index || member >= work.team) return;
    if (!work.table.words) {
      begin_item();
      if (lane_ == 0) item().head = {work.q_begin, work.q_len, 1, 0, 0, 0, 1, 0, 1, 0};
      __syncwarp();
      push_mark(kMasked, 0);
      return;
    }
    ZC_NO_UNROLL while (index < end_index) {
      const int64_t row = index / work.n_splits;  // of (KV head, columns of a team)
      const int split = static_cast<int>(index - row * work.n_splits);
      const int64_t behind = split + (end_index - index);
      const int end_split = behind < work.n_splits ? static_cast<int>(behind) : work.n_splits;
      const int kv_head = static_cast<int>(row / work.n_column_teams);
      const int column_team = static_cast<int>(row - int64_t{kv_head} * work.n_column_teams);
      const int first_column = (column_team * work.team + member) * kColumns;
      const int n_columns = work.q_len * work.group - first_column;
      index += end_split - split;
      if (n_columns <= 0) continue;
      const int64_t origin = before + row * work.n_splits * work.split_cost;
      push_splits(work.table, {work.q_begin, work.q_len, work.group, first_column,
                               n_columns < kColumns ? n_columns : kColumns, kv_head, work.n_splits,
                               split, end_split, line.piece_at(origin) * line.team + member});
    }
  }

  ZC_DEVICE Item<kDim>& item() const { return memory_.items[item_flag_ == 0 ? 0 : 1]; }

  // The next item's place in shared memory, once nobody reads what is there.
  ZC_DEVICE void begin_item() {
    const int place = n_begun_ & 1;
    simt::mbarrier_wait(simt::smem_u32(memory_.item_free + place), (n_begun_ >> 1 & 1) ^ 1);
    ++n_begun_;
    item_flag_ = place == 0 ? 0u : kItemParity;
  }

  ZC_DEVICE void push_splits(const SequenceTable& table, const ItemHead& next) {
    // q, what the table counts, and its entries are asked for together.
    constexpr int kWords = (kDim + 63) / 64;  // of a column and lane
    const auto has_word = [&](int w) { return kDim % 64 == 0 || lane_ + 32 * w < kDim / 2; };
    uint32_t q[kColumns][kWords];
    ZC_UNROLL for (int column = 0; column < kColumns; ++column) {
      const bool exists = column < next.n_columns;
      const uint32_t* from = reinterpret_cast<const uint32_t*>(p_.q) +
                             (exists ? next.row(p_, column) : 0) * (kDim / 2) + lane_;
      ZC_UNROLL for (int w = 0; w < kWords; ++w) q[column][w] =
          exists && has_word(w) ? from[32 * w] : 0u;
    }
    const int first = p_.tail ? 0 : 1;
    const Segment ahead = read_lane_segment(table, next, first);
    const int n_segments = checked_segment_count(p_.faults, table.words, p_.layer, next.kv_head);
    LaneSegment own = lane_segment(table, next, first, n_segments, ahead);
    uint32_t total = sum(own.weight);
    for (int base = first + 32; base < n_segments; base += 32)
      total += sum(lane_segment(table, next, base, n_segments).weight);
    begin_item();
    folded_ = -1;
    ZC_UNROLL for (int column = 0; column < kColumns; ++column)
        ZC_UNROLL for (int w = 0; w < kWords; ++w) if (has_word(w)) item()
            .q[column][lane_ + 32 * w] = q[column][w];
    if (lane_ == 0) item().head = next;
    __syncwarp();
    const ItemHead& head = item().head;
    // floor(total split / n_splits) without a product of 64 bits
    const uint32_t n_splits = static_cast<uint32_t>(head.n_splits);
    const uint32_t quotient = total / n_splits;
    const uint32_t remainder = total % n_splits;
    const auto boundary = [&](int i) {
      const uint32_t u = static_cast<uint32_t>(i);
      return static_cast<int>(quotient * u + remainder * u / n_splits);
    };
    ZC_NO_UNROLL for (int split = head.first_split; split < head.end_split; ++split) {
      const int begin = boundary(split);
      const int end = boundary(split + 1);
      int weight_before = 0;
      ZC_NO_UNROLL for (int base = first; base < n_segments; base += 32) {
        if (n_segments - first > 32) own = lane_segment(table, head, base, n_segments);
        const int through = inclusive_sum(own.weight);
        const int before = weight_before + through - own.weight;
        own.own_units = 0;
        if (own.n_units > 0) {
          const int unit_weight = own.weight / own.n_units;
          own.first_unit = units_below(begin - before, unit_weight, own.n_units);
          own.own_units = units_below(end - before, unit_weight, own.n_units) - own.first_unit;
        }
        weight_before += __shfl_sync(~0u, through, 31);
        push_units(table, head, base, own);
      }
      push_mark(kEnd | (split + 1 == head.end_split ? kIsLast : 0u), split);
    }
  }

  // What the table has for the segment that this lane holds; it may count less.
  ZC_DEVICE Segment read_lane_segment(const SequenceTable& table, const ItemHead& head,
                                      int base) const {
    if (base + lane_ >= table.words[kTableMaxSegments]) return {};
    return read_segment(table.words, p_.layer, head.kv_head, base + lane_);
  }

  // The segment that this lane holds. Called by the whole warp.
  ZC_DEVICE LaneSegment lane_segment(const SequenceTable& table, const ItemHead& head, int base,
                                     int n_segments) const {
    return lane_segment(table, head, base, n_segments, read_lane_segment(table, head, base));
  }
  ZC_DEVICE LaneSegment lane_segment(const SequenceTable& table, const ItemHead& head, int base,
                                     int n_segments, const Segment& read) const {
    LaneSegment own{};
    Segment s{};
    if (base + lane_ < n_segments) {
      s = checked_segment(p_.faults, table, read, p_.pool, p_.pool_bytes, p_.layer, head.kv_head,
                          base + lane_, kDim)
              .segment;
    }
    own.layout = layout_of<kDim>(s.k_format, s.v_format);
    own.n_tokens = s.n_tokens;
    own.pages_begin = s.pages_begin;
    own.params_unit = s.params_unit;
    if (p_.sliding_window > 0) find_first_seen(head, s, own);
    const int unit_tokens = own.layout.pages() * kPageTokens;
    int n_units = s.n_tokens > 0 ? (s.n_tokens - 1) / unit_tokens + 1 : 0;
    if (p_.sliding_window > 0 && sees_as_one(head.group)) {
      own.n_unseen = own.seen_from[0] < s.n_tokens ? own.seen_from[0] / unit_tokens : n_units;
      n_units -= own.n_unseen;
    }
    const int64_t weight = int64_t{n_units} * own.layout.pages() *
                           ((own.layout.page_bytes() + kComputeBytes) / kPageUnitBytes);
    // All segments' weights together are an int32. A list that is too long for that is of pages
    // that come again and again: no pool has so many.
    if (!check_data(p_.faults, weight <= INT32_MAX / (n_segments > 0 ? n_segments : 1),
                    FaultReason::kTableOutside, p_.layer, head.kv_head, base + lane_))
      return {};
    own.n_units = n_units;
    own.weight = static_cast<int>(weight);
    return own;
  }

  // Tokens lie in a segment in order of position, so a sliding window hides the first ones. Called
  // by the whole warp, each lane with its own segment.
  ZC_DEVICE void find_first_seen(const ItemHead& head, const Segment& s, LaneSegment& own) const {
    const int64_t span = s.span < 0 ? -int64_t{s.span} : int64_t{s.span};
    int known_query = -1;
    int first = 0;
    ZC_NO_UNROLL for (int column = 0; column < kColumns; ++column) {
      const int query = head.query(column < head.n_columns ? column : 0);
      if (query != known_query) {
        known_query = query;
        // Positions of the segment from its first on that lie in front of the window.
        const int64_t n =
            int64_t{p_.positions[head.q_begin + query]} - p_.sliding_window + 1 - int64_t{s.start};
        first = n <= 0 ? 0 : s.n_tokens;
        if (s.span == 0 && n > 0 && n < s.n_tokens) first = static_cast<int>(n);
        // Where the window begins within the bitmap, what is behind is counted, which is less. A
        // damaged segment has no tokens.
        uint32_t waiting = __ballot_sync(~0u, s.n_tokens > 0 && n > 0 && n < span);
        while (waiting != 0) {
          const int source = __ffs(static_cast<int>(waiting)) - 1;
          waiting &= waiting - 1;
          const int behind =
              count_tokens(__shfl_sync(~0u, s.bitmap_unit, source),
                           __shfl_sync(~0u, s.span < 0 ? 1 : 0, source) != 0,
                           __shfl_sync(~0u, n, source), __shfl_sync(~0u, span, source));
          if (lane_ == source) first = behind < s.n_tokens ? s.n_tokens - behind : 0;
        }
      }
      // Without a runtime index, which would take local memory.
      ZC_UNROLL for (int i = 0; i < kColumns; ++i) if (i == column) own.seen_from[i] = first;
    }
  }

  // Set bits, or clear ones, of a bitmap from bit `begin` on. Called by the whole warp.
  ZC_DEVICE int count_tokens(int32_t bitmap_unit, bool clear, int64_t begin, int64_t end) const {
    const uint8_t* bytes = p_.pool + int64_t{bitmap_unit} * kPageUnitBytes;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(bytes);
    const int64_t first = begin >> 5;
    const int64_t last = end >> 5;  // of fewer bits than 32, perhaps none
    int n = 0;
    ZC_NO_UNROLL for (int64_t w = first + lane_; w <= last; w += 32) {
      uint32_t x = 0;
      if (w < last) {
        x = words[w];
      } else {
        for (int i = 0; 8 * i < (end & 31); ++i) x |= uint32_t{bytes[4 * w + i]} << 8 * i;
      }
      if (clear) x = ~x;
      if (w == first) x &= ~0u << (begin & 31);
      if (w == last) x &= ~(~0u << (end & 31));
      n += __popc(x);
    }
    return static_cast<int>(sum(n));
  }

  // How many of n_units units of so much weight begin below `weight`.
  ZC_DEVICE static int units_below(int weight, int unit_weight, int n_units) {
    if (weight <= 0) return 0;
    const int n = (weight - 1) / unit_weight + 1;
    return n < n_units ? n : n_units;
  }

  ZC_DEVICE int inclusive_sum(int x) const {
    ZC_UNROLL for (int d = 1; d < 32; d *= 2) {
      const int y = __shfl_up_sync(~0u, x, d);
      if (lane_ >= d) x += y;
    }
    return x;
  }
  ZC_DEVICE uint32_t sum(int x) const {
    return static_cast<uint32_t>(__shfl_sync(~0u, inclusive_sum(x), 31));
  }

  // All units of a split in the segments that the lanes hold, segment `base` being lane 0's: each
  // consumer takes neighbours, so that it meets few segments. The table's words of one round are
  // asked for before the round before is brought.
  ZC_DEVICE void push_units(const SequenceTable& table, const ItemHead& head, int base,
                            const LaneSegment& own) {
    const int through = inclusive_sum(own.own_units);
    const int n_units = __shfl_sync(~0u, through, 31);
    const int n_rounds = (n_units + kConsumers - 1) / kConsumers;
    const int end = consumer_ < kConsumers ? (consumer_ + 1) * n_units / kConsumers : 0;
    int index = consumer_ * n_units / kConsumers;  // of those that the lanes' segments have
    Unit next = find_unit(own, through, end, index);
    find_page(table, next);
    ZC_NO_UNROLL for (int round = 0; round < n_rounds; ++round) {
      const Unit now = next;
      ++index;
      ++next.unit;
      --next.n_behind;
      next.exists = index < end;
      if (__any_sync(~0u, next.exists && next.n_behind < 0))
        next = find_unit(own, through, end, index);
      find_page(table, next);
      push_fold(base, own, now);
      push_unit(head, base, own, now);
    }
  }

  // All about unit `index` but its page; through: the units of this lane's segment and of all
  // before; end: of the consumer's units.
  ZC_DEVICE Unit find_unit(const LaneSegment& own, int through, int end, int index) const {
    int source = 0;  // the first lane whose `through` is above index
    ZC_UNROLL for (int step = 16; step > 0; step /= 2) {
      const int before = __shfl_sync(~0u, through, source + step - 1);
      if (before <= index) source += step;
    }
    const int behind = __shfl_sync(~0u, through, source);
    Unit u{};
    u.exists = index < end;
    u.n_behind = (behind < end ? behind : end) - index - 1;
    u.layout.word = __shfl_sync(~0u, own.layout.word, source);
    u.unit =
        index + __shfl_sync(~0u, own.n_unseen + own.first_unit - (through - own.own_units), source);
    u.source = source;
    u.n_tokens = __shfl_sync(~0u, own.n_tokens, source);
    u.pages_begin = __shfl_sync(~0u, own.pages_begin, source);
    u.part = part_of<kDim>(u.layout, part_);
    return u;
  }
  ZC_DEVICE void find_page(const SequenceTable& table, Unit& u) const {
    const int page = u.unit * u.layout.pages() + u.part.page;
    u.has_page = u.exists && u.part.exists && page < (u.n_tokens - 1) / kPageTokens + 1;
    if (u.has_page) u.page = table.words[u.pages_begin + page];
  }

  // ---- slots ----

  ZC_DEVICE uint32_t full(int consumer, int stage) const {
    return simt::smem_u32(&memory_.full[consumer][stage]);
  }
  ZC_DEVICE static int stage_of(uint32_t count) { return static_cast<int>(count % kStages); }

  // Waits until this lane's consumer has freed its next n slots.
  ZC_DEVICE void acquire(bool wants, int n) const {
    if (wants) {
      ZC_UNROLL for (int i = 0; i < 2; ++i) {
        const uint32_t count = count_ + static_cast<uint32_t>(i);
        if (i < n)
          simt::mbarrier_wait(simt::smem_u32(&memory_.empty[consumer_][stage_of(count)]),
                              (count / kStages & 1) ^ 1);
      }
    }
    __syncwarp();
  }

  // Tells every consumer something that takes no copies.
  ZC_DEVICE void push_mark(uint32_t what, int32_t first) {
    const bool is_consumer = consumer_ < kConsumers;
    acquire(is_consumer, 1);
    const int stage = stage_of(count_);
    if (is_consumer && part_ == 0)
      memory_.entries[consumer_][stage] = {0u, what | item_flag_, first, 0};
    if constexpr (kBulk) {
      if (is_consumer && part_ == 0) simt::mbarrier_arrive(full(consumer_, stage));
    } else {
      __syncwarp();
      for (int c = 0; c < kConsumers; ++c) arrive_by_lanes(c, __shfl_sync(~0u, stage, 4 * c));
    }
    if (is_consumer) ++count_;
  }

  // Brings channel parameters to the consumers whose segment is another than before.
  ZC_DEVICE void push_fold(int base, const LaneSegment& own, const Unit& u) {
    const bool wants = u.exists && base + u.source != folded_;
    if (u.exists) folded_ = base + u.source;
    const uint32_t all = __ballot_sync(~0u, wants);
    if (all == 0) return;
    acquire(wants, 1);
    const bool codes = u.layout.k_quantized() || u.layout.v_quantized();
    constexpr uint32_t kBytes = 6 * kDim;
    const int32_t params_unit = __shfl_sync(~0u, own.params_unit, u.source);
    const uint8_t* params = p_.pool + int64_t{params_unit} * kPageUnitBytes;
    const int stage = stage_of(count_);
    uint8_t* slot = memory_.ring[consumer_ < kConsumers ? consumer_ : 0][stage];
    if (wants && part_ == 0)
      memory_.entries[consumer_][stage] = {u.layout.word, kFold | item_flag_, 0, 0};
    if (p_.sliding_window > 0) {
      ZC_UNROLL for (int i = 0; i < kColumns; ++i) {
        const int from = __shfl_sync(~0u, own.seen_from[i], u.source);
        if (wants && part_ == 0) memory_.seen_from[consumer_][stage][i] = from;
      }
    }
    if constexpr (kBulk) {
      if (wants && part_ == 0) {
        simt::mbarrier_arrive_expect_tx(full(consumer_, stage), codes ? kBytes : 0u);
        if (codes) simt::bulk_copy(simt::smem_u32(slot), params, kBytes, full(consumer_, stage));
      }
    } else {
      __syncwarp();
      for (int c = 0; c < kConsumers; ++c) {
        if ((all >> (4 * c) & 1u) == 0) continue;
        const int to = __shfl_sync(~0u, stage, 4 * c);
        const int unit = __shfl_sync(~0u, codes ? params_unit : -1, 4 * c);
        if (unit >= 0)
          copy_by_lanes(simt::smem_u32(memory_.ring[c][to]),
                        p_.pool + int64_t{unit} * kPageUnitBytes, static_cast<int>(kBytes));
        arrive_by_lanes(c, to);
      }
    }
    if (wants) ++count_;
  }

  // Whether this lane has a page to copy, and it lies in the pool.
  ZC_DEVICE bool page_exists(const ItemHead& head, int segment, const Unit& u) const {
    if (!u.has_page) return false;
    const int64_t address = u.page;
    const bool inside =
        address >= 0 && address * kPageUnitBytes + u.layout.page_bytes() <= p_.pool_bytes;
    return check_data(p_.faults, inside, FaultReason::kTableOutside, p_.layer, head.kv_head,
                      segment);
  }

  // Brings the consumers the pages of a round.
  ZC_DEVICE void push_unit(const ItemHead& head, int base, const LaneSegment& own, const Unit& u) {
    const Part& part = u.part;
    const int segment = base + u.source;
    const int slots = unit_slots(u.layout.in_slot<kDim>());
    const int first = u.unit * u.layout.pages() * kPageTokens;
    bool is_cut = false;
    if (p_.sliding_window > 0) {
      int seen_by_all = 0;
      ZC_UNROLL for (int i = 0; i < kColumns; ++i) if (own.seen_from[i] > seen_by_all) seen_by_all =
          own.seen_from[i];
      is_cut = first < __shfl_sync(~0u, seen_by_all, u.source);
    }
    acquire(u.exists, slots);
    const bool found = page_exists(head, segment, u);
    const uint32_t units = __ballot_sync(~0u, u.exists && part_ == 0);
    if (u.exists && part_ == 0) {
      const bool causal = p_.causal && segment == 0 && head.q_len > 1;
      memory_.entries[consumer_][stage_of(count_)] = {
          u.layout.word,
          kUnit | item_flag_ | (causal ? kIsCausal : 0u) | (is_cut ? kIsCut : 0u) |
              (slots == 2 ? kHasTwoSlots : 0u),
          first, u.n_tokens};
    }
    const bool foreign = found && is_foreign(u.layout, part_);
    if (__any_sync(~0u, foreign)) convert_parts(u, foreign);
    const bool copies = found && !foreign;
    const int stage = stage_of(count_ + static_cast<uint32_t>(part.slot));
    if constexpr (kBulk) {
      const uint32_t own_lanes = 0xfu << (lane_ & ~3);
      const uint32_t in_first = __ballot_sync(~0u, copies && part.slot == 0) & own_lanes;
      const uint32_t in_second = __ballot_sync(~0u, copies && part.slot == 1) & own_lanes;
      if (u.exists && part_ < slots) {
        const int n = __popc(part_ == 0 ? in_first : in_second);
        simt::mbarrier_arrive_expect_tx(
            full(consumer_, stage_of(count_ + static_cast<uint32_t>(part_))),
            static_cast<uint32_t>(n * part.n_bytes));
      }
      __syncwarp();
      // Pages of a slot that follow each other in the pool, as most do, are one copy.
      const int before = __shfl_up_sync(~0u, copies ? u.page : INT32_MIN, 1);
      const bool joins =
          copies && part.to > 0 && before + u.layout.page_bytes() / kPageUnitBytes == u.page;
      const uint32_t joined = __ballot_sync(~0u, joins) >> lane_ >> 1;  // of the lanes behind
      const int n_pages = __ffs(static_cast<int>(~joined));
      if (copies && !joins)
        simt::bulk_copy_once(simt::smem_u32(memory_.ring[consumer_][stage] + part.to),
                             p_.pool + int64_t{u.page} * kPageUnitBytes + part.from,
                             static_cast<uint32_t>(n_pages * part.n_bytes), full(consumer_, stage));
    } else {
      __syncwarp();
      for (int c = 0; c < kConsumers; ++c) {
        if ((units >> (4 * c) & 1u) == 0) continue;
        const Layout layout{__shfl_sync(~0u, u.layout.word, 4 * c)};
        const uint32_t count = __shfl_sync(~0u, count_, 4 * c);
        const int n_slots = unit_slots(layout.in_slot<kDim>());
        for (int slot = 0; slot < n_slots; ++slot) {
          const int to = stage_of(count + static_cast<uint32_t>(slot));
          for (int index = 0; index < kTiles; ++index) {
            const Part other = part_of<kDim>(layout, index);
            const int page = __shfl_sync(~0u, copies ? u.page : -1, 4 * c + index);
            if (page < 0 || other.slot != slot) continue;
            copy_by_lanes(simt::smem_u32(memory_.ring[c][to] + other.to),
                          p_.pool + int64_t{page} * kPageUnitBytes + other.from, other.n_bytes);
          }
          arrive_by_lanes(c, to);
        }
      }
    }
    if (u.exists) count_ += static_cast<uint32_t>(slots);
  }

  ZC_DEVICE void copy_by_lanes(uint32_t to, const uint8_t* from, int n_bytes) const {
    for (int b = 16 * lane_; b < n_bytes; b += 512) simt::cp_async_16_once(to + b, from + b, 16);
  }

  // Completes a slot, kLaneArrivals in all: each lane's copies, and what the warp wrote by itself.
  ZC_DEVICE void arrive_by_lanes(int consumer, int stage) const {
    simt::cp_async_mbarrier_arrive(full(consumer, stage));
    if (lane_ == 0) simt::mbarrier_arrive(full(consumer, stage));
  }

  // ---- floats other than f16 ----

  ZC_DEVICE static bool is_foreign(Layout layout, int part) {
    if (!layout.converts()) return false;
    const Format f = part == 0 ? layout.k_format() : layout.v_format();
    return f == Format::kF32 || f == Format::kBF16;
  }

  // Stores the parts of all lanes that have foreign ones as f16.
  ZC_DEVICE void convert_parts(const Unit& u, bool foreign) const {
    uint32_t waiting = __ballot_sync(~0u, foreign);
    while (waiting != 0) {
      const int source = __ffs(static_cast<int>(waiting)) - 1;
      waiting &= waiting - 1;
      const Layout layout{__shfl_sync(~0u, u.layout.word, source)};
      const int page = __shfl_sync(~0u, u.page, source);
      const int part = source & 3;
      const int stage = stage_of(__shfl_sync(~0u, count_, source) + static_cast<uint32_t>(part));
      uint8_t* slot = memory_.ring[source >> 2][stage];
      const uint8_t* from = p_.pool + int64_t{page} * kPageUnitBytes;
      if (part == 0)
        convert_part<true>(from, layout.k_format(), slot);
      else
        convert_part<false>(from + format_bits(layout.k_format()) * 2 * kDim, layout.v_format(),
                            slot);
    }
    if constexpr (kBulk) simt::fence_async();  // a slot's next copy comes by another road
    __syncwarp();
  }

  // A float part of one page as f16, in fragment order, by ordinary loads and stores.
  template <bool kKey>
  ZC_DEVICE void convert_part(const uint8_t* part, Format format, uint8_t* to) const {
    uint32_t* words = reinterpret_cast<uint32_t*>(to);
    ZC_NO_UNROLL for (int i = 0; i < kDim / 4; ++i) {
      const int row = (lane_ >> 2) + 8 * (i & 1);
      const int column = 2 * (lane_ & 3) + 8 * ((i >> 1) & 1);
      const int square = i >> 2;
      const auto element = [&](int odd) {
        const int token = kKey ? row : column + odd;
        const int channel = 16 * square + (kKey ? column + odd : row);
        return read_float<kKey>(part, format, kDim, token, channel);
      };
      words[word_index(kDim / 4, lane_, i)] =
          from_float<f16>(element(0)).bits | static_cast<uint32_t>(from_float<f16>(element(1)).bits)
                                                 << 16;
    }
  }

  const Params& p_;
  Memory& memory_;
  const int lane_;
  const int consumer_;   // that this lane brings something
  const int part_;       // of a unit
  uint32_t count_ = 0;   // slots of the consumer that were filled
  int32_t folded_ = -1;  // the segment that the consumer was given parameters of
  int n_begun_ = 0;      // items
  uint32_t item_flag_ = 0;
};

}  // namespace zc::cuda::mixed
