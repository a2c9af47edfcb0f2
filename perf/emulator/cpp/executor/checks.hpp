// Findings: whether an access is allowed, initialised and ordered with others. Global memory, then shared memory.
// What loads and stores do besides stands in memory.hpp, what orders warps in barriers.hpp.
#pragma once

#include <algorithm>
#include <cstdarg>
#include <cstdio>

#include "machine.hpp"

namespace emulator {

// ------------------------------------------------------------------------------------------------------- reporting
inline void report_text(Launch& launch, Kind kind, const Instruction& in, const char* format, va_list values) {
  auto& findings = launch.outcome.findings;
  for (Finding& finding : findings)
    if (finding.kind == kind && finding.line == in.line) {
      finding.count++;
      return;
    }
  if (findings.size() > 400) return;
  char text[1024];
  vsnprintf(text, sizeof text, format, values);
  findings.push_back({kind, in.line, in.source, 1, text});
}
// Only the first finding of a kind at an instruction keeps its text; the others are counted.
__attribute__((format(printf, 4, 5))) inline void report(Launch& launch, Kind kind, const Instruction& in,
                                                         const char* format, ...) {
  va_list values;
  va_start(values, format);
  report_text(launch, kind, in, format, values);
  va_end(values);
}
__attribute__((format(printf, 3, 4))) inline void report(Step& step, Kind kind, const char* format, ...) {
  va_list values;
  va_start(values, format);
  report_text(step.launch, kind, step.in, format, values);
  va_end(values);
}
// An instruction that cannot be executed: the launch ends.
inline void give_up(Step& step, const char* what) {
  report(step, Kind::UNKNOWN_BEHAVIOUR, "%s", what);
  step.launch.stopped = true;
}

// --------------------------------------------------------------------------------------- threads and what orders them
inline u32 thread_of(const Step& step, int lane) {
  return (u32)(step.warp.block->linear * step.launch.block_threads + step.warp.index * LANES + lane);
}
// Clusters are runs of blocks along x; one is a program of the kernel.
inline u32 program_of(const Launch& launch, u32 thread) {
  return thread / launch.block_threads / launch.cluster_blocks;
}
inline u32 warp_in_cluster(const Launch& launch, u32 thread) {
  u32 block = thread / launch.block_threads;
  return block % launch.cluster_blocks * launch.block_warps() + thread % launch.block_threads / LANES;
}
inline bool ordered(const Warp& warp, u32 other_warp, u32 time) {
  return time < warp.seen[other_warp];
}
inline bool ordered_thread(const Step& step, u32 thread, u32 time) {
  return ordered(step.warp, warp_in_cluster(step.launch, thread), time);
}
inline std::string name_of(const Launch& launch, u32 thread) {
  u32 block = thread / launch.block_threads;
  std::string name = "thread " + std::to_string(thread % launch.block_threads) + " of block " + std::to_string(block);
  if (launch.cluster_blocks > 1) name += " (rank " + std::to_string(block % launch.cluster_blocks) + ")";
  return name;
}
inline std::string name_of(const Step& step, int lane) {
  return name_of(step.launch, thread_of(step, lane));
}

// --------------------------------------------------------------------------------------------------- global memory
inline Allocation* find_allocation(Step& step, u64 address, u32 bytes) {
  auto& allocations = step.launch.allocations;
  int& last = step.launch.last_allocation[&step.in - step.launch.program.code.data()];
  auto holds = [&](const Allocation& one) { return address >= one.base && address + bytes <= one.base + one.bytes; };
  if (last < (int)allocations.size() && holds(allocations[last])) return &allocations[last];
  auto after = std::upper_bound(allocations.begin(), allocations.end(), address,
                                [](u64 value, const Allocation& one) { return value < one.base; });
  if (after == allocations.begin() || !holds(after[-1])) return nullptr;
  last = (int)(after - allocations.begin()) - 1;
  return &after[-1];
}
inline void report_outside(Step& step, u64 address, u32 bytes, int lane, bool store) {
  auto& allocations = step.launch.allocations;
  if (allocations.empty()) {
    report(step, Kind::OUT_OF_BOUNDS, "no memory is registered");
    return;
  }
  auto distance = [&](const Allocation& one) {
    return (s64)(address < one.base ? one.base - address : address + bytes - one.base - one.bytes);
  };
  auto nearest =
      std::min_element(allocations.begin(), allocations.end(),
                       [&](const Allocation& one, const Allocation& other) { return distance(one) < distance(other); });
  report(step, Kind::OUT_OF_BOUNDS, "%s of %u bytes by %s at 0x%llx, %lld bytes %s allocation %zu of %llu bytes",
         store ? "store" : "load", bytes, name_of(step, lane).c_str(), (unsigned long long)address,
         (long long)distance(*nearest), address < nearest->base ? "before" : "beyond",
         (size_t)(nearest - allocations.begin()), (unsigned long long)nearest->bytes);
}

// One granule of an access of a thread to global memory.
struct GlobalAccess {
  Step& step;
  Allocation& allocation;
  u64 granule;
  u32 thread;

