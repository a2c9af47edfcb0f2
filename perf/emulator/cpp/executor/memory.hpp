// Instructions that access memory: loads, stores, asynchronous copies, atomics, matrices, parameters. The checks
// themselves stand in checks.hpp; conversion of addresses between spaces in moves.hpp.
#pragma once

#include "checks.hpp"
#include "combine.hpp"

namespace emulator {

constexpr int MOST_BYTES = 32;  // that a lane loads or stores at once: v4 of 64 bits
constexpr u32 SECTOR_BYTES = 32;
constexpr u8 ZEROS[MOST_BYTES] = {};

// What an instruction's lanes access of global memory.
class Traffic {
 public:
  void add(u64 address, u32 bytes) {
    global = true;
    for (u64 sector = address / SECTOR_BYTES; sector <= (address + bytes - 1) / SECTOR_BYTES; ++sector)
      if (count < MOST) sectors[count++] = sector;
  }
  void count_load(Counts& counts, u32 bytes) {
    if (!global) return;
    counts.load_width[width(bytes)]++;
    counts.load_requests += count > 0;
    counts.load_sectors += distinct();
  }
  void count_store(Counts& counts, u32 bytes) {
    if (!global) return;
    counts.store_width[width(bytes)]++;
    counts.store_requests += count > 0;
    counts.store_sectors += distinct();
  }
  bool global = false;

 private:
  static constexpr int MOST = 3 * LANES;
  u64 sectors[MOST];
  int count = 0;

