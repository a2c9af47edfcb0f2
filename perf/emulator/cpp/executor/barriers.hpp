// What orders warps: barriers of a block, of a cluster and of a warp, fences, and the exit of threads, which barriers
// no longer wait for. The scheduler (scheduler.hpp) saves the program counters of lanes that wait.
#pragma once

#include "checks.hpp"

namespace emulator {

// What a warp did until now; the barrier's followers are ordered after it, what the warp does next is not.
inline void publish(const Warp& warp, Clock& to) {
  join(to, warp.seen);
  to[warp.in_cluster] = warp.time + 1;
}
inline void advance(Warp& warp) {
  warp.seen[warp.in_cluster] = ++warp.time;
}

// --------------------------------------------------------------------------------------------- barriers of a block
inline void release_if_full(Block& block) {
  for (Barrier& barrier : block.barriers) {
    u32 needed = barrier.expected ? barrier.expected : block.alive;
    if (!barrier.arrived || barrier.arrived < needed) continue;
    for (auto& [warp, lanes] : barrier.waiters) {
      warp->waiting &= ~lanes;
      join(warp->seen, barrier.seen);
    }
    barrier.waiters.clear();
    barrier.arrived = barrier.expected = 0;
    std::fill(barrier.seen.begin(), barrier.seen.end(), 0);
  }
}
// bar.sync and bar.arrive: PTX ISA.
inline void arrive_at_barrier(Step& step) {
  Warp& warp = step.warp;
  bool aligned = step.in.mode, wait = step.in.op == Op::BAR_SYNC;
  if (aligned && step.lanes != warp.alive)
    report(step, Kind::BARRIER, "divergent barrier: lanes 0x%x of 0x%x of warp %d", step.lanes, warp.alive, warp.index);
  if (!step.lanes) return;
  int first = first_lane(step.lanes);
  u32 id = step.source<u32>(0)[first] % BARRIERS;
  u32 expected = step.in.has_source(1) ? step.source<u32>(1)[first] : 0;
  Barrier& barrier = warp.block->barriers[id];
  if (barrier.arrived && barrier.expected != expected)
    report(step, Kind::BARRIER, "barrier %u is waited for with different numbers of threads", id);
  barrier.expected = expected;
  barrier.arrived += count_lanes(step.lanes);
  publish(warp, barrier.seen);
  advance(warp);
  if (wait) {
    barrier.waiters.push_back({&warp, step.lanes});
    warp.waiting |= step.lanes;
  }
  release_if_full(*warp.block);
}
inline void synchronize_warp(Step& step) {
  u32 members = step.source<u32>(0)[first_lane(step.lanes)];
  if ((members & step.warp.alive) != step.lanes)
    report(step, Kind::BARRIER, "bar.warp.sync with mask 0x%x by lanes 0x%x", members, step.lanes);
  advance(step.warp);
}

// ------------------------------------------------------------------------------------------- barriers of a cluster
inline void release_if_full(Cluster& cluster) {
  if (!cluster.arrived || cluster.arrived < cluster.alive) return;
  cluster.arrived = 0;
  cluster.phase++;
  cluster.passed = cluster.arriving;
  std::fill(cluster.arriving.begin(), cluster.arriving.end(), 0);
  for (Warp* warp : cluster.waiters) {
    warp->waiting = 0;
    warp->arrived = false;
    join(warp->seen, cluster.passed);
  }
  cluster.waiters.clear();
}
inline void check_whole_at_cluster_barrier(Step& step) {
  if (step.lanes != step.warp.alive)
    report(step, Kind::BARRIER, "divergent cluster barrier: lanes 0x%x of 0x%x", step.lanes, step.warp.alive);
}
// barrier.cluster.arrive: PTX ISA. A relaxed one publishes what the last fence did.
inline void arrive_at_cluster_barrier(Step& step) {
  Warp& warp = step.warp;
  Cluster& cluster = *warp.block->cluster;
  bool relaxed = step.in.mode2;
  check_whole_at_cluster_barrier(step);
  if (!step.lanes) return;
  if (warp.arrived) report(step, Kind::BARRIER, "a second arrival at the cluster barrier without a wait");
  warp.arrived = true;
  warp.arrived_phase = cluster.phase;
  if (!relaxed)
    publish(warp, cluster.arriving);
  else if (warp.fenced)
    join(cluster.arriving, warp.seen_at_fence);
  advance(warp);
  cluster.arrived += count_lanes(step.lanes);
  release_if_full(cluster);
}
inline void wait_at_cluster_barrier(Step& step) {
  Warp& warp = step.warp;
  Cluster& cluster = *warp.block->cluster;
  check_whole_at_cluster_barrier(step);
  if (!step.lanes) return;
  if (!warp.arrived) {
    report(step, Kind::BARRIER, "a wait for the cluster barrier without an arrival");
  } else if (warp.arrived_phase < cluster.phase) {
    warp.arrived = false;
    join(warp.seen, cluster.passed);
  } else {
    warp.waiting = warp.alive;
    cluster.waiters.push_back(&warp);
  }
}

// ------------------------------------------------------------------------------------------------ fences and exits
inline void fence(Step& step) {
  Warp& warp = step.warp;
  warp.seen_at_fence = warp.seen;
  warp.seen_at_fence[warp.in_cluster] = warp.time + 1;
  warp.fenced = true;
  advance(warp);
}
inline void exit_threads(Step& step) {
  Block& block = *step.warp.block;
  step.warp.alive &= ~step.lanes;
  block.alive -= count_lanes(step.lanes);
  block.cluster->alive -= count_lanes(step.lanes);
  release_if_full(block);
  release_if_full(*block.cluster);
}

}  // namespace emulator
