// Times a kernel of decoded SASS (sass.py) on a model of a GPU's multiprocessors. Built and driven by timing.py.
//
// Warps issue in order. When the next instruction may go is what the compiler wrote into it: cycles to stall after the
// one before, scoreboards to wait for. Scoreboards are set by what takes a variable time: shared and global memory,
// shuffles, MUFU. Each server (a scheduler's pipes, a multiprocessor's load/store unit and its port to the L2, the L2,
// the DRAM) is a queue served in the order of issue, so the time of an access is known when it issues. All
// multiprocessors run side by side in the order of time; they share the L2 and the DRAM. Integers and predicates that
// addresses and branches need are computed.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <queue>
#include <string>
#include <vector>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t s32;
typedef int64_t s64;

// sass.py reads these four enumerations
enum Op {
  NOP,
  UNKNOWN,
  JUNK,
  MOV,
  IADD3,
  IMAD,
  LEA,
  LOP3,
  PLOP3,
  SHF,
  ISETP,
  FSETP,
  SEL,
  MINMAX,
  VIADDMNMX,
  IABS,
  PRMT,
  SGXT,
  I2F,
  F2I,
  I2FP,
  MUFU,
  FADD,
  FMUL,
  FFMA,
  FCHK,
  HFMA2,
  CS2R,
  S2R,
  LDC,
  R2UR,
  SHFL,
  VOTE,
  POPC,
  P2R,
  R2P,
  BAR,
  BRA,
  EXIT,
  CALL,
  RET,
  LD,
  ST,
  ATOM,
  LDSM,
  LDGSTS,
  LDGDEPBAR,
  DEPBAR,
  MEMBAR,
  CGA_ARRIVE,
  CGA_WAIT
};
enum Pipe { NONE, ALU, FMA, FMAH, XU, FP64, UNIFORM, BRANCH, MIO, PIPES };
enum Operand { EMPTY, REG, UREG, PREG, UPREG, IMM, CONST, SPECIAL, LABEL, OTHER };
enum Special {
  UNKNOWN_SPECIAL,
  TID_X,
  TID_Y,
  TID_Z,
  CTAID_X,
  CTAID_Y,
  CTAID_Z,
  CgaCtaId,
  SWINHI,
  LANEID,
  LTMASK,
  EQMASK,
  VIRTUALSMID,
  CLOCKLO,
  CLUSTERID_X,
  CLUSTERID_Y,
  CLUSTERID_Z,
  CLUSTER_NCTAID_X
};
enum Reason { R_FIXED, R_LOAD, R_SHARED, R_OTHER, R_BARRIER, R_CLUSTER, R_PICK, R_PIPE, R_MIO, R_FETCH, REASONS };

