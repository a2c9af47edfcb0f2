// The issue of one warp instruction: its lanes, its pipe, what it does, its scoreboards, where the warp goes on.
//
// A scheduler issues one warp instruction a cycle, in the order of the warp's program (Huerta et al., "Analyzing Modern
// NVIDIA GPU Cores", 2025, arXiv:2503.20481). A pipe with 16 lanes takes two cycles for a warp, one with 4
// eight: CUDA C++ Programming Guide, table "Throughput of Native Arithmetic Instructions".
#pragma once

#include "blocks.hpp"
#include "compute.hpp"

namespace {

// Chosen, not published: cycles until scoreboards are clear that instructions of a fixed latency set, and until an
// instruction that no lane takes part in clears its own.
constexpr u64 RESULT_THERE = 12;
constexpr u64 RESULT_THERE_FP64 = 16;
constexpr u64 OPERANDS_READ = 6;
constexpr u64 SKIPPED = 4;
// Groups of copies that are remembered; more cannot be waited for.
constexpr size_t COPY_GROUPS = 64;

// What became of a warp instruction.
struct Outcome {
  u64 stall;
  u32 next;                // row
  u8 why = R_FIXED;        // the warp cannot go on at once
  bool suspended = false;  // it waits at a barrier, or has ended
  bool parted = false;     // the lanes' places are set already
  u64 result_at = 0;       // of a variable time: when its scoreboard is clear
  u8 result_reason = R_OTHER;
};

// The lanes of a warp that are at one place.
struct Active {
  u32 at;       // row
  u32 lanes;    // that are there
  u32 guarded;  // of these, those whose guard is true
};

// The lanes that are furthest behind run first.
Active active_lanes(const Launch& launch, const Warp& warp) {
  Active active = {warp.pc, warp.alive, 0};
  if (warp.parted) {
    active.at = ~0u;
    active.lanes = 0;
    for (u32 rest = warp.alive; rest; rest &= rest - 1)
      active.at = std::min(active.at, warp.lane_pc[__builtin_ctz(rest)]);
    for (u32 rest = warp.alive; rest; rest &= rest - 1) {
      int lane = __builtin_ctz(rest);
      if (warp.lane_pc[lane] == active.at) active.lanes |= 1u << lane;
    }
  }
  s32 guard = launch.code[active.at].guard;
  u32 holds = ALL_LANES;
  if (guard >= 0) {
    holds = predicate(warp, {guard & 2 ? UPREG : PREG, guard >> 2, guard & 1 ? INVERTED : 0});
  }
  active.guarded = active.lanes & holds;
  return active;
}

// What the warp waited for since its last instruction: until it was ready its reason, then the pipe or other warps.
void count_waiting(Launch& launch, Warp& warp, const Row& row, u64 t) {
  u64 ready = std::min(std::max(warp.ready, warp.issued_at), t);
  launch.result.reasons[warp.why] += ready - warp.issued_at;
  launch.result.reasons[row.pipe == MIO ? R_QUEUE : R_PICK] += t - ready;
  launch.result.issued++;
  warp.issued_at = t;
}

double pipe_cycles(const Parameters& parameters, int pipe) {
  switch (pipe) {
    case ALU: return parameters.alu;
    case FMA: return parameters.fma;
    case FMAH: return parameters.fma_heavy;
    case XU: return parameters.xu;
    case FP64: return parameters.fp64;
    case UNIFORM: return parameters.uniform;
    default: return 1;
  }
}

void occupy_pipe(Launch& launch, Scheduler& scheduler, int pipe, u64 t) {
  double cycles = pipe_cycles(launch.parameters, pipe);
  scheduler.pipe_free[pipe] = std::max(scheduler.pipe_free[pipe], (double)t) + cycles;
  launch.result.pipe_busy[pipe] += cycles;
  if (pipe == FMAH) scheduler.pipe_free[FMA] = std::max(scheduler.pipe_free[FMA], (double)t + 1);  // half of it
}

// ----------------------------------------------------------------------------------------------------- control flow
// The lanes for which a second predicate, of a jump or an exit, holds as well.
u32 with_predicate(const Warp& warp, const Row& row, u32 lanes) {
  return is_predicate(row.sources[0].kind) ? lanes & predicate(warp, row.sources[0]) : lanes;
}

// Jumps and calls; a call's return address is in a register already.
void jump(Launch& launch, Warp& warp, const Row& row, const Active& active, Outcome& outcome) {
  if (row.guard >= 0 && is_guessed(warp, row.guard & 2 ? UPREG : PREG, row.guard >> 2)) launch.result.guessed++;
  u32 taken = with_predicate(warp, row, active.guarded);
  if (taken == active.lanes) {
    outcome.next = (u32)row.target;
    return;
  }
  if (!taken) return;
  if (!warp.parted) std::fill(warp.lane_pc, warp.lane_pc + LANES, active.at);
  warp.parted = outcome.parted = true;
  for (u32 rest = active.lanes; rest; rest &= rest - 1) {
    int lane = __builtin_ctz(rest);
    warp.lane_pc[lane] = taken >> lane & 1 ? (u32)row.target : active.at + 1;
  }
}

void exit(Launch& launch, Warp& warp, const Row& row, const Active& active, u64 t, Outcome& outcome) {
  warp.alive &= ~with_predicate(warp, row, active.guarded);
  if (warp.alive) return;
  outcome.suspended = true;
  end_warp(launch, warp, t + 1);
}

void set_lanes(Warp& warp, u32 lanes, u32 pc) {
  for (u32 rest = lanes; rest; rest &= rest - 1) warp.lane_pc[__builtin_ctz(rest)] = pc;
}

// Moves the warp on; lanes that had parted and are at one place again are together.
void advance(Warp& warp, const Active& active, const Outcome& outcome) {
  if (!warp.parted) {
    warp.pc = outcome.next;
    return;
  }
  if (!outcome.parted) set_lanes(warp, active.lanes, outcome.next);
  u32 lowest = ~0u, highest = 0;
  for (u32 rest = warp.alive; rest; rest &= rest - 1) {
    u32 pc = warp.lane_pc[__builtin_ctz(rest)];
    lowest = std::min(lowest, pc);
    highest = std::max(highest, pc);
  }
  warp.pc = lowest;
  warp.parted = lowest != highest;
}

// ------------------------------------------------------------------------------------------------------- barriers
// bar.sync and bar.arrive; the second operand is a number of threads.
void arrive_at_barrier(Launch& launch, Warp& warp, const Row& row, const Active& active, u64 t, Outcome& outcome) {
  Barrier& barrier = warp.block->barriers[row.sources[0].kind == IMM ? row.sources[0].value % BARRIERS : 0];
  u32 needed = row.sources[1].kind == IMM ? (u32)row.sources[1].value / LANES : warp.block->warps_left;
  bool complete = ++barrier.arrived >= needed;
  warp.pc = active.at + 1;
  if (complete) open_barrier(launch, barrier, t);
  if (row.mode & NOT_WAITING) return;
  if (complete) {
    outcome.stall = std::max(outcome.stall, (u64)launch.parameters.latency_barrier);
    outcome.why = R_BARRIER;
    return;
  }
  barrier.waiting.push_back(&warp);
  if (warp.parted) set_lanes(warp, active.lanes, active.at + 1);
  suspend(launch, warp);
  outcome.suspended = true;
}

void arrive_at_cluster_barrier(Launch& launch, Warp& warp, u64 t) {
  Cluster& cluster = *warp.block->cluster;
  warp.at_cluster_barrier = true;
  if (++cluster.arrived >= cluster.warps_alive) open_cluster_barrier(launch, cluster, t);
}

void wait_for_cluster(Launch& launch, Warp& warp, const Active& active, u64 t, Outcome& outcome) {
  Cluster& cluster = *warp.block->cluster;
  warp.pc = active.at + 1;
  if (warp.at_cluster_barrier) {
    cluster.waiting.push_back(&warp);
    suspend(launch, warp);
    outcome.suspended = true;
    return;
  }
  u64 opened = cluster.phase_done[cluster.phase & 1];
  if (opened <= t + outcome.stall) return;
  outcome.stall = opened - t;
  outcome.why = R_CLUSTER;
}

// A fence costs its own time. It does not wait for the warp's stores.
void fence(Launch& launch, Outcome& outcome) {
  outcome.stall = std::max(outcome.stall, (u64)launch.parameters.latency_fence);
  outcome.why = R_CLUSTER;
}

// ------------------------------------------------------------------------------------------------------ execution
void commit_copies(Warp& warp, const Row& row) {
  std::vector<u64>& groups = warp.copy_groups[row.write_scoreboard < SCOREBOARDS ? row.write_scoreboard : 0];
  groups.push_back(std::max(warp.copies_done, groups.empty() ? 0 : groups.back()));
  if (groups.size() > COPY_GROUPS) groups.erase(groups.begin());
}

void shuffle_lanes(Launch& launch, Warp& warp, const Row& row, u32 lanes, u64 t, Outcome& outcome) {
  Multiprocessor& sm = launch.sm_of(warp);
  double start = std::max((double)t + OPERAND_READ, sm.queue_free);
  sm.queue_free = start + launch.parameters.shuffle;
  launch.result.queue_busy += launch.parameters.shuffle;
  outcome.result_at = (u64)(start + launch.parameters.latency_shuffle);
  outcome.result_reason = R_SHARED;
  if (row.live) compute(launch, warp, row, lanes);
}

bool is_memory(const Row& row) {
  return row.operation >= LD && row.operation <= LDGSTS;
}

void execute(Launch& launch, Scheduler& scheduler, Warp& warp, const Row& row, const Active& active, u64 t,
             Outcome& outcome) {
  const Parameters& parameters = launch.parameters;
  u32 lanes = active.guarded;
  switch (row.operation) {
    case LD:
    case ST:
    case ATOM:
    case LDSM:
    case LDGSTS:
      if (lanes)
        access_memory(launch, warp, row, lanes, t);
      else if (row.write_scoreboard < SCOREBOARDS)
        outcome.result_at = t + SKIPPED;
      return;
    case LDGDEPBAR: commit_copies(warp, row); return;
    case DEPBAR: return;  // waited for before it was issued: settle
    case SHFL: shuffle_lanes(launch, warp, row, lanes, t, outcome); return;
    case S2R:
      outcome.result_at = t + (u64)parameters.latency_special;
      compute(launch, warp, row, lanes);
      return;
    case LDC:
      if (row.pipe == MIO) outcome.result_at = t + (u64)parameters.latency_constant;
      compute(launch, warp, row, lanes);
      return;
    case MEMBAR: fence(launch, outcome); return;
    case BRA:
    case CALL: jump(launch, warp, row, active, outcome); return;
    case RET:  // a byte address, 16 an instruction
      outcome.next = operand(launch, warp, row.sources[0], 0)[__builtin_ctz(active.lanes)] / 16;
      return;
    case EXIT: exit(launch, warp, row, active, t, outcome); return;
    case BAR: arrive_at_barrier(launch, warp, row, active, t, outcome); return;
    case CLUSTER_ARRIVE: arrive_at_cluster_barrier(launch, warp, t); return;
    case CLUSTER_WAIT: wait_for_cluster(launch, warp, active, t, outcome); return;
  }
  if (row.live) compute(launch, warp, row, lanes);
  if (row.pipe == XU) outcome.result_at = (u64)(scheduler.pipe_free[XU] + parameters.latency_xu - parameters.xu);
}

// Scoreboards of what is no access to memory.
void set_scoreboards(Warp& warp, const Row& row, u64 t, const Outcome& outcome) {
  auto set = [&](s32 scoreboard, u64 clear, u8 reason, bool if_later) {
    if (scoreboard >= SCOREBOARDS || (if_later && clear < warp.scoreboards[scoreboard])) return;
    warp.scoreboards[scoreboard] = std::max(warp.scoreboards[scoreboard], clear);
    warp.scoreboard_reason[scoreboard] = reason;
  };
  if (outcome.result_at) {
    set(row.write_scoreboard, outcome.result_at, outcome.result_reason, true);
    set(row.read_scoreboard, t + OPERANDS_READ, R_OTHER, true);
  } else if (!is_memory(row)) {
    u64 there = t + (row.pipe == FP64 ? RESULT_THERE_FP64 : RESULT_THERE);
    if (row.operation != LDGDEPBAR) set(row.write_scoreboard, there, R_OTHER, false);
    set(row.read_scoreboard, t + OPERANDS_FREE, R_OTHER, false);
  }
}

void issue(Launch& launch, Scheduler& scheduler, Warp& warp, u64 t) {
  Active active = active_lanes(launch, warp);
  const Row& row = launch.code[active.at];
  count_waiting(launch, warp, row, t);
  scheduler.last = &warp;
  occupy_pipe(launch, scheduler, row.pipe, t);
  Outcome outcome = {(u64)std::max(1, row.stall), active.at + 1};
  execute(launch, scheduler, warp, row, active, t, outcome);
  if (outcome.suspended) return;
  set_scoreboards(warp, row, t, outcome);
  advance(warp, active, outcome);
  settle(launch, warp, t + outcome.stall, outcome.why);
}

}  // namespace
