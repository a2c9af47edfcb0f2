// Runs a launch: which instruction is next in a warp, which warp is next among the resident clusters, how a cluster
// begins and ends. Lanes of a warp that diverged run one path at a time, the lowest program counter first.
#pragma once

#include <memory>

#include "arithmetic.hpp"
#include "barriers.hpp"
#include "bits.hpp"
#include "conversions.hpp"
#include "memory.hpp"
#include "moves.hpp"

namespace emulator {

constexpr u64 MOST_STEPS = 4000000000ull;

// --------------------------------------------------------------------------------------------------- an instruction
// Runs an instruction that does not change the program counter.
inline void execute(Step& step) {
  bool wide = step.in.wide();
  switch (step.in.op) {
    case Op::MOV: wide ? move<u64>(step) : move<u32>(step); break;
    case Op::MOV_PREDICATE: step.set_predicate(0, step.predicate(0)); break;
    case Op::SET_PREDICATE: step.set_predicate(0, step.in.mode ? ALL_LANES : 0); break;
    case Op::PACK: wide ? pack<u64>(step) : pack<u32>(step); break;
    case Op::UNPACK: wide ? unpack<u64>(step) : unpack<u32>(step); break;
    case Op::CVTA:
    case Op::CVTA_TO: convert_address(step); break;
    case Op::SELP: wide ? select<u64>(step) : select<u32>(step); break;

    case Op::LD: load(step); break;
    case Op::LD_PARAM: load_parameter(step); break;
    case Op::ST: store(step); break;
    case Op::ATOM: wide ? atomic<u64>(step) : atomic<u32>(step); break;
    case Op::CP_ASYNC: copy_async(step); break;
    case Op::CP_ASYNC_COMMIT: commit_copies(step); break;
    case Op::CP_ASYNC_WAIT: wait_for_copies(step); break;
    case Op::LDMATRIX: load_matrix(step); break;
    case Op::STMATRIX: store_matrix(step); break;
    case Op::MAPA: wide ? map_address<u64>(step) : map_address<u32>(step); break;

    case Op::SHFL: shuffle(step); break;
    case Op::VOTE: vote(step); break;
    case Op::ACTIVEMASK: set_all(step, step.lanes); break;
    case Op::ELECT: elect(step); break;
    case Op::REDUX:
      if (step.in.type == Type::F32)
        reduce_floats(step);
      else
        step.in.type == Type::S32 ? reduce_lanes<s32>(step) : reduce_lanes<u32>(step);
      break;

    case Op::BAR_ARRIVE: arrive_at_barrier(step); break;
    case Op::BAR_WARP: synchronize_warp(step); break;
    case Op::CLUSTER_ARRIVE: arrive_at_cluster_barrier(step); break;
    case Op::FENCE: fence(step); break;
    case Op::NOP: break;
    case Op::TRAP:
      report(step, Kind::TRAPPED, "by %s", name_of(step, first_lane(step.lanes)).c_str());
      step.launch.stopped = true;
      break;

    case Op::SETP: set_predicates(step); break;
    case Op::LOP3: look_up_logic(step); break;
    case Op::PRMT: permute_bytes(step); break;
    case Op::SHF: shift_pair(step); break;
    case Op::BFE: wide ? extract_field<u64>(step) : extract_field<u32>(step); break;
    case Op::BFI: wide ? insert_field<u64>(step) : insert_field<u32>(step); break;
    case Op::BREV: wide ? reverse_bits<u64>(step) : reverse_bits<u32>(step); break;
    case Op::POPC:
    case Op::CLZ:
    case Op::BFIND: wide ? count_bits<u64>(step) : count_bits<u32>(step); break;

    case Op::CVT: convert(step); break;
    case Op::CVT_PACK: convert_pair(step); break;
    case Op::MUL_WIDE:
    case Op::MAD_WIDE: multiply_wide(step); break;
    case Op::CARRY: wide ? compute_with_carry<u64>(step) : compute_with_carry<u32>(step); break;
    default: compute(step);
  }
}
// Barriers that no lane of the warp runs are still looked at: a guard may have kept all from one that is aligned.
inline bool looks_at_absent_lanes(Op op) {
  return op == Op::BAR_SYNC || op == Op::CLUSTER_ARRIVE || op == Op::CLUSTER_WAIT;
}

// ------------------------------------------------------------------------------------------------------------ a warp
// The lanes of a warp that run together now: those at the lowest program counter. Others are at `next` or beyond.
class Front {
 public:
  explicit Front(Warp& warp) : warp(warp) { pick(); }
  u32 counter, lanes;

