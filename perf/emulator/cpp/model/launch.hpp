// One launch: which blocks run where, and the loop over events in the order of time.
//
// An event is a scheduler that looks at its warps. All multiprocessors run side by side, so the L2 and the DRAM see
// their requests in the order of time. With `share` only one of so many places is run, with its share of the L2 and the
// DRAM: a machine whose multiprocessors do not lend each other bandwidth.
#pragma once

#include "issue.hpp"

namespace {

// More is a loop that does not end.
constexpr double MOST_INSTRUCTIONS = 3e9;

// ------------------------------------------------------------------------------------------------------ schedulers
// The first cycle at which each pipe takes an instruction; MIO, when there is room before the load/store unit.
struct PipesFree {
  u64 at[PIPES];

  PipesFree(const Launch& launch, const Multiprocessor& sm, const Scheduler& scheduler) {
    for (int pipe = 0; pipe < PIPES; ++pipe) at[pipe] = (u64)std::ceil(scheduler.pipe_free[pipe]);
    double room = std::ceil(sm.queue_free - launch.parameters.queue_depth);
    if (room > (double)at[MIO]) at[MIO] = (u64)room;
  }

  u64 of(const Candidate& candidate) const { return std::max(candidate.ready, at[candidate.pipe]); }
};

// A scheduler issues the instruction that may go first; of several the warp that issued last, or else the oldest.
// Greedy, then oldest: Rogers et al., "Cache-Conscious Wavefront Scheduling", 2012.
void step(Launch& launch, int sm_index, int scheduler_index, u64 t) {
  Multiprocessor& sm = launch.sms[sm_index];
  Scheduler& scheduler = sm.schedulers[scheduler_index];
  PipesFree free(launch, sm, scheduler);
  Warp* best = nullptr;
  u64 when = NEVER;
  for (const Candidate& candidate : scheduler.candidates) {
    u64 may = std::max(free.of(candidate), t);
    if (may < when || (may == when && may < NEVER && candidate.warp == scheduler.last)) {
      when = may;
      best = candidate.warp;
    }
  }
  scheduler.next = NEVER;
  if (!best) return;
  if (when > t) {
    wake(launch, sm_index, scheduler_index, when);
    return;
  }
  issue(launch, scheduler, *best, t);
  u64 soon = NEVER;
  PipesFree then(launch, sm, scheduler);
  for (const Candidate& candidate : scheduler.candidates) soon = std::min(soon, then.of(candidate));
  if (soon < NEVER) wake(launch, sm_index, scheduler_index, std::max(t + 1, soon));
}

// ------------------------------------------------------------------------------------------------------- placement
// How many clusters may run side by side if each has one: whole ones in a GPC.
int places_of(const Launch& launch) {
  int sms = (int)launch.parameters.sms;
  int in_gpc = (int)launch.parameters.gpc_sms;
  int size = (int)launch.cluster;
  if (size == 1 || in_gpc == 0) return sms / size;
  int whole_gpcs = sms / in_gpc;
  return std::max(1, whole_gpcs * (in_gpc / size) + (sms - whole_gpcs * in_gpc) / size);
}

// Clusters that are chosen together: those whose tiles end within a sector share it with the next.
constexpr int NEIGHBOURS = 8;

// Chooses places and the clusters that run on them; the share of all places that they are. The same ones from both
// ends: a launch that takes them from the last to the first then finds in the L2 what the launch before left there.
double choose_places(Launch& launch, u32 resident) {
  u64 clusters = (u64)launch.grid[0] / launch.cluster * launch.grid[1] * launch.grid[2];
  int all = (int)std::min<u64>(places_of(launch), clusters);
  double share = launch.parameters.share;
  int places = share > 1 ? std::max(1, (int)(all / share)) : all;
  launch.sms.resize(places * launch.cluster);
  launch.room.assign(places, (int)resident);
  u64 wanted = (clusters * places + all - 1) / all;
  u64 run = std::min(places, NEIGHBOURS);
  for (u64 id = 0; launch.order.size() < (wanted + 1) / 2; ++id)
    if ((int)(id / run % all) * places % all < places) launch.order.push_back(id);
  for (u64 k = wanted / 2; k > 0; --k) launch.order.push_back(clusters - 1 - launch.order[k - 1]);
  return share > 1 ? (double)places / all : 1;
}

void set_costs(Launch& launch, double part) {
  const Parameters& p = launch.parameters;
  launch.cost.dram = SECTOR / (p.dram / p.clock * part);
  launch.cost.l2 = SECTOR / (p.l2_rate / p.clock * part);
  launch.cost.port = SECTOR / p.port;
  launch.cost.store_port = SECTOR / p.store_port;
  launch.atomic_rate = p.atomic * part;
}

// Empty multiprocessors, whose first blocks begin a random while after each other.
void prepare_sms(Launch& launch, u64 l1_bytes, u64 begin) {
  launch.random = mix((u64)launch.parameters.seed);
  for (Multiprocessor& sm : launch.sms) {
    sm.l1.resize(l1_bytes, L1_WAYS);
    sm.fetched.assign(launch.rows / FETCHED + 1, 0);
    launch.random = mix(launch.random + 7);
    sm.block_at = begin + (u64)(launch.parameters.skew * launch.chance());
  }
}

// ------------------------------------------------------------------------------------------------------------ all
// Runs the events until none is left; whether all blocks came to their end.
bool run_events(Launch& launch) {
  while (!launch.events.empty()) {
    auto [t, which] = launch.events.top();
    launch.events.pop();
    if (launch.sms[which / SCHEDULERS].schedulers[which % SCHEDULERS].next != t) continue;  // it has looked earlier
    launch.now = t;
    step(launch, which / SCHEDULERS, which % SCHEDULERS, t);
    if (launch.result.issued > MOST_INSTRUCTIONS) {
      launch.error = "three billion instructions, and no end";
      return false;
    }
  }
  if (!launch.running.empty()) launch.error = "no warp can go on";
  return launch.running.empty();
}

// Runs a launch with so many resident clusters a place and so much L1.
bool run(Launch& launch, u32 resident, u64 l1_bytes) {
  Gpu& gpu = launch.gpu;
  u64 begin = gpu.now;
  double part = choose_places(launch, resident);
  set_costs(launch, part);
  prepare_sms(launch, l1_bytes, begin);
  launch.finished = begin;
  for (u32 k = 0; k < resident; ++k)
    for (int place = 0; place < (int)launch.room.size(); ++place) start_cluster(launch, begin, place);
  if (!run_events(launch)) return false;
  u64 end = std::max(launch.finished, (u64)gpu.dram_free);  // what was stored has to reach the DRAM
  launch.result.cycles = (double)(end - begin);
  launch.result.used_sms = (double)launch.sms.size();
  launch.result.part = part;
  gpu.now = end;
  return true;
}

}  // namespace
