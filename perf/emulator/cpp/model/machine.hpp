// The state of the machine: warps, blocks, clusters, a multiprocessor's schedulers, what they share, and one launch.
//
// A multiprocessor has four schedulers, each with warps of its own, a register file and pipes; they share the
// load/store unit, the L1 and a port to the L2 (NVIDIA H100 Tensor Core GPU Architecture, 2022, "H100 SM
// architecture"). Whatever serves requests one after the other is kept as the time at which it is free again.
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "cache.hpp"
#include "parameters.hpp"

namespace {

constexpr int LANES = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
constexpr u64 NEVER = ~0ull >> 1;
constexpr int SCHEDULERS = 4;
constexpr int BARRIERS = 16;
constexpr u32 L1_WAYS = 8;  // not published
constexpr u32 FETCHED = 8;  // instructions of 16 bytes in a line of the instruction cache

struct Block;
struct Cluster;

// Numbers of a warp's registers, uniform registers and predicates in one row, for the marks of what is guessed.
constexpr int UNIFORM_CELLS = 256;
constexpr int PREDICATE_CELLS = UNIFORM_CELLS + 64;
constexpr int CELL_WORDS = 6;

struct Warp {
  Block* block;
  int index;
  int scheduler;
  int slot;        // among the candidates of its scheduler
  u32* registers;  // LANES each
  u32 uniform[64];
  u32 predicates[8];
  u32 uniform_predicates[8];
  u64 guessed[CELL_WORDS] = {};  // a bit for each value that depends on what is not computed

  u32 alive = ALL_LANES;
  u32 pc = 0;  // a row; where lanes have parted the lowest of theirs
  bool parted = false;
  u32 lane_pc[LANES];

  u64 ready = 0;  // when the next instruction may issue, but for its pipe
  u8 why = R_FETCH;
  u64 issued_at = 0;
  u64 scoreboards[SCOREBOARDS] = {};  // when each is clear
  u8 scoreboard_reason[SCOREBOARDS] = {};
  u64 copies_done = 0;                        // cp.async: when the last copy is there
  std::vector<u64> copy_groups[SCOREBOARDS];  // when each committed group is there
  bool at_cluster_barrier = false;
  bool done = false;
};

struct Barrier {
  u32 arrived = 0;
  std::vector<Warp*> waiting;
};

struct Block {
  Cluster* cluster;
  u32 rank;  // in its cluster
  u32 x, y, z;
  int sm;
  int slot;  // on its multiprocessor
  u32 warps_left;
  std::vector<u8> shared;
  std::vector<Warp> warps;
  std::vector<u32> registers;
  std::vector<u32> stack;  // local memory, word by word, LANES each
  Barrier barriers[BARRIERS];
};

// Blocks that are placed together; a block of a launch without clusters is one of one.
struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  int place;
  u32 blocks_left;
  u32 warps_alive;
  u32 arrived = 0;
  u64 phase = 0;
  u64 phase_done[2] = {};
  std::vector<Warp*> waiting;
};

// What a scheduler has to know of a warp to pick one: kept together, because it looks at all of them each time.
struct Candidate {
  u64 ready;
  u64 pipe;
  Warp* warp;
};

struct Scheduler {
  std::vector<Candidate> candidates;
  u64 next = NEVER;  // its event
  double pipe_free[PIPES] = {};
  Warp* last = nullptr;
};

struct Multiprocessor {
  Scheduler schedulers[SCHEDULERS];
  double queue_free = 0;  // of the load/store unit
  double port_free = 0;
  double store_port_free = 0;
  Cache l1;
  u32 next_scheduler = 0;
  u64 block_at = 0;          // when the next block may begin
  std::vector<u64> fetched;  // when each line of instructions was there; 0 if never
};

// What lasts from launch to launch.
struct Gpu {
  Parameters parameters;
  Cache l2;
  double dram_free = 0;
  double l2_free = 0;
  double atomics_free = 0;
  u64 now = 0;  // when the last launch ended
};

// Cycles that one sector takes of what it goes through.
struct SectorCost {
  double dram;
  double l2;
  double port;
  double store_port;
};

struct Launch {
  Gpu& gpu;
  const Parameters& parameters;
  const Row* code;
  int rows;
  u32 grid[3];
  u32 threads;  // of a block
  u32 cluster;  // blocks
  u32 shared;   // bytes of a block
  u32 registers;
  u32 local;  // bytes a thread
  std::vector<u8> constants;

  Result result{};
  SectorCost cost;
  double atomic_rate;  // sectors a cycle
  std::vector<Multiprocessor> sms;
  std::vector<std::unique_ptr<Cluster>> running;
  std::vector<std::unique_ptr<Cluster>> spare;  // ended; the next ones take their memory
  std::vector<u64> order;                       // clusters yet to be placed
  size_t placed = 0;
  std::vector<int> room;              // clusters that each place has room for
  typedef std::pair<u64, int> Event;  // a time, and which of all schedulers
  std::priority_queue<Event, std::vector<Event>, std::greater<Event>> events;
  u64 now = 0;
  u64 finished = 0;
  u64 random = 0;
  u32 lanes[8][LANES];  // room for operands that are no registers
  std::string error;

  explicit Launch(Gpu& gpu_) : gpu(gpu_), parameters(gpu_.parameters) {}

  Multiprocessor& sm_of(const Warp& warp) { return sms[warp.block->sm]; }
  u32 warps_of_block() const { return threads / LANES; }
  // A random number from 0 to 1.
  double chance() { return (double)(random >> 40) / (1 << 24); }
};

}  // namespace
