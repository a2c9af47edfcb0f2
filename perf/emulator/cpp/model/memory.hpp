// The way of an access: load/store unit, L1, the multiprocessor's port to the L2, L2, DRAM.
//
// Each is a queue served in the order of issue, so the time of an access is known when it issues. A multiprocessor's
// load/store unit takes a line of 128 bytes a cycle, shared memory a word a cycle from each of 32 banks (CUDA C++
// Programming Guide, "Compute Capability 8.x", "Shared Memory"). The port moves 64 bytes a cycle each way, the L2 its
// measured rate, the DRAM what a large copy reaches (gpus.py).
#pragma once

#include "values.hpp"

namespace {

// How many cycles after its issue an access comes to the load/store unit: the operands are read first.
constexpr int OPERAND_READ = 2;
// How many cycles after an access is served the registers that it read may be written. Both are chosen, not published;
// Huerta et al., "Analyzing Modern NVIDIA GPU Cores", 2025, arXiv:2503.20481, has latencies of this size.
constexpr int OPERANDS_FREE = 8;
// Atomics wait in the L2; where so many cycles of them do, the multiprocessors' load/store units stand still.
constexpr double ATOMIC_BACKLOG = 4000;

// ------------------------------------------------------------------------------------------------------- L2, DRAM
// A random part of the DRAM's latency: requests of warps that began together come back spread out.
double jitter(Launch& launch) {
  launch.random = mix(launch.random + 1);
  return launch.parameters.jitter * launch.chance();
}

// When the L2 has sectors that a multiprocessor writes. What becomes dirty is charged to the DRAM at once, which has to
// take it in the end: a flushed L2 is full of what others wrote.
double write_l2(Launch& launch, Multiprocessor& sm, u64 line, u32 sectors, double t) {
  Gpu& gpu = launch.gpu;
  int count = __builtin_popcount(sectors);
  sm.store_port_free = std::max(sm.store_port_free, t) + count * launch.cost.store_port;
  double at = sm.store_port_free;
  gpu.l2_free = std::max(gpu.l2_free, at) + count * launch.cost.l2;
  Line evicted;
  Line& cached = gpu.l2.at(line, evicted);
  launch.result.l2_sectors += count;
  u32 fresh = sectors & ~cached.dirty;
  if (fresh) {
    int k = __builtin_popcount(fresh);
    gpu.dram_free = std::max(at, gpu.dram_free) + k * launch.cost.dram;
    launch.result.dram_busy += k * launch.cost.dram;
    launch.result.dram_write += SECTOR * k;
    cached.dirty |= fresh;
    cached.valid |= fresh;
  }
  return gpu.l2_free + launch.parameters.latency_l2;
}

// When sectors that a multiprocessor reads are there: through the L2, the DRAM for those that are not in it, and the
// port.
double read_l2(Launch& launch, Multiprocessor& sm, u64 line, u32 sectors, double t) {
  Gpu& gpu = launch.gpu;
  int count = __builtin_popcount(sectors);
  gpu.l2_free = std::max(gpu.l2_free, t) + count * launch.cost.l2;
  double done = gpu.l2_free + launch.parameters.latency_l2;
  Line evicted;
  Line& cached = gpu.l2.at(line, evicted);
  launch.result.l2_sectors += count;
  u32 missing = sectors & ~cached.valid;
  if (missing) {
    int k = __builtin_popcount(missing);
    gpu.dram_free = std::max(t, gpu.dram_free) + k * launch.cost.dram;
    launch.result.dram_busy += k * launch.cost.dram;
    launch.result.dram_read += SECTOR * k;
    done = std::max(done, gpu.dram_free + launch.parameters.latency_dram + jitter(launch));
    cached.filled_at = std::max<u64>(cached.filled_at, (u64)done);
    cached.valid |= missing;
  }
  launch.result.l2_hits += count - __builtin_popcount(missing);
  done = std::max(done, (double)cached.filled_at);  // another warp may have asked for it just before
  double way_back = launch.parameters.latency_l2 * 0.5;
  sm.port_free = std::max(sm.port_free, done - way_back) + count * launch.cost.port;
  launch.result.port_busy += count * launch.cost.port;
  return std::max(done, sm.port_free + way_back);
}

// ---------------------------------------------------------------------------------------------------- global memory
struct Touched {
  u64 line;
  u32 sectors;
};

// What a warp's access touches: its lines in the order of lanes. At most 16 bytes a lane, so two lines each.
struct Coalesced {
  Touched lines[2 * LANES];
  int count = 0;
  u32 wavefronts = 1;  // cycles of the load/store unit: a line each, two where they are not full

