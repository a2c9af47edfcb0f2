// What instructions compute, for the values that addresses, guards and branches need: integers, predicates, and those
// floats that integer division is made of.
//
// What each is called: "CUDA Binary Utilities", section "Instruction Set Reference".
#pragma once

#include "values.hpp"

namespace {

// Writes f(lane) to the first destination.
template <class F>
void put_each(Warp& warp, const Row& row, u32 mask, F f) {
  u32 out[LANES];
  for (int l = 0; l < LANES; ++l) out[l] = f(l);
  put(warp, row.destinations[0], out, mask);
}

// The predicate whose bits are f(lane).
template <class F>
u32 bits_of(F f) {
  u32 bits = 0;
  for (int l = 0; l < LANES; ++l) bits |= (u32)(bool)f(l) << l;
  return bits;
}

// A function of three words, bit by bit, by its truth table; 4, 2 and 1 are the bits of a, b and c.
u32 truth_table(u32 table, u32 a, u32 b, u32 c) {
  u32 out = 0;
  for (int k = 0; k < 8; ++k)
    if (table >> k & 1) out |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
  return out;
}

// ------------------------------------------------------------------------------------------------------- integers
void add3(Launch& launch, Warp& warp, const Row& row, u32 mask) {
  u64 sum[LANES] = {};
  for (int k = 0; k < 3; ++k) {
    const Source& source = row.sources[k];
    if (source.kind == EMPTY) continue;
    const u32* value = raw_operand(launch, warp, source, k);
    u32 inverted = source.modifiers & (NEGATED | INVERTED) ? ALL_LANES : 0;
    u32 one = source.modifiers & NEGATED ? 1 : 0;
    for (int l = 0; l < LANES; ++l) sum[l] += (u64)(value[l] ^ inverted) + one;
  }
  for (int k = 3; k < 5 && row.mode & CARRY; ++k) {
    if (!is_predicate(row.sources[k].kind)) continue;
    u32 carry = predicate(warp, row.sources[k]);
    for (int l = 0; l < LANES; ++l) sum[l] += carry >> l & 1;
  }
  put_each(warp, row, mask, [&](int l) { return (u32)sum[l]; });
  for (int k = 1; k < 3; ++k)  // a sum of three may carry two
    if (row.destinations[k].kind)
      put_predicate(warp, row.destinations[k], bits_of([&](int l) { return sum[l] >> 32 >= (u64)k; }), mask);
}

void multiply_add(Launch& launch, Warp& warp, const Row& row, u32 mask) {
  const u32* a = operand(launch, warp, row.sources[0], 0);
  const u32* b = operand(launch, warp, row.sources[1], 1);
  const u32* c = operand(launch, warp, row.sources[2], 2);
  u32 carry = row.mode & CARRY ? predicate(warp, row.sources[3]) : 0;
  if (!(row.mode & (WIDE | HIGH))) {
    put_each(warp, row, mask, [&](int l) { return a[l] * b[l] + c[l] + (carry >> l & 1); });
    return;
  }
  const u32* c_high = operand(launch, warp, upper(row.sources[2]), 3);
  u32 low[LANES], high[LANES], carried = 0;
  for (int l = 0; l < LANES; ++l) {
    u64 product = row.mode & UNSIGNED ? (u64)a[l] * b[l] : (u64)((s64)(s32)a[l] * (s64)(s32)b[l]);
    u64 addend = (u64)c_high[l] << 32 | c[l];
    unsigned __int128 sum = (unsigned __int128)product + addend + (row.mode & WIDE ? carry >> l & 1 : 0);
    carried |= (u32)(sum >> 64 & 1) << l;
    low[l] = (u32)sum;
    high[l] = (u32)(sum >> 32);
  }
  if (row.mode & HIGH) {
    put(warp, row.destinations[0], high, mask);
    return;
  }
  put(warp, row.destinations[0], low, mask);
  put(warp, following(row.destinations[0]), high, mask);
  if (row.destinations[1].kind) put_predicate(warp, row.destinations[1], carried, mask);
}

void load_effective_address(Launch& launch, Warp& warp, const Row& row, u32 mask) {
  const u32* a = operand(launch, warp, row.sources[0], 0);
  const u32* b = operand(launch, warp, row.sources[1], 1);
  const u32* c = operand(launch, warp, row.sources[2], 2);
  int shift = row.sources[3].value & 31;
  u32 carry = row.mode & CARRY ? predicate(warp, row.sources[4]) : 0;
  u64 sum[LANES];
  for (int l = 0; l < LANES; ++l) {
    u32 high = row.mode & SIGN_EXTENDED ? (u32)((s32)a[l] >> 31) : c[l];
    u64 shifted = ((u64)high << 32 | a[l]) << shift;
    sum[l] = (u64)(u32)(row.mode & HIGH ? shifted >> 32 : shifted) + b[l] + (carry >> l & 1);
  }
  put_each(warp, row, mask, [&](int l) { return (u32)sum[l]; });
  if (row.destinations[1].kind)
    put_predicate(warp, row.destinations[1], bits_of([&](int l) { return sum[l] >> 32 & 1; }), mask);
}

void logic3(Launch& launch, Warp& warp, const Row& row, u32 mask) {
  const u32* a = operand(launch, warp, row.sources[0], 0);
  const u32* b = operand(launch, warp, row.sources[1], 1);
  const u32* c = operand(launch, warp, row.sources[2], 2);
  u32 out[LANES];
  for (int l = 0; l < LANES; ++l) out[l] = truth_table((u32)row.choice, a[l], b[l], c[l]);
  put(warp, row.destinations[0], out, mask);
  if (!row.destinations[1].kind) return;
  u32 nonzero = bits_of([&](int l) { return out[l] != 0; });
  if (is_predicate(row.sources[3].kind)) nonzero |= predicate(warp, row.sources[3]);
  put_predicate(warp, row.destinations[1], nonzero, mask);
}

void predicate_logic3(Warp& warp, const Row& row, u32 mask) {
  u32 a = predicate(warp, row.sources[0]);
  u32 b = predicate(warp, row.sources[1]);
  u32 c = predicate(warp, row.sources[2]);
  for (int k = 0; k < 2; ++k)
    put_predicate(warp, row.destinations[k], truth_table((u32)row.choice >> 8 * k & 255, a, b, c), mask);
}

// A funnel shift of two words, of which the upper or the lower half is taken.
u32 funnel_shift(s32 mode, u32 low, u32 count, u32 high) {
  u32 k = mode & WRAPPED ? count & (mode & LONG ? 63 : 31) : std::min<u32>(count, mode & LONG ? 63 : 32);
  u64 value = (u64)high << 32 | low;
  if (mode & LEFT) {
    u64 shifted = value << k;
    if (mode & HIGH) return (u32)(shifted >> 32);
    return !(mode & LONG) && k >= 32 ? 0 : (u32)shifted;
  }
  if (mode & HIGH) {
    if (mode & ARITHMETIC) return (u32)((s32)high >> std::min<u32>(k, 31));
    return k >= 32 ? 0 : high >> k;
  }
  return (u32)(mode & ARITHMETIC ? (u64)((s64)value >> k) : value >> k);
}

u32 smaller_or_larger(s32 mode, u32 a, u32 b, bool smaller) {
  bool less = mode & UNSIGNED ? a < b : (s32)a < (s32)b;
  return less == smaller ? a : b;
}

u32 permute_bytes(u32 low, u32 selector, u32 high) {
  u64 value = (u64)high << 32 | low;
  u32 out = 0;
  for (int k = 0; k < 4; ++k) {
    u32 which = selector >> 4 * k & 15;
    u32 byte = value >> 8 * (which & 7) & 255;
    if (which & 8) byte = byte & 128 ? 255 : 0;  // the byte's sign instead
    out |= byte << 8 * k;
  }
  return out;
}

u32 extend(s32 mode, u32 value, u32 bits) {
  if (bits == 0) return 0;
  if (bits >= 32) return value;
  return mode & UNSIGNED ? value & ((1u << bits) - 1) : (u32)((s32)(value << (32 - bits)) >> (32 - bits));
}

// The part of a constant that a load of 1 or 2 bytes takes.
u32 part_of_word(const Row& row, u32 value) {
  bool sign = row.mode & SIGN_EXTENDED;
  if (row.width == 1) return sign ? (u32)(s32)(int8_t)value : (u8)value;
  if (row.width == 2) return sign ? (u32)(s32)(int16_t)value : (uint16_t)value;
  return value;
}

// ---------------------------------------------------------------------------------------------------- comparisons
// Writes a comparison and its opposite, each combined with a predicate.
void put_comparison(Warp& warp, const Row& row, u32 result, u32 mask) {
  u32 with = row.sources[2].kind == EMPTY ? ALL_LANES : predicate(warp, row.sources[2]);
  u32 logic = (u32)row.choice >> 4;
  auto combined = [&](u32 bits) { return logic == AND ? bits & with : logic == OR ? bits | with : bits ^ with; };
  put_predicate(warp, row.destinations[0], combined(result), mask);
  put_predicate(warp, row.destinations[1], combined(~result), mask);
}

// `low` is what the comparison of the lower halves said, where there are some: it decides if the upper halves are
// equal.
bool compare_integers(const Row& row, u32 a, u32 b, bool low) {
  int comparison = row.choice & 15;
  bool less = row.mode & UNSIGNED ? a < b : (s32)a < (s32)b;
  bool equal = a == b;
  bool tie = equal && (row.mode & EXTENDED ? low : comparison == EQ || comparison == LE || comparison == GE);
  switch (comparison) {
    case F: return false;
    case LT:
    case LE: return less || tie;
    case EQ: return tie;
    case NE: return !equal || tie;
    case GT:
    case GE: return (!less && !equal) || tie;
    default: return true;
  }
}

bool compare_floats(int comparison, float a, float b) {
  bool unordered = std::isnan(a) || std::isnan(b);
  if (comparison >= LTU) return unordered || compare_floats(comparison - LTU + LT, a, b);
  switch (comparison) {
    case LT: return a < b;
    case EQ: return a == b;
    case LE: return a <= b;
    case GT: return a > b;
    case NE: return a != b && !unordered;
    case GE: return a >= b;
    case T: return true;
    case NUM: return !unordered;
    case NAN_: return unordered;
    default: return false;
  }
}

void compare(Launch& launch, Warp& warp, const Row& row, u32 mask) {
  if (row.operation == FSETP) {
    float a[LANES], b[LANES];
    float_operand(launch, warp, row.sources[0], 0, a);
    float_operand(launch, warp, row.sources[1], 1, b);
    put_comparison(warp, row, bits_of([&](int l) { return compare_floats(row.choice & 15, a[l], b[l]); }), mask);
    return;
  }
  const u32* a = operand(launch, warp, row.sources[0], 0);
  const u32* b = operand(launch, warp, row.sources[1], 1);
  u32 low = row.mode & EXTENDED ? predicate(warp, row.sources[3]) : 0;
  put_comparison(warp, row, bits_of([&](int l) { return compare_integers(row, a[l], b[l], low >> l & 1); }), mask);
}

// --------------------------------------------------------------------------------------------------------- floats
u32 as_bits(float value) {
  u32 bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

u32 to_float(s32 mode, u32 value) {
  double exact = mode & UNSIGNED ? (double)value : (double)(s32)value;
  float rounded = (float)exact;
  if ((mode & ROUNDED_UP) && (double)rounded < exact) rounded = std::nextafterf(rounded, INFINITY);
  return as_bits(rounded);
}

// Towards zero; what is out of range becomes the nearest integer, NaN 0.
u32 to_integer(s32 mode, float value) {
  float whole = std::trunc(value);
  if (std::isnan(whole)) return 0;
  if (mode & UNSIGNED) return whole <= 0 ? 0 : whole >= 4294967296.0f ? ~0u : (u32)whole;
  return whole >= 2147483648.0f ? 0x7fffffff : whole < -2147483648.0f ? 0x80000000 : (u32)(s32)whole;
}

float special_function(int which, float value) {
  switch (which) {
    case RCP: return 1.0f / value;
    case SQRT: return std::sqrt(value);
    case RSQ: return 1.0f / std::sqrt(value);
    case EX2: return std::exp2(value);
    case LG2: return std::log2(value);
    default: return 0;
  }
}

void float_arithmetic(Launch& launch, Warp& warp, const Row& row, u32 mask) {
  float a[LANES], b[LANES], c[LANES];
  float_operand(launch, warp, row.sources[0], 0, a);
  float_operand(launch, warp, row.sources[1], 1, b);
  float_operand(launch, warp, row.sources[2], 2, c);
  switch (row.operation) {
    case FADD: put_each(warp, row, mask, [&](int l) { return as_bits(a[l] + b[l]); }); break;
    case FMUL: put_each(warp, row, mask, [&](int l) { return as_bits(a[l] * b[l]); }); break;
    case FFMA: put_each(warp, row, mask, [&](int l) { return as_bits(std::fma(a[l], b[l], c[l])); }); break;
    case F2I: put_each(warp, row, mask, [&](int l) { return to_integer(row.mode, a[l]); }); break;
    case MUFU: put_each(warp, row, mask, [&](int l) { return as_bits(special_function(row.choice, a[l])); }); break;
  }
}

// -------------------------------------------------------------------------------------------------- between lanes
// The lane that a shuffle reads from, and whether it lies in the segment; PTX ISA, "shfl.sync".
std::pair<int, bool> shuffle_source(int kind, int lane, u32 b, u32 c) {
  int segment = c >> 8 & 31;
  int by = b & 31;
  int limit = (lane & segment) | ((c & 31) & ~segment);
  switch (kind) {
    case UP: return {lane - by, lane - by >= limit};
    case DOWN: return {lane + by, lane + by <= limit};
    case BFLY: return {lane ^ by, (lane ^ by) <= limit};
    default: {
      int from = (lane & segment) | (by & ~segment);
      return {from, from <= limit};
    }
  }
}

void shuffle(Launch& launch, Warp& warp, const Row& row, u32 mask) {
  const u32* value = operand(launch, warp, row.sources[0], 0);
  const u32* b = operand(launch, warp, row.sources[1], 1);
  const u32* c = operand(launch, warp, row.sources[2], 2);
  u32 out[LANES], inside = 0;
  for (int l = 0; l < LANES; ++l) {
    auto [from, in_segment] = shuffle_source(row.choice, l, b[l], c[l]);
    out[l] = value[(in_segment ? from : l) & 31];
    inside |= (u32)in_segment << l;
  }
  put(warp, row.destinations[0], out, mask);
  put_predicate(warp, row.destinations[1], inside, mask);
}

void vote(Warp& warp, const Row& row, u32 mask) {
  u32 yes = predicate(warp, row.sources[0]) & mask;
  bool result = row.choice == ANY ? yes != 0 : row.choice == ALL ? yes == mask : yes == 0 || yes == mask;
  u32 ballot[LANES];
  for (int l = 0; l < LANES; ++l) ballot[l] = yes;
  for (const Destination& to : row.destinations) {
    if (to.kind == REG || to.kind == UREG)
      put(warp, to, ballot, mask);
    else if (to.kind)
      put_predicate(warp, to, result ? ALL_LANES : 0, mask);
  }
}

// Row::choice of the two: a mask of predicates, and from bit 8 on the byte of the register that they stand in.
void predicates_to_register(Launch& launch, Warp& warp, const Row& row, u32 mask) {
  const u32* value = operand(launch, warp, row.sources[0], 0);
  int shift = 8 * (row.choice >> 8);
  u32 which = row.choice & 0x7f;
  put_each(warp, row, mask, [&](int l) {
    u32 bits = 0;
    for (int k = 0; k < TRUE_PREDICATE; ++k) bits |= (warp.predicates[k] >> l & 1) << k;
    return (value[l] & ~(which << shift)) | (bits & which) << shift;
  });
}

void register_to_predicates(Launch& launch, Warp& warp, const Row& row, u32 mask) {
  const u32* value = operand(launch, warp, row.sources[0], 0);
  int shift = 8 * (row.choice >> 8);
  for (int k = 0; k < TRUE_PREDICATE; ++k)
    if (row.choice >> k & 1)
      put_predicate(warp, {PREG, k}, bits_of([&](int l) { return value[l] >> (shift + k) & 1; }), mask);
}

// ------------------------------------------------------------------------------------------------------------ all
// Writes the results of an instruction in the lanes of `mask`.
void compute(Launch& launch, Warp& warp, const Row& row, u32 mask) {
  mark_results(warp, row, mask, row.operation == OPAQUE || row.operation == UNKNOWN);
  const Source* sources = row.sources;
  auto get = [&](int k) { return operand(launch, warp, sources[k], k); };
  switch (row.operation) {
    case MOV:
    case S2R: put(warp, row.destinations[0], get(0), mask); break;
    case CS2R:  // of SRZ, which is how a pair of registers is zeroed; clocks are 0 too
      put_each(warp, row, mask, [](int) { return 0u; });
      if (row.width == 8) put(warp, following(row.destinations[0]), ZEROS, mask);
      break;
    case LDC: {
      const u32* a = get(0);
      put_each(warp, row, mask, [&](int l) { return part_of_word(row, a[l]); });
      if (row.width == 8) put(warp, following(row.destinations[0]), operand(launch, warp, upper(sources[0]), 0), mask);
      break;
    }
    case IADD3: add3(launch, warp, row, mask); break;
    case IMAD: multiply_add(launch, warp, row, mask); break;
    case LEA: load_effective_address(launch, warp, row, mask); break;
    case LOP3: logic3(launch, warp, row, mask); break;
    case PLOP3: predicate_logic3(warp, row, mask); break;
    case SHF: {
      const u32 *a = get(0), *b = get(1), *c = get(2);
      put_each(warp, row, mask, [&](int l) { return funnel_shift(row.mode, a[l], b[l], c[l]); });
      break;
    }
    case ISETP:
    case FSETP: compare(launch, warp, row, mask); break;
    case SEL: {
      const u32 *a = get(0), *b = get(1);
      u32 first = predicate(warp, sources[2]);
      put_each(warp, row, mask, [&](int l) { return first >> l & 1 ? a[l] : b[l]; });
      break;
    }
    case MINMAX: {
      const u32 *a = get(0), *b = get(1);
      u32 smaller = predicate(warp, sources[2]);
      put_each(warp, row, mask, [&](int l) { return smaller_or_larger(row.mode, a[l], b[l], smaller >> l & 1); });
      break;
    }
    case VIADDMNMX: {
      const u32 *a = get(0), *b = get(1), *c = get(2);
      u32 smaller = predicate(warp, sources[3]);
      put_each(warp, row, mask,
               [&](int l) { return smaller_or_larger(row.mode, a[l] + b[l], c[l], smaller >> l & 1); });
      break;
    }
    case IABS: {
      const u32* a = get(0);
      put_each(warp, row, mask, [&](int l) { return (s32)a[l] < 0 ? 0 - a[l] : a[l]; });
      break;
    }
    case PRMT: {
      const u32 *a = get(0), *b = get(1), *c = get(2);
      put_each(warp, row, mask, [&](int l) { return permute_bytes(a[l], b[l], c[l]); });
      break;
    }
    case SGXT: {
      const u32 *a = get(0), *b = get(1);
      put_each(warp, row, mask, [&](int l) { return extend(row.mode, a[l], b[l]); });
      break;
    }
    case I2F: {
      const u32* a = get(0);
      put_each(warp, row, mask, [&](int l) { return to_float(row.mode, a[l]); });
      break;
    }
    case POPC: {
      const u32* a = get(0);
      put_each(warp, row, mask, [&](int l) { return (u32)__builtin_popcount(a[l]); });
      break;
    }
    case F2I:
    case MUFU:
    case FADD:
    case FMUL:
    case FFMA: float_arithmetic(launch, warp, row, mask); break;
    case FCHK:
      put_predicate(warp, row.destinations[0], 0, mask);
      break;  // whether a division needs its slow path: never
    case P2R: predicates_to_register(launch, warp, row, mask); break;
    case R2P: register_to_predicates(launch, warp, row, mask); break;
    case SHFL: shuffle(launch, warp, row, mask); break;
    case VOTE: vote(warp, row, mask); break;
    default: break;
  }
}

}  // namespace