  GlobalStamp& stamp() const { return allocation.stamps[granule]; }
  std::string me() const { return name_of(step.launch, thread); }
  std::string name(u32 other) const { return name_of(step.launch, other); }
  std::string place() const {
    return "byte " + std::to_string(granule << allocation.granule_shift) + " of an allocation of " +
           std::to_string(allocation.bytes);
  }
  bool same_program(u32 other) const { return program_of(step.launch, other) == program_of(step.launch, thread); }
  bool same_warp(u32 other) const { return other / LANES == thread / LANES; }
};
inline void check_element(const GlobalAccess& access, bool store) {
  const Launch& launch = access.step.launch;
  u8 flags = access.allocation.flags[access.granule];
  if (!(flags & VALID) && launch.checks(CHECK_MEMORY))
    report(access.step, Kind::OUT_OF_BOUNDS, "%s by %s at %s: no tensor argument has an element there",
           store ? "store" : "load", access.me().c_str(), access.place().c_str());
  if (!store && !(flags & INITIALISED) && launch.checks(CHECK_INITIALISED))
    report(access.step, Kind::UNINITIALISED, "load by %s of %s, which nothing has written", access.me().c_str(),
           access.place().c_str());
}
// After another thread's write. Two writes of a part of a granule may be of different bytes, and are not compared.
inline void check_write_after_write(const GlobalAccess& access, bool same_value, bool whole) {
  GlobalStamp& stamp = access.stamp();
  if (!stamp.write_time || stamp.writer == access.thread || !whole) return;
  bool one_program = access.same_program(stamp.writer);
  if (one_program && ordered_thread(access.step, stamp.writer, stamp.write_time)) return;
  std::string other = access.name(stamp.writer), me = access.me();
  if (same_value)
    report(access.step, Kind::NOTE_SAME_VALUE, "several %s write the same value: %s and %s",
           one_program ? "threads of a program" : "programs", other.c_str(), me.c_str());
  else
    report(access.step, Kind::DOUBLE_WRITE, "%s and %s write different values to %s%s", other.c_str(), me.c_str(),
           access.place().c_str(), one_program ? ", with no barrier between" : "");
}
inline void check_write_after_read(const GlobalAccess& access) {
  GlobalStamp& stamp = access.stamp();
  if (!stamp.read_time || stamp.reader == access.thread) return;
  if (!access.same_program(stamp.reader))
    report(access.step, Kind::CROSS_PROGRAM, "%s writes %s, which %s of another program reads in this launch",
           access.me().c_str(), access.place().c_str(), access.name(stamp.reader).c_str());
  else if (!ordered_thread(access.step, stamp.reader, stamp.read_time))
    report(access.step, access.same_warp(stamp.reader) ? Kind::NOTE_LOCKSTEP : Kind::RACE_GLOBAL,
           "%s writes %s, which %s reads, with no barrier between", access.me().c_str(), access.place().c_str(),
           access.name(stamp.reader).c_str());
}
// Returns whether the load may see either of two values.
inline bool check_read_after_write(const GlobalAccess& access) {
  GlobalStamp& stamp = access.stamp();
  if (!stamp.write_time || stamp.writer == access.thread) return false;
  if (!access.same_program(stamp.writer)) {
    report(access.step, Kind::CROSS_PROGRAM, "%s reads %s, which %s of another program has written in this launch",
           access.me().c_str(), access.place().c_str(), access.name(stamp.writer).c_str());
    return true;
  }
  if (ordered_thread(access.step, stamp.writer, stamp.write_time)) return false;
  report(access.step, access.same_warp(stamp.writer) ? Kind::NOTE_LOCKSTEP : Kind::RACE_GLOBAL,
         "%s reads %s, which %s has written, with no barrier between", access.me().c_str(), access.place().c_str(),
         access.name(stamp.writer).c_str());
  return true;
}
// One reader is kept: the first that is not ordered before the later ones.
inline void keep_reader(const GlobalAccess& access) {
  GlobalStamp& stamp = access.stamp();
  bool replace = !stamp.read_time ||
                 (access.same_program(stamp.reader) &&
                  (access.same_warp(stamp.reader) || ordered_thread(access.step, stamp.reader, stamp.read_time)));
  if (!replace) return;
  stamp.reader = access.thread;
  stamp.read_time = access.step.warp.time;
}
// Checks and stamps an access inside of an allocation; `stored` is null for a load. Returns whether a load may see
// either of two values, as a write that nothing orders was made already.
inline bool check_global(Step& step, Allocation& allocation, u64 address, u32 bytes, int lane, const u8* stored) {
  bool racing = false;
  u64 last = allocation.granule_of(address + bytes - 1);
  for (u64 granule = allocation.granule_of(address); granule <= last; ++granule) {
    GlobalAccess access{step, allocation, granule, thread_of(step, lane)};
    check_element(access, stored);
    if (step.launch.checks(CHECK_GLOBAL)) {
      if (stored) {
        u64 start = allocation.base + (granule << allocation.granule_shift);
        u64 end = start + (1ull << allocation.granule_shift);
        u64 from = std::max(address, start), to = std::min(address + bytes, end);
        bool same_value = memcmp((void*)from, stored + (from - address), to - from) == 0;
        check_write_after_write(access, same_value, from == start && to == end);
        if (!same_value) check_write_after_read(access);
        access.stamp().writer = access.thread;
        access.stamp().write_time = step.warp.time;
      } else {
        racing |= check_read_after_write(access);
        keep_reader(access);
      }
    }
    if (stored) allocation.flags[granule] |= INITIALISED | WRITTEN;
  }
  return racing;
}

// --------------------------------------------------------------------------------------------------- shared memory
// An access of a thread to the shared memory of a block of its cluster.
struct SharedAccess {
  Step& step;
  Block& block;
  u32 address, bytes;
  int lane;
  const u8* stored;  // null for a load
  u32 write_time;    // the warp's time, or PENDING and a group

