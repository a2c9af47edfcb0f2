// The state of a launch: memory, clusters, their blocks and warps, registers; and how an instruction gets at its
// operands. What instructions do with it stands in the other files.
//
// A warp's lanes have their own program counters. What happens before what is kept in vector clocks: a warp has a
// clock, and for each warp of its cluster the time before which all that this one did is known to have happened.
// Barriers join these vectors. An access is stamped with its thread and its warp's time.
#pragma once

#include <string>
#include <vector>

#include "findings.hpp"
#include "numbers.hpp"
#include "program.hpp"

namespace emulator {

constexpr int LANES = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
constexpr u32 NO_COUNTER = 0xffffffffu;
// Where generic addresses find shared and local memory: far from what Linux gives a process.
constexpr u64 SHARED_WINDOW = 0x7e0000000000ull, LOCAL_WINDOW = 0x7d0000000000ull, WINDOW_BYTES = 1ull << 32;
// An address of another block's shared memory has the block's rank + 1 in bits 24 and up.
constexpr int RANK_SHIFT = 24;
constexpr u32 WITHIN_BLOCK = (1u << RANK_SHIFT) - 1;

typedef std::vector<u32> Clock;  // an entry a warp of the cluster
inline void join(Clock& into, const Clock& other) {
  for (size_t k = 0; k < into.size(); ++k)
    if (other[k] > into[k]) into[k] = other[k];
}
inline bool lane_in(u32 lanes, int lane) {
  return lanes >> lane & 1;
}
inline int first_lane(u32 lanes) {
  return __builtin_ctz(lanes);
}
inline int count_lanes(u32 lanes) {
  return __builtin_popcount(lanes);
}

// ---------------------------------------------------------------------------------------------------------- memory
// Bits of a granule's flag, which device.py shares: an element of a tensor, initialised, written by this launch.
enum Flag : u8 { VALID = 1, INITIALISED = 2, WRITTEN = 4 };

// The last write and one read of a granule of global memory. A time of 0 is none.
struct GlobalStamp {
  u32 writer, write_time, reader, read_time;
};
struct Allocation {
  u64 base, bytes;
  u32 granule_shift;  // log2 of the bytes of a granule, an element of the tensor
  u8* flags;          // one a granule
  GlobalStamp* stamps;
  u64 granule_of(u64 address) const { return (address - base) >> granule_shift; }
};

// Times of writes that are not done: those of cp.async, until its thread waits. The other bits number its group.
constexpr u32 PENDING = SIGN32;

// The writers of 4 bytes of shared memory, each with its own, and their readers: 1 + index in Cluster::readers.
struct SharedStamp {
  u32 write_time[4];
  u16 writer[4];
  u32 readers;
};
struct SharedReader {
  u32 time, lanes, next;
  u16 warp;
  u8 bytes;
};

// -------------------------------------------------------------------------------------------------- blocks and warps
struct Block;
struct Cluster;

struct AsyncCopy {
  int lane;
  u32 group, address, bytes;
};
struct Warp {
  Block* block;
  int index, in_cluster;
  u32* registers32;  // 32 lanes each
  u64* registers64;
  u32* predicates;      // a bit a lane
  u8* local = nullptr;  // local_bytes a lane
  u32 alive, waiting;   // lanes
  u32 counters[LANES];
  u32 carries = 0;

  u32 time;
  Clock seen, seen_at_fence;
  bool fenced = false;
  u32 arrived_phase = 0;  // of the cluster's barrier
  bool arrived = false;

  std::vector<AsyncCopy> copies;
  u32 copy_group[LANES] = {};  // that the lane's next copies belong to
};
struct Barrier {
  u32 arrived = 0, expected = 0;  // threads; 0: all that are alive
  Clock seen;
  std::vector<std::pair<Warp*, u32>> waiters;
};
constexpr int BARRIERS = 16;

struct Block {
  Cluster* cluster;
  u32 rank, x, y, z;
  u64 linear;
  u32 alive = 0;  // threads
  std::vector<u8> shared;
  std::vector<SharedStamp> stamps;
  std::vector<Warp> warps;
  Barrier barriers[BARRIERS];
  Clock remote_access;  // the last access to this block's memory by each warp of another
};
struct Cluster {
  std::vector<Block> blocks;
  u32 alive = 0, arrived = 0, phase = 0;  // threads, threads, number of barriers that were passed
  Clock arriving, passed;
  std::vector<Warp*> waiters;
  std::vector<SharedReader> readers;
  std::vector<u32> free_readers;
  int warps = 0;
  std::vector<u8> registers;
};

struct Launch : LaunchShape {
  Program& program;
  const Config& config;
  Outcome& outcome;
  std::vector<u8> parameters;
  std::vector<Allocation> allocations;  // by address
  std::vector<int> last_allocation;     // that each instruction accessed
  Random random;
  bool stopped = false;  // by an error that nothing can follow
  u64 steps = 0;

  Launch(const LaunchShape& shape, Program& program, const Config& config, Outcome& outcome)
      : LaunchShape(shape),
        program(program),
        config(config),
        outcome(outcome),
        last_allocation(program.code.size(), 0),
        random{mix(config.seed)} {}
  int block_warps() const { return block_threads / LANES; }
  bool checks(Check check) const { return config.checks & check; }
};

// ------------------------------------------------------------------------------------------------- an instruction
struct Step;
inline u32 special_value(const Step& step, Special which, int lane);

// One execution of an instruction by lanes of a warp.
struct Step {
  Launch& launch;
  Warp& warp;
  const Instruction& in;
  u32 lanes;

  Step(Launch& launch, Warp& warp, const Instruction& in, u32 lanes)
      : launch(launch), warp(warp), in(in), lanes(lanes) {}
  Step(const Step&) = delete;

