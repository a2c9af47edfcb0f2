// Numbers as PTX has them: integer types, bits of floats, half precision and bfloat16, rounding, minimum and division,
// and the pseudo-random numbers of the scheduler. Nothing here knows of instructions, threads or memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace emulator {

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef unsigned __int128 u128;
typedef __int128 s128;

constexpr u32 SIGN32 = 0x80000000u;
constexpr u64 SIGN64 = 1ull << 63;
// PTX ISA: the NaN that single precision arithmetic makes; half precision has 0x7fff. Double precision is free to
// choose, and is given the same pattern.
constexpr u32 NAN32 = 0x7fffffffu;
constexpr u64 NAN64 = 0x7fffffffffffffffull;
constexpr u16 NAN16 = 0x7fff;

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits as another type");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline float float_of(u32 bits) {
  return bit_cast<float>(bits);
}
inline double double_of(u64 bits) {
  return bit_cast<double>(bits);
}
inline u32 bits_of(float value) {
  return bit_cast<u32>(value);
}
inline u64 bits_of(double value) {
  return bit_cast<u64>(value);
}

template <class Float>
inline bool is_nan(Float value) {
  return value != value;
}
inline float canonical(float value) {
  return is_nan(value) ? float_of(NAN32) : value;
}
inline double canonical(double value) {
  return is_nan(value) ? double_of(NAN64) : value;
}
// Subnormal values become zero of the same sign (modifier .ftz).
inline float flush_subnormal(float value) {
  u32 bits = bits_of(value);
  return bits & 0x7f800000 ? value : float_of(bits & SIGN32);
}
template <class Float>
inline Float saturate(Float value) {
  if (is_nan(value)) return 0;
  return std::min(std::max(value, Float(0)), Float(1));
}

// -------------------------------------------------------------------------------------- half precision and bfloat16
inline float half_to_float(u16 half) {
  return (float)bit_cast<_Float16>(half);
}
inline u16 float_to_half(float value) {
  if (is_nan(value)) return NAN16;
  return bit_cast<u16>((_Float16)value);
}
inline float bfloat_to_float(u16 bfloat) {
  return float_of((u32)bfloat << 16);
}
inline u16 float_to_bfloat(float value) {
  u32 bits = bits_of(value);
  if (is_nan(value)) return NAN16;
  return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline u16 float_to_bfloat_toward_zero(float value) {
  if (is_nan(value)) return NAN16;
  return (u16)(bits_of(value) >> 16);
}
// Rounds to float so that a second rounding, to fewer bits, is right: toward zero, the last bit set if inexact.
// Source: Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to
// odd".
inline float round_to_odd(double value) {
  float rounded = (float)value;
  if (is_nan(value) || (double)rounded == value || std::isinf(rounded)) return rounded;
  u32 bits = bits_of(rounded);
  if (std::fabs((double)rounded) > std::fabs(value)) bits -= 1;
  return float_of(bits | 1);
}
inline u16 double_to_half(double value) {
  return float_to_half(round_to_odd(value));
}
inline u16 double_to_bfloat(double value) {
  return float_to_bfloat(round_to_odd(value));
}
inline double round_toward_zero(s128 value) {
  double rounded = (double)value;
  return std::fabs(rounded) > std::fabs((double)value) ? std::nextafter(rounded, 0.0) : rounded;
}

// ------------------------------------------------------------------------------------------------- minimum, division
// PTX ISA: a number wins over NaN unless .NaN is given, and -0 is less than +0.
template <class Float>
inline Float extreme(Float a, Float b, bool maximum, bool propagate_nan) {
  if (is_nan(a) || is_nan(b)) {
    if (propagate_nan || (is_nan(a) && is_nan(b))) return canonical(is_nan(a) ? a : b);
    return is_nan(a) ? b : a;
  }
  if (a == b) return std::signbit(a) == maximum ? b : a;
  return (a < b) == maximum ? b : a;
}
// Division by zero is undefined in PTX; GPUs give all ones, and a remainder equal to the dividend.
template <class Integer>
inline Integer divide(Integer a, Integer b) {
  if (b == 0) return (Integer)-1;
  if (std::is_signed<Integer>::value && b == (Integer)-1) return (Integer)(0 - (u64)a);
  return a / b;
}
template <class Integer>
inline Integer remainder_of(Integer a, Integer b) {
  if (b == 0) return a;
  if (std::is_signed<Integer>::value && b == (Integer)-1) return 0;
  return a % b;
}

// -------------------------------------------------------------------------------------------------- random numbers
// SplitMix64. Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
inline u64 mix(u64 value) {
  value += 0x9e3779b97f4a7c15ull;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
  return value ^ (value >> 31);
}
struct Random {
  u64 state;
  u64 next() { return mix(state += 0x9e3779b97f4a7c15ull); }
  u32 below(u32 end) { return end < 2 ? 0 : (u32)((next() >> 32) * end >> 32); }
};

}  // namespace emulator