  u16 thread() const { return (u16)(step.warp.in_cluster * LANES + lane); }
  bool changes(u32 at) const { return block.shared[at] != stored[at - address]; }
};
inline void report_race(const SharedAccess& access, u32 at, u32 other_warp, u32 other_lane, const char* what,
                        bool pending = false) {
  const Warp& warp = access.step.warp;
  int per_block = access.step.launch.block_warps();
  bool lockstep = (int)other_warp == warp.in_cluster && !pending;
  report(access.step, lockstep ? Kind::NOTE_LOCKSTEP : Kind::RACE_SHARED,
         "%s at shared byte %u: warp %d lane %d of rank %u and warp %u lane %u of rank %u, %s", what, at, warp.index,
         access.lane, warp.block->rank, other_warp % per_block, other_lane, other_warp / per_block,
         pending ? "which has not waited for its copy" : "with no barrier between");
}
// Another block's memory: it must have started, and must not have exited.
inline void check_remote(const SharedAccess& access) {
  Warp& warp = access.step.warp;
  Block& block = access.block;
  block.remote_access[warp.in_cluster] = warp.time;
  int per_block = access.step.launch.block_warps();
  auto first = warp.seen.begin() + block.rank * per_block;
  if (std::none_of(first, first + per_block, [](u32 time) { return time > 1; }))
    report(access.step, Kind::BEFORE_START,
           "%s uses the shared memory of rank %u, of which nothing says that it has started",
           name_of(access.step, access.lane).c_str(), block.rank);
  if (!block.alive)
    report(access.step, Kind::EXIT_BEFORE_ACCESS, "%s uses the shared memory of rank %u, which has exited",
           name_of(access.step, access.lane).c_str(), block.rank);
}
// A byte that another thread has written, or that a copy is going to write.
inline void check_writer(const SharedAccess& access, u32 at, u16 writer, bool pending) {
  u32 warp = writer / LANES, lane = writer % LANES;
  if (!access.stored)
    report_race(access, at, warp, lane, "a read of what was written", pending);
  else if (access.changes(at))
    report_race(access, at, warp, lane, "two writes of different values", pending);
  else
    report(access.step, Kind::NOTE_SAME_VALUE, "several threads write the same value to shared memory");
}
// Checks and stamps the bytes of a word; returns which of its four bytes are accessed.
inline u32 check_writers(const SharedAccess& access, u32 word) {
  SharedStamp& stamp = access.block.stamps[word];
  u16 me = access.thread();
  u32 bytes = 0;
  for (int k = 0; k < 4; ++k) {
    u32 at = word * 4 + k;
    if (at < access.address || at >= access.address + access.bytes) continue;
    bytes |= 1u << k;
    u32 time = stamp.write_time[k];
    u16 writer = stamp.writer[k];
    if (!time) {
      if (!access.stored && access.step.launch.checks(CHECK_INITIALISED))
        report(access.step, Kind::NOTE_SHARED_UNINITIALISED, "shared byte %u is read, which nothing has written", at);
    } else if (time & PENDING) {
      check_writer(access, at, writer, true);
    } else if (writer != me && !ordered(access.step.warp, writer / LANES, time)) {
      check_writer(access, at, writer, false);
    }
    if (access.stored) {
      stamp.write_time[k] = access.write_time;
      stamp.writer[k] = me;
    }
  }
  return bytes;
}
inline void check_reader(const SharedAccess& access, u32 word, u32 bytes, const SharedReader& reader) {
  bool own = reader.warp == access.step.warp.in_cluster;
  u32 others = own ? reader.lanes & ~(1u << access.lane) : reader.lanes;
  if (!others) return;
  for (int k = 0; k < 4; ++k)
    if (lane_in(reader.bytes & bytes, k) && access.changes(word * 4 + k)) {
      report_race(access, word * 4, reader.warp, first_lane(others), "a write of what was read");
      return;
    }
}
inline void add_reader(Cluster& cluster, SharedStamp& stamp, const SharedReader& reader) {
  if (cluster.free_readers.empty()) {
    cluster.readers.push_back({});
    cluster.free_readers.push_back((u32)cluster.readers.size());
  }
  u32 at = cluster.free_readers.back();
  cluster.free_readers.pop_back();
  cluster.readers[at - 1] = reader;
  stamp.readers = at;
}
// Checks a write against the readers of a word, forgets those that are ordered before and covered, and adds a reader.
inline void check_readers(const SharedAccess& access, u32 word, u32 bytes) {
  Warp& warp = access.step.warp;
  Cluster& cluster = *access.block.cluster;
  SharedStamp& stamp = access.block.stamps[word];
  bool known = false;
  u32* link = &stamp.readers;
  while (*link) {
    SharedReader& reader = cluster.readers[*link - 1];
    bool own = reader.warp == warp.in_cluster;
    bool before = own ? reader.time < warp.time : ordered(warp, reader.warp, reader.time);
    if (access.stored && !before && (reader.bytes & bytes)) check_reader(access, word, bytes, reader);
    if (before && (reader.bytes & ~bytes) == 0) {
      cluster.free_readers.push_back(*link);
      *link = reader.next;
      continue;
    }
    if (!access.stored && own && !before && reader.bytes == bytes) {
      reader.lanes |= 1u << access.lane;
      known = true;
    }
    link = &reader.next;
  }
  if (!access.stored && !known)
    add_reader(cluster, stamp, {warp.time, 1u << access.lane, stamp.readers, (u16)warp.in_cluster, (u8)bytes});
}
inline void check_shared(const SharedAccess& access) {
  if (&access.block != access.step.warp.block) check_remote(access);
  if (!access.step.launch.checks(CHECK_SHARED)) return;
  u32 last = (access.address + access.bytes - 1) / 4;
  for (u32 word = access.address / 4; word <= last; ++word) check_readers(access, word, check_writers(access, word));
}
// The bytes of a copy count as written now by its thread, unless somebody wrote them since.
inline void stamp_copy(Step& step, const AsyncCopy& copy) {
  u16 me = (u16)(step.warp.in_cluster * LANES + copy.lane);
  for (u32 at = copy.address; at < copy.address + copy.bytes; ++at) {
    SharedStamp& stamp = step.warp.block->stamps[at / 4];
    if (stamp.writer[at % 4] == me && stamp.write_time[at % 4] == (PENDING | copy.group))
      stamp.write_time[at % 4] = step.warp.time;
  }
}

}  // namespace emulator