  // Source k of all lanes, of 32 or of 64 bits; narrower ones stand in 32.
  template <class Register>
  Register* source(int k) {
    s32 operand = in.sources[k];
    s32 index = index_of(operand);
    switch (file_of(operand)) {
      case File::REGISTER32: return as<Register>(warp.registers32 + index * LANES, k);
      case File::REGISTER64: return as<Register>(warp.registers64 + index * LANES, k);
      case File::CONSTANT32: return as<Register>(launch.program.constants32.data() + index * LANES, k);
      case File::CONSTANT64: return as<Register>(launch.program.constants64.data() + index * LANES, k);
      default: {
        auto* to = scratch<Register>(k);
        for (int lane = 0; lane < LANES; ++lane) to[lane] = special_value(*this, (Special)index, lane);
        return (Register*)to;
      }
    }
  }
  template <class Register>
  Register* source_or(int k, Register* otherwise) {
    return in.has_source(k) ? source<Register>(k) : otherwise;
  }
  template <class Register>
  Register* destination(int k = 0) {
    s32 index = index_of(in.destinations[k]);
    if constexpr (sizeof(Register) == 8)
      return (Register*)(warp.registers64 + index * LANES);
    else
      return (Register*)(warp.registers32 + index * LANES);
  }
  // A predicate of all lanes; a constant is true or false for all.
  u32 predicate(int k) {
    s32 operand = in.sources[k];
    if (file_of(operand) == File::PREDICATE) return warp.predicates[index_of(operand)];
    return launch.program.constants32[index_of(operand) * LANES] ? ALL_LANES : 0;
  }
  void set_predicate(int k, u32 value) {
    if (in.destinations[k] == NOTHING) return;
    u32& predicate = warp.predicates[index_of(in.destinations[k])];
    predicate = (predicate & ~lanes) | (value & lanes);
  }
  // Runs a function of a lane for all that execute.
  template <class Function>
  __attribute__((always_inline)) inline void each(Function function) {
    if (lanes == ALL_LANES) {
      for (int lane = 0; lane < LANES; ++lane) function(lane);
    } else {
      for (int lane = 0; lane < LANES; ++lane)
        if (lane_in(lanes, lane)) function(lane);
    }
  }

 private:
  // Of special registers, and of operands that are narrower or wider than the instruction. Not set before use.
  u32 scratch32[MOST_SOURCES][LANES];
  u64 scratch64[MOST_SOURCES][LANES];

  template <class Register>
  auto* scratch(int k) {
    if constexpr (sizeof(Register) == 8)
      return scratch64[k];
    else
      return scratch32[k];
  }
  template <class Register, class Stored>
  Register* as(Stored* from, int k) {
    if constexpr (sizeof(Register) == sizeof(Stored)) {
      return (Register*)from;
    } else {
      auto* to = scratch<Register>(k);
      for (int lane = 0; lane < LANES; ++lane) to[lane] = from[lane];
      return (Register*)to;
    }
  }
};

inline u32 special_value(const Step& step, Special which, int lane) {
  const Launch& launch = step.launch;
  const Block& block = *step.warp.block;
  switch (which) {
    case Special::TID_X: return step.warp.index * LANES + lane;
    case Special::TID_Y:
    case Special::TID_Z: return 0;
    case Special::NTID_X: return launch.block_threads;
    case Special::NTID_Y:
    case Special::NTID_Z: return 1;
    case Special::CTAID_X: return block.x;
    case Special::CTAID_Y: return block.y;
    case Special::CTAID_Z: return block.z;
    case Special::NCTAID_X: return launch.grid[0];
    case Special::NCTAID_Y: return launch.grid[1];
    case Special::NCTAID_Z: return launch.grid[2];
    case Special::LANEID: return lane;
    case Special::WARPID: return step.warp.index;
    case Special::NWARPID: return launch.block_warps();
    case Special::CLUSTERID_X: return block.x / launch.cluster_blocks;
    case Special::CLUSTERID_Y: return block.y;
    case Special::CLUSTERID_Z: return block.z;
    case Special::NCLUSTERID_X: return launch.grid[0] / launch.cluster_blocks;
    case Special::NCLUSTERID_Y: return launch.grid[1];
    case Special::NCLUSTERID_Z: return launch.grid[2];
    case Special::CLUSTER_CTAID_X:
    case Special::CLUSTER_CTARANK: return block.rank;
    case Special::CLUSTER_CTAID_Y:
    case Special::CLUSTER_CTAID_Z: return 0;
    case Special::CLUSTER_NCTAID_X:
    case Special::CLUSTER_NCTARANK: return launch.cluster_blocks;
    case Special::CLUSTER_NCTAID_Y:
    case Special::CLUSTER_NCTAID_Z: return 1;
    case Special::IS_EXPLICIT_CLUSTER: return launch.cluster_blocks > 1;
    case Special::SMID: return block.linear % 132;
    case Special::NSMID: return 132;
    case Special::CLOCK:
    case Special::CLOCK64:
    case Special::GLOBALTIMER: return (u32)launch.steps;
    case Special::DYNAMIC_SMEM_SIZE:
    case Special::TOTAL_SMEM_SIZE: return launch.shared_bytes;
    case Special::LANEMASK_EQ: return 1u << lane;
    case Special::LANEMASK_LT: return (1u << lane) - 1;
    case Special::LANEMASK_LE: return (2u << lane) - 1;
    case Special::LANEMASK_GT: return ~((2u << lane) - 1);
    case Special::LANEMASK_GE: return ~((1u << lane) - 1);
  }
  return 0;
}

}  // namespace emulator