  Coalesced(const u64* addresses, u32 mask, int width) {
    for (u32 rest = mask; rest; rest &= rest - 1) {
      u64 address = addresses[__builtin_ctz(rest)];
      for (u64 sector = address / SECTOR; sector <= (address + width - 1) / SECTOR; ++sector) add(sector);
    }
    u32 full = (__builtin_popcount(mask) * width + SECTORS * SECTOR - 1) / (SECTORS * SECTOR);
    wavefronts = std::max({1u, full, (u32)(count + 1) / 2});
  }

  void add(u64 sector) {
    u64 line = sector / SECTORS;
    u32 bit = 1u << sector % SECTORS;
    int k = count - 1;
    while (k >= 0 && lines[k].line != line) --k;
    if (k >= 0)
      lines[k].sectors |= bit;
    else
      lines[count++] = {line, bit};
  }
};

// When a load's last sector is there.
double load_global(Launch& launch, Multiprocessor& sm, const Coalesced& access, bool past_l1, double t) {
  double done = t;
  for (const Touched* touched = access.lines; touched < access.lines + access.count; ++touched) {
    launch.result.l1_sectors += __builtin_popcount(touched->sectors);
    done = std::max(done, t + launch.parameters.latency_l1);
    if (past_l1) {
      done = std::max(done, read_l2(launch, sm, touched->line, touched->sectors, t));
      continue;
    }
    Line evicted;
    Line& cached = sm.l1.at(touched->line, evicted);
    u32 missing = touched->sectors & ~cached.valid;
    launch.result.l1_hits += __builtin_popcount(touched->sectors & cached.valid);
    if (missing) {
      double there = read_l2(launch, sm, touched->line, missing, t);
      cached.filled_at = std::max<u64>(cached.filled_at, (u64)there);
      cached.valid |= missing;
      done = std::max(done, there);
    } else {
      done = std::max(done, (double)cached.filled_at);
    }
  }
  return done;
}

// When the L2 has a store. The L1 is written through.
double store_global(Launch& launch, Multiprocessor& sm, const Coalesced& access, double t) {
  double done = t;
  for (const Touched* touched = access.lines; touched < access.lines + access.count; ++touched) {
    launch.result.l1_sectors += __builtin_popcount(touched->sectors);
    done = std::max(done, write_l2(launch, sm, touched->line, touched->sectors, t));
  }
  return done;
}

// ---------------------------------------------------------------------------------------------------- shared memory
// Cycles that an access takes: lanes that want different words of one bank wait for each other. Accesses of 8 and 16
// bytes go in halves and quarters of a warp.
u32 bank_conflicts(const u32* addresses, u32 mask, int width) {
  int together = width >= 16 ? LANES / 4 : width == 8 ? LANES / 2 : LANES;
  int words_a_lane = std::max(1, width / 4);
  u32 total = 0;
  for (int first = 0; first < LANES; first += together) {
    u32 words[2 * LANES];
    int count = 0;
    u8 bank[32] = {};
    u32 most = 0;
    for (int l = first; l < first + together; ++l) {
      if (!(mask >> l & 1)) continue;
      for (int k = 0; k < words_a_lane; ++k) {
        u32 word = addresses[l] / 4 + k;
        if (std::find(words, words + count, word) != words + count) continue;
        words[count++] = word;
        most = std::max<u32>(most, ++bank[word & 31]);
      }
    }
    total += most;
  }
  return std::max<u32>(1, total);
}

// An address of shared memory: rank in its upper 8 bits, in clusters. As mapa makes them (values.hpp).
u32 offset_of(u32 address) {
  return address & 0xffffff;
}

// Where `width` bytes of shared memory are; null outside of it.
u8* shared_bytes(Warp& warp, u32 address, u32 width) {
  Cluster& cluster = *warp.block->cluster;
  u32 rank = address >> 24;
  std::vector<u8>& memory = cluster.blocks[rank < cluster.blocks.size() ? rank : warp.block->rank]->shared;
  return offset_of(address) + width <= memory.size() ? memory.data() + offset_of(address) : nullptr;
}

void load_shared_values(Warp& warp, const Row& row, const u32* addresses, u32 mask) {
  const Destination& to = row.destinations[0];
  if (to.kind != REG || to.value == ZERO_REGISTER) return;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    int lane = __builtin_ctz(rest);
    const u8* bytes = shared_bytes(warp, addresses[lane], row.width);
    for (int k = 0; k < destination_registers(row); ++k) {
      u32 value = 0;
      if (bytes) memcpy(&value, bytes + 4 * k, std::min(4, row.width));
      if (row.mode & SIGN_EXTENDED) value = row.width == 1 ? (u32)(s32)(int8_t)value : (u32)(s32)(int16_t)value;
      warp.registers[(to.value + k) * LANES + lane] = value;
    }
  }
  for (int k = 0; k < destination_registers(row); ++k) mark(warp, REG, to.value + k, false);
}

