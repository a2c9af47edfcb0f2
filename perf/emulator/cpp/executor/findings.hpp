// What a launch is checked for, and what comes out of it besides its results: findings and counts. How a finding is
// made stands in checks.hpp.
#pragma once

#include <string>
#include <vector>

#include "program.hpp"

namespace emulator {

enum class Kind {
  OUT_OF_BOUNDS,
  MISALIGNED,
  UNINITIALISED,
  RACE_SHARED,
  RACE_GLOBAL,
  DOUBLE_WRITE,
  CROSS_PROGRAM,
  BARRIER,
  EXIT_BEFORE_ACCESS,
  BEFORE_START,
  DEADLOCK,
  SHUFFLE,
  TRAPPED,
  BAD_LAUNCH,
  UNKNOWN_BEHAVIOUR,
  // no errors
  NOTE_LOCKSTEP,
  NOTE_SAME_VALUE,
  NOTE_SHARED_UNINITIALISED
};
constexpr const char* KIND_NAMES[] = {"out-of-bounds",
                                      "misaligned",
                                      "uninitialised-read",
                                      "race-shared",
                                      "race-global",
                                      "double-write",
                                      "cross-program",
                                      "barrier",
                                      "exit-before-access",
                                      "access-before-start",
                                      "deadlock",
                                      "shuffle",
                                      "trap",
                                      "bad-launch",
                                      "unknown-behaviour",
                                      "note-warp-lockstep",
                                      "note-same-value",
                                      "note-shared-uninitialised"};
constexpr int KINDS = sizeof KIND_NAMES / sizeof *KIND_NAMES;
static_assert(KINDS == (int)Kind::NOTE_SHARED_UNINITIALISED + 1, "a name for each kind");

// Bits of Config::checks; CHECKS in executor.py.
enum Check { CHECK_MEMORY = 1, CHECK_INITIALISED = 2, CHECK_SHARED = 4, CHECK_GLOBAL = 8 };

// What holds for the launches that follow. Executor.configure in executor.py says what each is.
struct Config {
  u64 seed = 1;
  int checks = 15;
  int approximate = 0;
  int resident = 2;
  long most_clusters = 0;
  int quantum = 64;
  int chaos = 0;
};

struct Finding {
  Kind kind;
  int line, source;  // as in Instruction; a line below 0 is none
  u64 count;
  std::string text;  // of the first time
};

constexpr int WIDTHS = 6;  // 1 to 32 bytes that a lane accesses

// Warp instructions. Executor.counts in executor.py names these numbers in this order.
struct Counts {
  u64 classes[CLASSES], load_width[WIDTHS], store_width[WIDTHS];
  u64 load_requests, load_sectors, store_requests, store_sectors;  // of global memory; a sector has 32 bytes
  u64 lanes, warps, blocks, clusters_run, clusters, total;
};

struct Outcome {
  std::vector<Finding> findings;
  Counts counts = {};
};

}  // namespace emulator
