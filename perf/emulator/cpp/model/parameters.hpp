// What the model is told of a GPU, and what it tells of a launch. gpus.py has units, sources and values.
//
// Each name stands once: the lists become the fields of a struct, and the text by which timer.py fills or reads it.
#pragma once

#include "code.hpp"

// Why a warp did not issue. What it waits for is decided when its next instruction is known.
enum Reason {
  R_FIXED,    // cycles that the compiler wrote into the instruction before
  R_LOAD,     // global or local memory
  R_SHARED,   // shared memory, shuffles
  R_OTHER,    // another scoreboard
  R_BARRIER,  // of its block
  R_CLUSTER,  // of its cluster, or another block's shared memory
  R_PICK,     // another warp was picked, or the pipe was busy
  R_QUEUE,    // the load/store unit's queue was full
  R_FETCH,    // instructions that come for the first time
  REASONS,
};

// clang-format off
#define PARAMETERS(X)                                                                                          \
  X(sms) X(gpc_sms) X(clock) X(dram) X(l2) X(l2_ways) X(l2_rate) X(port) X(store_port) X(atomic)               \
  X(latency_dram) X(latency_l2) X(latency_l1) X(latency_shared) X(latency_shuffle) X(latency_xu)               \
  X(latency_special) X(latency_constant) X(latency_barrier) X(latency_cluster_barrier)                         \
  X(latency_remote_shared) X(latency_fence) X(latency_block) X(block_gap) X(queue_depth)                       \
  X(alu) X(fma) X(fma_heavy) X(xu) X(fp64) X(uniform) X(shuffle) X(jitter) X(fetch) X(skew) X(seed) X(share)

#define RESULTS(X)                                                                                             \
  X(cycles) X(issued) X(dram_read) X(dram_write) X(dram_busy) X(port_busy) X(queue_busy) X(l1_hits)            \
  X(l1_sectors) X(l2_hits) X(l2_sectors) X(used_sms) X(part) X(guessed)
// clang-format on

namespace {

#define FIELD(name) double name;
#define NAME(name) #name " "

struct Parameters {
  PARAMETERS(FIELD)
};
const char* const PARAMETER_NAMES = PARAMETERS(NAME);

struct Result {
  RESULTS(FIELD)
  double reasons[REASONS];  // cycles of all warps
  double pipe_busy[PIPES];  // cycles of all schedulers
};
const char* const RESULT_NAMES = RESULTS(NAME);

#undef FIELD
#undef NAME

}  // namespace