// The source of the k-th word of a store.
Source word_of(Source source, int k) {
  bool zero = source.kind == REG && source.value == ZERO_REGISTER;
  if (!zero) source.value += k;
  source.modifiers = 0;
  return source;
}

void store_shared_values(Launch& launch, Warp& warp, const Row& row, const u32* addresses, u32 mask) {
  for (int k = 0; k < std::max(1, row.width / 4); ++k) {
    const u32* value = operand(launch, warp, word_of(row.sources[0], k), 0);
    for (u32 rest = mask; rest; rest &= rest - 1) {
      int lane = __builtin_ctz(rest);
      u8* bytes = shared_bytes(warp, addresses[lane], row.width);
      if (bytes) memcpy(bytes + 4 * k, &value[lane], std::min(4, row.width));
    }
  }
}

// ------------------------------------------------------------------------------------------------ kinds of accesses
// How the load/store unit served an access.
struct Served {
  double start;
  u32 cycles;   // of the load/store unit
  double done;  // the result is there
  u8 reason;    // of warps that wait for it
};

Served access_shared(Launch& launch, Warp& warp, const Row& row, const u64* wide_addresses, u32 mask, double start) {
  u32 addresses[LANES], offsets[LANES];
  bool remote = false;
  for (int l = 0; l < LANES; ++l) {
    addresses[l] = (u32)wide_addresses[l];
    offsets[l] = offset_of(addresses[l]);
    if ((mask >> l & 1) && launch.cluster > 1 && addresses[l] >> 24 != warp.block->rank) remote = true;
  }
  remote = remote && row.space == GENERIC;  // LDS reaches no other block
  u32 cycles = row.operation == LDSM ? std::max(1, row.width / 4) : bank_conflicts(offsets, mask, row.width);
  if (row.live && row.operation == LD) load_shared_values(warp, row, addresses, mask);
  if (row.live && row.operation == ST) store_shared_values(launch, warp, row, addresses, mask);
  double latency = remote ? launch.parameters.latency_remote_shared : launch.parameters.latency_shared;
  return {start, cycles, start + cycles + latency, (u8)(remote ? R_CLUSTER : R_SHARED)};
}

void access_stack_values(Launch& launch, Warp& warp, const Row& row, u64 address, u32 mask) {
  std::vector<u32>& stack = warp.block->stack;
  if ((address & 0xffffff) >= launch.local) return;
  for (int k = 0; k < std::max(1, row.width / 4); ++k) {
    u64 at = (u64)warp.index * (launch.local + 32) / 4 * LANES + (address / 4 + k) * LANES;
    if (at + LANES > stack.size()) continue;
    if (row.operation == ST) {
      const u32* value = operand(launch, warp, word_of(row.sources[0], k), 0);
      for (int l = 0; l < LANES; ++l)
        if (mask >> l & 1) stack[at + l] = value[l];
    } else {
      Destination to = row.destinations[0];
      if (to.value != ZERO_REGISTER) to.value += k;
      put(warp, to, &stack[at], mask);
      mark(warp, REG, to.value, false);
    }
  }
}

// Local memory: a word of all lanes is a line of the L1, which writes lines back when it evicts them.
Served access_local(Launch& launch, Warp& warp, const Row& row, const u64* addresses, u32 mask, double start) {
  Block& block = *warp.block;
  Multiprocessor& sm = launch.sm_of(warp);
  u32 words = std::max(1, row.width / 4);
  double done = start + words + launch.parameters.latency_l1;
  if (row.live) access_stack_values(launch, warp, row, addresses[0], mask);
  for (u32 k = 0; k < words; ++k) {
    u64 owner = block.sm * 2048 + (block.slot * (int)block.warps.size() + warp.index) % 2048;
    u64 line = 1ull << 55 | owner << 16 | (((u32)addresses[0] / 4 + k) & 0xffff);  // no global address has bit 55
    Line evicted;
    Line& cached = sm.l1.at(line, evicted);
    if (evicted.dirty) write_l2(launch, sm, evicted.tag, WHOLE_LINE, start);
    if (row.operation == ST) {
      cached.valid = cached.dirty = WHOLE_LINE;
    } else if (!cached.valid) {
      double there = read_l2(launch, sm, line, WHOLE_LINE, start);
      cached.valid = WHOLE_LINE;
      cached.filled_at = (u64)there;
      done = std::max(done, there);
    } else {
      done = std::max(done, (double)cached.filled_at);
    }
  }
  return {start, words, done, R_LOAD};
}

