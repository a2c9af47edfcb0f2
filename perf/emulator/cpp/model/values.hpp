// Operands of a warp instruction, and the marks of values that are guessed.
//
// Only those values are computed that addresses, guards and branches need (liveness.py). Loads from global memory give
// 0, so that a launch's time does not depend on what stands in memory. What is computed from a load, or by an
// instruction that the model does not compute, bears a mark; an address or a branch with a mark is counted as guessed.
#pragma once

#include <cmath>

#include "machine.hpp"

namespace {

// Upper half of the generic addresses of shared memory, as SR_SWINHI reads here; which value it is does not matter.
constexpr u32 SHARED_WINDOW = 0x00007e00u;

const u32 ZEROS[LANES] = {};

bool is_predicate(s32 kind) {
  return kind == PREG || kind == UPREG;
}

u32 constant(const Launch& launch, s32 where) {
  u32 bank = (u32)where >> 20;
  u32 offset = where & 0xfffff;
  u32 value = 0;
  if (bank == 0 && offset < launch.constants.size())
    memcpy(&value, launch.constants.data() + offset, std::min<size_t>(4, launch.constants.size() - offset));
  return value;
}

u32 special(const Launch& launch, const Warp& warp, int which, int lane) {
  const Block& block = *warp.block;
  switch (which) {
    case TID_X: return warp.index * LANES + lane;
    case CTAID_X: return block.x;
    case CTAID_Y: return block.y;
    case CTAID_Z: return block.z;
    case CgaCtaId: return block.rank;
    case SWINHI: return SHARED_WINDOW;
    case LANEID: return lane;
    case LTMASK: return (1u << lane) - 1;
    case EQMASK: return 1u << lane;
    case VIRTUALSMID: return block.sm;
    case CLUSTERID_X: return block.x / launch.cluster;
    case CLUSTERID_Y: return block.y;
    case CLUSTERID_Z: return block.z;
    case CLUSTER_NCTAID_X: return launch.cluster;
    case CLOCKLO: return (u32)launch.now;
    default: return 0;
  }
}

// A predicate of all lanes, a bit each.
u32 predicate(const Warp& warp, const Source& source) {
  u32 value = source.kind == EMPTY             ? 0
              : source.value == TRUE_PREDICATE ? ALL_LANES
              : source.kind == UPREG           ? warp.uniform_predicates[source.value]
                                               : warp.predicates[source.value];
  return source.modifiers & INVERTED ? ~value : value;
}

// An operand of all lanes without its modifiers. `k` says which of the launch's rooms may hold it.
const u32* raw_operand(Launch& launch, Warp& warp, const Source& source, int k) {
  if (source.kind == REG && source.value != ZERO_REGISTER) return warp.registers + source.value * LANES;
  u32* room = launch.lanes[k];
  u32 value = 0;
  switch (source.kind) {
    case UREG: value = source.value == ZERO_UNIFORM ? 0 : warp.uniform[source.value]; break;
    case IMM: value = (u32)source.value; break;
    case CONST: value = constant(launch, source.value); break;
    case PREG:
    case UPREG: {
      u32 bits = predicate(warp, source);
      for (int l = 0; l < LANES; ++l) room[l] = bits >> l & 1;
      return room;
    }
    case SPECIAL:
      for (int l = 0; l < LANES; ++l) room[l] = special(launch, warp, source.value, l);
      return room;
  }
  for (int l = 0; l < LANES; ++l) room[l] = value;
  return room;
}

// An operand of all lanes, negated and inverted as an integer.
const u32* operand(Launch& launch, Warp& warp, const Source& source, int k) {
  const u32* value = raw_operand(launch, warp, source, k);
  if (is_predicate(source.kind) || !(source.modifiers & (INVERTED | NEGATED))) return value;
  u32* room = launch.lanes[k];
  u32 inverted = source.modifiers & INVERTED ? ALL_LANES : 0;
  bool negated = source.modifiers & NEGATED;
  for (int l = 0; l < LANES; ++l) {
    u32 v = value[l] ^ inverted;
    room[l] = negated ? 0 - v : v;
  }
  return room;
}

// An operand of all lanes as floats.
void float_operand(Launch& launch, Warp& warp, const Source& source, int k, float* floats) {
  memcpy(floats, raw_operand(launch, warp, source, k), sizeof(float) * LANES);
  for (int l = 0; l < LANES; ++l) {
    if (source.modifiers & ABSOLUTE) floats[l] = std::fabs(floats[l]);
    if (source.modifiers & NEGATED) floats[l] = -floats[l];
  }
}

// The upper half of a 64-bit operand.
Source upper(Source source) {
  bool zero =
      (source.kind == REG && source.value == ZERO_REGISTER) || (source.kind == UREG && source.value == ZERO_UNIFORM);
  if (source.kind == CONST)
    source.value += 4;
  else if (source.kind == IMM)
    source.value = 0;
  else if ((source.kind == REG || source.kind == UREG) && !zero)
    source.value++;
  return source;
}

// The register after one.
Destination following(Destination destination) {
  bool zero = (destination.kind == REG && destination.value == ZERO_REGISTER) ||
              (destination.kind == UREG && destination.value == ZERO_UNIFORM);
  if (!zero) destination.value++;
  return destination;
}

void put(Warp& warp, const Destination& to, const u32* value, u32 mask) {
  if (to.kind == UREG) {
    if (to.value != ZERO_UNIFORM && mask) warp.uniform[to.value] = value[__builtin_ctz(mask)];
    return;
  }
  if (to.kind != REG || to.value == ZERO_REGISTER) return;
  u32* registers = warp.registers + to.value * LANES;
  if (mask == ALL_LANES) {
    memcpy(registers, value, sizeof(u32) * LANES);
    return;
  }
  for (int l = 0; l < LANES; ++l)
    if (mask >> l & 1) registers[l] = value[l];
}

void put_predicate(Warp& warp, const Destination& to, u32 value, u32 mask) {
  if (to.value == TRUE_PREDICATE || !mask) return;
  if (to.kind == PREG)
    warp.predicates[to.value] = (warp.predicates[to.value] & ~mask) | (value & mask);
  else if (to.kind == UPREG)
    warp.uniform_predicates[to.value] = value >> __builtin_ctz(mask) & 1 ? ALL_LANES : 0;
}

// ------------------------------------------------------------------------------------------------- what is guessed
// The number of a value among a warp's marks, -1 for constants and what always reads the same.
int cell_of(s32 kind, s32 value) {
  switch (kind) {
    case REG: return value == ZERO_REGISTER ? -1 : value;
    case UREG: return value == ZERO_UNIFORM ? -1 : UNIFORM_CELLS + value;
    case PREG: return value == TRUE_PREDICATE ? -1 : PREDICATE_CELLS + value;
    case UPREG: return value == TRUE_PREDICATE ? -1 : PREDICATE_CELLS + 8 + value;
    default: return -1;
  }
}

bool is_guessed(const Warp& warp, s32 kind, s32 value) {
  int cell = cell_of(kind, value);
  return cell >= 0 && (warp.guessed[cell >> 6] >> (cell & 63) & 1);
}

void mark(Warp& warp, s32 kind, s32 value, bool guessed) {
  int cell = cell_of(kind, value);
  if (cell < 0) return;
  u64 bit = 1ull << (cell & 63);
  warp.guessed[cell >> 6] = guessed ? warp.guessed[cell >> 6] | bit : warp.guessed[cell >> 6] & ~bit;
}

// Registers that the first destination covers.
int destination_registers(const Row& row) {
  bool pair = (row.operation == IMAD && (row.mode & WIDE)) ||
              ((row.operation == CS2R || row.operation == LDC) && row.width == 8);
  if (row.operation == LD || row.operation == LDSM) return std::max(1, row.width / 4);
  return pair ? 2 : 1;
}

// Marks the results of an instruction: guessed if an operand is, or if the instruction itself is not computed. Where
// not all lanes take part, the others may keep a guessed value.
void mark_results(Warp& warp, const Row& row, u32 mask, bool guessed) {
  for (const Source& source : row.sources)
    if (source.kind) guessed |= is_guessed(warp, source.kind, source.value);
  if (row.operation == IMAD && (row.mode & (WIDE | HIGH))) {
    Source high = upper(row.sources[2]);
    guessed |= is_guessed(warp, high.kind, high.value);
  }
  if (!guessed && mask != ALL_LANES) return;
  for (const Destination& to : row.destinations)
    if (to.kind) mark(warp, to.kind, to.value, guessed);
  const Destination& first = row.destinations[0];
  if (first.kind == REG || first.kind == UREG)
    for (int k = 1; k < destination_registers(row); ++k) mark(warp, first.kind, first.value + k, guessed);
}

// The result of an instruction whose value is not known: zeros, and marks.
void put_zero(Warp& warp, const Row& row, u32 mask) {
  mark_results(warp, row, mask, true);
  Destination to = row.destinations[0];
  for (int k = 0; k < destination_registers(row); ++k) {
    put(warp, to, ZEROS, mask);
    to = following(to);
  }
}

}  // namespace