  void pick() {
    u32 ready = warp.alive & ~warp.waiting;
    counter = next = NO_COUNTER;
    lanes = 0;
    for (u32 rest = ready; rest; rest &= rest - 1) counter = std::min(counter, warp.counters[first_lane(rest)]);
    for (u32 rest = ready; rest; rest &= rest - 1) {
      int lane = first_lane(rest);
      if (warp.counters[lane] == counter)
        lanes |= 1u << lane;
      else
        next = std::min(next, warp.counters[lane]);
    }
  }
  void save() {
    for (u32 rest = lanes; rest; rest &= rest - 1) warp.counters[first_lane(rest)] = counter;
  }
  void branch(u32 taken, u32 target) {
    if (taken == lanes) {
      counter = target;
    } else if (taken) {
      save();
      for (u32 rest = taken; rest; rest &= rest - 1) warp.counters[first_lane(rest)] = target;
      pick();
    }
  }
  // Runs a function after which other lanes may be ready.
  template <class Function>
  void leave(Function function) {
    save();
    function();
    pick();
  }
  void meet() {
    if (counter < next) return;
    save();
    pick();
  }

 private:
  Warp& warp;
  u32 next;
};
inline u32 guarded_lanes(const Warp& warp, const Instruction& in, u32 lanes) {
  if (in.guard == NOTHING) return lanes;
  u32 predicate = warp.predicates[in.guard >> 1];
  return lanes & (in.guard & 1 ? ~predicate : predicate);
}
inline void count_step(Launch& launch, u32 counter, u32 lanes) {
  Counts& counts = launch.outcome.counts;
  counts.classes[(int)launch.program.classes[counter]]++;
  counts.lanes += count_lanes(lanes);
  if (++launch.steps <= MOST_STEPS) return;
  report(launch, Kind::DEADLOCK, launch.program.code[counter], "four billion instructions: an endless loop?");
  launch.stopped = true;
}
// Runs at most so many instructions of a warp, fewer if it has to wait or exits.
inline void run_warp(Launch& launch, Warp& warp, int instructions) {
  Front front(warp);
  while (instructions-- > 0 && front.lanes && !launch.stopped) {
    const Instruction& in = launch.program.code[front.counter];
    u32 lanes = guarded_lanes(warp, in, front.lanes);
    count_step(launch, front.counter, lanes);
    front.counter++;
    if (in.op == Op::BRA) {
      front.branch(lanes, in.target);
    } else if (lanes || looks_at_absent_lanes(in.op)) {
      Step step(launch, warp, in, lanes);
      switch (in.op) {
        case Op::EXIT: front.leave([&] { exit_threads(step); }); break;
        case Op::BAR_SYNC: front.leave([&] { arrive_at_barrier(step); }); break;
        case Op::CLUSTER_WAIT: front.leave([&] { wait_at_cluster_barrier(step); }); break;
        default: execute(step);
      }
    }
    front.meet();
  }
  front.save();
}

// --------------------------------------------------------------------------------------------------------- a cluster
// Registers and shared memory begin with bits that are no likely value.
constexpr u8 SHARED_JUNK = 0xA5;
constexpr u64 REGISTER_JUNK = 0xDEADBEEFDEADBEEFull;
constexpr u64 LINE_BYTES = 64;

inline u64 round_up(u64 bytes) {
  return (bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
}
inline u64 register_bytes(const Program& program) {
  return round_up(program.registers64 * LANES * sizeof(u64)) + round_up(program.registers32 * LANES * sizeof(u32)) +
         round_up(program.predicates * sizeof(u32)) + round_up((u64)LANES * program.local_bytes);
}
inline void start_warp(Warp& warp, Block& block, int index, const Program& program, u8* memory) {
  Cluster& cluster = *block.cluster;
  warp.block = &block;
  warp.index = index;
  warp.in_cluster = block.rank * block.warps.size() + index;
  warp.alive = ALL_LANES;
  warp.waiting = 0;
  warp.time = 1;
  warp.seen.assign(cluster.warps, 0);
  warp.seen[warp.in_cluster] = warp.time;
  std::fill_n(warp.counters, LANES, 0);
  warp.registers64 = (u64*)memory;
  memory += round_up(program.registers64 * LANES * sizeof(u64));
  warp.registers32 = (u32*)memory;
  memory += round_up(program.registers32 * LANES * sizeof(u32));
  warp.predicates = (u32*)memory;
  warp.local = memory + round_up(program.predicates * sizeof(u32));
  std::fill_n(warp.registers64, program.registers64 * LANES, REGISTER_JUNK);
  std::fill_n(warp.registers32, program.registers32 * LANES, (u32)REGISTER_JUNK);
}
inline void start_block(const Launch& launch, Block& block, Cluster& cluster, u32 rank, u64 id) {
  u64 clusters_along_x = launch.grid[0] / launch.cluster_blocks, row = id / clusters_along_x;
  block.cluster = &cluster;
  block.rank = rank;
  block.x = (u32)(id % clusters_along_x * launch.cluster_blocks + rank);
  block.y = (u32)(row % launch.grid[1]);
  block.z = (u32)(row / launch.grid[1]);
  block.linear = ((u64)block.z * launch.grid[1] + block.y) * launch.grid[0] + block.x;
  block.shared.assign(launch.shared_bytes, SHARED_JUNK);
  block.stamps.assign((launch.shared_bytes + 3) / 4, SharedStamp{});
  block.remote_access.assign(cluster.warps, 0);
  block.warps.resize(launch.block_warps());
  block.alive = launch.block_threads;
  for (Barrier& barrier : block.barriers) barrier.seen.assign(cluster.warps, 0);
}
inline std::unique_ptr<Cluster> start_cluster(const Launch& launch, u64 id) {
  auto cluster = std::make_unique<Cluster>();
  cluster->warps = launch.block_warps() * launch.cluster_blocks;
  cluster->alive = launch.block_threads * launch.cluster_blocks;
  cluster->arriving.assign(cluster->warps, 0);
  cluster->passed.assign(cluster->warps, 0);
  u64 bytes = register_bytes(launch.program);
  cluster->registers.resize(bytes * cluster->warps + LINE_BYTES);
  u8* memory = (u8*)round_up((u64)cluster->registers.data());
  cluster->blocks.resize(launch.cluster_blocks);
  for (u32 rank = 0; rank < launch.cluster_blocks; ++rank) {
    Block& block = cluster->blocks[rank];
    start_block(launch, block, *cluster, rank, id);
    for (int index = 0; index < launch.block_warps(); ++index, memory += bytes)
      start_warp(block.warps[index], block, index, launch.program, memory);
  }
  return cluster;
}
// A block must know, when it exits, that no other is going to access its shared memory.
inline void finish_cluster(Launch& launch, Cluster& cluster) {
  Instruction nowhere{};
  nowhere.line = NOTHING;
  u32 per_block = launch.block_warps();
  for (Block& block : cluster.blocks) {
    Clock known(cluster.warps, 0);
    for (Warp& warp : block.warps) join(known, warp.seen);
    for (u32 other = 0; other < (u32)cluster.warps; ++other) {
      u32 accessed = block.remote_access[other];
      if (!accessed || other / per_block == block.rank || accessed < known[other]) continue;
      report(launch, Kind::EXIT_BEFORE_ACCESS, nowhere,
             "rank %u may exit before warp %u of rank %u has used its shared memory: no barrier between the last "
             "access and the exit",
             block.rank, other % per_block, other / per_block);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------- a launch
class Scheduler {
 public:
  explicit Scheduler(Launch& launch) : launch(launch), seed(launch.config.seed) {}

  void run() {
    order_clusters();
    count_threads();
    while (!launch.stopped) {
      while ((int)resident.size() < std::max(1, launch.config.resident) && started < order.size())
        resident.push_back(start_cluster(launch, order[started++]));
      if (resident.empty()) break;
      run_round();
      retire();
    }
    launch.outcome.counts.total = launch.steps;
  }

 private:
  Launch& launch;
  u64 seed;  // 0: one warp after the other, clusters in order
  std::vector<u64> order;
  size_t started = 0;
  std::vector<std::unique_ptr<Cluster>> resident;
  static constexpr int UNTIL_IT_WAITS = 1 << 30;

  void order_clusters() {
    order.resize((u64)launch.grid[0] / launch.cluster_blocks * launch.grid[1] * launch.grid[2]);
    for (u64 k = 0; k < order.size(); ++k) order[k] = k;
    if (seed)
      for (u64 k = order.size(); k > 1; --k) std::swap(order[k - 1], order[launch.random.next() % k]);
  }
  void count_threads() {
    Counts& counts = launch.outcome.counts;
    u64 most = launch.config.most_clusters > 0 ? launch.config.most_clusters : order.size();
    counts.clusters = order.size();
    order.resize(std::min<u64>(most, order.size()));
    counts.clusters_run = order.size();
    counts.blocks = order.size() * launch.cluster_blocks;
    counts.warps = counts.blocks * launch.block_warps();
  }
  std::vector<Warp*> warps_that(bool may_run) {
    std::vector<Warp*> found;
    for (auto& cluster : resident)
      for (Block& block : cluster->blocks)
        for (Warp& warp : block.warps)
          if (may_run ? warp.alive & ~warp.waiting : warp.alive) found.push_back(&warp);
    return found;
  }
  void report_deadlock(const Warp& warp) {
    u32 counter = warp.counters[first_lane(warp.alive)];
    report(launch, Kind::DEADLOCK, launch.program.code[counter ? counter - 1 : 0],
           "no warp can run: warp %d of block %llu waits here", warp.index, (unsigned long long)warp.block->linear);
    launch.stopped = true;
  }
  // Some rounds run every ready warp for a few instructions in a random order, others let a few run until they wait.
  void run_round() {
    std::vector<Warp*> ready = warps_that(true);
    if (ready.empty()) return report_deadlock(*warps_that(false).front());
    Random& random = launch.random;
    bool favour = seed && random.below(4) == 0;
    if (seed)
      for (size_t k = ready.size(); k > 1; --k) std::swap(ready[k - 1], ready[random.below((u32)k)]);
    if (favour) ready.resize(1 + random.below((u32)ready.size()));
    for (Warp* warp : ready) {
      int instructions = !seed || favour ? UNTIL_IT_WAITS : 1 + (int)random.below(launch.config.quantum);
      if (warp->alive & ~warp->waiting) run_warp(launch, *warp, instructions);
      if (launch.stopped) return;
    }
  }
  void retire() {
    for (size_t k = 0; k < resident.size();) {
      if (resident[k]->alive) {
        ++k;
        continue;
      }
      finish_cluster(launch, *resident[k]);
      resident.erase(resident.begin() + k);
    }
  }
};

}  // namespace emulator
