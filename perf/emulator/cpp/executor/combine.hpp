// How atomics and reductions over a warp combine two values.
#pragma once

#include <algorithm>

#include "program.hpp"

namespace emulator {

template <class Value>
inline Value combine(Combine how, Value a, Value b) {
  switch (how) {
    case Combine::ADD: return a + b;
    case Combine::MIN: return std::min(a, b);
    case Combine::MAX: return std::max(a, b);
    case Combine::EXCH: return b;
    default: return a;
  }
}
template <class Bits>
inline Bits combine_bits(Combine how, Bits a, Bits b) {
  switch (how) {
    case Combine::AND: return a & b;
    case Combine::OR: return a | b;
    case Combine::XOR: return a ^ b;
    default: return combine(how, a, b);
  }
}
}  // namespace emulator