// An atomic operation: the L2 adds so many sectors a cycle (Gpu.atomic).
Served access_atomic(Launch& launch, Warp& warp, const Row& row, const u64* addresses, u32 mask, double start) {
  Coalesced access(addresses, mask, row.width);
  double there = store_global(launch, launch.sm_of(warp), access, start);
  double& atomics_free = launch.gpu.atomics_free;
  int lanes = __builtin_popcount(mask);
  atomics_free = std::max(atomics_free, start) + std::max(1, lanes * row.width / (int)SECTOR) / launch.atomic_rate;
  double done = std::max(there, atomics_free) + launch.parameters.latency_l2;
  u32 cycles = std::max<u32>(access.wavefronts, lanes / 2);
  return {std::max(start, atomics_free - ATOMIC_BACKLOG), cycles, done, R_LOAD};
}

// cp.async: global memory into shared memory, past the registers.
Served copy_async(Launch& launch, Warp& warp, const Row& row, const u64* addresses, u32 mask, double start) {
  if (row.sources[3].kind) mask &= predicate(warp, row.sources[3]);  // the other lanes write zeros
  Coalesced access(addresses, mask, row.width);
  double there = load_global(launch, launch.sm_of(warp), access, row.mode & PAST_L1, start);
  warp.copies_done = std::max(warp.copies_done, (u64)(there + launch.parameters.latency_shared));
  return {start, 2 * access.wavefronts, start + access.wavefronts, R_LOAD};  // twice through the unit: in and out
}

Served access_global(Launch& launch, Warp& warp, const Row& row, const u64* addresses, u32 mask, double start) {
  Coalesced access(addresses, mask, row.width);
  if (row.operation == ST) {
    store_global(launch, launch.sm_of(warp), access, start);
    return {start, access.wavefronts, start + access.wavefronts, R_SHARED};
  }
  double done = load_global(launch, launch.sm_of(warp), access, row.mode & PAST_L1, start);
  if (row.live) put_zero(warp, row, mask);
  return {start, access.wavefronts, done, R_LOAD};
}

// ------------------------------------------------------------------------------------------------------------ all
void addresses_of(const Warp& warp, const Row& row, u64* addresses) {
  u64 base = (u64)(s64)row.offset;
  if (row.uniform_base != ZERO_UNIFORM) {
    base += warp.uniform[row.uniform_base];
    bool pair = row.space != SHARED && row.base_wide && row.uniform_base < ZERO_UNIFORM - 1;
    if (pair) base += (u64)warp.uniform[row.uniform_base + 1] << 32;
  }
  const u32* low = warp.registers + row.base * LANES;
  bool none = row.base == ZERO_REGISTER;
  bool pair = row.base_wide || row.space == GENERIC;
  for (int l = 0; l < LANES; ++l) {
    u64 own = none ? 0 : pair ? (u64)low[LANES + l] << 32 | low[l] : low[l] * (u32)row.scale;
    addresses[l] = row.space == SHARED ? (u32)(own + base) : own + base;
  }
}

bool address_is_guessed(const Warp& warp, const Row& row) {
  return is_guessed(warp, REG, row.base) || is_guessed(warp, UREG, row.uniform_base) ||
         (row.base_wide && is_guessed(warp, REG, row.base + 1));
}

// A memory instruction of the lanes in `mask`, at least one: sets its scoreboards.
void access_memory(Launch& launch, Warp& warp, const Row& row, u32 mask, u64 t) {
  Multiprocessor& sm = launch.sm_of(warp);
  u64 addresses[LANES];
  addresses_of(warp, row, addresses);
  if (row.space != SHARED && address_is_guessed(warp, row)) launch.result.guessed++;
  bool in_shared =
      row.space == SHARED || (row.space == GENERIC && addresses[__builtin_ctz(mask)] >> 32 == SHARED_WINDOW);
  auto access = row.operation == LDGSTS ? copy_async
                : in_shared             ? access_shared
                : row.space == LOCAL    ? access_local
                : row.operation == ATOM ? access_atomic
                                        : access_global;
  Served served = access(launch, warp, row, addresses, mask, std::max((double)t + OPERAND_READ, sm.queue_free));
  sm.queue_free = served.start + served.cycles;
  launch.result.queue_busy += served.cycles;
  if (row.read_scoreboard < SCOREBOARDS) {
    u64& clear = warp.scoreboards[row.read_scoreboard];
    clear = std::max(clear, (u64)(served.start + served.cycles + OPERANDS_FREE));
    warp.scoreboard_reason[row.read_scoreboard] = R_OTHER;
  }
  if (row.write_scoreboard < SCOREBOARDS) {
    u64& clear = warp.scoreboards[row.write_scoreboard];
    if ((u64)served.done >= clear) warp.scoreboard_reason[row.write_scoreboard] = served.reason;
    clear = std::max(clear, (u64)served.done);
  }
}

}  // namespace
