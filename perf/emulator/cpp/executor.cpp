// Runs a parsed PTX kernel (ptx.py) on the CPU, a warp instruction at a time, with checks of memory, races and
// barriers; at the end a CUDA driver API for Triton's own launcher. Built by build.py as libcuda.so.1.
//
// Model: lanes of a warp have their own program counters, the lowest runs first. A seeded scheduler picks a warp of the
// resident clusters and lets it run for a random number of instructions. What happens before what is kept in vector
// clocks, one entry a warp of the cluster, which barriers join; an access is stamped with its thread and its warp's
// clock.
#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

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

// ptx.py reads these four enumerations
enum Op {
  MOV,
  MOVP,
  MOVP_IMM,
  PACK,
  UNPACK,
  CVTA,
  CVTA_TO,
  LD,
  LD_PARAM,
  ST,
  ATOM,
  LDMATRIX,
  STMATRIX,
  MAPA,
  GETCTARANK,
  SHFL,
  VOTE,
  ACTIVEMASK,
  ELECT,
  REDUX,
  BAR_SYNC,
  BAR_ARRIVE,
  BAR_WARP,
  CLUSTER_ARRIVE,
  CLUSTER_WAIT,
  FENCE,
  BRA,
  EXIT,
  TRAP,
  NOP,
  SETP,
  SELP,
  SLCT,
  LOP3,
  PRMT,
  SHF,
  BFE,
  BFI,
  POPC,
  CLZ,
  BREV,
  BFIND,
  CVT,
  CVT_PACK,
  ADD,
  SUB,
  MUL,
  MUL_WIDE,
  MAD,
  MAD_WIDE,
  FMA,
  DIV,
  REM,
  MIN,
  MAX,
  ABS,
  NEG,
  RCP,
  SQRT,
  RSQRT,
  EX2,
  LG2,
  SIN,
  COS,
  TANH,
  COPYSIGN,
  AND,
  OR,
  XOR,
  NOT,
  CNOT,
  SHL,
  SHR,
  SAD,
  CARRY,
  CP_ASYNC
};
enum Type { U8, S8, U16, S16, U32, S32, U64, S64, F16, BF16, F16X2, BF16X2, F32, F64, PRED, F8E4M3X2, F8E5M2X2, F32X2 };
enum Special {
  TID_X,
  TID_Y,
  TID_Z,
  NTID_X,
  NTID_Y,
  NTID_Z,
  CTAID_X,
  CTAID_Y,
  CTAID_Z,
  NCTAID_X,
  NCTAID_Y,
  NCTAID_Z,
  LANEID,
  WARPID,
  NWARPID,
  CLUSTERID_X,
  CLUSTERID_Y,
  CLUSTERID_Z,
  NCLUSTERID_X,
  NCLUSTERID_Y,
  NCLUSTERID_Z,
  CLUSTER_CTAID_X,
  CLUSTER_CTAID_Y,
  CLUSTER_CTAID_Z,
  CLUSTER_NCTAID_X,
  CLUSTER_NCTAID_Y,
  CLUSTER_NCTAID_Z,
  CLUSTER_CTARANK,
  CLUSTER_NCTARANK,
  IS_EXPLICIT_CLUSTER,
  SMID,
  NSMID,
  CLOCK,
  CLOCK64,
  GLOBALTIMER,
  DYNAMIC_SMEM_SIZE,
  TOTAL_SMEM_SIZE,
  LANEMASK_EQ,
  LANEMASK_LT,
  LANEMASK_LE,
  LANEMASK_GT,
  LANEMASK_GE
};
// what instructions are counted as; loads and stores of global memory besides by their width
enum Class {
  K_LD_GLOBAL,
  K_ST_GLOBAL,
  K_LD_SHARED,
  K_ST_SHARED,
  K_CLUSTER_SHARED,
  K_LOCAL,
  K_ATOM,
  K_MATRIX,
  K_SHFL,
  K_BAR,
  K_BAR_WARP,
  K_CLUSTER_BAR,
  K_FP32,
  K_FP64,
  K_HALF,
  K_SFU,
  K_INT,
  K_PRED,
  K_CVT,
  K_MOV,
  K_PARAM,
  K_BRANCH,
  K_OTHER,
  K_COUNT
};
enum Kind {  // of reports: errors first
  OUT_OF_BOUNDS,
  MISALIGNED,
  UNINITIALISED,
  RACE_SHARED,
  RACE_GLOBAL,
  DOUBLE_WRITE,
  CROSS_PROGRAM,
  BARRIER,
  EXIT_BEFORE_ACCESS,
  BEFORE_START,
  DEADLOCK,
  SHUFFLE,
  TRAPPED,
  BAD_LAUNCH,
  UNWRITTEN,
  UNKNOWN_BEHAVIOUR,
  NOTES,
  NOTE_LOCKSTEP = NOTES,
  NOTE_SAME_VALUE,
  NOTE_SHARED_UNINITIALISED,
  KINDS
};
static const char* kind_names[KINDS] = {"out-of-bounds",
                                        "misaligned",
                                        "uninitialised-read",
                                        "race-shared",
                                        "race-global",
                                        "double-write",
                                        "cross-program",
                                        "barrier",
                                        "exit-before-access",
                                        "access-before-start",
                                        "deadlock",
                                        "shuffle",
                                        "trap",
                                        "bad-launch",
                                        "unwritten",
                                        "unknown-behaviour",
                                        "note-warp-lockstep",
                                        "note-same-value",
                                        "note-shared-uninitialised"};

struct Ins {
  s32 op, type, type2, mode, mode2, guard, target, line, source, d[8], s[10];
};
static_assert(sizeof(Ins) == 27 * 4, "WIDTH in ptx.py");

static const u64 SHARED_WINDOW = 0x7e0000000000ull, LOCAL_WINDOW = 0x7d0000000000ull, WINDOW = 1ull << 32;
static const u32 FULL = 0xffffffffu, NOWHERE = 0xffffffffu;

struct Program {
  std::vector<Ins> code;
  std::vector<u8> cls;
  std::vector<u32> c32;
  std::vector<u64> c64;  // 32 lanes each
  int n32, n64, np;
  std::vector<int> psize, poff;
  int pbytes, static_shared, local, threads, cluster;
  std::string name;
  std::vector<std::pair<u64, u64>> data;
  int max_dynamic = 49152;
  bool nonportable = false;
  int max_threads = 1024;
};

struct Shadow {
  u32 wthr, wclk, rthr, rclk;
};
struct Alloc {
  u64 base, size;
  u32 gsh;
  u8* flags;
  Shadow* sh;
};
enum { VALID = 1, INIT = 2, WRITTEN = 4 };

struct Config {
  u64 seed = 1;
  int checks = 255;
  int approx = 0;
  int resident = 2;
  long max_clusters = 0;
  int quantum = 64;
  int chaos = 0;
} config;
enum { CHECK_MEM = 1, CHECK_INIT = 2, CHECK_SHARED = 4, CHECK_GLOBAL = 8 };
enum { MAXW = 8 };
struct Counts {
  u64 cls[K_COUNT], ld_width[6], st_width[6], ld_requests, ld_sectors, st_requests, st_sectors, lanes, warps, ctas,
      clusters_run, clusters, total;
};

struct Report {
  int kind, line, source;
  u64 count;
  std::string text;
};

struct Reader {
  u32 clk, lanes, next;
  u16 warp;
  u8 bytes;
};
struct Node {
  u32 at;
};
struct Word {
  u32 wclk[4];
  u16 wthr[4];
  u32 readers;
};  // of 4 bytes of shared memory; readers: 1 + index in pool

struct Cta;
struct Cluster;
struct Warp {
  Cta* cta;
  int index, in_cluster;
  u32* r32;
  u64* r64;
  u32* pr;
  u8* local = nullptr;
  u32 alive, waiting;
  u32 lpc[32];
  std::vector<u32> vc, fence_vc;
  u32 clk;
  u32 cl_arrived = 0;
  bool cl_pending = false;
  bool has_fence = false;
  u32 carry = 0;
};
struct Bar {
  u32 arrived = 0, expected = 0;
  std::vector<u32> vc;
  std::vector<std::pair<Warp*, u32>> waiters;
};
struct Cta {
  Cluster* cluster;
  u32 rank, x, y, z;
  u64 linear;
  std::vector<u8> smem;
  std::vector<Word> words;
  std::vector<Warp> warps;
  Bar bars[16];
  u32 alive = 0;
  std::vector<u32> remote;  // clock of the last access by each warp of another thread block
};
struct Cluster {
  std::vector<Cta> ctas;
  u64 id;
  u32 alive = 0, arrived = 0, phase = 0;
  std::vector<u32> acc, done;
  std::vector<Warp*> waiters;
  std::vector<Reader> pool;
  std::vector<u32> freed;
  int nw = 0;
  std::vector<u8> arena;
};

struct Launch;
static Launch* current;
static std::vector<Report> reports;
static Counts counts;
static std::vector<u64> line_counts;
static std::string last_error;

static u64 mix(u64 z) {
  z += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}
struct Rng {
  u64 s;
  u64 next() { return mix(s += 0x9e3779b97f4a7c15ull); }
  u32 below(u32 n) { return n < 2 ? 0 : (u32)((next() >> 32) * n >> 32); }
};