  static int width(u32 bytes) { return 31 - __builtin_clz(bytes); }
  u64 distinct() {
    if (!std::is_sorted(sectors, sectors + count)) std::sort(sectors, sectors + count);
    return std::unique(sectors, sectors + count) - sectors;
  }
};

// The addresses [source k + offset] of all lanes. Those of 32 bits wrap.
inline void find_addresses(Step& step, int k, s32 offset, u64* addresses) {
  if (is_wide(step.in.sources[k])) {
    const u64* base = step.source<u64>(k);
    for (int lane = 0; lane < LANES; ++lane) addresses[lane] = base[lane] + (s64)offset;
  } else {
    const u32* base = step.source<u32>(k);
    for (int lane = 0; lane < LANES; ++lane) addresses[lane] = (u32)(base[lane] + offset);
  }
}
// A generic address becomes one of the space that it lies in.
inline Space resolve(Space space, u64& address) {
  if (space != Space::GENERIC) return space;
  if (address >= SHARED_WINDOW && address < SHARED_WINDOW + WINDOW_BYTES) {
    address -= SHARED_WINDOW;
    return Space::CLUSTER;
  }
  if (address >= LOCAL_WINDOW && address < LOCAL_WINDOW + WINDOW_BYTES) {
    address -= LOCAL_WINDOW;
    return Space::LOCAL;
  }
  return Space::GLOBAL;
}

// ------------------------------------------------------------------------------------------- where an access leads
// Null, and a finding, if there is no such memory; then nothing is stored, and a load gives 0.
inline u8* find_local(Step& step, u64 address, u32 bytes, int lane) {
  u64 room = step.launch.program.local_bytes;
  if (address + bytes <= room) return step.warp.local + lane * room + address;
  report(step, Kind::OUT_OF_BOUNDS, "local byte %llu", (unsigned long long)address);
  return nullptr;
}
// The block whose shared memory an address is in, or null; the address becomes one within that block.
inline Block* find_block(Step& step, u32& address, Space space) {
  u32 rank = address >> RANK_SHIFT;
  if (rank == 0) return step.warp.block;
  rank -= 1;
  address &= WITHIN_BLOCK;
  auto& blocks = step.warp.block->cluster->blocks;
  if (rank >= blocks.size()) return nullptr;
  if (space == Space::SHARED && rank != step.warp.block->rank)
    report(step, Kind::OUT_OF_BOUNDS, "an address of another block's shared memory in an instruction for one's own");
  return &blocks[rank];
}
struct SharedPlace {
  Block* block;
  u32 address;
  u8* bytes;  // null if there is no such memory
};
inline SharedPlace find_shared(Step& step, u64 wide_address, u32 bytes, int lane, bool store, Space space) {
  u32 address = (u32)wide_address;
  if (wide_address >> 32) {
    report(step, Kind::OUT_OF_BOUNDS, "shared address 0x%llx by %s", (unsigned long long)wide_address,
           name_of(step, lane).c_str());
    return {};
  }
  Block* block = find_block(step, address, space);
  if (!block || (u64)address + bytes > block->shared.size()) {
    report(step, Kind::OUT_OF_BOUNDS, "%s of %u bytes at shared byte %u of %u by %s", store ? "store" : "load", bytes,
           address, step.launch.shared_bytes, name_of(step, lane).c_str());
    return {};
  }
  if (address % bytes) report(step, Kind::MISALIGNED, "shared byte %u, %u bytes", address, bytes);
  return {block, address, block->shared.data() + address};
}
inline u8* access_shared(Step& step, u64 address, u32 bytes, int lane, const u8* stored, Space space) {
  SharedPlace place = find_shared(step, address, bytes, lane, stored, space);
  if (place.bytes) check_shared({step, *place.block, place.address, bytes, lane, stored, step.warp.time});
  return place.bytes;
}
inline u8* access_global(Step& step, u64 address, u32 bytes, u32 alignment, int lane, const u8* stored,
                         Traffic& traffic) {
  static u8 chaos[MOST_BYTES];
  if (address % alignment)
    report(step, Kind::MISALIGNED, "%u bytes at 0x%llx by %s", alignment, (unsigned long long)address,
           name_of(step, lane).c_str());
  traffic.add(address, bytes);
  Allocation* allocation = find_allocation(step, address, bytes);
  if (!allocation) {
    report_outside(step, address, bytes, lane, stored);
    return nullptr;
  }
  bool racing = check_global(step, *allocation, address, bytes, lane, stored);
  if (!racing || !step.launch.config.chaos) return (u8*)address;
  memset(chaos, 0xFF, sizeof chaos);
  return chaos;
}
// The bytes of a lane's load or store; `stored` is null for a load.
inline u8* access(Step& step, Space space, u64 address, u32 bytes, int lane, const u8* stored, Traffic& traffic) {
  space = resolve(space, address);
  if (space == Space::GLOBAL) return access_global(step, address, bytes, bytes, lane, stored, traffic);
  if (space == Space::LOCAL) return find_local(step, address, bytes, lane);
  return access_shared(step, address, bytes, lane, stored, space);
}

// ------------------------------------------------------------------------------------------------ loads and stores
// A value into a register, which may be wider: by its sign or by zeros.
inline void set_register(Step& step, s32 operand, int lane, const u8* from) {
  if (operand == NOTHING) return;
  u64 value = 0;
  memcpy(&value, from, step.in.bytes());
  switch (step.in.type) {
    case Type::S8: value = (s64)(s8)value; break;
    case Type::S16: value = (s64)(s16)value; break;
    case Type::S32: value = (s64)(s32)value; break;
    default: break;
  }
  int at = index_of(operand) * LANES + lane;
  if (is_wide(operand))
    step.warp.registers64[at] = value;
  else
    step.warp.registers32[at] = (u32)value;
}
// Runs a function of a lane for all that execute. PTX does not say which lane's store to an address counts: with an
// even seed it is the first lane's instead of the last one's.
template <class Function>
inline void each_in_turn(Step& step, Function function) {
  u64 seed = step.launch.config.seed;
  bool backwards = seed && seed % 2 == 0;
  for (int k = 0; k < LANES; ++k) {
    int lane = backwards ? LANES - 1 - k : k;
    if (lane_in(step.lanes, lane)) function(lane);
  }
}
inline void load(Step& step) {
  int size = step.in.bytes(), elements = step.in.mode2;
  u64 addresses[LANES];
  find_addresses(step, 0, step.in.mode, addresses);
  Space space = (Space)step.in.type2;
  Traffic traffic;
  each_in_turn(step, [&](int lane) {
    const u8* from = access(step, space, addresses[lane], size * elements, lane, nullptr, traffic);
    if (!from) from = ZEROS;
    for (int k = 0; k < elements; ++k) set_register(step, step.in.destinations[k], lane, from + k * size);
  });
  traffic.count_load(step.launch.outcome.counts, size * elements);
}
inline void store(Step& step) {
  int size = step.in.bytes(), elements = step.in.mode2;
  u64 addresses[LANES];
  find_addresses(step, 0, step.in.mode, addresses);
  const u8* values[MOST_DESTINATIONS];
  int strides[MOST_DESTINATIONS];
  for (int k = 0; k < elements; ++k) {
    bool wide = is_wide(step.in.sources[1 + k]);
    values[k] = wide ? (const u8*)step.source<u64>(1 + k) : (const u8*)step.source<u32>(1 + k);
    strides[k] = wide ? sizeof(u64) : sizeof(u32);
  }
  Space space = (Space)step.in.type2;
  Traffic traffic;
  each_in_turn(step, [&](int lane) {
    u8 stored[MOST_BYTES];
    for (int k = 0; k < elements; ++k) memcpy(stored + k * size, values[k] + lane * strides[k], size);
    u8* to = access(step, space, addresses[lane], size * elements, lane, stored, traffic);
    if (to) memcpy(to, stored, size * elements);
  });
  traffic.count_store(step.launch.outcome.counts, size * elements);
}
inline void load_parameter(Step& step) {
  const u8* from = step.launch.parameters.data() + step.in.mode;
  for (int k = 0; k < step.in.mode2; ++k)
    step.each([&](int lane) { set_register(step, step.in.destinations[k], lane, from + k * step.in.bytes()); });
}

// ---------------------------------------------------------------------------------------------- asynchronous copies
// PTX ISA: cp.async. The bytes are there at once, but count as not yet written until the thread waits for
// their group: a read before that, and before a barrier that follows the wait, is a race.
inline void copy_async(Step& step) {
  u32 bytes = step.in.mode2;
  u64 from[LANES], to[LANES];
  find_addresses(step, 0, step.in.mode, from);
  find_addresses(step, 1, step.in.target, to);
  const u32* given = step.source_or<u32>(2, nullptr);
  Traffic traffic;
  traffic.global = true;
  step.each([&](int lane) {
    u8 copied[16] = {};  // what lies beyond the size of the source is 0
    u32 size = given ? std::min(given[lane], bytes) : bytes;
    const u8* source = size ? access_global(step, from[lane], size, bytes, lane, nullptr, traffic) : nullptr;
    if (source) memcpy(copied, source, size);
    SharedPlace place = find_shared(step, to[lane], bytes, lane, true, Space::SHARED);
    if (!place.bytes) return;
    Warp& warp = step.warp;
    u32 group = warp.copy_group[lane];
    check_shared({step, *place.block, place.address, bytes, lane, copied, PENDING | group});
    memcpy(place.bytes, copied, bytes);
    warp.copies.push_back({lane, group, place.address, bytes});
  });
  traffic.count_load(step.launch.outcome.counts, bytes);
}
inline void commit_copies(Step& step) {
  step.each([&](int lane) { step.warp.copy_group[lane]++; });
}
// All but the given number of the last groups are there, for the thread that waits; others need a barrier.
inline void wait_for_copies(Step& step) {
  auto& copies = step.warp.copies;
  u32 remaining = step.in.mode;
  auto done = [&](const AsyncCopy& copy) {
    if (!lane_in(step.lanes, copy.lane) || copy.group + remaining >= step.warp.copy_group[copy.lane]) return false;
    stamp_copy(step, copy);
    return true;
  };
  copies.erase(std::remove_if(copies.begin(), copies.end(), done), copies.end());
}

// --------------------------------------------------------------------------------------------------------- atomics
inline u64 combine_as(Type type, Combine how, u64 a, u64 b) {
  switch (type) {
    case Type::F32:
      if (how == Combine::ADD) return bits_of(float_of((u32)a) + float_of((u32)b));
      break;
    case Type::F64:
      if (how == Combine::ADD) return bits_of(double_of(a) + double_of(b));
      break;
    case Type::S32: return (u32)combine_bits<s32>(how, (s32)a, (s32)b);
    case Type::S64: return combine_bits<s64>(how, (s64)a, (s64)b);
    default: break;
  }
  return combine_bits<u64>(how, a, b);
}
// Races of atomics are not checked: they are meant to meet.
inline u8* find_for_atomic(Step& step, u64 address, u32 bytes, int lane) {
  Space space = resolve((Space)step.in.type2, address);
  if (space != Space::GLOBAL) return find_shared(step, address, bytes, lane, true, space).bytes;
  Allocation* allocation = find_allocation(step, address, bytes);
  if (!allocation) {
    report_outside(step, address, bytes, lane, true);
    return nullptr;
  }
  u64 last = allocation->granule_of(address + bytes - 1);
  for (u64 granule = allocation->granule_of(address); granule <= last; ++granule) {
    u8& flags = allocation->flags[granule];
    if (!(flags & INITIALISED)) report(step, Kind::UNINITIALISED, "atomic on what nothing has written");
    flags |= WRITTEN | INITIALISED;
  }
  return (u8*)address;
}
template <class Bits>
inline void atomic(Step& step) {
  Combine how = (Combine)step.in.mode2;
  u64 addresses[LANES];
  find_addresses(step, 0, step.in.mode, addresses);
  const Bits* operands = step.source<Bits>(1);
  const Bits* swaps = step.source_or<Bits>(2, nullptr);
  step.each([&](int lane) {
    u8* at = find_for_atomic(step, addresses[lane], sizeof(Bits), lane);
    if (!at) return;
    Bits old, result;
    memcpy(&old, at, sizeof old);
    if (how == Combine::CAS)
      result = old == operands[lane] ? swaps[lane] : old;
    else
      result = (Bits)combine_as(step.in.type, how, old, operands[lane]);
    memcpy(at, &result, sizeof result);
    set_register(step, step.in.destinations[0], lane, (const u8*)&old);
  });
}

// -------------------------------------------------------------------------------------------------------- matrices
// PTX ISA: matrices of 8 rows of 8 values of 16 bits. Lane 8 k + i has the address of row i of matrix k;
// register k of a lane has two values, neighbours in a row, or in a column of a transposed matrix.
typedef u8 Rows[LANES][16];
inline u8* find_value(Rows& rows, int matrix, int lane, int which, bool transposed) {
  int row = lane / 4, column = lane % 4 * 2 + which;
  if (transposed) std::swap(row, column);
  return rows[matrix * 8 + row] + column * 2;
}
inline void check_whole_warp(Step& step) {
  if (step.lanes != ALL_LANES) report(step, Kind::BARRIER, "ldmatrix or stmatrix by a part of a warp");
}
inline void load_matrix(Step& step) {
  check_whole_warp(step);
  u64 addresses[LANES];
  find_addresses(step, 0, step.in.mode, addresses);
  Rows rows;
  for (int lane = 0; lane < step.in.mode2 * 8; ++lane) {
    const u8* from = access_shared(step, addresses[lane], 16, lane, nullptr, Space::SHARED);
    memcpy(rows[lane], from ? from : ZEROS, 16);
  }
  for (int k = 0; k < step.in.mode2; ++k) {
    u8* to = (u8*)step.destination<u32>(k);
    for (int lane = 0; lane < LANES; ++lane)
      for (int which = 0; which < 2; ++which)
        memcpy(to + lane * 4 + which * 2, find_value(rows, k, lane, which, step.in.type2), 2);
  }
}
inline void store_matrix(Step& step) {
  check_whole_warp(step);
  u64 addresses[LANES];
  find_addresses(step, 0, step.in.mode, addresses);
  Rows rows;
  for (int k = 0; k < step.in.mode2; ++k) {
    const u8* from = (const u8*)step.source<u32>(1 + k);
    for (int lane = 0; lane < LANES; ++lane)
      for (int which = 0; which < 2; ++which)
        memcpy(find_value(rows, k, lane, which, step.in.type2), from + lane * 4 + which * 2, 2);
  }
  for (int lane = 0; lane < step.in.mode2 * 8; ++lane) {
    u8* to = access_shared(step, addresses[lane], 16, lane, rows[lane], Space::SHARED);
    if (to) memcpy(to, rows[lane], 16);
  }
}

}  // namespace emulator