namespace {  // engine.cpp has types of the same names
struct Src {
  s64 kind, v, mods;
};
struct Dst {
  s64 kind, v;
};
struct Row {
  s64 op, pipe, mode, guard, target, stall, wbar, rbar, wait, live, space, width, base, base_wide, ubase, offset, scale;
  Dst d[4];
  Src s[7];
};
static const u64 FAR = ~0ull >> 1;
static const u32 FULL = 0xffffffffu, SWIN = 0x00007e00u;

struct Model {  // timing.py fills it by name
  double sms, gpc, clock, dram, l2, l2_rate, l1, port, ways, lat_dram, lat_l2, lat_l1, lat_shared, lat_shuffle, lat_xu,
      lat_sreg, lat_const, lat_bar, lat_cluster, lat_dsmem, lat_cta, cta_gap, mio_depth, alu, fma, fmah, xu, fp64,
      uniform, shuffle, jitter, fetch, seed, share, lat_membar, port_store, skew, read_write, atomic;
};
static const char* model_names =
    "sms gpc clock dram l2 l2_rate l1 port ways lat_dram lat_l2 lat_l1 lat_shared lat_shuffle lat_xu lat_sreg "
    "lat_const lat_bar "
    "lat_cluster lat_dsmem lat_cta cta_gap mio_depth alu fma fmah xu fp64 uniform shuffle jitter fetch seed share "
    "lat_membar port_store skew read_write atomic";

struct Result {
  double cycles, issued, dram_read, dram_write, dram_busy, l2_bytes, l1_hits, l1_sectors, l2_hits, l2_sectors, warps,
      ctas, resident, used_sms, port_busy, reasons[REASONS], pipe_busy[PIPES], mio_busy, unknown, shared_wavefronts,
      part;
};

static u64 mix(u64 z) {
  z += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

struct Line {
  u64 tag = ~0ull;
  u64 fill = 0;
  u32 stamp = 0;
  u8 valid = 0, dirty = 0;
};
struct Cache {  // lines of 128 bytes in sectors of 32, the one used longest ago goes
  std::vector<Line> lines;
  u32 sets = 1, ways = 1, now = 0;
  void size(u64 bytes, u32 w) {
    ways = w;
    sets = (u32)std::max<u64>(1, bytes / 128 / w);
    lines.assign((size_t)sets * ways, Line());
    now = 0;
  }
  Line& at(u64 line, Line* gone) {
    Line* s = &lines[(size_t)(mix(line) % sets) * ways];
    Line* old = s;
    ++now;
    for (u32 i = 0; i < ways; ++i) {
      if (s[i].tag == line) {
        s[i].stamp = now;
        return s[i];
      }
      if (s[i].stamp < old->stamp) old = s + i;
    }
    if (gone) *gone = *old;
    *old = Line();
    old->tag = line;
    old->stamp = now;
    return *old;
  }
};

struct Cta;
struct Group;
struct Warp {
  Cta* cta;
  int index, sched;
  u32* r;
  u32 ur[64], p[8], up[8], alive = FULL;
  u32 pc = 0;
  bool split = false;
  u32 lpc[32];
  u64 ready = 0, sb[6] = {}, async = 0, mem = 0, issued_at = 0;
  u8 sbk[6] = {}, why = R_FETCH;
  std::vector<u64> groups[6];
  bool done = false, arrived = false;
  u64 guess[6] = {};  // registers whose value is not known, uniform ones from 256, predicates from 320
};
struct Bar {
  u32 arrived = 0;
  std::vector<Warp*> waiting;
};
struct Cta {
  Group* group;
  u32 rank, x, y, z;
  int sm;
  u64 linear;
  std::vector<u8> smem;
  std::vector<Warp> warps;
  std::vector<u32> regs, stack;
  Bar bars[16];
  u32 left;
  int slot;
};
struct Group {
  std::vector<std::unique_ptr<Cta>> ctas;
  u32 left, arrived = 0, alive;
  u64 phase_done[2] = {0, 0};
  u64 phase = 0;
  std::vector<Warp*> waiting;
  int place;
};
struct Sched {
  std::vector<Warp*> warps;
  u64 next = FAR;
  double pipe[PIPES] = {};
  Warp* last = nullptr;
};
struct Sm {
  Sched s[4];
  double mio = 0, port = 0, store_port = 0;
  Cache l1;
  int room = 0;
  u32 rotate = 0;
  u64 cta_at = 0;
  std::vector<u64> fetched;
  u64 local_id = 0;
};

struct Gpu {  // what lasts from launch to launch
  Model m;
  Cache l2;
  double dram_free = 0, l2_free = 0, atomic_free = 0;
  u64 base = 0;
};

struct Run {
  Gpu& g;
  Model& m;
  const Row* code;
  int n;
  u32 grid[3], block, cluster, smem, regs, local;
  std::vector<u8> bank0;
  Result out{};
  std::vector<Sm> sms;
  std::priority_queue<std::pair<u64, int>, std::vector<std::pair<u64, int>>, std::greater<std::pair<u64, int>>> events;
  std::vector<std::unique_ptr<Group>> groups;
  std::vector<std::unique_ptr<Group>> spare;
  u64 next_group = 0, ngroups = 0;
  int places = 0, used = 0;
  std::vector<int> place_room;
  u64 now = 0;
  double dram_cost, l2_cost, port_cost, store_cost, atomic_rate;
  u64 finished = 0;
  u64 rng;
  std::vector<u64> order;
  u32 tmp[8][32];
  std::string error;

  Run(Gpu& gpu) : g(gpu), m(gpu.m) {}

  // -------------------------------------------------------------------------------------------------------- operands
  const u32* get(Warp& w, const Src& s, int k) {  // 32 lanes; inverted and negated as integers
    const u32* p;
    u32* t = tmp[k];
    switch (s.kind) {
      case REG:
        if (s.v == 255) {
          memset(t, 0, 128);
          p = t;
        } else
          p = w.r + s.v * 32;
        break;
      case UREG: {
        u32 v = s.v == 63 ? 0 : w.ur[s.v];
        for (int l = 0; l < 32; ++l) t[l] = v;
        p = t;
        break;
      }
      case IMM:
        for (int l = 0; l < 32; ++l) t[l] = (u32)s.v;
        p = t;
        break;
      case CONST: {
        u32 v = constant(s.v);
        for (int l = 0; l < 32; ++l) t[l] = v;
        p = t;
        break;
      }
      case PREG:
      case UPREG: {
        u32 v = pred(w, s);
        for (int l = 0; l < 32; ++l) t[l] = v >> l & 1;
        p = t;
        break;
      }
      case SPECIAL:
        for (int l = 0; l < 32; ++l) t[l] = special(w, (int)s.v, l);
        p = t;
        break;
      default: memset(t, 0, 128); p = t;
    }
    if (s.kind == PREG || s.kind == UPREG) return p;
    if (s.mods & 2) {
      for (int l = 0; l < 32; ++l) t[l] = ~p[l];
      p = t;
    }
    if (s.mods & 1) {
      for (int l = 0; l < 32; ++l) t[l] = 0 - p[l];
      p = t;
    }
    return p;
  }
  u32 constant(s64 v) {
    u32 at = v & 0xfffff, bank = (u32)(v >> 20), x = 0;
    if (bank == 0 && at < bank0.size()) memcpy(&x, bank0.data() + at, std::min<size_t>(4, bank0.size() - at));
    return x;
  }
  u32 special(Warp& w, int which, int l) {
    Cta& c = *w.cta;
    switch (which) {
      case TID_X: return w.index * 32 + l;
      case CTAID_X: return c.x;
      case CTAID_Y: return c.y;
      case CTAID_Z: return c.z;
      case CgaCtaId: return c.rank;
      case SWINHI: return SWIN;
      case LANEID: return l;
      case LTMASK: return (1u << l) - 1;
      case EQMASK: return 1u << l;
      case VIRTUALSMID: return c.sm;
      case CLUSTERID_X: return c.x / cluster;
      case CLUSTERID_Y: return c.y;
      case CLUSTERID_Z: return c.z;
      case CLUSTER_NCTAID_X: return cluster;
      case CLOCKLO: return (u32)now;
    }
    return 0;
  }
  u32 pred(Warp& w, const Src& s) {
    u32 v = s.kind == EMPTY ? 0 : s.v == 7 ? FULL : s.kind == UPREG ? w.up[s.v] : w.p[s.v];
    return s.mods & 2 ? ~v : v;
  }
  void put(Warp& w, const Dst& d, const u32* v, u32 mask) {
    if (d.kind == REG) {
      if (d.v == 255) return;
      u32* r = w.r + d.v * 32;
      if (mask == FULL)
        memcpy(r, v, 128);
      else
        for (int l = 0; l < 32; ++l)
          if (mask >> l & 1) r[l] = v[l];
    } else if (d.kind == UREG && d.v != 63 && mask)
      w.ur[d.v] = v[__builtin_ctz(mask)];
  }
  void putp(Warp& w, const Dst& d, u32 v, u32 mask) {
    if (d.v == 7 || !mask) return;
    if (d.kind == PREG)
      w.p[d.v] = (w.p[d.v] & ~mask) | (v & mask);
    else if (d.kind == UPREG)
      w.up[d.v] = v >> __builtin_ctz(mask) & 1 ? FULL : 0;
  }
  static Src second(const Src& s) {
    Src t = s;
    if (t.kind == REG && t.v != 255)
      t.v++;
    else if (t.kind == UREG && t.v != 63)
      t.v++;
    else if (t.kind == CONST)
      t.v += 4;
    else if (t.kind == IMM)
      t.v = 0;
    return t;
  }
  static Dst next(const Dst& d) {
    Dst t = d;
    if (!(t.kind == REG && t.v == 255) && !(t.kind == UREG && t.v == 63)) t.v++;
    return t;
  }

  // ------------------------------------------------------------------------------------------------------- functional
  void compute(Warp& w, const Row& in, u32 mask) {
    u32 o[32], o2[32];
    const Src* s = in.s;
    trace(w, in, mask, in.op == JUNK || in.op == UNKNOWN);
#define ALL for (int l = 0; l < 32; ++l)
    switch (in.op) {
      case MOV:
      case R2UR: put(w, in.d[0], get(w, s[0], 0), mask); break;
      case S2R: put(w, in.d[0], get(w, s[0], 0), mask); break;
      case CS2R:
        memset(o, 0, 128);
        put(w, in.d[0], o, mask);
        put(w, next(in.d[0]), o, mask);
        break;
      case LDC: {
        const u32* a = get(w, s[0], 0);
        for (int l = 0; l < 32; ++l)
          o[l] = in.width == 1   ? in.mode ? (u32)(s32)(int8_t)a[l] : (u8)a[l]
                   : in.width == 2 ? in.mode ? (u32)(s32)(int16_t)a[l] : (u16)a[l]
                                   : a[l];
        put(w, in.d[0], o, mask);
        if (in.width == 8) put(w, next(in.d[0]), get(w, second(s[0]), 0), mask);
        break;
      }
      case IADD3: {
        bool x = in.mode & 4;
        u64 sum[32] = {};
        u32 c1 = 0, c2 = 0;
        for (int k = 0; k < 3; ++k) {
          if (s[k].kind == EMPTY) continue;
          Src raw = s[k];
          bool neg = raw.mods & 1, inv = raw.mods & 2;
          raw.mods = 0;
          const u32* a = get(w, raw, k);
          ALL sum[l] += neg ? (u64)(u32)~a[l] + 1 : inv ? (u64)(u32)~a[l] : (u64)a[l];
        }
        if (x)
          for (int k = 3; k < 5; ++k)
            if (s[k].kind == PREG || s[k].kind == UPREG) {
              u32 v = pred(w, s[k]);
              ALL sum[l] += v >> l & 1;
            }
        ALL {
          o[l] = (u32)sum[l];
          u32 c = (u32)(sum[l] >> 32);
          c1 |= (u32)(c >= 1) << l;
          c2 |= (u32)(c >= 2) << l;
        }
        put(w, in.d[0], o, mask);
        if (in.d[1].kind) putp(w, in.d[1], c1, mask);
        if (in.d[2].kind) putp(w, in.d[2], c2, mask);
        break;
      }
      case IMAD: {
        bool wide = in.mode & 1, hi = in.mode & 2, x = in.mode & 4, uns = in.mode & 8;
        const u32 *a = get(w, s[0], 0), *b = get(w, s[1], 1), *c = get(w, s[2], 2);
        u32 carry = x ? pred(w, s[3]) : 0, out_carry = 0;
        if (!wide && !hi) {
          ALL o[l] = a[l] * b[l] + c[l] + (carry >> l & 1);
          put(w, in.d[0], o, mask);
          break;
        }
        u64 c64[32];
        if (wide || hi) {
          const u32* ch = get(w, second(s[2]), 3);
          ALL c64[l] = (u64)ch[l] << 32 | c[l];
        }
        ALL {
          u64 p = uns ? (u64)a[l] * b[l] : (u64)((s64)(s32)a[l] * (s64)(s32)b[l]);
          if (hi) {
            o[l] = (u32)((p + c64[l]) >> 32);
            continue;
          }
          unsigned __int128 t = (unsigned __int128)p + c64[l] + (carry >> l & 1);
          out_carry |= (u32)(t >> 64 & 1) << l;
          o[l] = (u32)t;
          o2[l] = (u32)(t >> 32);
        }
        put(w, in.d[0], o, mask);
        if (wide) put(w, next(in.d[0]), o2, mask);
        if (in.d[1].kind) putp(w, in.d[1], out_carry, mask);
        break;
      }
      case LEA: {
        bool hi = in.mode & 1, sx = in.mode & 2, x = in.mode & 4;
        int sh = (int)(s[3].v & 31);
        u32 carry = x ? pred(w, s[4]) : 0, c1 = 0;
        const u32 *a = get(w, s[0], 0), *b = get(w, s[1], 1), *c = get(w, s[2], 2);
        ALL {
          u64 v = (u64)(sx ? (u32)((s32)a[l] >> 31) : c[l]) << 32 | a[l];
          u64 t = hi ? (u64)(u32)((v << sh) >> 32) : (u64)(u32)(a[l] << sh);
          t += (u64)b[l] + (carry >> l & 1);
          o[l] = (u32)t;
          c1 |= (u32)(t >> 32 & 1) << l;
        }
        put(w, in.d[0], o, mask);
        if (in.d[1].kind) putp(w, in.d[1], c1, mask);
        break;
      }
      case LOP3: {
        const u32 *a = get(w, s[0], 0), *b = get(w, s[1], 1), *c = get(w, s[2], 2);
        u32 q = 0;
        u32 f = (u32)in.mode;
        ALL {
          u32 r = 0;
          for (int k = 0; k < 8; ++k)
            if (f >> k & 1) r |= (k & 4 ? a[l] : ~a[l]) & (k & 2 ? b[l] : ~b[l]) & (k & 1 ? c[l] : ~c[l]);
          o[l] = r;
          q |= (u32)(r != 0) << l;
        }
        put(w, in.d[0], o, mask);
        if (in.d[1].kind) {
          if (s[3].kind == PREG || s[3].kind == UPREG) q |= pred(w, s[3]);
          putp(w, in.d[1], q, mask);
        }
        break;
      }
      case PLOP3: {
        u32 a = pred(w, s[0]), b = pred(w, s[1]), c = pred(w, s[2]);
        for (int j = 0; j < 2; ++j) {
          u32 f = (u32)(in.mode >> 8 * j & 255), r = 0;
          for (int k = 0; k < 8; ++k)
            if (f >> k & 1) r |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
          putp(w, in.d[j], r, mask);
        }
        break;
      }
      case SHF: {
        bool left = in.mode & 1, hi = in.mode & 2, sg = in.mode & 4, wide = in.mode & 8, wrap = in.mode & 16;
        const u32 *a = get(w, s[0], 0), *n_ = get(w, s[1], 1), *c = get(w, s[2], 2);
        ALL {
          u32 k = n_[l];
          k = wrap ? k & (wide ? 63 : 31) : std::min<u32>(k, wide ? 63 : 32);
          u64 v = (u64)c[l] << 32 | a[l];
          if (left) {
            u64 t = k >= 64 ? 0 : v << k;
            o[l] = hi ? (u32)(t >> 32) : (u32)t;
            if (!hi && !wide && k >= 32) o[l] = 0;
          } else if (hi)
            o[l] = sg ? (u32)((s32)c[l] >> std::min<u32>(k, 31)) : k >= 32 ? 0 : c[l] >> k;
          else
            o[l] = sg ? (u32)((s64)v >> k) : (u32)(v >> k);
        }
        put(w, in.d[0], o, mask);
        break;
      }
      case ISETP: {
        int cmp = (int)(in.mode & 15), boolean = (int)(in.mode >> 4 & 3);
        bool uns = in.mode & 64, ex = in.mode & 128;
        const u32 *a = get(w, s[0], 0), *b = get(w, s[1], 1);
        u32 pr = s[2].kind == EMPTY ? FULL : pred(w, s[2]), low = ex ? pred(w, s[3]) : 0, r = 0;
        ALL {
          bool lt = uns ? a[l] < b[l] : (s32)a[l] < (s32)b[l], eq = a[l] == b[l], lo = low >> l & 1, v;
          switch (cmp) {
            case 1: v = lt || (ex && eq && lo); break;
            case 2: v = eq && (!ex || lo); break;
            case 3: v = ex ? lt || (eq && lo) : lt || eq; break;
            case 4: v = ex ? (!lt && !eq) || (eq && lo) : !lt && !eq; break;
            case 5: v = !eq || (ex && lo); break;
            case 6: v = ex ? (!lt && !eq) || (eq && lo) : !lt; break;
            case 0: v = false; break;
            default: v = true;
          }
          r |= (u32)v << l;
        }
        combine(w, in, r, pr, boolean, mask);
        break;
      }
      case FSETP: {
        int cmp = (int)(in.mode & 15), boolean = (int)(in.mode >> 4 & 3);
        u32 pr = s[2].kind == EMPTY ? FULL : pred(w, s[2]), r = 0;
        float a[32], b[32];
        fget(w, s[0], 0, a);
        fget(w, s[1], 1, b);
        ALL {
          float x = a[l], y = b[l];
          bool nan = x != x || y != y, v;
          switch (cmp & 7) {
            case 1: v = x < y; break;
            case 2: v = x == y; break;
            case 3: v = x <= y; break;
            case 4: v = x > y; break;
            case 5: v = x != y && !nan; break;
            case 6: v = x >= y; break;
            default: v = false;
          }
          if (cmp >= 10)
            v = nan || (cmp == 10   ? x < y
                        : cmp == 11 ? x == y
                        : cmp == 12 ? x <= y
                        : cmp == 13 ? x > y
                        : cmp == 14 ? x != y
                                    : x >= y);
          r |= (u32)v << l;
        }
        combine(w, in, r, pr, boolean, mask);
        break;
      }
      case SEL: {
        const u32 *a = get(w, s[0], 0), *b = get(w, s[1], 1);
        u32 p = pred(w, s[2]);
        ALL o[l] = p >> l & 1 ? a[l] : b[l];
        put(w, in.d[0], o, mask);
        break;
      }
      case MINMAX: {
        const u32 *a = get(w, s[0], 0), *b = get(w, s[1], 1);
        u32 p = pred(w, s[2]);
        ALL {
          bool lt = in.mode & 1 ? a[l] < b[l] : (s32)a[l] < (s32)b[l];
          o[l] = lt == (bool)(p >> l & 1) ? a[l] : b[l];
        }
        put(w, in.d[0], o, mask);
        break;
      }
      case VIADDMNMX: {
        const u32 *a = get(w, s[0], 0), *b = get(w, s[1], 1), *c = get(w, s[2], 2);
        u32 p = pred(w, s[3]);
        ALL {
          u32 v = a[l] + b[l];
          bool lt = in.mode & 1 ? v < c[l] : (s32)v < (s32)c[l];
          o[l] = lt == (bool)(p >> l & 1) ? v : c[l];
        }
        put(w, in.d[0], o, mask);
        break;
      }
      case IABS: {
        const u32* a = get(w, s[0], 0);
        ALL o[l] = (s32)a[l] < 0 ? 0 - a[l] : a[l];
        put(w, in.d[0], o, mask);
        break;
      }
      case PRMT: {
        const u32 *a = get(w, s[0], 0), *q = get(w, s[1], 1), *c = get(w, s[2], 2);
        ALL {
          u64 v = (u64)c[l] << 32 | a[l];
          u32 r = 0;
          for (int k = 0; k < 4; ++k) {
            u32 n4 = q[l] >> 4 * k & 15;
            u32 b = v >> 8 * (n4 & 7) & 255;
            if (n4 & 8) b = b & 128 ? 255 : 0;
            r |= b << 8 * k;
          }
          o[l] = r;
        }
        put(w, in.d[0], o, mask);
        break;
      }
      case SGXT: {
        const u32 *a = get(w, s[0], 0), *b = get(w, s[1], 1);
        ALL {
          u32 k = std::min<u32>(b[l], 32);
          o[l] = k == 0        ? 0
                 : k == 32     ? a[l]
                 : in.mode & 1 ? a[l] & ((1u << k) - 1)
                               : (u32)((s32)(a[l] << (32 - k)) >> (32 - k));
        }
        put(w, in.d[0], o, mask);
        break;
      }
      case I2F:
      case I2FP: {
        const u32* a = get(w, s[0], 0);
        ALL {
          double v = in.mode & 1 ? (double)a[l] : (double)(s32)a[l];
          float f = (float)v;
          if ((in.mode & 2) && (double)f < v) f = std::nextafterf(f, INFINITY);
          memcpy(&o[l], &f, 4);
        }
        put(w, in.d[0], o, mask);
        break;
      }
      case F2I: {
        float a[32];
        fget(w, s[0], 0, a);
        ALL {
          float v = std::trunc(a[l]);
          o[l] = in.mode & 1          ? (v <= 0 || v != v     ? 0
                                         : v >= 4294967296.0f ? FULL
                                                              : (u32)v)
                 : v != v             ? 0
                 : v >= 2147483648.0f ? 0x7fffffff
                 : v < -2147483648.0f ? 0x80000000
                                      : (u32)(s32)v;
        }
        put(w, in.d[0], o, mask);
        break;
      }
      case MUFU: {
        float a[32], r[32];
        fget(w, s[0], 0, a);
        ALL switch (in.mode) {
          case 0: r[l] = 1.0f / a[l]; break;
          case 1: r[l] = std::sqrt(a[l]); break;
          case 2: r[l] = 1.0f / std::sqrt(a[l]); break;
          case 3: r[l] = std::exp2(a[l]); break;
          case 4: r[l] = std::log2(a[l]); break;
          default: r[l] = 0;
        }
        put(w, in.d[0], (u32*)r, mask);
        break;
      }
      case FADD:
      case FMUL:
      case FFMA: {
        float a[32], b[32], c[32], r[32];
        fget(w, s[0], 0, a);
        fget(w, s[1], 1, b);
        if (in.op == FFMA) {
          fget(w, s[2], 2, c);
          ALL r[l] = std::fma(a[l], b[l], c[l]);
        } else if (in.op == FADD) {
          ALL r[l] = a[l] + b[l];
        } else {
          ALL r[l] = a[l] * b[l];
        }
        put(w, in.d[0], (u32*)r, mask);
        break;
      }
      case FCHK: putp(w, in.d[0], 0, mask); break;
      case P2R: {
        const u32* a = get(w, s[0], 0);
        int sh = 8 * (int)(in.mode >> 8);
        u32 q = (u32)in.mode & 0x7f;
        ALL {
          u32 v = 0;
          for (int k = 0; k < 7; ++k) v |= (w.p[k] >> l & 1) << k;
          o[l] = (a[l] & ~(q << sh)) | (v & q) << sh;
        }
        put(w, in.d[0], o, mask);
        break;
      }
      case R2P: {
        const u32* a = get(w, s[0], 0);
        int sh = 8 * (int)(in.mode >> 8);
        u32 q = (u32)in.mode & 0x7f;
        for (int k = 0; k < 7; ++k)
          if (q >> k & 1) {
            u32 v = 0;
            ALL v |= (a[l] >> (sh + k) & 1) << l;
            w.p[k] = (w.p[k] & ~mask) | (v & mask);
          }
        break;
      }
      case POPC: {
        const u32* a = get(w, s[0], 0);
        ALL o[l] = __builtin_popcount(a[l]);
        put(w, in.d[0], o, mask);
        break;
      }
      case SHFL: {
        const u32 *a = get(w, s[0], 0), *b = get(w, s[1], 1), *c = get(w, s[2], 2);
        u32 ok = 0;
        ALL {
          int seg = c[l] >> 8 & 31, clamp = c[l] & 31, k = b[l] & 31, j, hi = (l & seg) | (clamp & ~seg), lo = l & seg;
          bool in_range;
          switch (in.mode) {
            case 0:
              j = l - k;
              in_range = j >= hi;
              break;
            case 1:
              j = l + k;
              in_range = j <= hi;
              break;
            case 2:
              j = l ^ k;
              in_range = j <= hi;
              break;
            default: j = lo | (k & ~seg); in_range = j <= hi;
          }
          o[l] = a[(in_range ? j : l) & 31];
          ok |= (u32)in_range << l;
        }
        put(w, in.d[0], o, mask);
        putp(w, in.d[1], ok, mask);
        break;
      }
      case VOTE: {
        u32 v = pred(w, s[0]) & mask;
        bool yes = in.mode == 0 ? v != 0 : in.mode == 1 ? v == mask : v == 0 || v == mask;
        for (int j = 0; j < 4; ++j) {
          const Dst& d = in.d[j];
          if (d.kind == REG || d.kind == UREG) {
            ALL o[l] = v;
            put(w, d, o, mask);
          } else if (d.kind)
            putp(w, d, yes ? FULL : 0, mask);
        }
        break;
      }
      default: break;
    }
#undef ALL
  }
  void combine(Warp& w, const Row& in, u32 r, u32 pr, int boolean, u32 mask) {
    u32 a = boolean == 0   ? r & pr
            : boolean == 1 ? r | pr
                           : r ^ pr,
        b = boolean == 0   ? ~r & pr
            : boolean == 1 ? ~r | pr
                           : ~r ^ pr;
    putp(w, in.d[0], a, mask);
    putp(w, in.d[1], b, mask);
  }
  void fget(Warp& w, const Src& s, int k, float* f) {
    Src raw = s;
    raw.mods = 0;
    memcpy(f, get(w, raw, k), 128);
    for (int l = 0; l < 32; ++l) {
      if (s.mods & 4) f[l] = std::fabs(f[l]);
      if (s.mods & 1) f[l] = -f[l];
    }
  }

  // ----------------------------------------------------------------------------------------------------------- memory
  double jitter() {
    rng = mix(rng + 1);
    return m.jitter * (double)(rng >> 40) / (1 << 24);
  }
  // The time at which sectors of a line are there: through the port, the L2, and the DRAM.
  double reach(Sm& sm, u64 line, u32 sectors, bool store, double t) {
    int count = __builtin_popcount(sectors);
    double at = t;
    if (store) {
      sm.store_port = std::max(sm.store_port, t) + count * store_cost;
      at = sm.store_port;
    }
    g.l2_free = std::max(g.l2_free, at) + count * l2_cost;
    double done = std::max(at, g.l2_free) + m.lat_l2;
    Line gone;
    gone.tag = ~0ull;
    gone.dirty = 0;
    Line& c = g.l2.at(line, &gone);
    out.l2_sectors += count;
    out.l2_bytes += 32 * count;
    u32 missing = store ? sectors & ~c.dirty : sectors & ~c.valid;
    if (missing) {
      int k = __builtin_popcount(missing);
      double start = std::max(at, g.dram_free);
      g.dram_free = start + k * dram_cost * (store ? m.read_write : 1.0);
      out.dram_busy += k * dram_cost * (store ? m.read_write : 1.0);
      if (!store) {
        done = std::max(done, g.dram_free + m.lat_dram + jitter());
        c.fill = std::max<u64>(c.fill, (u64)done);
        out.dram_read += 32 * k;
      } else
        out.dram_write += 32 * k;
      if (store) c.dirty |= missing;
      c.valid |= missing;
    }
    if (!store) {
      out.l2_hits += count - __builtin_popcount(missing);
      done = std::max(done, (double)c.fill);
      sm.port = std::max(sm.port, done - m.lat_l2 * 0.5) + count * port_cost;
      out.port_busy += count * port_cost;
      done = std::max(done, sm.port + m.lat_l2 * 0.5);
    }
    return done;
  }
  struct Touch {
    u64 line;
    u32 sectors;
  };
  // Global access of a warp. Returns when a load's last sector is in, or when a store has left.
  double global(Warp& w, const u64* address, u32 mask, int width, bool store, bool l1_too, double t, u32* wavefronts) {
    Sm& sm = sms[w.cta->sm];
    Touch touch[256];
    int k = 0;
    for (int l = 0; l < 32; ++l) {
      if (!(mask >> l & 1)) continue;
      u64 first = address[l] / 32, last = (address[l] + width - 1) / 32;
      for (u64 s = first; s <= last; ++s) {
        u64 line = s / 4;
        u32 bit = 1u << (s & 3);
        int j = k - 1;
        while (j >= 0 && touch[j].line != line) --j;
        if (j >= 0)
          touch[j].sectors |= bit;
        else if (k < 256)
          touch[k++] = {line, bit};
      }
    }
    *wavefronts = std::max<u32>(std::max<u32>(1, (__builtin_popcount(mask) * width + 127) / 128), (k + 1) / 2);
    double done = t;
    for (int i = 0; i < k; ++i) {
      out.l1_sectors += __builtin_popcount(touch[i].sectors);
      if (store) {
        done = std::max(done, reach(sm, touch[i].line, touch[i].sectors, true, t));
        continue;
      }
      double d = t + m.lat_l1;
      if (l1_too) {
        Line gone;
        Line& c = sm.l1.at(touch[i].line, &gone);
        u32 missing = touch[i].sectors & ~c.valid;
        out.l1_hits += __builtin_popcount(touch[i].sectors & c.valid);
        if (missing) {
          double there = reach(sm, touch[i].line, missing, false, t);
          c.fill = std::max<u64>(c.fill, (u64)there);
          c.valid |= missing;
          d = std::max(d, there);
        } else
          d = std::max(d, (double)c.fill);
      } else
        d = std::max(d, reach(sm, touch[i].line, touch[i].sectors, false, t));
      done = std::max(done, d);
    }
    return done;
  }
  u32 shared_wavefronts(const u32* a, u32 mask, int width) {  // of bank conflicts
    int part = width >= 16 ? 8 : width == 8 ? 16 : 32;
    u32 total = 0;
    for (int b = 0; b < 32; b += part) {
      u32 words[64];
      int count = 0;
      u8 bank[32] = {};
      u32 most = 0;
      for (int l = b; l < b + part; ++l) {
        if (!(mask >> l & 1)) continue;
        for (int q = 0; q < std::max(1, width / 4); ++q) {
          u32 word = a[l] / 4 + q;
          bool seen = false;
          for (int j = 0; j < count && !seen; ++j) seen = words[j] == word;
          if (seen) continue;
          if (count < 64) words[count++] = word;
          most = std::max<u32>(most, ++bank[word & 31]);
        }
      }
      total += most;
    }
    return std::max<u32>(1, total);
  }
  void addresses(Warp& w, const Row& in, u64* a) {
    u64 base = (u64)in.offset;
    if (in.ubase != 63) {
      base += w.ur[in.ubase];
      if (in.space != 1 && in.base_wide && in.ubase < 62) base += (u64)w.ur[in.ubase + 1] << 32;
    }
    if (in.base == 255) {
      for (int l = 0; l < 32; ++l) a[l] = base;
    } else if (in.base_wide || in.space == 2)
      for (int l = 0; l < 32; ++l) a[l] = ((u64)w.r[(in.base + 1) * 32 + l] << 32 | w.r[in.base * 32 + l]) + base;
    else
      for (int l = 0; l < 32; ++l) a[l] = w.r[in.base * 32 + l] * (u32)in.scale + base;
    if (in.space == 1)
      for (int l = 0; l < 32; ++l) a[l] = (u32)a[l];
  }
  u8* shared_byte(Warp& w, u32 a, u32 width) {
    Group& gr = *w.cta->group;
    u32 rank = a >> 24;
    u32 at = a & 0xffffff;
    if (rank >= gr.ctas.size()) rank = w.cta->rank;
    auto& m_ = gr.ctas[rank]->smem;
    return at + width <= m_.size() ? m_.data() + at : nullptr;
  }
  // A memory instruction at time t: sets scoreboards, returns when its operands have been read.
  void memory(Warp& w, const Row& in, u32 mask, u64 t) {
    Sm& sm = sms[w.cta->sm];
    Cta& c = *w.cta;
    u64 a[32];
    u32 wave = 1;
    double start = std::max((double)t + 2, sm.mio), done = start + 1;
    u8 kind = R_SHARED;
    addresses(w, in, a);
    if (in.space != 1 &&
        (guessed(w, REG, in.base) || (in.base_wide && guessed(w, REG, in.base + 1)) || guessed(w, UREG, in.ubase)))
      out.unknown++;
    int width = (int)in.width;
    bool store = in.op == ST, to_shared = in.space == 1;
    if (in.space == 2 && mask) to_shared = (a[__builtin_ctz(mask)] >> 32) == SWIN;
    if (in.op == LDGSTS) {
      if (in.s[3].kind) mask &= pred(w, in.s[3]);  // without it, zeros are written
      double there = global(w, a, mask, width, false, !(in.mode & 4), start, &wave);
      w.async = std::max(w.async, (u64)(there + m.lat_shared));
      done = start + wave;
      kind = R_LOAD;
      wave *= 2;
    } else if (to_shared) {
      u32 b[32];
      bool remote = false;
      for (int l = 0; l < 32; ++l) {
        b[l] = (u32)a[l];
        if ((mask >> l & 1) && cluster > 1 && b[l] >> 24 != c.rank) remote = true;
      }
      if (in.op == LDSM)
        wave = std::max(1, width / 4);
      else if (mask) {
        u32 low[32];
        for (int l = 0; l < 32; ++l) low[l] = b[l] & 0xffffff;
        wave = shared_wavefronts(low, mask, width);
      }
      out.shared_wavefronts += wave;
      done = start + wave + m.lat_shared;
      if (in.space == 2) {
        done = start + wave + (remote ? m.lat_dsmem : m.lat_shared);
        if (remote) kind = R_CLUSTER;
      }
      if (in.live) {
        for (int l = 0; l < 32; ++l) {
          if (!(mask >> l & 1)) continue;
          u8* p = shared_byte(w, b[l], width);
          if (in.op == LD)
            for (int q = 0; q < std::max(1, width / 4); ++q) {
              u32 v = 0;
              if (p) memcpy(&v, p + 4 * q, std::min(4, width));
              if (in.mode & 1) v = width == 1 ? (u32)(s32)(int8_t)v : (u32)(s32)(int16_t)v;
              if (in.d[0].kind == REG && in.d[0].v != 255) {
                w.r[(in.d[0].v + q) * 32 + l] = v;
                mark(w, REG, in.d[0].v + q, false);
              }
            }
          else if (store && p)
            for (int q = 0; q < std::max(1, width / 4); ++q) {
              Src s = in.s[0];
              s.v = s.kind == REG && s.v == 255 ? 255 : s.v + q;
              s.mods = 0;
              u32 v = get(w, s, 0)[l];
              memcpy(p + 4 * q, &v, std::min(4, width));
            }
        }
      }
    } else if (in.space == 3) {  // local: a line a word of 32 lanes
      kind = R_LOAD;
      wave = std::max(1, width / 4);
      done = start + wave + m.lat_l1;
      if (in.live)
        for (int q = 0; q < std::max(1, width / 4); ++q) {
          u64 word = (a[0] / 4 + q) * 32, at = ((u64)w.index * (local + 32) / 4 * 32) + word;
          if ((a[0] & 0xffffff) >= local || at + 32 > c.stack.size()) continue;
          Src s = in.s[0];
          Dst d = in.d[0];
          if (s.kind == REG && s.v != 255) s.v += q;
          if (store) {
            const u32* v = get(w, s, 0);
            for (int l = 0; l < 32; ++l)
              if (mask >> l & 1) c.stack[at + l] = v[l];
          } else {
            if (d.v != 255) d.v += q;
            put(w, d, &c.stack[at], mask);
            mark(w, REG, d.v, false);
          }
        }
      for (int q = 0; q < std::max(1, width / 4); ++q) {
        u64 line = 1ull << 55 | (u64)(c.sm * 2048 + (c.slot * (int)c.warps.size() + w.index) % 2048) << 16 |
                   (((u32)a[0] / 4 + q) & 0xffff);
        Line gone;
        Line& x = sm.l1.at(line, &gone);
        if (gone.dirty && gone.tag != ~0ull) reach(sm, gone.tag, 15, true, start);
        if (store) {
          x.valid = x.dirty = 15;
        } else if (!x.valid) {
          double there = reach(sm, line, 15, false, start);
          x.valid = 15;
          x.fill = (u64)there;
          done = std::max(done, there);
        } else
          done = std::max(done, (double)x.fill);
      }
    } else if (in.op == ATOM) {
      u32 k;
      double there = global(w, a, mask, width, true, false, start, &k);
      g.atomic_free = std::max(g.atomic_free, start) + std::max(1, __builtin_popcount(mask) * width / 32) / atomic_rate;
      there = std::max(there, g.atomic_free);
      start = std::max(start, g.atomic_free - 4000);
      wave = std::max<u32>(k, __builtin_popcount(mask) / 2);
      kind = R_LOAD;
      done = there + m.lat_l2;
    } else if (mask) {
      double there = global(w, a, mask, width, store, !(in.mode & 2), start, &wave);
      if (store) {
        done = start + wave;
        w.mem = std::max(w.mem, (u64)there);
      } else {
        done = there;
        kind = R_LOAD;
        if (in.live) zero(w, in, mask);
      }
    }
    sm.mio = start + wave;
    out.mio_busy += wave;
    if (in.rbar < 6) {
      w.sb[in.rbar] = std::max(w.sb[in.rbar], (u64)(start + wave + 8));
      w.sbk[in.rbar] = R_OTHER;
    }
    if (in.wbar < 6) {
      if ((u64)done >= w.sb[in.wbar]) w.sbk[in.wbar] = kind;
      w.sb[in.wbar] = std::max(w.sb[in.wbar], (u64)done);
    }
  }
  static int cell_of(s64 kind, s64 v) {
    return kind == REG     ? v == 255 ? -1 : (int)v
           : kind == UREG  ? v == 63 ? -1 : 256 + (int)v
           : kind == PREG  ? v == 7 ? -1 : 320 + (int)v
           : kind == UPREG ? v == 7 ? -1 : 328 + (int)v
                           : -1;
  }
  static bool guessed(Warp& w, s64 kind, s64 v) {
    int c = cell_of(kind, v);
    return c >= 0 && (w.guess[c >> 6] >> (c & 63) & 1);
  }
  static void mark(Warp& w, s64 kind, s64 v, bool yes) {
    int c = cell_of(kind, v);
    if (c >= 0) {
      if (yes)
        w.guess[c >> 6] |= 1ull << (c & 63);
      else
        w.guess[c >> 6] &= ~(1ull << (c & 63));
    }
  }
  void trace(Warp& w, const Row& in, u32 mask, bool unknown) {  // whether results are known
    bool g_ = unknown;
    for (const Src& s : in.s)
      if (s.kind) g_ |= guessed(w, s.kind, s.v);
    if (in.op == IMAD && (in.mode & 3)) {
      Src hi = second(in.s[2]);
      g_ |= guessed(w, hi.kind, hi.v);
    }
    if (!g_ && mask != FULL) return;
    for (const Dst& d : in.d)
      if (d.kind) mark(w, d.kind, d.v, g_);
    if (in.d[0].kind == REG || in.d[0].kind == UREG) {
      int more = in.op == LD ? std::max(1, (int)in.width / 4)
                 : (in.op == IMAD && (in.mode & 1)) || in.op == CS2R || (in.op == LDC && in.width == 8) ? 2
                                                                                                        : 1;
      for (int k = 1; k < more; ++k) mark(w, in.d[0].kind, in.d[0].v + k, g_);
    }
  }
  void zero(Warp& w, const Row& in, u32 mask) {
    static const u32 none[32] = {};
    trace(w, in, mask, true);
    Dst d = in.d[0];
    for (int q = 0; q < std::max<int>(1, (int)in.width / 4); ++q) {
      put(w, d, none, mask);
      d = next(d);
    }
  }

  // ---------------------------------------------------------------------------------------------------- blocks, warps
  bool launch_group(u64 t, int place) {  // a cluster (or a block) onto a place, which has as many multiprocessors
    if (next_group >= ngroups) return false;
    u64 id = order[next_group++];
    std::unique_ptr<Group> gr;
    if (!spare.empty()) {
      gr = std::move(spare.back());
      spare.pop_back();
      gr->arrived = 0;
      gr->phase = 0;
      gr->waiting.clear();
    } else {
      gr = std::make_unique<Group>();
      for (u32 r = 0; r < cluster; ++r) gr->ctas.push_back(std::make_unique<Cta>());
    }
    gr->left = gr->alive = cluster;
    gr->place = place;
    gr->alive = cluster * (block / 32);
    u64 row = grid[0] / cluster, x0 = id % row * cluster, yz = id / row;
    place_room[place]--;
    for (u32 r = 0; r < cluster; ++r) {
      Cta& c = *gr->ctas[r];
      c.group = gr.get();
      c.rank = r;
      c.sm = place * cluster + r;
      c.x = (u32)(x0 + r);
      c.y = (u32)(yz % grid[1]);
      c.z = (u32)(yz / grid[1]);
      Sm& sm = sms[c.sm];
      u32 per = block / 32;
      c.slot = place_room[place];
      c.smem.assign(smem + 1024, 0);
      if (local) c.stack.resize((size_t)per * (local + 32) / 4 * 32);
      c.regs.resize((size_t)per * regs * 32);
      c.warps.resize(per);
      c.left = per;
      for (auto& b : c.bars) {
        b.arrived = 0;
        b.waiting.clear();
      }
      u64 from = std::max<u64>(t, sm.cta_at);
      sm.cta_at = from + (u64)m.cta_gap;
      u32 lead = sm.rotate;
      sm.rotate += per;
      for (u32 k = 0; k < per; ++k) {
        Warp& w = c.warps[k];
        auto g0 = std::move(w.groups[0]);
        w = Warp();
        w.cta = &c;
        w.index = k;
        w.sched = (lead + k) & 3;
        w.r = c.regs.data() + (size_t)k * regs * 32;
        memset(w.ur, 0, sizeof w.ur);
        memset(w.p, 0, sizeof w.p);
        memset(w.up, 0, sizeof w.up);
        w.ready = from + k;
        w.issued_at = from;
        w.why = R_FETCH;
        Sched& s = sm.s[w.sched];
        s.warps.push_back(&w);
        poke(c.sm, w.sched, w.ready);
      }
    }
    groups.push_back(std::move(gr));
    return true;
  }
  void poke(int sm, int sched, u64 t) {
    Sched& s = sms[sm].s[sched];
    if (t < s.next) {
      s.next = t;
      events.push({t, sm * 4 + sched});
    }
  }
  void release(Warp* x, u64 t, u8 why) {
    x->ready = std::max(t, x->ready == FAR ? 0 : x->ready);
    x->why = why;
    settle(*x, t, 0, why);
    poke(x->cta->sm, x->sched, x->ready);
  }
  // When the warp's next instruction may issue, not before `t`.
  void settle(Warp& w, u64 issued, u64 stall, u8 why) {
    u64 at = issued + stall;
    u8 reason = why;
    const Row& nx = code[std::min<u32>(w.pc, n - 1)];
    for (u32 b = (u32)nx.wait; b; b &= b - 1) {
      int i = __builtin_ctz(b);
      if (w.sb[i] > at) {
        at = w.sb[i];
        reason = w.sbk[i];
      }
    }
    if (nx.op == DEPBAR && nx.s[0].kind == IMM) {
      auto& q = w.groups[nx.s[0].v & 7 ? (nx.s[0].v & 7) % 6 : 0];
      size_t keep = (size_t)nx.s[1].v;
      if (q.size() > keep) {
        u64 x = q[q.size() - 1 - keep];
        if (x > at) {
          at = x;
          reason = R_LOAD;
        }
      }
    }
    if (m.fetch > 0) {  // the first time that a multiprocessor comes to a line of instructions
      Sm& sm = sms[w.cta->sm];
      u32 line = w.pc / 8;
      if (line < sm.fetched.size()) {
        u64& f = sm.fetched[line];
        if (!f) f = at + (u64)m.fetch;
        if (f > at) {
          at = f;
          reason = R_FETCH;
        }
      }
    }
    w.ready = at;
    w.why = reason;
  }
  void retire(Warp& w, u64 t) {
    Cta& c = *w.cta;
    Group& gr = *c.group;
    Sm& sm = sms[c.sm];
    w.done = true;
    w.ready = FAR;
    auto& v = sm.s[w.sched].warps;
    v.erase(std::find(v.begin(), v.end(), &w));
    if (sm.s[w.sched].last == &w) sm.s[w.sched].last = nullptr;
    gr.alive--;
    c.left--;
    for (auto& b : c.bars)
      if (b.arrived && b.arrived >= c.left) open(b, t);
    if (cluster > 1 && gr.arrived && gr.arrived >= gr.alive) open_cluster(gr, t);
    finished = std::max(finished, t);
    if (c.left == 0) {
      out.ctas++;
      if (--gr.left == 0) {
        int place = gr.place;
        place_room[place]++;
        for (size_t i = 0; i < groups.size(); ++i)
          if (groups[i].get() == &gr) {
            spare.push_back(std::move(groups[i]));
            groups[i] = std::move(groups.back());
            groups.pop_back();
            break;
          }
        launch_group(t + (u64)m.lat_cta, place);
      }
    }
  }
  void open(Bar& b, u64 t) {
    auto list = std::move(b.waiting);
    b.waiting.clear();
    b.arrived = 0;
    for (Warp* x : list) release(x, t + (u64)m.lat_bar, R_BARRIER);
  }
  void open_cluster(Group& gr, u64 t) {
    gr.arrived = 0;
    gr.phase++;
    gr.phase_done[gr.phase & 1] = t + (u64)m.lat_cluster;
    auto list = std::move(gr.waiting);
    gr.waiting.clear();
    for (Warp* x : list) {
      x->arrived = false;
      release(x, t + (u64)m.lat_cluster, R_CLUSTER);
    }
    for (auto& c : gr.ctas)
      for (auto& x : c->warps)
        if (x.arrived && !x.done) x.arrived = false;
  }

  void issue(int smi, int si, Warp& w, u64 t) {
    Sm& sm = sms[smi];
    Sched& s = sm.s[si];
    u32 mask = w.alive;
    u32 at = w.pc;
    if (w.split) {
      u32 low = ~0u;
      mask = 0;
      for (u32 r = w.alive; r; r &= r - 1) {
        int l = __builtin_ctz(r);
        if (w.lpc[l] < low) low = w.lpc[l];
      }
      for (u32 r = w.alive; r; r &= r - 1) {
        int l = __builtin_ctz(r);
        if (w.lpc[l] == low) mask |= 1u << l;
      }
      at = low;
    }
    const Row& in = code[at];
    u32 group = mask, m_ = mask;
    if (in.guard >= 0) {
      u32 q = in.guard >> 2, p = q == 7 ? FULL : in.guard & 2 ? w.up[q] : w.p[q];
      if (in.guard & 1) p = ~p;
      m_ &= p;
    }
    out.issued++;
    // of what has passed since the last issue: until `ready` its reason, then others that were picked, or pipes
    u64 r0 = std::min(std::max(w.ready, w.issued_at), t);
    out.reasons[w.why] += r0 - w.issued_at;
    out.reasons[in.pipe == MIO ? R_MIO : R_PICK] += t - r0;
    w.issued_at = t;
    s.last = &w;
    u64 stall = std::max<s64>(1, in.stall);
    u8 why = R_FIXED;
    u32 to = at + 1;
    bool jumped = false;
    double busy = 1;
    switch (in.pipe) {
      case ALU: busy = m.alu; break;
      case FMA: busy = m.fma; break;
      case FMAH: busy = m.fmah; break;
      case XU: busy = m.xu; break;
      case FP64: busy = m.fp64; break;
      case UNIFORM: busy = m.uniform; break;
    }
    s.pipe[in.pipe] = std::max(s.pipe[in.pipe], (double)t) + busy;
    out.pipe_busy[in.pipe] += busy;
    if (in.pipe == FMAH) s.pipe[FMA] = std::max(s.pipe[FMA], (double)t + 1);
    u64 var = 0;
    u8 kind = R_OTHER;
    switch (in.op) {
      case LD:
      case ST:
      case ATOM:
      case LDSM:
      case LDGSTS:
        if (m_) {
          memory(w, in, m_, t);
          if (in.op == LD && in.live && in.space == 0) zero(w, in, m_);
        } else {
          if (in.wbar < 6) var = t + 4;
        }
        break;
      case LDGDEPBAR: {
        int b = in.wbar < 6 ? (int)in.wbar : 0;
        w.groups[b].push_back(std::max(w.async, w.groups[b].empty() ? 0 : w.groups[b].back()));
        if (w.groups[b].size() > 64) w.groups[b].erase(w.groups[b].begin());
        break;
      }
      case DEPBAR: break;
      case SHFL: {
        double start = std::max((double)t + 2, sm.mio);
        sm.mio = start + m.shuffle;
        out.mio_busy += m.shuffle;
        var = (u64)(start + m.lat_shuffle);
        kind = R_SHARED;
        if (in.live) compute(w, in, m_);
        break;
      }
      case S2R:
        var = t + (u64)m.lat_sreg;
        compute(w, in, m_);
        break;
      case LDC:
        if (in.pipe == MIO) var = t + (u64)m.lat_const;
        compute(w, in, m_);
        break;
      case MEMBAR:
        stall = std::max<u64>(stall, (u64)m.lat_membar);
        if (in.mode && w.mem > t) stall = std::max<u64>(stall, std::min<u64>(w.mem - t, 4000));
        why = R_CLUSTER;
        break;
      case BRA:
      case CALL: {  // a call's return address is in a register already
        if (in.guard >= 0 && guessed(w, in.guard & 2 ? UPREG : PREG, in.guard >> 2)) out.unknown++;
        u32 taken = m_;
        if (in.s[0].kind == PREG || in.s[0].kind == UPREG) taken &= pred(w, in.s[0]);
        if (taken == group)
          to = (u32)in.target;
        else if (taken) {
          if (!w.split) {
            w.split = true;
            for (int l = 0; l < 32; ++l) w.lpc[l] = at;
          }
          for (u32 r = group; r; r &= r - 1) {
            int l = __builtin_ctz(r);
            w.lpc[l] = taken >> l & 1 ? (u32)in.target : at + 1;
          }
          jumped = true;
        }
        break;
      }
      case RET: {
        Src a = in.s[0];
        to = get(w, a, 0)[__builtin_ctz(group)] / 16;
        break;
      }
      case EXIT: {
        u32 gone = m_;
        if (in.s[0].kind == PREG || in.s[0].kind == UPREG) gone &= pred(w, in.s[0]);
        w.alive &= ~gone;
        if (!w.alive) {
          retire(w, t + 1);
          return;
        }
        break;
      }
      case BAR: {
        u32 id = in.s[0].kind == IMM ? (u32)in.s[0].v & 15 : 0;
        u32 need = w.cta->left;
        if (in.s[1].kind == IMM) need = (u32)in.s[1].v / 32;
        Bar& b = w.cta->bars[id];
        b.arrived++;
        w.pc = at + 1;
        if (in.mode == 1) {
          if (b.arrived >= need) open(b, t);
          break;
        }
        if (b.arrived >= need) {
          open(b, t);
          stall = std::max<u64>(stall, (u64)m.lat_bar);
          why = R_BARRIER;
        } else {
          b.waiting.push_back(&w);
          w.ready = FAR;
          if (w.split)
            for (u32 r = group; r; r &= r - 1) w.lpc[__builtin_ctz(r)] = at + 1;
          return;
        }
        break;
      }
      case CGA_ARRIVE: {
        Group& gr = *w.cta->group;
        w.arrived = true;
        gr.arrived++;
        w.pc = at + 1;
        if (gr.arrived >= gr.alive) open_cluster(gr, t);
        break;
      }
      case CGA_WAIT: {
        Group& gr = *w.cta->group;
        w.pc = at + 1;
        if (w.arrived) {
          gr.waiting.push_back(&w);
          w.ready = FAR;
          return;
        }
        u64 d = gr.phase_done[gr.phase & 1];
        if (d > t + stall) {
          stall = d - t;
          why = R_CLUSTER;
        }
        break;
      }
      default:
        if (in.live) compute(w, in, m_);
        if (in.pipe == XU) var = (u64)(s.pipe[XU] + m.lat_xu - m.xu);
    }
    if (var) {
      if (in.wbar < 6 && var >= w.sb[in.wbar]) {
        w.sb[in.wbar] = var;
        w.sbk[in.wbar] = kind;
      }
      if (in.rbar < 6 && t + 6 > w.sb[in.rbar]) {
        w.sb[in.rbar] = t + 6;
        w.sbk[in.rbar] = R_OTHER;
      }
    } else if (in.op != LD && in.op != ST && in.op != ATOM && in.op != LDSM && in.op != LDGSTS) {
      if (in.wbar < 6 && in.op != LDGDEPBAR) {
        w.sb[in.wbar] = std::max<u64>(w.sb[in.wbar], t + (u64)(in.pipe == FP64 ? 16 : 12));
        w.sbk[in.wbar] = R_OTHER;
      }
      if (in.rbar < 6) {
        w.sb[in.rbar] = std::max<u64>(w.sb[in.rbar], t + 8);
        w.sbk[in.rbar] = R_OTHER;
      }
    }
    if (w.split) {
      if (!jumped)
        for (u32 r = group; r; r &= r - 1) w.lpc[__builtin_ctz(r)] = to;
      u32 low = ~0u;
      bool same = true;
      for (u32 r = w.alive; r; r &= r - 1) {
        u32 p = w.lpc[__builtin_ctz(r)];
        if (low != ~0u && p != low) same = false;
        low = std::min(low, p);
      }
      w.pc = low;
      if (same) w.split = false;
    } else
      w.pc = to;
    settle(w, t, stall, why);
  }
  double may(Sm& sm, Sched& s, Warp& w) {  // when a warp could issue
    if (w.ready == FAR) return 1e18;
    const Row& in = code[w.pc];
    double t = (double)w.ready;
    t = std::max(t, s.pipe[in.pipe]);
    if (in.pipe == MIO) t = std::max(t, sm.mio - m.mio_depth);
    return t;
  }
  void step(int smi, int si, u64 t) {
    Sm& sm = sms[smi];
    Sched& s = sm.s[si];
    Warp* best = nullptr;
    double when = 1e18;
    for (Warp* w : s.warps) {
      double x = std::ceil(may(sm, s, *w));
      if (x < (double)t) x = (double)t;
      if (x < when || (x == when && w == s.last)) {
        when = x;
        best = w;
      }
    }
    if (!best || when >= 1e18) {
      s.next = FAR;
      return;
    }
    if (when > (double)t) {
      s.next = (u64)when;
      events.push({s.next, smi * 4 + si});
      return;
    }
    s.next = FAR;
    issue(smi, si, *best, t);
    double soon = 1e18;
    for (Warp* w : s.warps) soon = std::min(soon, std::ceil(may(sm, s, *w)));
    if (soon < 1e18) poke(smi, si, std::max<u64>(t + 1, (u64)soon));
  }
  int go(u32 resident, u64 l1_bytes) {
    double N = m.sms;
    u64 total = (u64)grid[0] / cluster * grid[1] * grid[2];
    ngroups = total;
    int most = (int)N / cluster;  // places: of clusters only whole ones in a GPC
    if (cluster > 1 && m.gpc > 0) {
      int full = (int)(N / m.gpc), per = (int)m.gpc / cluster, rest = ((int)N - full * (int)m.gpc) / cluster;
      most = full * per + rest;
      most = std::max(1, most);
    }
    places = (int)std::min<u64>(most, total);
    int all = places;
    double part = 1;  // of the places only some are run, with their share of what all share
    if (m.share > 1) {
      places = std::max(1, (int)(places / m.share));
      part = (double)places / all;
    }
    used = places * cluster;
    double rate = m.dram / m.clock * part;
    dram_cost = 32 / rate;
    l2_cost = 32 / (m.l2_rate / m.clock * part);
    port_cost = 32 / m.port;
    store_cost = 32 / m.port_store;
    atomic_rate = m.atomic * part;
    sms.resize(used);
    place_room.assign(places, (int)resident);
    for (u64 i = 0; i < total; ++i)
      if ((int)(i % all) * places % all < places) order.push_back(i);
    ngroups = order.size();
    out.part = part;
    rng = mix((u64)m.seed);
    u64 begin = g.base;
    now = begin;
    for (auto& sm : sms) {
      sm.l1.size(l1_bytes, 8);
      sm.fetched.assign(n / 8 + 1, 0);
      for (auto& s : sm.s) s.next = FAR;
      rng = mix(rng + 7);
      sm.cta_at = begin + (u64)(m.skew * (double)(rng >> 40) / (1 << 24));
    }
    for (u32 k = 0; k < resident; ++k)
      for (int p = 0; p < places; ++p) launch_group(begin, p);
    finished = begin;
    while (!events.empty()) {
      auto [t, id] = events.top();
      events.pop();
      Sched& s = sms[id / 4].s[id % 4];
      if (s.next != t) continue;
      now = t;
      step(id / 4, id % 4, t);
      if (out.issued > 3e9) {
        error = "three billion instructions";
        return 1;
      }
    }
    if (!groups.empty()) {
      error = "no warp can go on";
      return 1;
    }
    // what was stored has to reach the DRAM: a flushed L2 is full of what others have written
    u64 end = std::max<u64>(finished, (u64)g.dram_free);
    out.cycles = (double)(end - begin);
    out.resident = resident;
    out.used_sms = used;
    g.base = end;
    return 0;
  }
};

}  // namespace

extern "C" {
const char* timing_names() {
  return model_names;
}
int timing_result_size() {
  return sizeof(Result) / 8;
}
void* timing_new(const double* values) {
  auto* g = new Gpu;
  memcpy(&g->m, values, sizeof(Model));
  g->l2.size((u64)(g->m.l2 / std::max(1.0, g->m.share)), (u32)g->m.ways);
  return g;
}
void timing_free(void* g) {
  delete (Gpu*)g;
}
int timing_run(void* gpu, const s64* rows, int n, const u32* grid, u32 block, u32 cluster, u32 smem, u32 regs,
               u32 local, u32 resident, u64 l1, const u8* bank0, int bank0_size, double* result, char* text, int room) {
  auto run = std::make_unique<Run>(*(Gpu*)gpu);
  run->code = (const Row*)rows;
  run->n = n;
  memcpy(run->grid, grid, 12);
  run->block = block;
  run->cluster = cluster;
  run->smem = smem;
  run->regs = regs;
  run->local = local;
  run->bank0.assign(bank0, bank0 + bank0_size);
  int bad = run->go(resident, l1);
  memcpy(result, &run->out, sizeof(Result));
  snprintf(text, room, "%s", run->error.c_str());
  return bad;
}
}
