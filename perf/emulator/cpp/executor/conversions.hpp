// cvt: conversions between the types of numbers (PTX ISA), a lane at a time, and of two floats into a pair of
// half precision. Rounding itself stands in numbers.hpp.
#pragma once

#include "checks.hpp"

namespace emulator {

// ---------------------------------------------------------------------------------------------- what a source holds
inline double float_value(Type type, u64 bits) {
  switch (type) {
    case Type::F64: return double_of(bits);
    case Type::F32: return float_of((u32)bits);
    case Type::F16: return half_to_float((u16)bits);
    default: return bfloat_to_float((u16)bits);
  }
}
inline s128 integer_value(Type type, u64 bits) {
  switch (type) {
    case Type::U8: return (u8)bits;
    case Type::S8: return (s8)bits;
    case Type::U16: return (u16)bits;
    case Type::S16: return (s16)bits;
    case Type::U32: return (u32)bits;
    case Type::S32: return (s32)bits;
    case Type::U64: return (u64)bits;
    default: return (s64)bits;
  }
}
inline double round_to_integer(Rounding rounding, double value) {
  switch (rounding) {
    case Rounding::RN: return std::nearbyint(value);
    case Rounding::RZ: return std::trunc(value);
    case Rounding::RM: return std::floor(value);
    default: return std::ceil(value);
  }
}

// --------------------------------------------------------------------------------------------- to floats, of a float
inline u32 narrow_to_float(double value, bool toward_zero, bool flush) {
  float result = (float)value;
  if (toward_zero && std::fabs((double)result) > std::fabs(value)) result = std::nextafterf(result, 0.0f);
  if (flush) result = flush_subnormal(result);
  return bits_of(canonical(result));
}
// .satfinite: the largest number instead of infinity.
inline u16 keep_finite(u16 bits, u16 infinity) {
  return (bits & 0x7fff) == infinity ? (bits & 0x8000) | (infinity - 1) : bits;
}
inline u16 narrow_to_bfloat(double value, bool toward_zero, bool finite) {
  u16 result = toward_zero ? float_to_bfloat_toward_zero(round_to_odd(value)) : double_to_bfloat(value);
  return finite ? keep_finite(result, 0x7f80) : result;
}
inline u16 narrow_to_half(double value, bool toward_zero, bool finite) {
  u16 result = double_to_half(value);
  if (toward_zero && std::fabs((double)half_to_float(result)) > std::fabs(value)) result -= 1;
  return finite ? keep_finite(result, 0x7c00) : result;
}
inline u64 float_to_float(const Instruction& in, double value) {
  bool toward_zero = (Rounding)in.mode2 == Rounding::RZ && !in.has(Modifier::INTEGRAL);
  if (in.has(Modifier::RELU) && !is_nan(value)) value = std::max(value, 0.0);
  if (in.has(Modifier::SAT)) value = saturate(value);
  switch (in.type) {
    case Type::F64: return bits_of(canonical(value));
    case Type::F32: return narrow_to_float(value, toward_zero, in.has(Modifier::FTZ));
    case Type::BF16: return narrow_to_bfloat(value, toward_zero, in.has(Modifier::SATFINITE));
    default: return narrow_to_half(value, toward_zero, in.has(Modifier::SATFINITE));
  }
}

// ---------------------------------------------------------------------------------------------------- other ways
// Out of range is the nearest integer; NaN is 0, or the sign bit of 64 bits.
inline u64 float_to_integer(const Instruction& in, double value) {
  int bits = 8 * in.bytes();
  bool has_sign = is_signed(in.type);
  if (!in.has(Modifier::INTEGRAL)) value = std::trunc(value);
  double least = has_sign ? -std::ldexp(1.0, bits - 1) : 0, end = std::ldexp(1.0, has_sign ? bits - 1 : bits);
  if (is_nan(value)) return bits == 64 ? SIGN64 : 0;
  if (value < least) return has_sign ? 1ull << (bits - 1) : 0;
  if (value >= end) return ~0ull >> (64 - bits + has_sign);
  return value < 0 ? (u64)(s64)value : (u64)value;
}
template <class Float>
inline Float nearest_to(s128 value) {
  return value > INT64_MAX ? (Float)(u64)value : (Float)(s64)value;
}
inline u64 integer_to_float(const Instruction& in, s128 value) {
  bool toward_zero = (Rounding)in.mode2 == Rounding::RZ;
  switch (in.type) {
    case Type::F64: {
      double nearest = nearest_to<double>(value);
      return bits_of(toward_zero && value != (s128)nearest ? round_toward_zero(value) : nearest);
    }
    case Type::F32: {
      float nearest = nearest_to<float>(value);
      if (toward_zero && std::fabs((double)nearest) > std::fabs((double)value)) nearest = std::nextafterf(nearest, 0);
      return bits_of(nearest);
    }
    case Type::BF16: return double_to_bfloat(nearest_to<double>(value));
    default: return double_to_half(nearest_to<double>(value));
  }
}
inline u64 integer_to_integer(const Instruction& in, s128 value) {
  int bits = 8 * in.bytes();
  bool has_sign = is_signed(in.type);
  if (in.has(Modifier::SAT)) {
    s128 least = has_sign ? -((s128)1 << (bits - 1)) : 0, most = ((s128)1 << (bits - has_sign)) - 1;
    value = std::min(std::max(value, least), most);
  }
  return (u64)integer_value(in.type, (u64)value);  // of the type's bits
}
inline u64 convert_value(const Instruction& in, u64 bits) {
  Type from = (Type)in.type2;
  if (!is_float(from)) {
    s128 value = integer_value(from, bits);
    return is_float(in.type) ? integer_to_float(in, value) : integer_to_integer(in, value);
  }
  double value = float_value(from, bits);
  if (in.has(Modifier::FTZ) && from == Type::F32) value = flush_subnormal((float)value);
  if (in.has(Modifier::INTEGRAL)) value = round_to_integer((Rounding)in.mode2, value);
  return is_float(in.type) ? float_to_float(in, value) : float_to_integer(in, value);
}

// --------------------------------------------------------------------------------------------------- instructions
template <class To, class From>
inline void convert_values(Step& step) {
  const From* from = step.source<From>(0);
  To* to = step.destination<To>();
  u64 kept = step.in.bytes() <= 2 ? 0xffff : ~0ull;  // 8 and 16 bits stand in registers of 16, with zeros above
  step.each([&](int lane) { to[lane] = (To)(convert_value(step.in, from[lane]) & kept); });
}
inline void convert(Step& step) {
  const Instruction& in = step.in;
  Type from = (Type)in.type2;
  bool plain = !in.has(Modifier::SATFINITE) && !in.has(Modifier::RELU);
  if (from == Type::BF16 && in.type == Type::F32) {
    const u32* values = step.source<u32>(0);
    u32* to = step.destination<u32>();
    step.each([&](int lane) { to[lane] = values[lane] << 16; });
  } else if (from == Type::F32 && in.type == Type::BF16 && (Rounding)in.mode2 == Rounding::RN && plain) {
    const float* values = step.source<float>(0);
    u32* to = step.destination<u32>();
    step.each([&](int lane) { to[lane] = float_to_bfloat(values[lane]); });
  } else if (is_wide(in.sources[0]) || TYPE_BYTES[in.type2] == 8) {  // a register may be wider than the type
    is_wide(in.destinations[0]) ? convert_values<u64, u64>(step) : convert_values<u32, u64>(step);
  } else {
    is_wide(in.destinations[0]) ? convert_values<u64, u32>(step) : convert_values<u32, u32>(step);
  }
}
// Two floats into a register of 32 bits, the first into its upper half.
inline void convert_pair(Step& step) {
  const Instruction& in = step.in;
  if ((Type)in.type2 != Type::F32 || !in.has_source(1)) return give_up(step, "conversion");
  const float *high = step.source<float>(0), *low = step.source<float>(1);
  u32* to = step.destination<u32>();
  bool bfloat = in.type == Type::BF16X2, toward_zero = (Rounding)in.mode2 == Rounding::RZ;
  auto narrow = [&](float value) -> u32 {
    if (in.has(Modifier::RELU) && value <= 0) value = 0;
    return bfloat ? narrow_to_bfloat(value, toward_zero, false) : narrow_to_half(value, toward_zero, false);
  };
  step.each([&](int lane) { to[lane] = narrow(high[lane]) << 16 | narrow(low[lane]); });
}

}  // namespace emulator
