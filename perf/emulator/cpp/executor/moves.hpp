// Instructions that move values: between registers, into and out of parts of a register, between address spaces, by a
// predicate; between the lanes of a warp; and comparisons, which make predicates.
#pragma once

#include "checks.hpp"
#include "combine.hpp"

namespace emulator {

// ------------------------------------------------------------------------------------------------------- registers
template <class Register>
inline void move(Step& step) {
  const Register* from = step.source<Register>(0);
  Register* to = step.destination<Register>();
  step.each([&](int lane) { to[lane] = from[lane]; });
}
template <class Register>
inline void select(Step& step) {
  const Register* yes = step.source<Register>(0);
  const Register* no = step.source<Register>(1);
  u32 predicate = step.predicate(2);
  Register* to = step.destination<Register>();
  step.each([&](int lane) { to[lane] = lane_in(predicate, lane) ? yes[lane] : no[lane]; });
}
// mov of {parts} into a register, and of a register into {parts}.
template <class Register>
inline void pack(Step& step) {
  int parts = step.in.mode, bits = 8 * step.in.bytes() / parts;
  u64 packed[LANES] = {};
  for (int k = 0; k < parts; ++k) {
    const u32* part = step.source<u32>(k);
    u32 mask = (u32)((1ull << bits) - 1);
    for (int lane = 0; lane < LANES; ++lane) packed[lane] |= (u64)(part[lane] & mask) << (bits * k);
  }
  Register* to = step.destination<Register>();
  step.each([&](int lane) { to[lane] = (Register)packed[lane]; });
}
template <class Register>
inline void unpack(Step& step) {
  int parts = step.in.mode, bits = 8 * step.in.bytes() / parts;
  u32 mask = (u32)((1ull << bits) - 1);
  Register packed[LANES];  // a destination may be the source
  std::copy_n(step.source<Register>(0), LANES, packed);
  for (int k = 0; k < parts; ++k) {
    if (step.in.destinations[k] == NOTHING) continue;
    u32* to = step.destination<u32>(k);
    step.each([&](int lane) { to[lane] = (u32)(packed[lane] >> (bits * k)) & mask; });
  }
}

// -------------------------------------------------------------------------------------------------- address spaces
inline void convert_address(Step& step) {
  Space space = (Space)step.in.type2;
  u64 window = space == Space::SHARED ? SHARED_WINDOW : space == Space::LOCAL ? LOCAL_WINDOW : 0;
  if (step.in.op == Op::CVTA_TO) window = 0 - window;
  const u64* from = step.source<u64>(0);
  u64* to = step.destination<u64>();
  step.each([&](int lane) { to[lane] = from[lane] + window; });
}
// mapa: the address of the same variable in another block of the cluster.
template <class Register>
inline void map_address(Step& step) {
  const Register* from = step.source<Register>(0);
  const u32* ranks = step.source<u32>(1);
  Register* to = step.destination<Register>();
  step.each([&](int lane) {
    if (ranks[lane] >= step.launch.cluster_blocks)
      report(step, Kind::OUT_OF_BOUNDS, "mapa to rank %u of %u", ranks[lane], step.launch.cluster_blocks);
    to[lane] = (from[lane] & ~(Register)~WITHIN_BLOCK) | (Register)(ranks[lane] + 1) << RANK_SHIFT;
  });
}

// ------------------------------------------------------------------------------------------------- lanes of a warp
// The lane that a shuffle reads, and whether it is one of the lane's segment: PTX ISA.
inline bool find_lane(Shuffle how, int lane, u32 b, u32 c, int& from) {
  int segment = c >> 8 & 31, clamp = c & 31, by = b & 31;
  int most = (lane & segment) | (clamp & ~segment);
  switch (how) {
    case Shuffle::UP: from = lane - by; return from >= most;
    case Shuffle::DOWN: from = lane + by; break;
    case Shuffle::BFLY: from = lane ^ by; break;
    case Shuffle::IDX: from = (lane & segment) | (by & ~segment); break;
  }
  return from <= most;
}
inline void shuffle(Step& step) {
  const u32 *values = step.source<u32>(0), *b = step.source<u32>(1), *c = step.source<u32>(2);
  const u32* members = step.source<u32>(3);
  u32 result[LANES], inside = 0;
  step.each([&](int lane) {
    if (!lane_in(members[lane], lane) || (members[lane] & step.warp.alive & ~step.lanes))
      report(step, Kind::SHUFFLE, "lanes 0x%x shuffle with mask 0x%x", step.lanes, members[lane]);
    int from;
    bool found = find_lane((Shuffle)step.in.mode, lane, b[lane], c[lane], from);
    if (!found) from = lane;
    if (!lane_in(step.lanes, from & 31))
      report(step, Kind::SHUFFLE, "lane %d reads from lane %d, which is not active", lane, from);
    result[lane] = values[from & 31];
    inside |= (u32)found << lane;
  });
  if (step.in.destinations[0] != NOTHING) {
    u32* to = step.destination<u32>();
    step.each([&](int lane) { to[lane] = result[lane]; });
  }
  step.set_predicate(1, inside);
}
inline void set_all(Step& step, u32 value) {
  if (step.in.destinations[0] == NOTHING) return;
  u32* to = step.destination<u32>();
  step.each([&](int lane) { to[lane] = value; });
}
inline void vote(Step& step) {
  u32 predicate = step.predicate(0);
  if (step.in.mode2) predicate = ~predicate;
  predicate &= step.lanes;
  u32 members = step.source<u32>(1)[first_lane(step.lanes)];
  if ((members & step.warp.alive) != step.lanes)
    report(step, Kind::SHUFFLE, "vote with mask 0x%x by lanes 0x%x", members, step.lanes);
  bool any = predicate != 0, all = predicate == step.lanes;
  switch ((Vote)step.in.mode) {
    case Vote::BALLOT: set_all(step, predicate); break;
    case Vote::ANY: step.set_predicate(0, any ? ALL_LANES : 0); break;
    case Vote::ALL: step.set_predicate(0, all ? ALL_LANES : 0); break;
    case Vote::UNI: step.set_predicate(0, all || !any ? ALL_LANES : 0); break;
  }
}
inline void elect(Step& step) {
  u32 members = step.source<u32>(0)[first_lane(step.lanes)] & step.lanes;
  u32 leader = members ? first_lane(members) : 0;
  set_all(step, leader);
  step.set_predicate(1, 1u << leader);
}
template <class Value>
inline void reduce_lanes(Step& step) {
  const u32* values = step.source<u32>(0);
  Value result = (Value)values[first_lane(step.lanes)];
  for (u32 rest = step.lanes & (step.lanes - 1); rest; rest &= rest - 1)
    result = combine_bits<Value>((Combine)step.in.mode, result, (Value)values[first_lane(rest)]);
  set_all(step, (u32)result);
}
// redux.sync of floats, which sm_100 has: the least or the greatest; mode2 is .NaN.
inline void reduce_floats(Step& step) {
  const u32* values = step.source<u32>(0);
  const bool maximum = (Combine)step.in.mode == Combine::MAX;
  float result = float_of(values[first_lane(step.lanes)]);
  for (u32 rest = step.lanes & (step.lanes - 1); rest; rest &= rest - 1)
    result = extreme(result, float_of(values[first_lane(rest)]), maximum, step.in.mode2);
  set_all(step, bits_of(result));
}

// ------------------------------------------------------------------------------------------------------ comparison
template <class Value>
inline bool compare(Comparison how, Value a, Value b) {
  switch (how) {
    case Comparison::EQ: return a == b;
    case Comparison::NE: return a != b;
    case Comparison::LT:
    case Comparison::LO: return a < b;
    case Comparison::LE:
    case Comparison::LS: return a <= b;
    case Comparison::GT:
    case Comparison::HI: return a > b;
    case Comparison::GE:
    case Comparison::HS: return a >= b;
    default: return false;
  }
}
// With NaN the ordered comparisons are false, .ne among them, and the unordered ones true.
template <class Float>
inline bool compare_floats(Comparison how, Float a, Float b) {
  bool unordered = is_nan(a) || is_nan(b);
  switch (how) {
    case Comparison::NUM: return !unordered;
    case Comparison::NaN: return unordered;
    case Comparison::EQU: return unordered || a == b;
    case Comparison::NEU: return unordered || a != b;
    case Comparison::LTU: return unordered || a < b;
    case Comparison::LEU: return unordered || a <= b;
    case Comparison::GTU: return unordered || a > b;
    case Comparison::GEU: return unordered || a >= b;
    default: return !unordered && compare(how, a, b);
  }
}
template <class Value, class Register>
inline u32 compare_integers(Step& step) {
  const Register *a = step.source<Register>(0), *b = step.source<Register>(1);
  Comparison how = (Comparison)step.in.mode;
  u32 result = 0;
  for (int lane = 0; lane < LANES; ++lane) result |= (u32)compare<Value>(how, (Value)a[lane], (Value)b[lane]) << lane;
  return result;
}
template <class Register, class ToFloat>
inline u32 compare_as(Step& step, ToFloat to_float) {
  const Register *a = step.source<Register>(0), *b = step.source<Register>(1);
  Comparison how = (Comparison)step.in.mode;
  u32 result = 0;
  for (int lane = 0; lane < LANES; ++lane)
    result |= (u32)compare_floats(how, to_float(a[lane]), to_float(b[lane])) << lane;
  return result;
}
inline u32 compare_sources(Step& step) {
  bool flush = step.in.mode2 & 2;
  switch (step.in.type) {
    case Type::U8:
    case Type::U16: return compare_integers<u16, u32>(step);
    case Type::S8:
    case Type::S16: return compare_integers<s16, u32>(step);
    case Type::U32: return compare_integers<u32, u32>(step);
    case Type::S32: return compare_integers<s32, u32>(step);
    case Type::U64: return compare_integers<u64, u64>(step);
    case Type::S64: return compare_integers<s64, u64>(step);
    case Type::F32: return compare_as<float>(step, [&](float v) { return flush ? flush_subnormal(v) : v; });
    case Type::F64: return compare_as<double>(step, [](double v) { return v; });
    case Type::F16: return compare_as<u32>(step, [](u32 v) { return half_to_float((u16)v); });
    case Type::BF16: return compare_as<u32>(step, [](u32 v) { return bfloat_to_float((u16)v); });
    default: give_up(step, "setp type"); return 0;
  }
}
// The second destination gets the opposite; the operand of .and, .or, .xor is applied to both.
inline void set_predicates(Step& step) {
  u32 result = compare_sources(step), opposite = ~result;
  Boolean with = (Boolean)step.in.type2;
  if (with != Boolean::NONE) {
    u32 operand = step.predicate(2);
    if (step.in.mode2 & 1) operand = ~operand;
    auto apply = [&](u32 value) {
      return with == Boolean::AND ? value & operand : with == Boolean::OR ? value | operand : value ^ operand;
    };
    result = apply(result);
    opposite = apply(opposite);
  }
  step.set_predicate(0, result);
  step.set_predicate(1, opposite);
}

}  // namespace emulator
