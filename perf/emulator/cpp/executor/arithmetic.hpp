// Arithmetic of every type: integers, floats, doubles, half precision, pairs of floats, predicates. Operations on the
// bits of integers stand in bits.hpp, conversions in conversions.hpp.
#pragma once

#include "checks.hpp"

namespace emulator {

// -------------------------------------------------------------------------------------------------------- integers
// The upper half of a product.
template <class Integer>
inline Integer multiply_high(Integer a, Integer b) {
  typedef typename std::conditional<std::is_signed<Integer>::value, s128, u128>::type Wide;
  return (Integer)(((Wide)a * (Wide)b) >> (8 * sizeof(Integer)));
}
template <class Integer>
inline void multiply_integers(Step& step) {
  typedef typename std::conditional<sizeof(Integer) == 8, u64, u32>::type Register;
  typedef typename std::make_unsigned<Integer>::type Unsigned;
  const Register *a = step.source<Register>(0), *b = step.source<Register>(1);
  const Register* c = step.in.op == Op::MAD ? step.source<Register>(2) : nullptr;
  Register* to = step.destination<Register>();
  if (step.in.has(Modifier::HI))
    step.each([&](int lane) {
      Unsigned high = multiply_high<Integer>((Integer)a[lane], (Integer)b[lane]);
      to[lane] = (Unsigned)(high + (c ? (Unsigned)c[lane] : 0));
    });
  else if (c)
    step.each([&](int lane) { to[lane] = (Unsigned)(a[lane] * b[lane] + c[lane]); });
  else
    step.each([&](int lane) { to[lane] = (Unsigned)(a[lane] * b[lane]); });
}
// Values of 8 and 16 bits stand in registers of 32, with zeros above.
template <class Integer>
inline void compute_integers(Step& step) {
  typedef typename std::conditional<sizeof(Integer) == 8, u64, u32>::type Register;
  typedef typename std::make_unsigned<Integer>::type Unsigned;
  constexpr u32 BITS = 8 * sizeof(Integer);
  const Register* a = step.source<Register>(0);
  bool shift = step.in.op == Op::SHL || step.in.op == Op::SHR;
  const Register* b = shift ? nullptr : step.source_or<Register>(1, nullptr);
  const u32* by = shift ? step.source<u32>(1) : nullptr;
  Register* to = step.destination<Register>();
  auto each = [&](auto function) { step.each([&](int lane) { to[lane] = (Unsigned)function(lane); }); };
  switch (step.in.op) {
    case Op::ADD: each([&](int k) { return a[k] + b[k]; }); break;
    case Op::SUB: each([&](int k) { return a[k] - b[k]; }); break;
    case Op::MUL:
    case Op::MAD: multiply_integers<Integer>(step); break;
    case Op::DIV: each([&](int k) { return divide<Integer>((Integer)a[k], (Integer)b[k]); }); break;
    case Op::REM: each([&](int k) { return remainder_of<Integer>((Integer)a[k], (Integer)b[k]); }); break;
    case Op::MIN: each([&](int k) { return (Integer)a[k] < (Integer)b[k] ? a[k] : b[k]; }); break;
    case Op::MAX: each([&](int k) { return (Integer)a[k] > (Integer)b[k] ? a[k] : b[k]; }); break;
    case Op::ABS: each([&](int k) { return (Integer)a[k] < 0 ? 0 - a[k] : a[k]; }); break;
    case Op::NEG: each([&](int k) { return 0 - a[k]; }); break;
    case Op::AND: each([&](int k) { return a[k] & b[k]; }); break;
    case Op::OR: each([&](int k) { return a[k] | b[k]; }); break;
    case Op::XOR: each([&](int k) { return a[k] ^ b[k]; }); break;
    case Op::NOT: each([&](int k) { return ~a[k]; }); break;
    case Op::SHL: each([&](int k) { return by[k] >= BITS ? 0 : a[k] << by[k]; }); break;
    case Op::SHR: each([&](int k) { return (Integer)a[k] >> std::min(by[k], BITS - 1) >> (by[k] >= BITS); }); break;
    default: give_up(step, "integer operation");
  }
}
// mul.wide and mad.wide: a product of twice the bits.
template <class Integer>
inline void multiply_wide(Step& step) {
  typedef typename std::conditional<sizeof(Integer) == 4, u64, u32>::type Register;
  typedef typename std::conditional<std::is_signed<Integer>::value, s64, u64>::type Wide;
  const u32 *a = step.source<u32>(0), *b = step.source<u32>(1);
  const Register* c = step.in.op == Op::MAD_WIDE ? step.source<Register>(2) : nullptr;
  Register* to = step.destination<Register>();
  step.each([&](int lane) {
    Wide product = (Wide)(Integer)a[lane] * (Wide)(Integer)b[lane];
    to[lane] = (Register)product + (c ? c[lane] : 0);
  });
}
inline void multiply_wide(Step& step) {
  switch (step.in.type) {
    case Type::U16: multiply_wide<u16>(step); break;
    case Type::S16: multiply_wide<s16>(step); break;
    case Type::U32: multiply_wide<u32>(step); break;
    default: multiply_wide<s32>(step);
  }
}
// add.cc, addc and their kind: a number of several registers, with a carry (or borrow) a lane.
template <class Register>
inline void compute_with_carry(Step& step) {
  constexpr int BITS = 8 * sizeof(Register);
  Carry how = (Carry)step.in.mode;
  bool takes = step.in.mode2 & 1, leaves = step.in.mode2 & 2;
  const Register *a = step.source<Register>(0), *b = step.source<Register>(1);
  const Register* c = step.source_or<Register>(2, nullptr);
  Register* to = step.destination<Register>();
  u32 before = takes ? step.warp.carries : 0, after = 0;
  step.each([&](int lane) {
    u128 result, carry = lane_in(before, lane);
    if (how == Carry::ADD) {
      result = (u128)a[lane] + b[lane] + carry;
    } else if (how == Carry::SUB) {
      result = (u128)a[lane] - b[lane] - carry;  // all bits above are set if it is negative
    } else {
      u128 product = (u128)a[lane] * b[lane];
      result = (how == Carry::MAD_LO ? (Register)product : (Register)(product >> BITS)) + carry + c[lane];
    }
    after |= (u32)(result >> BITS != 0) << lane;
    to[lane] = (Register)result;
  });
  if (leaves) step.warp.carries = (step.warp.carries & ~step.lanes) | (after & step.lanes);
}

// ---------------------------------------------------------------------------------------------------------- floats
// What an approximation may be off by, in units in the last place: chosen by a hash of the value.
inline float perturb(float value, int ulps, const Config& config) {
  if (!config.approximate || is_nan(value) || std::isinf(value) || value == 0) return value;
  int by = (int)(mix(bits_of(value) ^ (config.seed << 32)) % (2 * ulps + 1)) - ulps;
  return float_of(bits_of(value) + by);
}
// A source of floats; subnormal values become zero in `flushed` if the instruction says .ftz.
inline const float* float_source(Step& step, int k, float* flushed) {
  if (!step.in.has_source(k)) return nullptr;
  const float* from = step.source<float>(k);
  if (!step.in.has(Modifier::FTZ)) return from;
  for (int lane = 0; lane < LANES; ++lane) flushed[lane] = flush_subnormal(from[lane]);
  return flushed;
}
inline void compute_floats(Step& step) {
  float flushed[3][LANES];
  const float* a = float_source(step, 0, flushed[0]);
  const float* b = float_source(step, 1, flushed[1]);
  const float* c = float_source(step, 2, flushed[2]);
  float* to = step.destination<float>();
  bool approximate = step.in.has(Modifier::APPROX), propagate_nan = step.in.has(Modifier::NaN);
  auto off = [&](float value, int ulps) { return perturb(value, ulps, step.launch.config); };
  auto each = [&](auto function) { step.each([&](int lane) { to[lane] = canonical(function(lane)); }); };
  // Of exact instructions and approximate ones; the errors are those of the PTX ISA.
  auto each_off = [&](int ulps, bool perturbed, auto function) {
    step.each([&](int lane) { to[lane] = canonical((float)function(lane)); });
    if (perturbed) step.each([&](int lane) { to[lane] = off(to[lane], ulps); });
  };
  switch (step.in.op) {
    case Op::ADD: each([&](int k) { return a[k] + b[k]; }); break;
    case Op::SUB: each([&](int k) { return a[k] - b[k]; }); break;
    case Op::MUL: each([&](int k) { return a[k] * b[k]; }); break;
    case Op::FMA:
    case Op::MAD: each([&](int k) { return __builtin_fmaf(a[k], b[k], c[k]); }); break;
    case Op::MIN: each([&](int k) { return extreme(a[k], b[k], false, propagate_nan); }); break;
    case Op::MAX: each([&](int k) { return extreme(a[k], b[k], true, propagate_nan); }); break;
    case Op::DIV: each_off(2, approximate, [&](int k) { return a[k] / b[k]; }); break;
    case Op::RCP: each_off(1, approximate, [&](int k) { return 1.0f / a[k]; }); break;
    case Op::SQRT: each_off(1, approximate, [&](int k) { return std::sqrt(a[k]); }); break;
    case Op::RSQRT: each_off(2, true, [&](int k) { return 1.0 / std::sqrt((double)a[k]); }); break;
    case Op::EX2: each_off(2, true, [&](int k) { return std::exp2((double)a[k]); }); break;
    case Op::LG2: each_off(1, true, [&](int k) { return std::log2((double)a[k]); }); break;
    case Op::TANH: each_off(2, true, [&](int k) { return std::tanh((double)a[k]); }); break;
    case Op::SIN: each_off(0, false, [&](int k) { return std::sin((double)a[k]); }); break;
    case Op::COS: each_off(0, false, [&](int k) { return std::cos((double)a[k]); }); break;
    // these three keep the bits of a NaN
    case Op::ABS: step.each([&](int k) { to[k] = float_of(bits_of(a[k]) & ~SIGN32); }); break;
    case Op::NEG: step.each([&](int k) { to[k] = float_of(bits_of(a[k]) ^ SIGN32); }); break;
    case Op::COPYSIGN:
      step.each([&](int k) { to[k] = float_of((bits_of(b[k]) & ~SIGN32) | (bits_of(a[k]) & SIGN32)); });
      break;
    default: give_up(step, "f32 operation");
  }
  if (step.in.has(Modifier::FTZ)) step.each([&](int lane) { to[lane] = flush_subnormal(to[lane]); });
  if (step.in.has(Modifier::SAT)) step.each([&](int lane) { to[lane] = saturate(to[lane]); });
}
inline void compute_doubles(Step& step) {
  const double* a = step.source<double>(0);
  const double* b = step.source_or<double>(1, nullptr);
  const double* c = step.source_or<double>(2, nullptr);
  double* to = step.destination<double>();
  auto each = [&](auto function) { step.each([&](int lane) { to[lane] = canonical(function(lane)); }); };
  switch (step.in.op) {
    case Op::ADD: each([&](int k) { return a[k] + b[k]; }); break;
    case Op::SUB: each([&](int k) { return a[k] - b[k]; }); break;
    case Op::MUL: each([&](int k) { return a[k] * b[k]; }); break;
    case Op::FMA:
    case Op::MAD: each([&](int k) { return __builtin_fma(a[k], b[k], c[k]); }); break;
    case Op::DIV: each([&](int k) { return a[k] / b[k]; }); break;
    case Op::RCP: each([&](int k) { return 1.0 / a[k]; }); break;
    case Op::SQRT: each([&](int k) { return std::sqrt(a[k]); }); break;
    case Op::RSQRT: each([&](int k) { return 1.0 / std::sqrt(a[k]); }); break;
    case Op::MIN: each([&](int k) { return extreme(a[k], b[k], false, false); }); break;
    case Op::MAX: each([&](int k) { return extreme(a[k], b[k], true, false); }); break;
    case Op::ABS: step.each([&](int k) { to[k] = double_of(bits_of(a[k]) & ~SIGN64); }); break;
    case Op::NEG: step.each([&](int k) { to[k] = double_of(bits_of(a[k]) ^ SIGN64); }); break;
    case Op::COPYSIGN:
      step.each([&](int k) { to[k] = double_of((bits_of(b[k]) & ~SIGN64) | (bits_of(a[k]) & SIGN64)); });
      break;
    default: give_up(step, "f64 operation");
  }
}
inline float compute_float(Step& step, float a, float b, float c) {
  switch (step.in.op) {
    case Op::ADD: return a + b;
    case Op::SUB: return a - b;
    case Op::MUL: return a * b;
    case Op::FMA: return __builtin_fmaf(a, b, c);
    default: give_up(step, "f32x2 operation"); return 0;
  }
}
// Two floats in a register of 64 bits: instructions of type f32x2, which Blackwell has.
inline void compute_float_pairs(Step& step) {
  const u64* a = step.source<u64>(0);
  const u64 *b = step.source_or<u64>(1, (u64*)a), *c = step.source_or<u64>(2, (u64*)a);
  u64* to = step.destination<u64>();
  bool flush = step.in.has(Modifier::FTZ);
  auto part = [&](u64 pair, int which) {
    float value = float_of((u32)(pair >> (32 * which)));
    return flush ? flush_subnormal(value) : value;
  };
  step.each([&](int lane) {
    u64 result = 0;
    for (int which = 0; which < 2; ++which) {
      float value = compute_float(step, part(a[lane], which), part(b[lane], which), part(c[lane], which));
      value = canonical(value);
      result |= (u64)bits_of(flush ? flush_subnormal(value) : value) << (32 * which);
    }
    to[lane] = result;
  });
}

// -------------------------------------------------------------------------------------- half precision and bfloat16
struct Half {
  static float to_float(u16 bits) { return half_to_float(bits); }
  static u16 from(float value) { return float_to_half(value); }
  static u16 from(double value) { return double_to_half(value); }
};
struct Bfloat {
  static float to_float(u16 bits) { return bfloat_to_float(bits); }
  static u16 from(float value) { return float_to_bfloat(value); }
  static u16 from(double value) { return double_to_bfloat(value); }
};
// In double precision, rounded once: a sum or product of two such numbers is exact there.
template <class Format>
inline u16 compute_half(Step& step, u16 first, u16 second, u16 third) {
  double a = Format::to_float(first), b = Format::to_float(second), c = Format::to_float(third), result;
  switch (step.in.op) {
    case Op::ADD: result = a + b; break;
    case Op::SUB: result = a - b; break;
    case Op::MUL: result = a * b; break;
    case Op::FMA: result = __builtin_fma(a, b, c); break;
    case Op::MIN:
    case Op::MAX: return Format::from(extreme((float)a, (float)b, step.in.op == Op::MAX, step.in.has(Modifier::NaN)));
    case Op::ABS: return first & 0x7fff;
    case Op::NEG: return first ^ 0x8000;
    case Op::EX2: result = perturb((float)std::exp2(a), 1, step.launch.config); break;
    case Op::TANH: result = std::tanh(a); break;
    default: give_up(step, "half operation"); return 0;
  }
  if (step.in.has(Modifier::RELU) && result <= 0) result = 0;
  if (step.in.has(Modifier::SAT)) result = saturate(result);
  return Format::from(result);
}
template <class Format>
inline void compute_halves(Step& step, bool pair) {
  const u32* a = step.source<u32>(0);
  const u32 *b = step.source_or<u32>(1, (u32*)a), *c = step.source_or<u32>(2, (u32*)a);
  u32* to = step.destination<u32>();
  step.each([&](int lane) {
    u32 high = 0;
    if (pair) high = compute_half<Format>(step, a[lane] >> 16, b[lane] >> 16, c[lane] >> 16);
    to[lane] = high << 16 | compute_half<Format>(step, (u16)a[lane], (u16)b[lane], (u16)c[lane]);
  });
}

// ------------------------------------------------------------------------------------------------------ predicates
inline void compute_predicates(Step& step) {
  u32 a = step.predicate(0), b = step.in.has_source(1) ? step.predicate(1) : 0;
  switch (step.in.op) {
    case Op::AND: step.set_predicate(0, a & b); break;
    case Op::OR: step.set_predicate(0, a | b); break;
    case Op::XOR: step.set_predicate(0, a ^ b); break;
    case Op::NOT: step.set_predicate(0, ~a); break;
    default: give_up(step, "predicate operation");
  }
}

inline void compute(Step& step) {
  switch (step.in.type) {
    case Type::U8:
    case Type::U16: compute_integers<u16>(step); break;
    case Type::S8:
    case Type::S16: compute_integers<s16>(step); break;
    case Type::U32: compute_integers<u32>(step); break;
    case Type::S32: compute_integers<s32>(step); break;
    case Type::U64: compute_integers<u64>(step); break;
    case Type::S64: compute_integers<s64>(step); break;
    case Type::F32: compute_floats(step); break;
    case Type::F64: compute_doubles(step); break;
    case Type::F32X2: compute_float_pairs(step); break;
    case Type::F16: compute_halves<Half>(step, false); break;
    case Type::BF16: compute_halves<Bfloat>(step, false); break;
    case Type::F16X2: compute_halves<Half>(step, true); break;
    case Type::BF16X2: compute_halves<Bfloat>(step, true); break;
    case Type::PRED: compute_predicates(step); break;
  }
}

}  // namespace emulator