// ------------------------------------------------------------------------------------------------------------ numbers
static inline float bits_f(u32 u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static inline u32 f_bits(float f) {
  u32 u;
  memcpy(&u, &f, 4);
  return u;
}
static inline double bits_d(u64 u) {
  double f;
  memcpy(&f, &u, 8);
  return f;
}
static inline u64 d_bits(double f) {
  u64 u;
  memcpy(&u, &f, 8);
  return u;
}
static inline float canon(float r) {
  return r != r ? bits_f(0x7fffffff) : r;
}
static inline double canon(double r) {
  return r != r ? bits_d(0x7fffffffffffffffull) : r;
}
static inline float ftz(float v) {
  u32 b = f_bits(v);
  return (b & 0x7f800000) ? v : bits_f(b & 0x80000000);
}
static inline float half_f(u16 h) {
  _Float16 v;
  memcpy(&v, &h, 2);
  return (float)v;
}
static inline u16 f_half(float f) {
  if (f != f) return 0x7fff;
  _Float16 v = (_Float16)f;
  u16 h;
  memcpy(&h, &v, 2);
  return h;
}
static inline float bf_f(u16 h) {
  return bits_f((u32)h << 16);
}
static inline u16 f_bf(float f) {
  u32 b = f_bits(f);
  if (f != f) return 0x7fff;
  return (u16)((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
static inline u16 f_bf_rz(float f) {
  if (f != f) return 0x7fff;
  return (u16)(f_bits(f) >> 16);
}
static float d_odd(double d) {  // to float, the last bit set if inexact: a second rounding is then right
  float f = (float)d;
  if (d != d || (double)f == d || std::isinf(f)) return f;
  u32 b = f_bits(f);
  if (std::fabs((double)f) > std::fabs(d)) b -= 1;
  return bits_f(b | 1);
}
static inline u16 d_half(double d) {
  return f_half(d_odd(d));
}
static inline u16 d_bf(double d) {
  return f_bf(d_odd(d));
}
static inline float nudge(float v, int ulps) {  // what an approximation may be off by, decided by the value's bits
  if (!config.approx || v != v || std::isinf(v) || v == 0) return v;
  int k = (int)(mix(f_bits(v) ^ (config.seed << 32)) % (2 * ulps + 1)) - ulps;
  return bits_f(f_bits(v) + k);
}
static inline float minmax(float a, float b, bool mx, bool nan) {
  if (a != a || b != b) {
    if (nan || (a != a && b != b)) return bits_f(0x7fffffff);
    return a != a ? b : a;
  }
  if (a == b) return std::signbit(a) == mx ? b : a;
  return (a < b) == mx ? b : a;
}
static inline double minmax(double a, double b, bool mx, bool) {
  if (a != a || b != b) {
    if (a != a && b != b) return canon(a);
    return a != a ? b : a;
  }
  if (a == b) return std::signbit(a) == mx ? b : a;
  return (a < b) == mx ? b : a;
}
template <class T>
static inline T divide(T a, T b) {
  if (b == 0) return (T)-1;
  if (std::is_signed<T>::value && b == (T)-1) return (T)(0 - (u64)a);
  return a / b;
}
template <class T>
static inline T remainder_(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed<T>::value && b == (T)-1) return 0;
  return a % b;
}

static const int type_size[] = {1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 4, 4, 8, 0, 2, 2, 8};

// ------------------------------------------------------------------------------------------------------------- launch
struct Launch {
  Program& P;
  u32 grid[3], block, cluster, smem_bytes;
  std::vector<u8> params;
  std::vector<Alloc> allocs;
  Rng rng;
  bool dead = false;
  std::vector<int> last;
  u64 steps = 0;
  u64 nclusters;
  u32 t32[10][32];
  u64 t64[10][32];

  Launch(Program& p) : P(p) { last.assign(p.code.size(), 0); }

  void report(int kind, const Ins& in, const char* form, ...) __attribute__((format(printf, 4, 5))) {
    for (auto& r : reports)
      if (r.kind == kind && r.line == in.line) {
        r.count++;
        return;
      }
    if (reports.size() > 400) return;
    char text[1024];
    va_list a;
    va_start(a, form);
    vsnprintf(text, sizeof text, form, a);
    va_end(a);
    reports.push_back({kind, in.line, in.source, 1, text});
  }

  // ---------------------------------------------------------------------------------------------------------- operands
  u32 special(Warp& w, int which, int l) {
    Cta& c = *w.cta;
    u32 tid = w.index * 32 + l;
    switch (which) {
      case TID_X: return tid;
      case TID_Y:
      case TID_Z: return 0;
      case NTID_X: return block;
      case NTID_Y:
      case NTID_Z: return 1;
      case CTAID_X: return c.x;
      case CTAID_Y: return c.y;
      case CTAID_Z: return c.z;
      case NCTAID_X: return grid[0];
      case NCTAID_Y: return grid[1];
      case NCTAID_Z: return grid[2];
      case LANEID: return l;
      case WARPID: return w.index;
      case NWARPID: return block / 32;
      case CLUSTERID_X: return c.x / cluster;
      case CLUSTERID_Y: return c.y;
      case CLUSTERID_Z: return c.z;
      case NCLUSTERID_X: return grid[0] / cluster;
      case NCLUSTERID_Y: return grid[1];
      case NCLUSTERID_Z: return grid[2];
      case CLUSTER_CTAID_X:
      case CLUSTER_CTARANK: return c.rank;
      case CLUSTER_CTAID_Y:
      case CLUSTER_CTAID_Z: return 0;
      case CLUSTER_NCTAID_X:
      case CLUSTER_NCTARANK: return cluster;
      case CLUSTER_NCTAID_Y:
      case CLUSTER_NCTAID_Z: return 1;
      case IS_EXPLICIT_CLUSTER: return cluster > 1;
      case SMID: return c.linear % 132;
      case NSMID: return 132;
      case CLOCK:
      case CLOCK64:
      case GLOBALTIMER: return (u32)steps;
      case DYNAMIC_SMEM_SIZE:
      case TOTAL_SMEM_SIZE: return smem_bytes;
      case LANEMASK_EQ: return 1u << l;
      case LANEMASK_LT: return (1u << l) - 1;
      case LANEMASK_LE: return (2u << l) - 1;
      case LANEMASK_GT: return ~((2u << l) - 1);
      case LANEMASK_GE: return ~((1u << l) - 1);
    }
    return 0;
  }
  inline u32* A32(Warp& w, int code, int slot) {
    int i = code >> 3;
    switch (code & 7) {
      case 0: return w.r32 + i * 32;
      case 4: return P.c32.data() + i * 32;
      case 6:
        for (int l = 0; l < 32; ++l) t32[slot][l] = special(w, i, l);
        return t32[slot];
      case 1:
        for (int l = 0; l < 32; ++l) t32[slot][l] = (u32)w.r64[i * 32 + l];
        return t32[slot];
      case 5:
        for (int l = 0; l < 32; ++l) t32[slot][l] = (u32)P.c64[i * 32 + l];
        return t32[slot];
    }
    return t32[slot];
  }
  inline u64* A64(Warp& w, int code, int slot) {
    int i = code >> 3;
    switch (code & 7) {
      case 1: return w.r64 + i * 32;
      case 5: return P.c64.data() + i * 32;
      case 6:
        for (int l = 0; l < 32; ++l) t64[slot][l] = special(w, i, l);
        return t64[slot];
      case 0:
        for (int l = 0; l < 32; ++l) t64[slot][l] = w.r32[i * 32 + l];
        return t64[slot];
      case 4:
        for (int l = 0; l < 32; ++l) t64[slot][l] = P.c32[i * 32 + l];
        return t64[slot];
    }
    return t64[slot];
  }
#define S32(k) A32(w, in.s[k], k)
#define S64(k) A64(w, in.s[k], k)
#define SP(k) w.pr[in.s[k] >> 3]
#define D32 (w.r32 + (in.d[0] >> 3) * 32)
#define D64 (w.r64 + (in.d[0] >> 3) * 32)
#define EACH(...)                    \
  do {                               \
    if (m == FULL) {                 \
      for (int l = 0; l < 32; ++l) { \
        __VA_ARGS__;                 \
      }                              \
    } else {                         \
      for (int l = 0; l < 32; ++l)   \
        if (m >> l & 1) {            \
          __VA_ARGS__;               \
        }                            \
    }                                \
  } while (0)

  // ------------------------------------------------------------------------------------------------- clocks and
  // threads
  u32 thread_of(Warp& w, int l) { return (u32)(w.cta->linear * block + w.index * 32 + l); }
  u64 program_of_thread(u32 t) {
    u64 cta = t / block;
    return cluster == 1 ? cta : cta / cluster;
  }  // clusters are runs along x
  bool ordered(Warp& w, u32 warp_in_cluster, u32 clk) { return clk < w.vc[warp_in_cluster]; }
  int warp_in_cluster(u32 t) {
    u32 cta = t / block;
    return (int)((cta % cluster) * (block / 32) + t % block / 32);
  }
  void tick(Warp& w) { w.vc[w.in_cluster] = ++w.clk; }
  static void join(std::vector<u32>& a, const std::vector<u32>& b) {
    for (size_t i = 0; i < a.size(); ++i)
      if (b[i] > a[i]) a[i] = b[i];
  }

  std::string who(u32 t) {
    char b[96];
    u32 cta = t / block;
    snprintf(b, sizeof b, "thread %u of block %u%s", t % block, cta,
             cluster > 1 ? (" (rank " + std::to_string(cta % cluster) + ")").c_str() : "");
    return b;
  }

  // ----------------------------------------------------------------------------------------------------- global memory
  Alloc* find(const Ins& in, u64 a, u32 n) {
    int& k = last[&in - P.code.data()];
    if (k < (int)allocs.size()) {
      Alloc& c = allocs[k];
      if (a >= c.base && a + n <= c.base + c.size) return &c;
    }
    auto it = std::upper_bound(allocs.begin(), allocs.end(), a, [](u64 v, const Alloc& c) { return v < c.base; });
    if (it == allocs.begin()) return nullptr;
    --it;
    if (a + n > it->base + it->size) return nullptr;
    k = (int)(it - allocs.begin());
    return &*it;
  }
  void outside(Warp& w, const Ins& in, u64 a, u32 n, int l, bool store) {
    s64 best = INT64_MAX;
    size_t which = 0;
    for (size_t i = 0; i < allocs.size(); ++i) {
      s64 d = a < allocs[i].base ? (s64)(allocs[i].base - a) : (s64)(a + n - allocs[i].base - allocs[i].size);
      if (d < best) best = d, which = i;
    }
    if (allocs.empty()) {
      report(OUT_OF_BOUNDS, in, "no memory is registered");
      return;
    }
    report(OUT_OF_BOUNDS, in, "%s of %u bytes by %s at 0x%llx, %lld bytes %s allocation %zu of %llu bytes",
           store ? "store" : "load", n, who(thread_of(w, l)).c_str(), (unsigned long long)a, (long long)best,
           a < allocs[which].base ? "before" : "beyond", which, (unsigned long long)allocs[which].size);
  }
  // Returns whether a load may see either of two values, as a write that nothing orders has been made already.
  bool note_global(Warp& w, const Ins& in, Alloc& c, u64 a, u32 n, int l, bool store, const u8* value) {
    u32 me = thread_of(w, l);
    bool racing = false;
    u64 g0 = (a - c.base) >> c.gsh, g1 = (a + n - 1 - c.base) >> c.gsh;
    u32 gs = 1u << c.gsh;
    for (u64 g = g0; g <= g1; ++g) {
      u8& f = c.flags[g];
      if (!(f & VALID) && (config.checks & CHECK_MEM))
        report(OUT_OF_BOUNDS, in,
               "%s by %s at byte %llu of an allocation of %llu: no tensor argument has an element there",
               store ? "store" : "load", who(me).c_str(), (unsigned long long)(g << c.gsh), (unsigned long long)c.size);
      if (!store && !(f & INIT) && (config.checks & CHECK_INIT))
        report(UNINITIALISED, in, "load by %s of byte %llu of an allocation of %llu, which nothing has written",
               who(me).c_str(), (unsigned long long)(g << c.gsh), (unsigned long long)c.size);
      if (config.checks & CHECK_GLOBAL) {
        Shadow& s = c.sh[g];
        u64 lo = std::max<u64>(a, c.base + (g << c.gsh)), hi = std::min<u64>(a + n, c.base + ((g + 1) << c.gsh));
        bool whole = lo == c.base + (g << c.gsh) && hi == lo + gs;
        if (store) {
          bool same = memcmp((void*)lo, value + (lo - a), hi - lo) == 0;
          if (s.wclk && s.wthr != me && whole) {
            if (program_of_thread(s.wthr) != program_of_thread(me)) {
              if (!same)
                report(DOUBLE_WRITE, in, "%s and %s write different values to byte %llu of an allocation of %llu",
                       who(s.wthr).c_str(), who(me).c_str(), (unsigned long long)(g << c.gsh),
                       (unsigned long long)c.size);
              else
                report(NOTE_SAME_VALUE, in, "several programs write the same value: %s and %s", who(s.wthr).c_str(),
                       who(me).c_str());
            } else if (!ordered(w, warp_in_cluster(s.wthr), s.wclk)) {
              if (!same)
                report(
                    s.wthr / 32 == me / 32 ? DOUBLE_WRITE : DOUBLE_WRITE, in,
                    "%s and %s write different values to byte %llu of an allocation of %llu, with no barrier between",
                    who(s.wthr).c_str(), who(me).c_str(), (unsigned long long)(g << c.gsh), (unsigned long long)c.size);
              else
                report(NOTE_SAME_VALUE, in, "several threads of a program write the same value: %s and %s",
                       who(s.wthr).c_str(), who(me).c_str());
            }
          }
          if (s.rclk && s.rthr != me && !same) {
            if (program_of_thread(s.rthr) != program_of_thread(me))
              report(CROSS_PROGRAM, in,
                     "%s writes byte %llu of an allocation of %llu, which %s of another program reads in this launch",
                     who(me).c_str(), (unsigned long long)(g << c.gsh), (unsigned long long)c.size,
                     who(s.rthr).c_str());
            else if (!ordered(w, warp_in_cluster(s.rthr), s.rclk)) {
              bool one_warp = s.rthr / 32 == me / 32;
              report(one_warp ? NOTE_LOCKSTEP : RACE_GLOBAL, in,
                     "%s writes byte %llu of an allocation of %llu, which %s reads, with no barrier between",
                     who(me).c_str(), (unsigned long long)(g << c.gsh), (unsigned long long)c.size,
                     who(s.rthr).c_str());
            }
          }
          s.wthr = me;
          s.wclk = w.clk;
        } else {
          if (s.wclk && s.wthr != me) {
            if (program_of_thread(s.wthr) != program_of_thread(me) && (racing = true))
              report(
                  CROSS_PROGRAM, in,
                  "%s reads byte %llu of an allocation of %llu, which %s of another program has written in this launch",
                  who(me).c_str(), (unsigned long long)(g << c.gsh), (unsigned long long)c.size, who(s.wthr).c_str());
            else if (!ordered(w, warp_in_cluster(s.wthr), s.wclk) && (racing = true))
              report(s.wthr / 32 == me / 32 ? NOTE_LOCKSTEP : RACE_GLOBAL, in,
                     "%s reads byte %llu of an allocation of %llu, which %s has written, with no barrier between",
                     who(me).c_str(), (unsigned long long)(g << c.gsh), (unsigned long long)c.size,
                     who(s.wthr).c_str());
          }
          // one reader is kept: of another warp than the last one, if that is not ordered before
          if (!s.rclk || (program_of_thread(s.rthr) == program_of_thread(me) &&
                          (s.rthr / 32 == me / 32 || ordered(w, warp_in_cluster(s.rthr), s.rclk)))) {
            s.rthr = me;
            s.rclk = w.clk;
          }
        }
      }
      if (store) f |= INIT | WRITTEN;
    }
    return racing;
  }

  // ----------------------------------------------------------------------------------------------------- shared memory
  // The thread block whose shared memory a 32-bit address is in: bits 24 and up hold a rank + 1 if mapa made it.
  Cta* owner(Warp& w, const Ins& in, u32& a, bool cluster_space) {
    u32 r = a >> 24;
    if (r == 0) return w.cta;
    a &= 0xffffff;
    Cluster& cl = *w.cta->cluster;
    if (r > cl.ctas.size()) return nullptr;
    if (!cluster_space && r - 1 != w.cta->rank) {
      report(OUT_OF_BOUNDS, in, "an address of another block's shared memory in an instruction for one's own");
    }
    return &cl.ctas[r - 1];
  }
  void race(Warp& w, const Ins& in, u32 a, int l, u32 other_warp, u32 other_lane, const char* what) {
    bool own = (int)other_warp == w.in_cluster;
    int per = block / 32;
    report(own ? NOTE_LOCKSTEP : RACE_SHARED, in,
           "%s at shared byte %u: warp %d lane %d of rank %u and warp %u lane %u of rank %u, with no barrier between",
           what, a, w.index, l, w.cta->rank, other_warp % per, other_lane, other_warp / per);
  }
  void note_shared(Warp& w, const Ins& in, Cta& c, u32 a, u32 n, int l, bool store, const u8* value) {
    Cluster& cl = *c.cluster;
    if (&c != w.cta) {
      c.remote[w.in_cluster] = w.clk;
      bool begun = false;
      int per = block / 32;
      for (int k = 0; k < per && !begun; ++k) begun = w.vc[c.rank * per + k] > 1;
      if (!begun)
        report(BEFORE_START, in, "%s uses the shared memory of rank %u, of which nothing says that it has started",
               who(thread_of(w, l)).c_str(), c.rank);
      if (!c.alive)
        report(EXIT_BEFORE_ACCESS, in, "%s uses the shared memory of rank %u, which has exited",
               who(thread_of(w, l)).c_str(), c.rank);
    }
    if (!(config.checks & CHECK_SHARED)) return;
    u16 me = (u16)(w.in_cluster * 32 + l);
    for (u32 word = a / 4; word <= (a + n - 1) / 4; ++word) {
      Word& s = c.words[word];
      u32 bytes = 0;
      for (int b = 0; b < 4; ++b) {
        u32 at = word * 4 + b;
        if (at < a || at >= a + n) continue;
        bytes |= 1u << b;
        if (!s.wclk[b]) {
          if (!store && (config.checks & CHECK_INIT))
            report(NOTE_SHARED_UNINITIALISED, in, "shared byte %u is read, which nothing has written", at);
        } else if (s.wthr[b] != me && !ordered(w, s.wthr[b] / 32, s.wclk[b])) {
          if (!store)
            race(w, in, at, l, s.wthr[b] / 32, s.wthr[b] % 32, "a read of what was written");
          else if (c.smem[at] != value[at - a])
            race(w, in, at, l, s.wthr[b] / 32, s.wthr[b] % 32, "two writes of different values");
          else
            report(NOTE_SAME_VALUE, in, "several threads write the same value to shared memory");
        }
        if (store) {
          s.wclk[b] = w.clk;
          s.wthr[b] = me;
        }
      }
      u32* link = &s.readers;
      bool mine = false;
      while (*link) {
        Reader& r = cl.pool[*link - 1];
        bool own = r.warp == w.in_cluster, before = own ? r.clk < w.clk : ordered(w, r.warp, r.clk);
        if (store && !before && (r.bytes & bytes) && (!own || (r.lanes & ~(1u << l)))) {
          bool changes = false;
          for (int b = 0; b < 4; ++b)
            if ((r.bytes & bytes) >> b & 1) changes |= c.smem[word * 4 + b] != value[word * 4 + b - a];
          u32 other = own ? r.lanes & ~(1u << l) : r.lanes;
          if (changes) race(w, in, word * 4, l, r.warp, __builtin_ctz(other), "a write of what was read");
        }
        if (before && (r.bytes & ~bytes) == 0) {
          u32 dead = *link;
          *link = r.next;
          cl.freed.push_back(dead);
          continue;
        }
        if (!store && own && !before && r.bytes == bytes) {
          r.lanes |= 1u << l;
          mine = true;
        }
        link = &r.next;
      }
      if (!store && !mine) {
        u32 at;
        if (cl.freed.empty()) {
          cl.pool.push_back({});
          at = (u32)cl.pool.size();
        } else {
          at = cl.freed.back();
          cl.freed.pop_back();
        }
        // `s` stays valid: the pool is another vector
        cl.pool[at - 1] = {w.clk, 1u << l, s.readers, (u16)w.in_cluster, (u8)bytes};
        s.readers = at;
      }
    }
  }
  u8* shared_at(Warp& w, const Ins& in, u64 address, u32 n, int l, bool store, bool cluster_space, Cta*& c, u32& a) {
    a = (u32)address;
    if (address >> 32) {
      report(OUT_OF_BOUNDS, in, "shared address 0x%llx by %s", (unsigned long long)address,
             who(thread_of(w, l)).c_str());
      return nullptr;
    }
    c = owner(w, in, a, cluster_space);
    if (!c || (u64)a + n > c->smem.size()) {
      report(OUT_OF_BOUNDS, in, "%s of %u bytes at shared byte %u of %u by %s", store ? "store" : "load", n, a,
             smem_bytes, who(thread_of(w, l)).c_str());
      return nullptr;
    }
    if (a % n) {
      report(MISALIGNED, in, "shared byte %u, %u bytes", a, n);
    }
    return c->smem.data() + a;
  }

  static inline void put(Warp& w, int code, int l, int type,
                         const u8* p) {  // a loaded value into a register, which may be wider
    if (code < 0) return;
    u64 v = 0;
    int n = type_size[type];
    memcpy(&v, p, n);
    if (type == S8)
      v = (u64)(s64)(s8)v;
    else if (type == S16)
      v = (u64)(s64)(s16)v;
    else if (type == S32)
      v = (u64)(s64)(s32)v;
    if ((code & 7) == 1)
      w.r64[(code >> 3) * 32 + l] = v;
    else
      w.r32[(code >> 3) * 32 + l] = (u32)v;
  }

  void memory(Warp& w, const Ins& in, u32 m, bool store) {
    int size = type_size[in.type], n = in.mode2, total = size * n, space = in.type2;
    u64 address[32];
    bool wide = (in.s[0] & 7) == 1 || (in.s[0] & 7) == 5;
    if (wide) {
      u64* b = S64(0);
      for (int l = 0; l < 32; ++l) address[l] = b[l] + (s64)in.mode;
    } else {
      u32* b = S32(0);
      for (int l = 0; l < 32; ++l) address[l] = (u32)(b[l] + in.mode);
    }
    const void* src[8] = {};
    bool swide[8] = {};
    if (store)
      for (int k = 0; k < n; ++k) {
        int c = in.s[1 + k];
        swide[k] = (c & 7) == 1 || (c & 7) == 5;
        src[k] = swide[k] ? (const void*)A64(w, c, 1 + k) : (const void*)A32(w, c, 1 + k);
      }
    static u8 noise[64];
    memset(noise, 0xFF, 64);
    bool global = space == 0;
    u64 sectors[96];
    int ns = 0;
    bool backwards = config.seed && config.seed % 2 == 0;  // which lane's store to an address counts is not defined
    for (int k = 0; k < 32; ++k) {
      int l = backwards ? 31 - k : k;
      if (!(m >> l & 1)) continue;
      u8 buf[64];
      if (store)
        for (int k = 0; k < n; ++k) {
          u64 v = swide[k] ? ((const u64*)src[k])[l] : ((const u32*)src[k])[l];
          memcpy(buf + k * size, &v, size);
        }
      int sp = space;
      u64 a = address[l];
      if (sp == 4) {
        if (a >= SHARED_WINDOW && a < SHARED_WINDOW + WINDOW)
          sp = 2, a -= SHARED_WINDOW;
        else if (a >= LOCAL_WINDOW && a < LOCAL_WINDOW + WINDOW)
          sp = 3, a -= LOCAL_WINDOW;
        else
          sp = 0, global = true;
      }
      u8* p = nullptr;
      if (sp == 0) {
        if (a % total)
          report(MISALIGNED, in, "%d bytes at 0x%llx by %s", total, (unsigned long long)a,
                 who(thread_of(w, l)).c_str());
        for (u64 s = a / 32; s <= (a + total - 1) / 32; ++s)
          if (ns < 96) sectors[ns++] = s;
        Alloc* c = find(in, a, total);
        if (!c)
          outside(w, in, a, total, l, store);
        else {
          bool racing = note_global(w, in, *c, a, total, l, store, buf);
          p = racing && config.chaos ? noise : (u8*)a;
        }
      } else if (sp == 3) {
        if (a + total <= (u64)P.local)
          p = w.local + (u64)l * P.local + a;
        else
          report(OUT_OF_BOUNDS, in, "local byte %llu", (unsigned long long)a);
      } else {
        Cta* c;
        u32 at;
        p = shared_at(w, in, a, total, l, store, sp == 2, c, at);
        if (p) note_shared(w, in, *c, at, total, l, store, buf);
      }
      if (store) {
        if (p) memcpy(p, buf, total);
      } else {
        static const u8 zeros[64] = {};
        for (int k = 0; k < n; ++k) put(w, in.d[k], l, in.type, (p ? p : zeros) + k * size);
      }
    }
    int width = 0;
    while ((1 << width) < total) ++width;
    if (global) {
      if (ns) {
        if (!std::is_sorted(sectors, sectors + ns)) std::sort(sectors, sectors + ns);
        int distinct = (int)(std::unique(sectors, sectors + ns) - sectors);
        (store ? counts.st_requests : counts.ld_requests)++;
        (store ? counts.st_sectors : counts.ld_sectors) += distinct;
      }
      (store ? counts.st_width : counts.ld_width)[width]++;
    }
  }
  void copy_async(Warp& w, const Ins& in,
                  u32 m) {  // 4, 8 or 16 bytes of global memory to shared memory, those beyond the source's size 0
    bool wide = (in.s[0] & 7) == 1 || (in.s[0] & 7) == 5, swide = (in.s[1] & 7) == 1 || (in.s[1] & 7) == 5;
    u64 from[32], to[32];
    u32 size[32];
    if (wide) {
      u64* b = S64(0);
      for (int l = 0; l < 32; ++l) from[l] = b[l] + (s64)in.mode;
    } else {
      u32* b = S32(0);
      for (int l = 0; l < 32; ++l) from[l] = (u32)(b[l] + in.mode);
    }
    if (swide) {
      u64* b = S64(1);
      for (int l = 0; l < 32; ++l) to[l] = b[l] + (s64)in.type2;
    } else {
      u32* b = S32(1);
      for (int l = 0; l < 32; ++l) to[l] = (u32)(b[l] + in.type2);
    }
    u32 n = (u32)in.mode2;
    u32* given = in.s[2] >= 0 ? S32(2) : nullptr;
    for (int l = 0; l < 32; ++l) size[l] = given ? std::min(given[l], n) : n;
    u64 sectors[64];
    int ns = 0;
    int width = n == 16 ? 4 : n == 8 ? 3 : 2;
    for (int l = 0; l < 32; ++l) {
      if (!(m >> l & 1)) continue;
      u8 buf[16] = {};
      if (size[l]) {
        if (from[l] % n)
          report(MISALIGNED, in, "%u bytes at 0x%llx by %s", n, (unsigned long long)from[l],
                 who(thread_of(w, l)).c_str());
        for (u64 s = from[l] / 32; s <= (from[l] + size[l] - 1) / 32; ++s)
          if (ns < 64) sectors[ns++] = s;
        Alloc* c = find(in, from[l], size[l]);
        if (!c)
          outside(w, in, from[l], size[l], l, false);
        else {
          bool racing = note_global(w, in, *c, from[l], size[l], l, false, buf);
          if (racing && config.chaos)
            memset(buf, 0xFF, size[l]);
          else
            memcpy(buf, (u8*)from[l], size[l]);
        }
      }
      Cta* c;
      u32 at;
      u8* p = shared_at(w, in, to[l], n, l, true, false, c, at);
      if (p) {
        note_shared(w, in, *c, at, n, l, true, buf);
        memcpy(p, buf, n);
      }
    }
    if (ns) {
      std::sort(sectors, sectors + ns);
      counts.ld_requests++;
      counts.ld_sectors += (u64)(std::unique(sectors, sectors + ns) - sectors);
    }
    counts.ld_width[width]++;
  }
  void matrix(Warp& w, const Ins& in, u32 m, bool store) {
    if (m != w.alive || m != FULL) report(BARRIER, in, "ldmatrix or stmatrix by a part of a warp");
    int n = in.mode2, trans = in.type2;
    u8* row[32];
    u64 address[32];
    bool wide = (in.s[0] & 7) == 1 || (in.s[0] & 7) == 5;
    if (wide) {
      u64* b = S64(0);
      for (int l = 0; l < 32; ++l) address[l] = b[l] + (s64)in.mode;
    } else {
      u32* b = S32(0);
      for (int l = 0; l < 32; ++l) address[l] = (u32)(b[l] + in.mode);
    }
    u8 tile[32][16];
    if (store)
      for (int k = 0; k < n; ++k) {
        u32* v = A32(w, in.s[1 + k], 1 + k);
        for (int l = 0; l < 32; ++l) {
          u16 lo = (u16)v[l], hi = (u16)(v[l] >> 16);
          int r = l / 4, c = l % 4 * 2;
          if (!trans) {
            memcpy(tile[k * 8 + r] + c * 2, &lo, 2);
            memcpy(tile[k * 8 + r] + c * 2 + 2, &hi, 2);
          } else {
            memcpy(tile[k * 8 + c] + r * 2, &lo, 2);
            memcpy(tile[k * 8 + c + 1] + r * 2, &hi, 2);
          }
        }
      }
    for (int l = 0; l < n * 8; ++l) {
      Cta* c;
      u32 at;
      row[l] = shared_at(w, in, address[l], 16, l, store, false, c, at);
      if (row[l]) note_shared(w, in, *c, at, 16, l, store, tile[l]);
      if (store) {
        if (row[l]) memcpy(row[l], tile[l], 16);
      } else if (row[l])
        memcpy(tile[l], row[l], 16);
      else
        memset(tile[l], 0, 16);
    }
    if (!store)
      for (int k = 0; k < n; ++k) {
        u32* d = w.r32 + (in.d[k] >> 3) * 32;
        for (int l = 0; l < 32; ++l) {
          u16 lo, hi;
          int r = l / 4, c = l % 4 * 2;
          if (!trans) {
            memcpy(&lo, tile[k * 8 + r] + c * 2, 2);
            memcpy(&hi, tile[k * 8 + r] + c * 2 + 2, 2);
          } else {
            memcpy(&lo, tile[k * 8 + c] + r * 2, 2);
            memcpy(&hi, tile[k * 8 + c + 1] + r * 2, 2);
          }
          d[l] = lo | (u32)hi << 16;
        }
      }
  }
  void atomic(Warp& w, const Ins& in, u32 m) {
    int what = in.type2 / 8, space = in.type2 % 8, size = type_size[in.type];
    u64 base[32];
    bool wide = (in.s[0] & 7) == 1 || (in.s[0] & 7) == 5;
    if (wide) {
      u64* b = S64(0);
      for (int l = 0; l < 32; ++l) base[l] = b[l] + (s64)in.mode;
    } else {
      u32* b = S32(0);
      for (int l = 0; l < 32; ++l) base[l] = (u32)(b[l] + in.mode);
    }
    for (int l = 0; l < 32; ++l) {
      if (!(m >> l & 1)) continue;
      u8* p = nullptr;
      u64 a = base[l];
      int sp = space;
      if (sp == 4) sp = a >= SHARED_WINDOW && a < SHARED_WINDOW + WINDOW ? 2 : 0;
      if (sp == 0) {
        Alloc* c = find(in, a, size);
        if (!c)
          outside(w, in, a, size, l, true);
        else {
          p = (u8*)a;
          for (u64 g = (a - c->base) >> c->gsh; g <= (a + size - 1 - c->base) >> c->gsh; ++g) {
            if (!(c->flags[g] & INIT)) report(UNINITIALISED, in, "atomic on what nothing has written");
            c->flags[g] |= WRITTEN | INIT;
          }
        }
      } else {
        Cta* c;
        u32 at;
        p = shared_at(w, in, space == 4 ? a - SHARED_WINDOW : a, size, l, true, sp == 2, c, at);
      }
      if (!p) continue;
      u64 old = 0, x, y = 0, r = 0;
      memcpy(&old, p, size);
      x = size == 8 ? S64(1)[l] : S32(1)[l];
      if (what == 2) y = size == 8 ? S64(2)[l] : S32(2)[l];
      switch (what) {
        case 0:
          if (in.type == F32)
            r = f_bits(bits_f((u32)old) + bits_f((u32)x));
          else if (in.type == F64)
            r = d_bits(bits_d(old) + bits_d(x));
          else
            r = old + x;
          break;
        case 1: r = x; break;
        case 2: r = old == x ? y : old; break;
        case 3:
        case 4: {
          bool less = in.type == S32 ? (s32)x < (s32)old : in.type == S64 ? (s64)x < (s64)old : x < old;
          r = (what == 3) == less ? x : old;
          break;
        }
        case 5: r = old & x; break;
        case 6: r = old | x; break;
        case 7: r = old ^ x; break;
      }
      memcpy(p, &r, size);
      put(w, in.d[0], l, in.type, (u8*)&old);
    }
  }

  // ---------------------------------------------------------------------------------------------------------- barriers
  void wake(Bar& b) {
    for (auto& x : b.waiters) {
      x.first->waiting &= ~x.second;
      join(x.first->vc, b.vc);
    }
    b.waiters.clear();
    b.arrived = 0;
    b.expected = 0;
    std::fill(b.vc.begin(), b.vc.end(), 0);
  }
  void check_bars(Cta& c) {
    for (auto& b : c.bars) {
      if (!b.arrived) continue;
      u32 need = b.expected ? b.expected : c.alive;
      if (b.arrived >= need) wake(b);
    }
  }
  void check_cluster(Cluster& cl) {
    if (cl.arrived && cl.arrived >= cl.alive) {
      cl.arrived = 0;
      cl.phase++;
      cl.done = cl.acc;
      std::fill(cl.acc.begin(), cl.acc.end(), 0);
      for (auto* x : cl.waiters) {
        x->waiting = 0;
        x->cl_pending = false;
        join(x->vc, cl.done);
      }
      cl.waiters.clear();
    }
  }
  void leave(Warp& w, u32 m) {
    w.alive &= ~m;
    u32 n = __builtin_popcount(m);
    w.cta->alive -= n;
    w.cta->cluster->alive -= n;
    check_bars(*w.cta);
    check_cluster(*w.cta->cluster);
  }

  // ----------------------------------------------------------------------------------------------------------
  // arithmetic
  template <class T>
  void integers(Warp& w, const Ins& in, u32 m) {
    typedef typename std::make_unsigned<T>::type U;
    constexpr bool wide = sizeof(T) == 8;
    typedef typename std::conditional<wide, u64, u32>::type R;
    auto A = [&](int k) -> R* {
      if constexpr (wide)
        return S64(k);
      else
        return S32(k);
    };
    R* d;
    if constexpr (wide)
      d = D64;
    else
      d = D32;
#define OUT(e) EACH(d[l] = (R)(U)(e))
    R *a = A(0), *b = in.s[1] >= 0 && in.op != SHL && in.op != SHR ? A(1) : nullptr, *c = nullptr;
    switch (in.op) {
      case ADD: OUT(a[l] + b[l]); break;
      case SUB: OUT(a[l] - b[l]); break;
      case MUL:
      case MAD: {
        if (in.op == MAD) c = A(2);
        if (!(in.mode & 32)) {
          if (c)
            OUT((U)a[l] * (U)b[l] + (U)c[l]);
          else
            OUT((U)a[l] * (U)b[l]);
          break;
        }
        typedef typename std::conditional<std::is_signed<T>::value, s128, u128>::type W;
        EACH(U hi = (U)(((W)(T)a[l] * (W)(T)b[l]) >> (8 * sizeof(T))); d[l] = (R)(U)(hi + (c ? (U)c[l] : 0)));
        break;
      }
      case DIV: OUT(divide<T>((T)a[l], (T)b[l])); break;
      case REM: OUT(remainder_<T>((T)a[l], (T)b[l])); break;
      case MIN: OUT((T)a[l] < (T)b[l] ? a[l] : b[l]); break;
      case MAX: OUT((T)a[l] > (T)b[l] ? a[l] : b[l]); break;
      case ABS: OUT((T)a[l] < 0 ? 0 - (U)a[l] : a[l]); break;
      case NEG: OUT(0 - (U)a[l]); break;
      case AND: OUT(a[l] & b[l]); break;
      case OR: OUT(a[l] | b[l]); break;
      case XOR: OUT(a[l] ^ b[l]); break;
      case NOT: OUT(~a[l]); break;
      case CNOT: OUT(a[l] == 0); break;
      case SAD:
        c = A(2);
        OUT((U)c[l] + ((T)a[l] < (T)b[l] ? (U)b[l] - (U)a[l] : (U)a[l] - (U)b[l]));
        break;
      case SHL: {
        u32* n = S32(1);
        OUT(n[l] >= 8 * sizeof(T) ? (U)0 : (U)((U)a[l] << n[l]));
        break;
      }
      case SHR: {
        u32* n = S32(1);
        OUT(n[l] >= 8 * sizeof(T) ? (T)((T)a[l] < 0 ? -1 : 0) : (T)((T)a[l] >> n[l]));
        break;
      }
      default: report(UNKNOWN_BEHAVIOUR, in, "integer operation"); dead = true;
    }
#undef OUT
  }
  void floats(Warp& w, const Ins& in, u32 m) {
    float *a = (float*)S32(0), *b = in.s[1] >= 0 ? (float*)S32(1) : nullptr,
          *c = in.s[2] >= 0 ? (float*)S32(2) : nullptr, *d = (float*)D32;
    float ta[32], tb[32], tc[32];
    bool z = in.mode & 1;
    if (z) {
      for (int l = 0; l < 32; ++l) {
        ta[l] = ftz(a[l]);
        if (b) tb[l] = ftz(b[l]);
        if (c) tc[l] = ftz(c[l]);
      }
      a = ta;
      if (b) b = tb;
      if (c) c = tc;
    }
    bool ap = in.mode & 16;
    switch (in.op) {
      case ADD: EACH(d[l] = canon(a[l] + b[l])); break;
      case SUB: EACH(d[l] = canon(a[l] - b[l])); break;
      case MUL: EACH(d[l] = canon(a[l] * b[l])); break;
      case FMA:
      case MAD: EACH(d[l] = canon(__builtin_fmaf(a[l], b[l], c[l]))); break;
      case DIV: EACH(d[l] = canon(a[l] / b[l]); if (ap) d[l] = nudge(d[l], 2)); break;
      case RCP: EACH(d[l] = canon(1.0f / a[l]); if (ap) d[l] = nudge(d[l], 1)); break;
      case SQRT: EACH(d[l] = canon(std::sqrt(a[l])); if (ap) d[l] = nudge(d[l], 1)); break;
      case RSQRT: EACH(d[l] = nudge(canon((float)(1.0 / std::sqrt((double)a[l]))), 2)); break;
      case MIN: EACH(d[l] = minmax(a[l], b[l], false, in.mode & 4)); break;
      case MAX: EACH(d[l] = minmax(a[l], b[l], true, in.mode & 4)); break;
      case ABS: EACH(d[l] = bits_f(f_bits(a[l]) & 0x7fffffff)); break;
      case NEG: EACH(d[l] = bits_f(f_bits(a[l]) ^ 0x80000000)); break;
      case COPYSIGN: EACH(d[l] = bits_f((f_bits(b[l]) & 0x7fffffff) | (f_bits(a[l]) & 0x80000000))); break;
      case EX2: EACH(d[l] = nudge(canon((float)std::exp2((double)a[l])), 2)); break;
      case LG2: EACH(d[l] = nudge(canon((float)std::log2((double)a[l])), 1)); break;
      case SIN: EACH(d[l] = canon((float)std::sin((double)a[l]))); break;
      case COS: EACH(d[l] = canon((float)std::cos((double)a[l]))); break;
      case TANH: EACH(d[l] = nudge(canon((float)std::tanh((double)a[l])), 2)); break;
      default: report(UNKNOWN_BEHAVIOUR, in, "f32 operation"); dead = true;
    }
    if (z) EACH(d[l] = ftz(d[l]));
    if (in.mode & 2) EACH(d[l] = d[l] != d[l] ? 0.0f : std::min(std::max(d[l], 0.0f), 1.0f));
  }
  void doubles(Warp& w, const Ins& in, u32 m) {
    double *a = (double*)S64(0), *b = in.s[1] >= 0 ? (double*)S64(1) : nullptr,
           *c = in.s[2] >= 0 ? (double*)S64(2) : nullptr, *d = (double*)D64;
    switch (in.op) {
      case ADD: EACH(d[l] = canon(a[l] + b[l])); break;
      case SUB: EACH(d[l] = canon(a[l] - b[l])); break;
      case MUL: EACH(d[l] = canon(a[l] * b[l])); break;
      case FMA:
      case MAD: EACH(d[l] = canon(__builtin_fma(a[l], b[l], c[l]))); break;
      case DIV: EACH(d[l] = canon(a[l] / b[l])); break;
      case RCP: EACH(d[l] = canon(1.0 / a[l])); break;
      case SQRT: EACH(d[l] = canon(std::sqrt(a[l]))); break;
      case RSQRT: EACH(d[l] = canon(1.0 / std::sqrt(a[l]))); break;
      case MIN: EACH(d[l] = minmax(a[l], b[l], false, false)); break;
      case MAX: EACH(d[l] = minmax(a[l], b[l], true, false)); break;
      case ABS: EACH(d[l] = bits_d(d_bits(a[l]) & ~(1ull << 63))); break;
      case NEG: EACH(d[l] = bits_d(d_bits(a[l]) ^ (1ull << 63))); break;
      case COPYSIGN: EACH(d[l] = bits_d((d_bits(b[l]) & ~(1ull << 63)) | (d_bits(a[l]) & (1ull << 63)))); break;
      default: report(UNKNOWN_BEHAVIOUR, in, "f64 operation"); dead = true;
    }
  }
  u16 half_op(const Ins& in, bool bf, u16 x, u16 y, u16 z) {
    auto F = [&](u16 h) { return (double)(bf ? bf_f(h) : half_f(h)); };
    double a = F(x), b = F(y), c = F(z), r;
    switch (in.op) {
      case ADD: r = a + b; break;
      case SUB: r = a - b; break;
      case MUL: r = a * b; break;
      case FMA: r = __builtin_fma(a, b, c); break;
      case MIN:
      case MAX: {
        float v = minmax((float)a, (float)b, in.op == MAX, in.mode & 4);
        return bf ? f_bf(v) : f_half(v);
      }
      case ABS: return x & 0x7fff;
      case NEG: return x ^ 0x8000;
      case EX2: r = nudge((float)std::exp2(a), 1); break;
      case TANH: r = std::tanh(a); break;
      default:
        report(UNKNOWN_BEHAVIOUR, in, "half operation");
        dead = true;
        return 0;
    }
    if ((in.mode & 8) && !(r > 0)) r = r != r ? r : 0;
    if ((in.mode & 2)) r = r != r ? 0 : std::min(std::max(r, 0.0), 1.0);
    return bf ? d_bf(r) : d_half(r);
  }
  void pairs(Warp& w, const Ins& in, u32 m) {  // f32x2
    u64 *a = S64(0), *b = in.s[1] >= 0 ? S64(1) : a, *c = in.s[2] >= 0 ? S64(2) : a, *d = D64;
    bool z = in.mode & 1;
    auto one = [&](u32 x, u32 y, u32 v) -> u64 {
      float f = bits_f(x), g = bits_f(y), h = bits_f(v), r;
      if (z) f = ftz(f), g = ftz(g), h = ftz(h);
      switch (in.op) {
        case ADD: r = f + g; break;
        case SUB: r = f - g; break;
        case MUL: r = f * g; break;
        case FMA: r = __builtin_fmaf(f, g, h); break;
        default:
          report(UNKNOWN_BEHAVIOUR, in, "f32x2 operation");
          dead = true;
          return 0;
      }
      r = canon(r);
      return f_bits(z ? ftz(r) : r);
    };
    EACH(u64 lo = one((u32)a[l], (u32)b[l], (u32)c[l]);
         u64 hi = one((u32)(a[l] >> 32), (u32)(b[l] >> 32), (u32)(c[l] >> 32)); d[l] = lo | hi << 32);
  }
  void halves(Warp& w, const Ins& in, u32 m, bool bf, bool two) {
    u32 *a = S32(0), *b = in.s[1] >= 0 ? S32(1) : a, *c = in.s[2] >= 0 ? S32(2) : a, *d = D32;
    EACH(u32 lo = half_op(in, bf, (u16)a[l], (u16)b[l], (u16)c[l]);
         u32 hi = two ? half_op(in, bf, (u16)(a[l] >> 16), (u16)(b[l] >> 16), (u16)(c[l] >> 16)) : 0;
         d[l] = lo | hi << 16);
  }
  void arithmetic(Warp& w, const Ins& in, u32 m) {
    switch (in.type) {
      case U8:
      case U16: integers<u16>(w, in, m); break;
      case S8:
      case S16: integers<s16>(w, in, m); break;
      case U32: integers<u32>(w, in, m); break;
      case S32: integers<s32>(w, in, m); break;
      case U64: integers<u64>(w, in, m); break;
      case S64: integers<s64>(w, in, m); break;
      case F32: floats(w, in, m); break;
      case F64: doubles(w, in, m); break;
      case F32X2: pairs(w, in, m); break;
      case F16: halves(w, in, m, false, false); break;
      case BF16: halves(w, in, m, true, false); break;
      case F16X2: halves(w, in, m, false, true); break;
      case BF16X2: halves(w, in, m, true, true); break;
      case PRED: {
        u32 &d = w.pr[in.d[0] >> 3], r = 0, a = predicate(w, in.s[0]), b = in.s[1] >= 0 ? predicate(w, in.s[1]) : 0;
        switch (in.op) {
          case AND: r = a & b; break;
          case OR: r = a | b; break;
          case XOR: r = a ^ b; break;
          case NOT: r = ~a; break;
          default: report(UNKNOWN_BEHAVIOUR, in, "predicate operation"); dead = true;
        }
        d = (d & ~m) | (r & m);
        break;
      }
      default: report(UNKNOWN_BEHAVIOUR, in, "type"); dead = true;
    }
  }
  u32 predicate(Warp& w, int code) { return (code & 7) == 2 ? w.pr[code >> 3] : (P.c32[(code >> 3) * 32] ? FULL : 0); }

  template <class T>
  static bool compare(int c, T a, T b) {
    switch (c) {
      case 0: return a == b;
      case 1: return a != b;
      case 2:
      case 6: return a < b;
      case 3:
      case 7: return a <= b;
      case 4:
      case 8: return a > b;
      case 5:
      case 9: return a >= b;
    }
    return false;
  }
  template <class T>
  static bool compare_float(int c, T a, T b) {
    bool nan = a != a || b != b;
    if (c == 16) return !nan;
    if (c == 17) return nan;
    if (c == 1) return !nan && a != b;  // ne is ordered
    if (c < 10) return compare<T>(c, a, b);
    return nan || compare<T>(c - 10, a, b);
  }
  void setp(Warp& w, const Ins& in, u32 m) {
    u32 r = 0;
    int c = in.mode;
    switch (in.type) {
#define CMP(T, K)                                                                \
  {                                                                              \
    auto a = K(0);                                                               \
    auto b = K(1);                                                               \
    for (int l = 0; l < 32; ++l) r |= (u32)compare<T>(c, (T)a[l], (T)b[l]) << l; \
    break;                                                                       \
  }
      case U8:
      case U16: CMP(u16, S32) case S8:
      case S16:
      CMP(s16, S32) case U32:
      CMP(u32, S32) case S32:
        CMP(s32, S32)
      case U64: CMP(u64, S64) case S64: CMP(s64, S64)
      case F32: {
        float *a = (float*)S32(0), *b = (float*)S32(1);
        bool z = in.mode2 & 16;
        for (int l = 0; l < 32; ++l) r |= (u32)compare_float<float>(c, z ? ftz(a[l]) : a[l], z ? ftz(b[l]) : b[l]) << l;
        break;
      }
      case F64: {
        double *a = (double*)S64(0), *b = (double*)S64(1);
        for (int l = 0; l < 32; ++l) r |= (u32)compare_float<double>(c, a[l], b[l]) << l;
        break;
      }
      case F16: {
        u32 *a = S32(0), *b = S32(1);
        for (int l = 0; l < 32; ++l) r |= (u32)compare_float<float>(c, half_f((u16)a[l]), half_f((u16)b[l])) << l;
        break;
      }
      case BF16: {
        u32 *a = S32(0), *b = S32(1);
        for (int l = 0; l < 32; ++l) r |= (u32)compare_float<float>(c, bf_f((u16)a[l]), bf_f((u16)b[l])) << l;
        break;
      }
      default: report(UNKNOWN_BEHAVIOUR, in, "setp type"); dead = true;
    }
    u32 q = ~r;
    if (int b = in.mode2 & 3) {
      u32 p = predicate(w, in.s[2]);
      if (in.mode2 & 4) p = ~p;
      r = b == 1 ? r & p : b == 2 ? r | p : r ^ p;
      q = b == 1 ? q & p : b == 2 ? q | p : q ^ p;
    }
    if (in.d[0] >= 0) {
      u32& d = w.pr[in.d[0] >> 3];
      d = (d & ~m) | (r & m);
    }
    if (in.d[1] >= 0) {
      u32& d = w.pr[in.d[1] >> 3];
      d = (d & ~m) | (q & m);
    }
  }
  static bool is_float(int t) { return t == F16 || t == BF16 || t == F32 || t == F64; }
  void cvt(Warp& w, const Ins& in, u32 m) {
    int ts = in.type2, td = in.type, round = in.mode & 7;
    bool sat = in.mode & 8, z = in.mode & 32, integral = in.mode & 256;
    bool swide = type_size[ts] == 8;
    u64* s64p = swide ? S64(0) : nullptr;
    u32* s32p = swide ? nullptr : S32(0);
    bool dwide = (in.d[0] & 7) == 1;
    u64* d64 = w.r64 + (in.d[0] >> 3) * 32;
    u32* d32 = w.r32 + (in.d[0] >> 3) * 32;
    if (ts == BF16 && td == F32) {
      EACH(d32[l] = s32p[l] << 16);
      return;
    }
    if (ts == F32 && td == BF16 && round == 1 && !(in.mode & (16 | 64))) {
      EACH(d32[l] = f_bf(bits_f(s32p[l])));
      return;
    }
    for (int l = 0; l < 32; ++l) {
      if (!(m >> l & 1)) continue;
      u64 raw = swide ? s64p[l] : s32p[l], out = 0;
      if (is_float(ts)) {
        double v = ts == F64   ? bits_d(raw)
                   : ts == F32 ? bits_f((u32)raw)
                   : ts == F16 ? half_f((u16)raw)
                               : bf_f((u16)raw);
        if (z && ts == F32) v = ftz((float)v);
        if (integral)
          v = round == 1 ? std::nearbyint(v) : round == 2 ? std::trunc(v) : round == 3 ? std::floor(v) : std::ceil(v);
        if (is_float(td)) {
          if (in.mode & 64) v = v != v ? v : std::max(v, 0.0);
          if (sat) v = v != v ? 0 : std::min(std::max(v, 0.0), 1.0);
          bool rz = round == 2 && !integral;
          if (td == F64)
            out = d_bits(canon(v));
          else if (td == F32) {
            float f = (float)v;
            if (rz && std::fabs((double)f) > std::fabs(v)) f = std::nextafterf(f, 0.0f);
            if (z) f = ftz(f);
            out = f_bits(canon(f));
          } else if (td == BF16) {
            out = rz ? f_bf_rz(d_odd(v)) : d_bf(v);
            if ((in.mode & 16) && (out & 0x7fff) == 0x7f80) out = (out & 0x8000) | 0x7f7f;
          } else {
            out = d_half(v);
            if (rz && std::fabs((double)half_f((u16)out)) > std::fabs(v)) out -= 1;
            if ((in.mode & 16) && (out & 0x7fff) == 0x7c00) out = (out & 0x8000) | 0x7bff;
          }
        } else {
          int bits = 8 * type_size[td];
          bool sg = td == S8 || td == S16 || td == S32 || td == S64;
          if (!integral) v = std::trunc(v);
          double lo = sg ? -std::ldexp(1.0, bits - 1) : 0, hi = std::ldexp(1.0, sg ? bits - 1 : bits);
          if (v != v)
            out = bits == 64 ? 1ull << 63 : 0;
          else if (v < lo)
            out = sg ? 1ull << (bits - 1) : 0;
          else if (v >= hi)
            out = sg ? (1ull << (bits - 1)) - 1 : bits == 64 ? ~0ull : (1ull << bits) - 1;
          else
            out = v < 0 ? (u64)(s64)v : (u64)v;
        }
      } else {
        s128 v;
        switch (ts) {
          case U8: v = (u8)raw; break;
          case S8: v = (s8)raw; break;
          case U16: v = (u16)raw; break;
          case S16: v = (s16)raw; break;
          case U32: v = (u32)raw; break;
          case S32: v = (s32)raw; break;
          case U64: v = (u64)raw; break;
          default: v = (s64)raw;
        }
        if (is_float(td)) {
          if (td == F64) {
            double f = (ts == U64) ? (double)(u64)v : (double)(s64)v;
            if (round == 2) f = v == (s128)f ? f : toward_zero(v);
            out = d_bits(f);
          } else if (td == F32) {
            float f = (ts == U64) ? (float)(u64)v : (float)(s64)v;
            if (round == 2 && std::fabs((double)f) > std::fabs((double)v)) f = std::nextafterf(f, 0.0f);
            out = f_bits(f);
          } else {
            double f = (double)(s64)v;
            if (ts == U64) f = (double)(u64)v;
            out = td == BF16 ? d_bf(f) : d_half(f);
          }
        } else {
          int bits = 8 * type_size[td];
          bool sg = td == S8 || td == S16 || td == S32 || td == S64;
          if (sat) {
            s128 lo = sg ? -((s128)1 << (bits - 1)) : 0, hi = ((s128)1 << (sg ? bits - 1 : bits)) - 1;
            v = v < lo ? lo : v > hi ? hi : v;
          }
          out = (u64)v;
          if (bits < 64) {
            out &= (1ull << bits) - 1;
            if (sg && (out >> (bits - 1) & 1)) out |= ~0ull << bits;
          }
        }
      }
      if (dwide)
        d64[l] = out;
      else
        d32[l] = type_size[td] <= 2 && !is_float(td) && td != S8 && td != S16 ? (u32)(u16)out
                 : type_size[td] == 2                                         ? (u32)(u16)out
                 : type_size[td] == 1                                         ? (u32)(u16)out
                                                                              : (u32)out;
    }
  }
  static double toward_zero(s128 v) {
    double f = (double)v;
    return std::fabs(f) > std::fabs((double)v) ? std::nextafter(f, 0.0) : f;
  }
  void cvt_pack(Warp& w, const Ins& in, u32 m) {
    u32* d = D32;
    bool bf = in.type == BF16X2, rz = (in.mode & 7) == 2;
    u32 *a = S32(0), *b = in.s[1] >= 0 ? S32(1) : nullptr;
    if (in.type2 != F32 || !b) {
      report(UNKNOWN_BEHAVIOUR, in, "conversion");
      dead = true;
      return;
    }
    auto one = [&](u32 x) -> u32 {
      float v = bits_f(x);
      if ((in.mode & 64) && !(v > 0) && v == v) v = 0;
      if (bf) return rz ? f_bf_rz(v) : f_bf(v);
      u16 h = f_half(v);
      if (rz && std::fabs(half_f(h)) > std::fabs(v)) h -= 1;
      return h;
    };
    EACH(d[l] = one(a[l]) << 16 | one(b[l]));
  }
  void shuffle(Warp& w, const Ins& in, u32 m) {
    u32 *a = S32(0), *b = S32(1), *c = S32(2), *mm = S32(3), out[32];
    u32 pred = 0;
    for (int l = 0; l < 32; ++l) {
      if (!(m >> l & 1)) continue;
      if (!(mm[l] >> l & 1) || (mm[l] & w.alive & ~m))
        report(SHUFFLE, in, "lanes 0x%x shuffle with mask 0x%x", m, mm[l]);
      int seg = c[l] >> 8 & 31, clamp = c[l] & 31, n = b[l] & 31, j;
      bool ok;
      int hi = (l & seg) | (clamp & ~seg), lo = l & seg;
      switch (in.mode) {
        case 0:
          j = l - n;
          ok = j >= hi;
          break;
        case 1:
          j = l + n;
          ok = j <= hi;
          break;
        case 2:
          j = l ^ n;
          ok = j <= hi;
          break;
        default: j = lo | (n & ~seg); ok = j <= hi;
      }
      if (!ok) j = l;
      if (!(m >> (j & 31) & 1)) report(SHUFFLE, in, "lane %d reads from lane %d, which is not active", l, j);
      out[l] = a[j & 31];
      pred |= (u32)ok << l;
    }
    if (in.d[0] >= 0) {
      u32* d = D32;
      EACH(d[l] = out[l]);
    }
    if (in.d[1] >= 0) {
      u32& d = w.pr[in.d[1] >> 3];
      d = (d & ~m) | (pred & m);
    }
  }

  // ------------------------------------------------------------------------------------------------------------ a warp
  // Runs at most `quantum` instructions of a warp, fewer if it has to wait or exits.
  void run(Warp& w, int quantum) {
    u32 pc = 0, mask = 0, next = NOWHERE;
    auto pick = [&]() {
      u32 ready = w.alive & ~w.waiting;
      pc = NOWHERE;
      next = NOWHERE;
      mask = 0;
      for (u32 r = ready; r; r &= r - 1) {
        u32 p = w.lpc[__builtin_ctz(r)];
        if (p < pc) pc = p;
      }
      for (u32 r = ready; r; r &= r - 1) {
        int l = __builtin_ctz(r);
        if (w.lpc[l] == pc)
          mask |= 1u << l;
        else if (w.lpc[l] < next)
          next = w.lpc[l];
      }
    };
    auto keep = [&]() {
      for (u32 r = mask; r; r &= r - 1) w.lpc[__builtin_ctz(r)] = pc;
    };
    pick();
    while (quantum-- > 0 && mask && !dead) {
      const Ins& in = P.code[pc];
      u32 m = mask;
      if (in.guard >= 0) {
        u32 p = w.pr[in.guard >> 1];
        m &= in.guard & 1 ? ~p : p;
      }
      ++steps;
      counts.cls[P.cls[pc]]++;
      counts.lanes += __builtin_popcount(m);
      line_counts[pc]++;
      if (steps > 4000000000ull) {
        report(DEADLOCK, in, "four billion instructions: an endless loop?");
        dead = true;
      }
      u32 at = pc++;
      if (!m && in.op != BRA && in.op != EXIT && in.op != BAR_SYNC && in.op != CLUSTER_WAIT &&
          in.op != CLUSTER_ARRIVE) {
        if (pc >= next) {
          keep();
          pick();
        }
        continue;
      }
      switch (in.op) {
        case BRA: {
          if (m == mask)
            pc = in.target;
          else if (m) {
            for (u32 r = mask; r; r &= r - 1) {
              int l = __builtin_ctz(r);
              w.lpc[l] = m >> l & 1 ? (u32)in.target : pc;
            }
            pick();
            continue;
          }
          break;
        }
        case EXIT: {
          if (!m) break;
          keep();
          leave(w, m);
          pick();
          continue;
        }
        case BAR_SYNC:
        case BAR_ARRIVE: {
          if (in.mode && m != w.alive)
            report(BARRIER, in, "divergent barrier: lanes 0x%x of 0x%x of warp %d", m, w.alive, w.index);
          if (!m) break;
          u32 id = S32(0)[__builtin_ctz(m)] & 15, need = in.s[1] >= 0 ? S32(1)[__builtin_ctz(m)] : 0;
          Bar& b = w.cta->bars[id];
          if (b.arrived && b.expected != need)
            report(BARRIER, in, "barrier %u is waited for with different numbers of threads", id);
          b.expected = need;
          b.arrived += __builtin_popcount(m);
          join(b.vc, w.vc);
          b.vc[w.in_cluster] = w.clk + 1;
          tick(w);
          if (in.op == BAR_SYNC) {
            keep();
            b.waiters.push_back({&w, m});
            w.waiting |= m;
          }
          check_bars(*w.cta);
          if (in.op == BAR_SYNC) {
            pick();
            continue;
          }
          break;
        }
        case BAR_WARP: {
          u32 mm = S32(0)[__builtin_ctz(m)];
          if ((mm & w.alive) != m) report(BARRIER, in, "bar.warp.sync with mask 0x%x by lanes 0x%x", mm, m);
          tick(w);
          break;
        }
        case CLUSTER_ARRIVE: {
          Cluster& cl = *w.cta->cluster;
          if (m != w.alive) report(BARRIER, in, "divergent cluster barrier: lanes 0x%x of 0x%x", m, w.alive);
          if (!m) break;
          if (w.cl_pending) report(BARRIER, in, "a second arrival at the cluster barrier without a wait");
          w.cl_pending = true;
          w.cl_arrived = cl.phase;
          if (!in.mode2) {
            join(cl.acc, w.vc);
            cl.acc[w.in_cluster] = w.clk + 1;
          } else if (w.has_fence)
            join(cl.acc, w.fence_vc);
          tick(w);
          cl.arrived += __builtin_popcount(m);
          check_cluster(cl);
          break;
        }
        case CLUSTER_WAIT: {
          Cluster& cl = *w.cta->cluster;
          if (m != w.alive) report(BARRIER, in, "divergent cluster barrier: lanes 0x%x of 0x%x", m, w.alive);
          if (!m) break;
          if (!w.cl_pending) {
            report(BARRIER, in, "a wait for the cluster barrier without an arrival");
            break;
          }
          if (w.cl_arrived < cl.phase) {
            w.cl_pending = false;
            join(w.vc, cl.done);
            break;
          }
          keep();
          w.waiting = w.alive;
          cl.waiters.push_back(&w);
          pick();
          continue;
        }
        case FENCE:
          w.fence_vc = w.vc;
          w.fence_vc[w.in_cluster] = w.clk + 1;
          w.has_fence = true;
          tick(w);
          break;
        case TRAP:
          report(TRAPPED, in, "by %s", who(thread_of(w, __builtin_ctz(m))).c_str());
          dead = true;
          break;
        case NOP: break;
        case CP_ASYNC: copy_async(w, in, m); break;
        case LD: memory(w, in, m, false); break;
        case ST: memory(w, in, m, true); break;
        case ATOM: atomic(w, in, m); break;
        case LDMATRIX: matrix(w, in, m, false); break;
        case STMATRIX: matrix(w, in, m, true); break;
        case LD_PARAM: {
          int size = type_size[in.type];
          for (int k = 0; k < in.mode2; ++k)
            for (int l = 0; l < 32; ++l)
              if (m >> l & 1) put(w, in.d[k], l, in.type, params.data() + in.mode + k * size);
          break;
        }
        case MOV:
          if (type_size[in.type] == 8) {
            u64 *a = S64(0), *d = D64;
            EACH(d[l] = a[l]);
          } else {
            u32 *a = S32(0), *d = D32;
            EACH(d[l] = a[l]);
          }
          break;
        case MOVP: {
          u32& d = w.pr[in.d[0] >> 3];
          d = (d & ~m) | (SP(0) & m);
          break;
        }
        case MOVP_IMM: {
          u32& d = w.pr[in.d[0] >> 3];
          d = in.mode ? d | m : d & ~m;
          break;
        }
        case PACK: {
          int n = in.mode, bits = 8 * type_size[in.type] / n;
          bool wide = type_size[in.type] == 8;
          u64 o[32] = {};
          for (int k = 0; k < n; ++k) {
            u32* a = S32(k);
            for (int l = 0; l < 32; ++l) o[l] |= (u64)(a[l] & (u32)((1ull << bits) - 1)) << (bits * k);
          }
          if (wide) {
            u64* d = D64;
            EACH(d[l] = o[l]);
          } else {
            u32* d = D32;
            EACH(d[l] = (u32)o[l]);
          }
          break;
        }
        case UNPACK: {
          int n = in.mode, bits = 8 * type_size[in.type] / n;
          bool wide = type_size[in.type] == 8;
          u64 o[32];
          if (wide) {
            u64* a = S64(0);
            for (int l = 0; l < 32; ++l) o[l] = a[l];
          } else {
            u32* a = S32(0);
            for (int l = 0; l < 32; ++l) o[l] = a[l];
          }
          for (int k = 0; k < n; ++k) {
            if (in.d[k] < 0) continue;
            u32* d = w.r32 + (in.d[k] >> 3) * 32;
            EACH(d[l] = (u32)(o[l] >> (bits * k)) & (u32)((1ull << bits) - 1));
          }
          break;
        }
        case CVTA:
        case CVTA_TO: {
          u64 *a = S64(0), *d = D64, base = in.mode == 1 ? SHARED_WINDOW : in.mode == 2 ? LOCAL_WINDOW : 0;
          if (in.op == CVTA)
            EACH(d[l] = a[l] + base);
          else
            EACH(d[l] = a[l] - base);
          break;
        }
        case MAPA: {
          u32* r = S32(1);
          EACH(if (r[l] >= cluster) report(OUT_OF_BOUNDS, in, "mapa to rank %u of %u", r[l], cluster));
          if (type_size[in.type] == 8) {
            u64 *a = S64(0), *d = D64;
            EACH(d[l] = (a[l] & ~0xff000000ull) | (u64)(r[l] + 1) << 24);
          } else {
            u32 *a = S32(0), *d = D32;
            EACH(d[l] = (a[l] & 0xffffff) | (r[l] + 1) << 24);
          }
          break;
        }
        case GETCTARANK: {
          u32 *a = S32(0), *d = D32;
          EACH(d[l] = a[l] >> 24 ? (a[l] >> 24) - 1 : w.cta->rank);
          break;
        }
        case SHFL: shuffle(w, in, m); break;
        case VOTE: {
          u32 p = predicate(w, in.s[0]);
          if (in.mode2) p = ~p;
          u32 mm = S32(1)[__builtin_ctz(m)];
          if ((mm & w.alive) != m) report(SHUFFLE, in, "vote with mask 0x%x by lanes 0x%x", mm, m);
          p &= m;
          if (in.mode == 0) {
            u32* d = D32;
            EACH(d[l] = p);
          } else {
            bool r = in.mode == 1 ? p != 0 : in.mode == 2 ? p == m : p == m || p == 0;
            u32& d = w.pr[in.d[0] >> 3];
            d = r ? d | m : d & ~m;
          }
          break;
        }
        case ACTIVEMASK: {
          u32* d = D32;
          EACH(d[l] = m);
          break;
        }
        case ELECT: {
          u32 mm = S32(0)[__builtin_ctz(m)] & m, leader = mm ? __builtin_ctz(mm) : 0;
          if (in.d[0] >= 0) {
            u32* d = D32;
            EACH(d[l] = leader);
          }
          if (in.d[1] >= 0) {
            u32& d = w.pr[in.d[1] >> 3];
            d = (d & ~m) | (1u << leader);
          }
          break;
        }
        case REDUX: {
          u32 *a = S32(0), r = 0;
          bool first = true;
          for (int l = 0; l < 32; ++l)
            if (m >> l & 1) {
              if (first) {
                r = a[l];
                first = false;
                continue;
              }
              switch (in.mode) {
                case 0: r += a[l]; break;
                case 1: r = in.type == S32 ? (u32)std::min((s32)r, (s32)a[l]) : std::min(r, a[l]); break;
                case 2: r = in.type == S32 ? (u32)std::max((s32)r, (s32)a[l]) : std::max(r, a[l]); break;
                case 3: r &= a[l]; break;
                case 4: r |= a[l]; break;
                default: r ^= a[l];
              }
            }
          u32* d = D32;
          EACH(d[l] = r);
          break;
        }
        case SETP: setp(w, in, m); break;
        case SELP: {
          u32 p = predicate(w, in.s[2]);
          if (type_size[in.type] == 8) {
            u64 *a = S64(0), *b = S64(1), *d = D64;
            EACH(d[l] = p >> l & 1 ? a[l] : b[l]);
          } else {
            u32 *a = S32(0), *b = S32(1), *d = D32;
            EACH(d[l] = p >> l & 1 ? a[l] : b[l]);
          }
          break;
        }
        case SLCT: {
          u32 p = 0;
          if (in.type2 == F32) {
            float* c = (float*)S32(2);
            for (int l = 0; l < 32; ++l) p |= (u32)(c[l] >= 0) << l;
          } else {
            u32* c = S32(2);
            for (int l = 0; l < 32; ++l) p |= (u32)((s32)c[l] >= 0) << l;
          }
          if (type_size[in.type] == 8) {
            u64 *a = S64(0), *b = S64(1), *d = D64;
            EACH(d[l] = p >> l & 1 ? a[l] : b[l]);
          } else {
            u32 *a = S32(0), *b = S32(1), *d = D32;
            EACH(d[l] = p >> l & 1 ? a[l] : b[l]);
          }
          break;
        }
        case LOP3: {
          u32 *a = S32(0), *b = S32(1), *c = S32(2), *d = D32, t = in.mode;
          EACH(u32 r = 0; for (int k = 0; k < 8; ++k) if (t >> k & 1) r |=
                          (k & 4 ? a[l] : ~a[l]) & (k & 2 ? b[l] : ~b[l]) & (k & 1 ? c[l] : ~c[l]);
               d[l] = r);
          break;
        }
        case PRMT: {
          u32 *a = S32(0), *b = S32(1), *c = S32(2), *d = D32;
          EACH(u64 v = a[l] | (u64)b[l] << 32; u32 r = 0; for (int k = 0; k < 4; ++k) {
            u32 s = c[l] >> (4 * k) & 15;
            u32 x = (u32)(v >> (8 * (s & 7))) & 255;
            if (s & 8) x = x & 128 ? 255 : 0;
            r |= x << (8 * k);
          } d[l] = r);
          break;
        }
        case SHF: {
          u32 *a = S32(0), *b = S32(1), *c = S32(2), *d = D32;
          EACH(u32 n = in.mode2 ? c[l] & 31 : std::min(c[l], 32u); u64 v = a[l] | (u64)b[l] << 32;
               d[l] = in.mode ? (u32)(v >> n) : (u32)(v << n >> 32));
          break;
        }
        case BFE: {
          u32 *p = S32(1), *q = S32(2);
          auto f = [&](u64 a, u32 pos, u32 len, int bits, bool sg) -> u64 {
            pos &= 255;
            len &= 255;
            u64 sb = sg && len ? (a >> std::min<u32>(pos + len - 1, bits - 1)) & 1 : 0, r = 0;
            for (int i = 0; i < bits; ++i) {
              u64 bit = i < (int)len && pos + i < (u32)bits ? a >> (pos + i) & 1 : sb;
              r |= bit << i;
            }
            return r;
          };
          if (type_size[in.type] == 8) {
            u64 *a = S64(0), *d = D64;
            EACH(d[l] = f(a[l], p[l], q[l], 64, in.type == S64));
          } else {
            u32 *a = S32(0), *d = D32;
            EACH(d[l] = (u32)f(a[l], p[l], q[l], 32, in.type == S32));
          }
          break;
        }
        case BFI: {
          u32 *p = S32(2), *q = S32(3);
          auto f = [&](u64 a, u64 b, u32 pos, u32 len, int bits) {
            pos &= 255;
            len &= 255;
            for (u32 i = 0; i < len && pos + i < (u32)bits; ++i) {
              b &= ~(1ull << (pos + i));
              b |= (a >> i & 1) << (pos + i);
            }
            return b;
          };
          if (type_size[in.type] == 8) {
            u64 *a = S64(0), *b = S64(1), *d = D64;
            EACH(d[l] = f(a[l], b[l], p[l], q[l], 64));
          } else {
            u32 *a = S32(0), *b = S32(1), *d = D32;
            EACH(d[l] = (u32)f(a[l], b[l], p[l], q[l], 32));
          }
          break;
        }
        case POPC:
          if (type_size[in.type] == 8) {
            u64* a = S64(0);
            u32* d = D32;
            EACH(d[l] = __builtin_popcountll(a[l]));
          } else {
            u32 *a = S32(0), *d = D32;
            EACH(d[l] = __builtin_popcount(a[l]));
          }
          break;
        case CLZ:
          if (type_size[in.type] == 8) {
            u64* a = S64(0);
            u32* d = D32;
            EACH(d[l] = a[l] ? __builtin_clzll(a[l]) : 64);
          } else {
            u32 *a = S32(0), *d = D32;
            EACH(d[l] = a[l] ? __builtin_clz(a[l]) : 32);
          }
          break;
        case BREV:
          if (type_size[in.type] == 8) {
            u64 *a = S64(0), *d = D64;
            EACH(u64 r = 0; for (int k = 0; k < 64; ++k) r |= (a[l] >> k & 1) << (63 - k); d[l] = r);
          } else {
            u32 *a = S32(0), *d = D32;
            EACH(u32 r = 0; for (int k = 0; k < 32; ++k) r |= (a[l] >> k & 1) << (31 - k); d[l] = r);
          }
          break;
        case BFIND: {
          u32* d = D32;
          bool wide = type_size[in.type] == 8;
          EACH(u64 v = wide ? S64(0)[l] : S32(0)[l]; if (in.type == S32 && (s32)v < 0) v = (u32)~v;
               if (in.type == S64 && (s64)v < 0) v = ~v; u32 r = v ? 63 - __builtin_clzll(v) : 0xffffffffu;
               if (in.mode && v) r = (wide ? 63 : 31) - r; d[l] = r);
          break;
        }
        case CVT: cvt(w, in, m); break;
        case CVT_PACK: cvt_pack(w, in, m); break;
        case MUL_WIDE:
        case MAD_WIDE: {
          auto wide = [&](int l, u32 x, u32 y) -> u64 {
            switch (in.type) {
              case U16: return (u64)(u16)x * (u16)y;
              case S16: return (u64)((s64)(s16)x * (s16)y);
              case U32: return (u64)x * y;
              default: return (u64)((s64)(s32)x * (s32)y);
            }
          };
          u32 *a = S32(0), *b = S32(1);
          if (in.type == U16 || in.type == S16) {
            u32 *c = in.op == MAD_WIDE ? S32(2) : nullptr, *d = D32;
            EACH(d[l] = (u32)wide(l, a[l], b[l]) + (c ? c[l] : 0));
          } else {
            u64 *c = in.op == MAD_WIDE ? S64(2) : nullptr, *d = D64;
            EACH(d[l] = wide(l, a[l], b[l]) + (c ? c[l] : 0));
          }
          break;
        }
        case CARRY: {  // mode: add, sub, mad.lo, mad.hi; mode2: 1 takes the carry, 2 leaves one
          u32 out = 0, cin = in.mode2 & 1 ? w.carry : 0;
          auto f = [&](int l, u128 a, u128 b, u128 c, int bits) -> u64 {
            u128 full = ((u128)1 << bits) - 1, r;
            u32 k = cin >> l & 1;
            if (in.mode == 0)
              r = a + b + k;
            else if (in.mode == 1) {
              r = a - b - k;
              out |= (u32)(a < b + k) << l;
              return (u64)(r & full);
            } else {
              u128 p = a * b;
              r = (in.mode == 2 ? p & full : p >> bits) + c + k;
            }
            out |= (u32)(r >> bits != 0) << l;
            return (u64)(r & full);
          };
          if (type_size[in.type] == 8) {
            u64 *a = S64(0), *b = S64(1), *c = in.s[2] >= 0 ? S64(2) : nullptr, *d = D64;
            EACH(d[l] = f(l, a[l], b[l], c ? c[l] : 0, 64));
          } else {
            u32 *a = S32(0), *b = S32(1), *c = in.s[2] >= 0 ? S32(2) : nullptr, *d = D32;
            EACH(d[l] = (u32)f(l, a[l], b[l], c ? c[l] : 0, 32));
          }
          if (in.mode2 & 2) w.carry = (w.carry & ~m) | (out & m);
          break;
        }
        default: arithmetic(w, in, m);
      }
      (void)at;
      if (pc >= next) {
        keep();
        pick();
      }
    }
    keep();
  }

  // -------------------------------------------------------------------------------------------------------- the launch
  std::unique_ptr<Cluster> start(u64 id) {
    auto cl = std::make_unique<Cluster>();
    int per = block / 32;
    cl->id = id;
    cl->nw = per * cluster;
    u64 bytes = ((u64)P.n32 * 128 + (u64)P.n64 * 256 + (u64)P.np * 4 + 64 + 32ull * P.local + 63) / 64 * 64;
    cl->arena.resize(bytes * cl->nw + 64);
    u8* at = (u8*)(((u64)cl->arena.data() + 63) / 64 * 64);
    cl->ctas.resize(cluster);
    cl->acc.assign(cl->nw, 0);
    cl->done.assign(cl->nw, 0);
    u64 row = grid[0] / cluster, x0 = id % row * cluster, yz = id / row;
    for (u32 r = 0; r < cluster; ++r) {
      Cta& c = cl->ctas[r];
      c.cluster = cl.get();
      c.rank = r;
      c.x = (u32)(x0 + r);
      c.y = (u32)(yz % grid[1]);
      c.z = (u32)(yz / grid[1]);
      c.linear = ((u64)c.z * grid[1] + c.y) * grid[0] + c.x;
      c.smem.assign(smem_bytes, 0xA5);
      c.words.assign((smem_bytes + 3) / 4, Word{});
      c.remote.assign(cl->nw, 0);
      c.warps.resize(per);
      c.alive = block;
      cl->alive += block;
      for (auto& b : c.bars) b.vc.assign(cl->nw, 0);
      for (int k = 0; k < per; ++k) {
        Warp& w = c.warps[k];
        w.cta = &c;
        w.index = k;
        w.in_cluster = r * per + k;
        w.alive = FULL;
        w.waiting = 0;
        w.clk = 1;
        w.vc.assign(cl->nw, 0);
        w.vc[w.in_cluster] = 1;
        memset(w.lpc, 0, sizeof w.lpc);
        w.r64 = (u64*)at;
        at += (u64)P.n64 * 256;
        w.r32 = (u32*)at;
        at += (u64)P.n32 * 128;
        w.local = at;
        at += 32ull * P.local;
        w.pr = (u32*)at;
        at += ((u64)P.np * 4 + 63) / 64 * 64;
        at = (u8*)(((u64)at + 63) / 64 * 64);
        for (int i = 0; i < P.n32 * 32; ++i) w.r32[i] = 0xDEADBEEF;
        for (int i = 0; i < P.n64 * 32; ++i) w.r64[i] = 0xDEADBEEFDEADBEEFull;
      }
    }
    return cl;
  }
  void finish(Cluster& cl) {
    int per = block / 32;
    Ins none{};
    none.line = -1;
    for (Cta& c : cl.ctas) {
      std::vector<u32> known(cl.nw, 0);
      for (Warp& w : c.warps) join(known, w.vc);
      for (int v = 0; v < cl.nw; ++v)
        if (c.remote[v] && v / per != (int)c.rank && c.remote[v] >= known[v])
          report(EXIT_BEFORE_ACCESS, none,
                 "rank %u may exit before warp %d of rank %d has used its shared memory: no barrier between the last "
                 "access and the exit",
                 c.rank, v % per, v / per);
    }
  }
  void go() {
    nclusters = (u64)grid[0] / cluster * grid[1] * grid[2];
    std::vector<u64> order(nclusters);
    for (u64 i = 0; i < nclusters; ++i) order[i] = i;
    if (config.seed)
      for (u64 i = nclusters; i > 1; --i) std::swap(order[i - 1], order[(u64)(rng.next() % i)]);
    if (config.max_clusters > 0 && (u64)config.max_clusters < order.size()) order.resize(config.max_clusters);
    counts.clusters = nclusters;
    counts.clusters_run = order.size();
    counts.ctas = order.size() * cluster;
    counts.warps = counts.ctas * (block / 32);
    std::vector<std::unique_ptr<Cluster>> live;
    size_t given = 0;
    std::vector<Warp*> ready;
    while (!dead) {
      while ((int)live.size() < std::max(1, config.resident) && given < order.size())
        live.push_back(start(order[given++]));
      if (live.empty()) break;
      ready.clear();
      for (auto& cl : live)
        for (auto& c : cl->ctas)
          for (auto& w : c.warps)
            if (w.alive & ~w.waiting) ready.push_back(&w);
      if (ready.empty()) {
        Warp* stuck = nullptr;
        for (auto& cl : live)
          for (auto& c : cl->ctas)
            for (auto& w : c.warps)
              if (w.alive && !stuck) stuck = &w;
        if (stuck) {
          u32 p = stuck->lpc[__builtin_ctz(stuck->alive)];
          report(DEADLOCK, P.code[p ? p - 1 : 0], "no warp can run: warp %d of block %llu waits here", stuck->index,
                 (unsigned long long)stuck->cta->linear);
          dead = true;
          break;
        }
      }
      // some rounds run every ready warp in a random order, others favour one warp for long
      bool skew = config.seed && rng.below(4) == 0;
      if (config.seed)
        for (size_t i = ready.size(); i > 1; --i) std::swap(ready[i - 1], ready[rng.below((u32)i)]);
      if (skew) ready.resize(1 + rng.below((u32)ready.size()));
      for (Warp* w : ready) {
        int q = !config.seed ? 1 << 30 : skew ? 1 << 30 : 1 + (int)rng.below(config.quantum);
        if (w->alive & ~w->waiting) run(*w, q);
        if (dead) break;
      }
      for (size_t i = 0; i < live.size();) {
        if (live[i]->alive == 0) {
          finish(*live[i]);
          live.erase(live.begin() + i);
        } else
          ++i;
      }
    }
    counts.total = steps;
  }
};

// ------------------------------------------------------------------------------------------------------- for Python, C
static Program *pending, *last_program;
static std::vector<Alloc> registered;
static int device_cc = 90, device_sms = 132;
static u8 classify(const Ins& in) {
  switch (in.op) {
    case LD:
    case ST: {
      int sp = in.type2;
      if (sp == 1) return in.op == LD ? K_LD_SHARED : K_ST_SHARED;
      if (sp == 2) return K_CLUSTER_SHARED;
      if (sp == 3) return K_LOCAL;
      return in.op == LD ? K_LD_GLOBAL : K_ST_GLOBAL;
    }
    case CP_ASYNC: return K_LD_GLOBAL;
    case ATOM: return K_ATOM;
    case LDMATRIX:
    case STMATRIX: return K_MATRIX;
    case SHFL:
    case VOTE:
    case REDUX:
    case ELECT: return K_SHFL;
    case BAR_SYNC:
    case BAR_ARRIVE: return K_BAR;
    case BAR_WARP: return K_BAR_WARP;
    case CLUSTER_ARRIVE:
    case CLUSTER_WAIT: return K_CLUSTER_BAR;
    case CVT:
    case CVT_PACK: return K_CVT;
    case MOV:
    case MOVP:
    case MOVP_IMM:
    case PACK:
    case UNPACK:
    case CVTA:
    case CVTA_TO: return K_MOV;
    case LD_PARAM: return K_PARAM;
    case BRA:
    case EXIT: return K_BRANCH;
    case SETP: return K_PRED;
    case NOP:
    case FENCE:
    case TRAP:
    case ACTIVEMASK: return K_OTHER;
    case RCP:
    case SQRT:
    case RSQRT:
    case EX2:
    case LG2:
    case SIN:
    case COS:
    case TANH: return K_SFU;
    case DIV:
    case REM:
      if (in.type == F32) return K_SFU;
      if (in.type == F64) return K_FP64;
      return K_INT;
    default:
      if (in.type == PRED) return K_PRED;
      if (in.type == F32 || in.type == F32X2) return K_FP32;
      if (in.type == F64) return K_FP64;
      if (in.type == F16 || in.type == BF16 || in.type == F16X2 || in.type == BF16X2) return K_HALF;
      return K_INT;
  }
}
static const Ins nowhere_{-1, 0, 0, 0, 0, -1, 0, -1, 0, {}, {}};

extern "C" {
void* emulator_load(const char* name, const s32* code, int n, const u32* c32, int nc32, const u64* c64, int nc64,
                    int n32, int n64, int np, const s32* psize, const s32* poff, int nparams, int pbytes,
                    int static_shared, int local, int threads, int cluster) {
  auto* p = new Program;
  p->name = name;
  p->code.resize(n);
  memcpy(p->code.data(), code, n * sizeof(Ins));
  for (auto& i : p->code) p->cls.push_back(classify(i));
  p->c32.resize((size_t)nc32 * 32);
  for (int i = 0; i < nc32 * 32; ++i) p->c32[i] = c32[i / 32];
  p->c64.resize((size_t)nc64 * 32);
  for (int i = 0; i < nc64 * 32; ++i) p->c64[i] = c64[i / 32];
  p->n32 = n32;
  p->n64 = n64;
  p->np = np;
  p->psize.assign(psize, psize + nparams);
  p->poff.assign(poff, poff + nparams);
  p->pbytes = pbytes;
  p->static_shared = static_shared;
  p->local = local;
  p->threads = threads;
  p->cluster = cluster;
  pending = p;
  return p;
}
void emulator_data(Program* p, u64 base, u64 size) {
  p->data.push_back({base, size});
}
void emulator_configure(u64 seed, int checks, int approx, int resident, long max_clusters, int quantum, int chaos) {
  config = {seed, checks, approx, resident, max_clusters, quantum, chaos};
}
void emulator_device(int cc, int sms) {
  device_cc = cc;
  device_sms = sms;
}
void emulator_memory(int n, const u64* base, const u64* size, const u32* gsh, const u64* flags) {
  registered.clear();
  for (int i = 0; i < n; ++i) registered.push_back({base[i], size[i], gsh[i], (u8*)flags[i], nullptr});
  std::sort(registered.begin(), registered.end(), [](const Alloc& a, const Alloc& b) { return a.base < b.base; });
}
void emulator_clear() {
  reports.clear();
  counts = {};
  line_counts.clear();
}
int emulator_report(int i, int* kind, int* line, int* source, u64* count, char* text, int room) {
  if (i >= (int)reports.size()) return 0;
  auto& r = reports[i];
  *kind = r.kind;
  *line = r.line;
  *source = r.source;
  *count = r.count;
  snprintf(text, room, "%s", r.text.c_str());
  return 1;
}
const char* emulator_kind(int k) {
  return k < KINDS ? kind_names[k] : nullptr;
}
int emulator_notes() {
  return NOTES;
}
void emulator_counts(u64* out) {
  memcpy(out, &counts, sizeof counts);
}
int emulator_counts_size() {
  return sizeof counts / 8;
}
void emulator_lines(u64* out, int n) {
  for (int i = 0; i < n && i < (int)line_counts.size(); ++i) out[i] = line_counts[i];
}

// Launches are noted instead of run, for timing.py: grid, threads, cluster, shared memory; the parameters.
static bool noting;
static u32 noted[6];
static std::vector<u8> noted_params;
void emulator_note(int on) {
  noting = on;
}
int emulator_noted(u32* launch, u8* params, int room) {
  memcpy(launch, noted, sizeof noted);
  memcpy(params, noted_params.data(), std::min<size_t>(room, noted_params.size()));
  return (int)noted_params.size();
}

// Runs a program. 0, or a CUDA error: 1 for a launch that a driver refuses, 700 if an access was outside of all memory,
// 719 for a trap.
int emulator_run(Program* p, u32 gx, u32 gy, u32 gz, u32 block, u32 cluster, u32 smem, void** args) {
  emulator_clear();
  last_program = p;
  Launch launch(*p);
  launch.grid[0] = gx;
  launch.grid[1] = gy;
  launch.grid[2] = gz;
  launch.block = block;
  launch.cluster = cluster;
  launch.smem_bytes = std::max<u32>(smem, p->static_shared);
  launch.rng.s = mix(config.seed);
  line_counts.assign(p->code.size() + 1, 0);
  Ins none = nowhere_;
  bool bad = false;
  auto refuse = [&](const char* why, long a, long b) {
    none.line = -2 - (int)reports.size();
    launch.report(BAD_LAUNCH, none, "%s (%ld, %ld)", why, a, b);
    bad = true;
  };
  if (p->threads && (int)block != p->threads) refuse("threads of a block, and .reqntid", block, p->threads);
  if ((int)cluster != p->cluster) refuse("blocks of a cluster, and .reqnctapercluster", cluster, p->cluster);
  if (block > 1024 || block % 32) refuse("threads of a block", block, 1024);
  if (gx % cluster) refuse("blocks along x are no multiple of the cluster", gx, cluster);
  if (cluster > (p->nonportable ? 16u : 8u))
    refuse("blocks of a cluster, and the most allowed", cluster, p->nonportable ? 16 : 8);
  if (cluster > 1 && device_cc < 90) refuse("a cluster on a device without", cluster, device_cc);
  if ((int)smem > p->max_dynamic) refuse("shared bytes, and those allowed by cuFuncSetAttribute", smem, p->max_dynamic);
  if (gy > 65535 || gz > 65535 || gx > 0x7fffffffu) refuse("the grid is too large", gx, gy);
  if ((u64)gx * gy * gz * block > 0xffffffffull) refuse("more threads than this tool can tell apart", gx, gy);
  if (bad) return 1;
  launch.params.assign(p->pbytes + 16, 0);
  for (size_t i = 0; i < p->psize.size(); ++i) memcpy(launch.params.data() + p->poff[i], args[i], p->psize[i]);
  if (noting) {
    u32 values[6] = {gx, gy, gz, block, cluster, smem};
    memcpy(noted, values, sizeof noted);
    noted_params.assign(launch.params.begin(), launch.params.begin() + p->pbytes);
    return 0;
  }
  launch.allocs = registered;
  std::vector<std::vector<u8>> tables;
  for (auto& d : p->data) {
    tables.emplace_back(d.second, VALID | INIT);
    launch.allocs.push_back({d.first, d.second, 0, tables.back().data(), nullptr});
  }
  std::sort(launch.allocs.begin(), launch.allocs.end(), [](const Alloc& a, const Alloc& b) { return a.base < b.base; });
  if (config.checks & CHECK_GLOBAL)
    for (auto& a : launch.allocs) a.sh = (Shadow*)calloc((a.size >> a.gsh) + 1, sizeof(Shadow));
  launch.go();
  for (auto& a : launch.allocs) free(a.sh);
  for (auto& r : reports) {
    if (r.kind == TRAPPED || r.kind == DEADLOCK) return 719;
  }
  return 0;
}

// ------------------------------------------------------------------------------------------- the CUDA driver API, in
// part
struct Attribute {
  int id;
  int pad;
  union {
    char room[64];
    struct {
      u32 x, y, z;
    } cluster;
    int value;
  } v;
};
struct LaunchConfig {
  u32 gx, gy, gz, bx, by, bz, smem;
  void* stream;
  Attribute* attrs;
  u32 n;
};
static int dummy;
static long launches;
long emulator_launches() {
  return launches;
}
void* emulator_last() {
  return last_program;
}
int cuInit(unsigned) {
  return 0;
}
int cuDriverGetVersion(int* v) {
  *v = 13000;
  return 0;
}
int cuDeviceGetCount(int* n) {
  *n = 1;
  return 0;
}
int cuDeviceGet(int* d, int) {
  *d = 0;
  return 0;
}
int cuDeviceGetAttribute(int* v, int a, int) {
  switch (a) {
    case 8: *v = 49152; break;
    case 97: *v = device_cc == 80 ? 166912 : 232448; break;
    case 81: *v = device_cc == 80 ? 167936 : 233472; break;
    case 16: *v = device_sms; break;
    case 10: *v = 32; break;
    case 12:
    case 82: *v = 65536; break;
    case 13: *v = 1755000; break;
    case 36: *v = 2619000; break;
    case 37: *v = 5120; break;
    case 75: *v = device_cc / 10; break;
    case 76: *v = device_cc % 10; break;
    default: *v = 1;
  }
  return 0;
}
int cuCtxGetCurrent(void** c) {
  *c = &dummy;
  return 0;
}
int cuCtxSetCurrent(void*) {
  return 0;
}
int cuCtxGetDevice(int* d) {
  *d = 0;
  return 0;
}
int cuCtxGetLimit(size_t* v, int) {
  *v = 1 << 20;
  return 0;
}
int cuCtxSetLimit(int, size_t) {
  return 0;
}
int cuDevicePrimaryCtxRetain(void** c, int) {
  *c = &dummy;
  return 0;
}
int cuModuleLoadData(void** m, const void*) {
  *m = pending;
  return pending ? 0 : 200;
}
int cuModuleUnload(void*) {
  return 0;
}
int cuModuleGetFunction(void** f, void* m, const char* n) {
  *f = m;
  return ((Program*)m)->name == n ? 0 : 500;
}
int cuFuncGetAttribute(int* v, int a, void*) {
  *v = a == 0 ? 1024 : 0;
  return 0;
}
int cuFuncSetAttribute(void* f, int a, int v) {
  if (a == 8) ((Program*)f)->max_dynamic = v;
  if (a == 14) ((Program*)f)->nonportable = v;
  return 0;
}
int cuFuncSetCacheConfig(void*, int) {
  return 0;
}
int cuGetErrorString(int e, const char** s) {
  *s = e == 700   ? "illegal memory access (emulated)"
       : e == 719 ? "launch failure (emulated)"
                  : "invalid value (emulated)";
  return 0;
}
int cuPointerGetAttribute(void* d, int, u64 p) {
  *(u64*)d = p;
  return 0;
}
int cuPointerGetAttributes(unsigned, int*, void**, u64) {
  return 0;
}
int cuStreamIsCapturing(void*, int* v) {
  *v = 0;
  return 0;
}
int cuStreamGetCaptureInfo(void*, int* v, void*) {
  *v = 0;
  return 0;
}
int cuLaunchKernelEx(const LaunchConfig* c, void* f, void** args, void**) {
  u32 cluster = 1;
  for (u32 i = 0; i < c->n; ++i)
    if (c->attrs[i].id == 4) cluster = c->attrs[i].v.cluster.x;
  launches++;
  return emulator_run((Program*)f, c->gx, c->gy, c->gz, c->bx * c->by * c->bz, cluster, c->smem, args);
}
int cuLaunchKernel(void* f, u32 gx, u32 gy, u32 gz, u32 bx, u32, u32, u32 smem, void*, void** args, void**) {
  launches++;
  return emulator_run((Program*)f, gx, gy, gz, bx, 1, smem, args);
}
int cuOccupancyMaxActiveClusters(int* n, void*, void*) {
  *n = 1;
  return 0;
}
int cuTensorMapEncodeTiled() {
  return 1;
}
int cuTensorMapEncodeIm2col() {
  return 1;
}
}
