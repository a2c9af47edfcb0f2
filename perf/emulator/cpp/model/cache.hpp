// A cache of lines of 128 bytes in sectors of 32, which are fetched one by one (Jia et al. 2018, arXiv:1804.06826,
// ). The line that was used longest ago makes room. Which set a line falls into is a hash, as on GPUs, where
// power-of-two strides do not collide.
#pragma once

#include <algorithm>
#include <vector>

#include "code.hpp"

namespace {

constexpr u32 SECTOR = 32;  // bytes
constexpr u32 SECTORS = 4;  // of a line
constexpr u8 WHOLE_LINE = (1 << SECTORS) - 1;
constexpr u64 NO_LINE = ~0ull;

// Mixes the bits of a number: splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
// 2014).
u64 mix(u64 z) {
  z += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

struct Line {
  u64 tag = NO_LINE;
  u64 filled_at = 0;  // when its last sector is there
  u32 used_at = 0;
  u8 valid = 0;  // sectors, a bit each
  u8 dirty = 0;
};

struct Cache {
  std::vector<Line> lines;
  u32 sets = 1;
  u32 ways = 1;
  u32 now = 0;

  void resize(u64 bytes, u32 ways_) {
    ways = ways_;
    sets = (u32)std::max<u64>(1, bytes / (SECTORS * SECTOR) / ways);
    lines.assign((size_t)sets * ways, Line());
    now = 0;
  }

  // The line of an address (in units of lines), an empty one if it was not there. `evicted` is what it replaced.
  Line& at(u64 line, Line& evicted) {
    Line* set = &lines[(size_t)(mix(line) % sets) * ways];
    Line* oldest = set;
    ++now;
    for (Line* way = set; way < set + ways; ++way) {
      if (way->tag == line) {
        way->used_at = now;
        return *way;
      }
      if (way->used_at < oldest->used_at) oldest = way;
    }
    evicted = *oldest;
    *oldest = Line();
    oldest->tag = line;
    oldest->used_at = now;
    return *oldest;
  }
};

}  // namespace
