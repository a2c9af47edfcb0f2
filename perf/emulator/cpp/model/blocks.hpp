// When a warp may issue next, barriers, and how blocks and clusters come and go.
//
// A warp waits for what the compiler wrote into its instructions: cycles after the one before, and six scoreboards that
// results of a variable time clear (Jia et al. 2018, arXiv:1804.06826). A block goes where room is, a
// cluster where all of its blocks have a multiprocessor of their own in one GPC (CUDA C++ Programming Guide, "Thread
// Block Clusters").
#pragma once

#include "memory.hpp"

namespace {

// --------------------------------------------------------------------------------------------------- when to issue
// Has a scheduler look at its warps at a time.
void wake(Launch& launch, int sm, int scheduler, u64 t) {
  Scheduler& s = launch.sms[sm].schedulers[scheduler];
  if (t >= s.next) return;
  s.next = t;
  launch.events.push({t, sm * SCHEDULERS + scheduler});
}

// Tells a warp's scheduler when its next instruction may issue.
void set_ready(Launch& launch, Warp& warp, u64 ready) {
  warp.ready = ready;
  u64 pipe = launch.code[std::min<u32>(warp.pc, launch.rows - 1)].pipe;
  launch.sm_of(warp).schedulers[warp.scheduler].candidates[warp.slot] = {ready, pipe, &warp};
}

void suspend(Launch& launch, Warp& warp) {
  set_ready(launch, warp, NEVER);
}

// When the groups of copies that DEPBAR waits for are there: all but the last few.
u64 copies_there(const Warp& warp, const Row& row) {
  const std::vector<u64>& groups = warp.copy_groups[(row.sources[0].value & 7) % SCOREBOARDS];
  size_t may_be_pending = (size_t)row.sources[1].value;
  return groups.size() > may_be_pending ? groups[groups.size() - 1 - may_be_pending] : 0;
}

// When the instructions at a warp's place are there: a multiprocessor fetches each line of them once.
u64 fetched(Launch& launch, Warp& warp, u64 t) {
  std::vector<u64>& lines = launch.sm_of(warp).fetched;
  size_t line = warp.pc / FETCHED;
  if (line >= lines.size()) return 0;
  if (!lines[line]) lines[line] = t + (u64)launch.parameters.fetch;
  return lines[line];
}

// Decides when the warp's next instruction may issue, not before `t`, and why not earlier.
void settle(Launch& launch, Warp& warp, u64 t, u8 why) {
  const Row& next = launch.code[std::min<u32>(warp.pc, launch.rows - 1)];
  u64 at = t;
  auto wait_for = [&](u64 time, u8 reason) {
    if (time <= at) return;
    at = time;
    why = reason;
  };
  for (u32 bits = (u32)next.wait; bits; bits &= bits - 1) {
    int k = __builtin_ctz(bits);
    wait_for(warp.scoreboards[k], warp.scoreboard_reason[k]);
  }
  if (next.operation == DEPBAR && next.sources[0].kind == IMM) wait_for(copies_there(warp, next), R_LOAD);
  if (launch.parameters.fetch > 0) wait_for(fetched(launch, warp, at), R_FETCH);
  warp.why = why;
  set_ready(launch, warp, at);
}

void release(Launch& launch, Warp& warp, u64 t, u8 why) {
  settle(launch, warp, t, why);
  wake(launch, warp.block->sm, warp.scheduler, warp.ready);
}

// ------------------------------------------------------------------------------------------------------- barriers
void open_barrier(Launch& launch, Barrier& barrier, u64 t) {
  std::vector<Warp*> waiting = std::move(barrier.waiting);
  barrier.waiting.clear();
  barrier.arrived = 0;
  for (Warp* warp : waiting) release(launch, *warp, t + (u64)launch.parameters.latency_barrier, R_BARRIER);
}

void open_cluster_barrier(Launch& launch, Cluster& cluster, u64 t) {
  u64 open_at = t + (u64)launch.parameters.latency_cluster_barrier;
  cluster.arrived = 0;
  cluster.phase++;
  cluster.phase_done[cluster.phase & 1] = open_at;
  std::vector<Warp*> waiting = std::move(cluster.waiting);
  cluster.waiting.clear();
  for (Warp* warp : waiting) release(launch, *warp, open_at, R_CLUSTER);
  for (auto& block : cluster.blocks)
    for (Warp& warp : block->warps) warp.at_cluster_barrier = false;
}

// ------------------------------------------------------------------------------------------------ coming and going
void start_warp(Launch& launch, Block& block, int index, int scheduler, u64 t) {
  Warp& warp = block.warps[index];
  warp = Warp();
  warp.block = &block;
  warp.index = index;
  warp.scheduler = scheduler;
  warp.registers = block.registers.data() + (size_t)index * launch.registers * LANES;
  memset(warp.uniform, 0, sizeof warp.uniform);
  memset(warp.predicates, 0, sizeof warp.predicates);
  memset(warp.uniform_predicates, 0, sizeof warp.uniform_predicates);
  warp.issued_at = t;
  auto& candidates = launch.sms[block.sm].schedulers[scheduler].candidates;
  warp.slot = (int)candidates.size();
  candidates.emplace_back();
  set_ready(launch, warp, t + index);  // a block's warps begin a cycle apart
  wake(launch, block.sm, scheduler, warp.ready);
}

void start_block(Launch& launch, Block& block, u64 t) {
  Multiprocessor& sm = launch.sms[block.sm];
  u32 warps = launch.warps_of_block();
  block.shared.assign(launch.shared + 1024, 0);  // 1 KiB is the driver's
  if (launch.local) block.stack.resize((size_t)warps * (launch.local + 32) / 4 * LANES);
  block.registers.resize((size_t)warps * launch.registers * LANES);
  block.warps.resize(warps);
  block.warps_left = warps;
  for (Barrier& barrier : block.barriers) {
    barrier.arrived = 0;
    barrier.waiting.clear();
  }
  u64 from = std::max(t, sm.block_at);
  sm.block_at = from + (u64)launch.parameters.block_gap;
  for (u32 k = 0; k < warps; ++k) start_warp(launch, block, k, (sm.next_scheduler + k) % SCHEDULERS, from);
  sm.next_scheduler += warps;
}

std::unique_ptr<Cluster> empty_cluster(Launch& launch) {
  if (launch.spare.empty()) {
    auto cluster = std::make_unique<Cluster>();
    for (u32 k = 0; k < launch.cluster; ++k) cluster->blocks.push_back(std::make_unique<Block>());
    return cluster;
  }
  auto cluster = std::move(launch.spare.back());
  launch.spare.pop_back();
  cluster->arrived = 0;
  cluster->phase = 0;
  cluster->waiting.clear();
  return cluster;
}

// Starts the next cluster of the launch, if there is one, on a place: as many multiprocessors as it has blocks.
void start_cluster(Launch& launch, u64 t, int place) {
  if (launch.placed >= launch.order.size()) return;
  u64 id = launch.order[launch.placed++];
  u64 in_row = launch.grid[0] / launch.cluster;
  std::unique_ptr<Cluster> cluster = empty_cluster(launch);
  cluster->blocks_left = launch.cluster;
  cluster->warps_alive = launch.cluster * launch.warps_of_block();
  cluster->place = place;
  launch.room[place]--;
  for (u32 rank = 0; rank < launch.cluster; ++rank) {
    Block& block = *cluster->blocks[rank];
    block.cluster = cluster.get();
    block.rank = rank;
    block.sm = place * launch.cluster + rank;
    block.slot = launch.room[place];
    block.x = (u32)(id % in_row * launch.cluster + rank);
    block.y = (u32)(id / in_row % launch.grid[1]);
    block.z = (u32)(id / in_row / launch.grid[1]);
    start_block(launch, block, t);
  }
  launch.running.push_back(std::move(cluster));
}

// A cluster whose warps have all ended makes room for the next.
void end_cluster(Launch& launch, Cluster& cluster, u64 t) {
  int place = cluster.place;
  launch.room[place]++;
  auto here = [&](const std::unique_ptr<Cluster>& other) { return other.get() == &cluster; };
  auto found = std::find_if(launch.running.begin(), launch.running.end(), here);
  launch.spare.push_back(std::move(*found));
  *found = std::move(launch.running.back());
  launch.running.pop_back();
  start_cluster(launch, t + (u64)launch.parameters.latency_block, place);
}

void remove_candidate(Scheduler& scheduler, Warp& warp) {
  auto& candidates = scheduler.candidates;
  candidates.erase(candidates.begin() + warp.slot);
  for (size_t k = warp.slot; k < candidates.size(); ++k) candidates[k].warp->slot = (int)k;
  if (scheduler.last == &warp) scheduler.last = nullptr;
}

// Ends a warp: barriers no longer wait for it.
void end_warp(Launch& launch, Warp& warp, u64 t) {
  Block& block = *warp.block;
  Cluster& cluster = *block.cluster;
  remove_candidate(launch.sms[block.sm].schedulers[warp.scheduler], warp);
  warp.done = true;
  cluster.warps_alive--;
  block.warps_left--;
  for (Barrier& barrier : block.barriers)
    if (barrier.arrived && barrier.arrived >= block.warps_left) open_barrier(launch, barrier, t);
  if (launch.cluster > 1 && cluster.arrived && cluster.arrived >= cluster.warps_alive)
    open_cluster_barrier(launch, cluster, t);
  launch.finished = std::max(launch.finished, t);
  if (block.warps_left == 0 && --cluster.blocks_left == 0) end_cluster(launch, cluster, t);
}

}  // namespace
