// Operations on the bits of integers: logic of three operands, permutation, shifts of pairs, fields, counts. Those of
// one or two operands that every type has (and, or, shl, ...) stand in arithmetic.hpp.
#pragma once

#include "checks.hpp"

namespace emulator {

inline u64 ones(u32 count) {
  return count >= 64 ? ~0ull : (1ull << count) - 1;
}

// lop3: bit 4 a + 2 b + c of the table for each bit of the operands.
inline void look_up_logic(Step& step) {
  const u32 *a = step.source<u32>(0), *b = step.source<u32>(1), *c = step.source<u32>(2);
  u32* to = step.destination<u32>();
  u32 table = step.in.mode;
  step.each([&](int lane) {
    u32 result = 0;
    for (int k = 0; k < 8; ++k)
      if (table >> k & 1)
        result |= (k & 4 ? a[lane] : ~a[lane]) & (k & 2 ? b[lane] : ~b[lane]) & (k & 1 ? c[lane] : ~c[lane]);
    to[lane] = result;
  });
}
// prmt: four bytes of a pair, chosen by four bits each; the fourth bit says to repeat the byte's sign.
inline void permute_bytes(Step& step) {
  const u32 *a = step.source<u32>(0), *b = step.source<u32>(1), *selectors = step.source<u32>(2);
  u32* to = step.destination<u32>();
  step.each([&](int lane) {
    u64 pair = a[lane] | (u64)b[lane] << 32;
    u32 result = 0;
    for (int k = 0; k < 4; ++k) {
      u32 selector = selectors[lane] >> (4 * k) & 15;
      u32 byte = (u32)(pair >> (8 * (selector & 7))) & 255;
      if (selector & 8) byte = byte & 128 ? 255 : 0;
      result |= byte << (8 * k);
    }
    to[lane] = result;
  });
}
inline void shift_pair(Step& step) {
  const u32 *low = step.source<u32>(0), *high = step.source<u32>(1), *by = step.source<u32>(2);
  u32* to = step.destination<u32>();
  bool right = step.in.mode, wrap = step.in.mode2;
  step.each([&](int lane) {
    u32 count = wrap ? by[lane] & 31 : std::min(by[lane], 32u);
    u64 pair = low[lane] | (u64)high[lane] << 32;
    to[lane] = right ? (u32)(pair >> count) : (u32)(pair << count >> 32);
  });
}
// bfe: PTX ISA. Beyond the register, and beyond the field, are zeros, or the sign: the field's last bit.
template <class Register>
inline void extract_field(Step& step) {
  constexpr u32 BITS = 8 * sizeof(Register);
  const Register* from = step.source<Register>(0);
  const u32 *positions = step.source<u32>(1), *lengths = step.source<u32>(2);
  Register* to = step.destination<Register>();
  bool has_sign = is_signed(step.in.type);
  step.each([&](int lane) {
    u32 position = positions[lane] & 255, length = lengths[lane] & 255;
    u32 there = position < BITS ? std::min(length, BITS - position) : 0;
    Register result = there ? (Register)((from[lane] >> position) & ones(there)) : 0;
    bool sign = has_sign && length && from[lane] >> std::min(position + length - 1, BITS - 1) & 1;
    to[lane] = sign ? result | (Register)~ones(there) : result;
  });
}
template <class Register>
inline void insert_field(Step& step) {
  constexpr u32 BITS = 8 * sizeof(Register);
  const Register *field = step.source<Register>(0), *from = step.source<Register>(1);
  const u32 *positions = step.source<u32>(2), *lengths = step.source<u32>(3);
  Register* to = step.destination<Register>();
  step.each([&](int lane) {
    u32 position = positions[lane] & 255, length = lengths[lane] & 255;
    if (position >= BITS) {
      to[lane] = from[lane];
      return;
    }
    Register mask = (Register)ones(length) << position;
    to[lane] = (from[lane] & ~mask) | ((field[lane] << position) & mask);
  });
}
template <class Register>
inline void reverse_bits(Step& step) {
  constexpr int BITS = 8 * sizeof(Register);
  const Register* from = step.source<Register>(0);
  Register* to = step.destination<Register>();
  step.each([&](int lane) {
    Register result = 0;
    for (int k = 0; k < BITS; ++k) result |= (from[lane] >> k & 1) << (BITS - 1 - k);
    to[lane] = result;
  });
}
// The highest bit that differs from the sign, or all ones; .shiftamt: how far to shift it to the top.
template <class Register>
inline u32 find_leading_bit(const Instruction& in, Register value) {
  constexpr u32 BITS = 8 * sizeof(Register);
  if (is_signed(in.type) && value >> (BITS - 1)) value = ~value;
  if (!value) return ~0u;
  u32 position = 63 - __builtin_clzll(value);
  return in.mode ? BITS - 1 - position : position;
}
template <class Register>
inline void count_bits(Step& step) {
  constexpr int BITS = 8 * sizeof(Register);
  const Register* from = step.source<Register>(0);
  u32* to = step.destination<u32>();
  switch (step.in.op) {
    case Op::POPC: step.each([&](int lane) { to[lane] = __builtin_popcountll(from[lane]); }); break;
    case Op::CLZ:
      step.each([&](int lane) { to[lane] = from[lane] ? __builtin_clzll(from[lane]) - (64 - BITS) : BITS; });
      break;
    default: step.each([&](int lane) { to[lane] = find_leading_bit(step.in, from[lane]); });
  }
}

}  // namespace emulator
