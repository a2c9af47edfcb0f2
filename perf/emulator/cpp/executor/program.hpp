// A parsed kernel: the enumerations that encode an instruction, its row of integers, and what the kernel's head says.
// instructions.py reads the enumerations from this text, so that they are written once; it fills the rows.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "numbers.hpp"

namespace emulator {

enum class Op : s32 {
  // moves
  MOV,
  MOV_PREDICATE,
  SET_PREDICATE,
  PACK,
  UNPACK,
  CVTA,
  CVTA_TO,
  SELP,
  // memory
  LD,
  LD_PARAM,
  ST,
  ATOM,
  CP_ASYNC,
  CP_ASYNC_COMMIT,
  CP_ASYNC_WAIT,
  LDMATRIX,
  STMATRIX,
  MAPA,
  // between the lanes of a warp
  SHFL,
  VOTE,
  ACTIVEMASK,
  ELECT,
  REDUX,
  // barriers and control
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
  // comparison, bits
  SETP,
  LOP3,
  PRMT,
  SHF,
  BFE,
  BFI,
  POPC,
  CLZ,
  BREV,
  BFIND,
  // conversion
  CVT,
  CVT_PACK,
  // arithmetic of any type
  ADD,
  SUB,
  MUL,
  MUL_WIDE,
  MAD,
  MAD_WIDE,
  CARRY,
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
  SHL,
  SHR
};
enum class Type : s32 { U8, S8, U16, S16, U32, S32, U64, S64, F16, BF16, F16X2, BF16X2, F32, F64, F32X2, PRED };
constexpr int TYPE_BYTES[] = {1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 4, 4, 8, 8, 0};

// An operand is index * 8 + file; -1 is none.
enum class File : s32 { REGISTER32, REGISTER64, PREDICATE, CONSTANT32, CONSTANT64, SPECIAL };
enum class Special : s32 {
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
enum class Space : s32 { GLOBAL, SHARED, CLUSTER, LOCAL, GENERIC };
// Bits of a modifier set: 1 << the number here.
enum class Modifier : s32 { FTZ, SAT, NaN, RELU, APPROX, HI, SATFINITE, INTEGRAL };
enum class Rounding : s32 { NONE, RN, RZ, RM, RP };
enum class Comparison : s32 { EQ, NE, LT, LE, GT, GE, LO, LS, HI, HS, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NaN };
enum class Boolean : s32 { NONE, AND, OR, XOR };
// Of atomics, and of reductions over a warp.
enum class Combine : s32 { ADD, EXCH, CAS, MIN, MAX, AND, OR, XOR };
enum class Shuffle : s32 { UP, DOWN, BFLY, IDX };
enum class Vote : s32 { BALLOT, ANY, ALL, UNI };
enum class Carry : s32 { ADD, SUB, MAD_LO, MAD_HI };

// What instructions are counted as; loads and stores of global memory besides by their width.
enum class Class : s32 {
  LD_GLOBAL,
  ST_GLOBAL,
  LD_SHARED,
  ST_SHARED,
  CLUSTER_SHARED,
  LOCAL,
  ATOM,
  MATRIX,
  SHFL,
  BAR,
  BAR_WARP,
  CLUSTER_BAR,
  FP32,
  FP64,
  HALF,
  SFU,
  INT,
  PRED,
  CVT,
  MOV,
  PARAM,
  BRANCH,
  OTHER
};
constexpr int CLASSES = (int)Class::OTHER + 1;

constexpr int MOST_DESTINATIONS = 8, MOST_SOURCES = 10;
constexpr int NOTHING = -1;

// A row of integers. What a field means depends on the operation:
//
//   operation       type2          mode                    mode2
//   LD, ST          space          offset in bytes         elements
//   LD_PARAM                       offset in bytes         elements
//   ATOM            space          offset in bytes         Combine
//   CP_ASYNC                       offset of the source    bytes          (destination's: `target`)
//   CP_ASYNC_WAIT                  groups that may remain; NOTHING: wait for all copies, committed or not
//   LD-, STMATRIX   transposed     offset in bytes         matrices
//   SETP            Boolean        Comparison              1: negated operand, 2: .ftz
//   CVT, CVT_PACK   source's type  modifiers               Rounding
//   PACK, UNPACK    part's type    parts
//   CVTA, CVTA_TO   space
//   SHF                            1: right                1: wrap
//   LOP3                           the table
//   SHFL, VOTE, REDUX              Shuffle, Vote, Combine  1: negated operand (VOTE), .NaN (REDUX)
//   BAR_*, CLUSTER_*               1: aligned              1: relaxed (CLUSTER_ARRIVE)
//   CARRY                          Carry                   1: takes the carry, 2: leaves one
//   BFIND                          1: .shiftamt
//   SET_PREDICATE                  the value
//   others                         modifiers
struct Instruction {
  Op op;
  Type type;
  s32 type2, mode, mode2;
  s32 guard;   // -1, or 2 * predicate + 1 if negated
  s32 target;  // of BRA: an index in the code
  s32 line;    // in the PTX
  s32 source;  // line of the kernel's source, an index
  s32 destinations[MOST_DESTINATIONS], sources[MOST_SOURCES];

  int bytes() const { return TYPE_BYTES[(int)type]; }
  bool wide() const { return bytes() == 8; }
  bool has(Modifier modifier) const { return mode >> (int)modifier & 1; }
  bool has_source(int k) const { return sources[k] != NOTHING; }
};
static_assert(sizeof(Instruction) == 27 * sizeof(s32), "WIDTH in instructions.py");

constexpr File file_of(s32 operand) {
  return (File)(operand & 7);
}
constexpr s32 index_of(s32 operand) {
  return operand >> 3;
}
constexpr bool is_wide(s32 operand) {
  return file_of(operand) == File::REGISTER64 || file_of(operand) == File::CONSTANT64;
}
constexpr bool is_float(Type type) {
  return type == Type::F16 || type == Type::BF16 || type == Type::F32 || type == Type::F64;
}
constexpr bool is_signed(Type type) {
  return type == Type::S8 || type == Type::S16 || type == Type::S32 || type == Type::S64;
}

struct Parameter {
  int bytes, offset;
};
struct Program {
  std::string name;
  std::vector<Instruction> code;
  std::vector<Class> classes;    // of each instruction
  std::vector<u32> constants32;  // each 32 times, once a lane
  std::vector<u64> constants64;
  int registers32, registers64, predicates;
  std::vector<Parameter> parameters;
  int parameter_bytes, static_shared, local_bytes;
  int threads;                              // .reqntid, 0 if not given
  int cluster;                              // .reqnctapercluster, 1 if not given
  std::vector<std::pair<u64, u64>> tables;  // constant memory: address, bytes

  int most_dynamic_shared = 49152;  // until cuFuncSetAttribute allows more
  bool nonportable_cluster = false;
};

struct LaunchShape {
  u32 grid[3];  // blocks along x, y, z
  u32 block_threads, cluster_blocks, shared_bytes;
};

inline Class class_of_access(const Instruction& in) {
  switch ((Space)in.type2) {
    case Space::SHARED: return in.op == Op::LD ? Class::LD_SHARED : Class::ST_SHARED;
    case Space::CLUSTER: return Class::CLUSTER_SHARED;
    case Space::LOCAL: return Class::LOCAL;
    default: return in.op == Op::LD ? Class::LD_GLOBAL : Class::ST_GLOBAL;
  }
}
inline Class class_of_arithmetic(const Instruction& in) {
  switch (in.type) {
    case Type::PRED: return Class::PRED;
    case Type::F32:
    case Type::F32X2: return Class::FP32;
    case Type::F64: return Class::FP64;
    case Type::F16:
    case Type::BF16:
    case Type::F16X2:
    case Type::BF16X2: return Class::HALF;
    default: return Class::INT;
  }
}
inline Class classify(const Instruction& in) {
  switch (in.op) {
    case Op::LD:
    case Op::ST: return class_of_access(in);
    case Op::CP_ASYNC: return Class::LD_GLOBAL;
    case Op::ATOM: return Class::ATOM;
    case Op::LDMATRIX:
    case Op::STMATRIX: return Class::MATRIX;
    case Op::SHFL:
    case Op::VOTE:
    case Op::REDUX:
    case Op::ELECT: return Class::SHFL;
    case Op::BAR_SYNC:
    case Op::BAR_ARRIVE: return Class::BAR;
    case Op::BAR_WARP: return Class::BAR_WARP;
    case Op::CLUSTER_ARRIVE:
    case Op::CLUSTER_WAIT: return Class::CLUSTER_BAR;
    case Op::CVT:
    case Op::CVT_PACK: return Class::CVT;
    case Op::MOV:
    case Op::MOV_PREDICATE:
    case Op::SET_PREDICATE:
    case Op::PACK:
    case Op::UNPACK:
    case Op::CVTA:
    case Op::CVTA_TO: return Class::MOV;
    case Op::LD_PARAM: return Class::PARAM;
    case Op::BRA:
    case Op::EXIT: return Class::BRANCH;
    case Op::SETP: return Class::PRED;
    case Op::NOP:
    case Op::CP_ASYNC_COMMIT:
    case Op::CP_ASYNC_WAIT:
    case Op::FENCE:
    case Op::TRAP:
    case Op::ACTIVEMASK: return Class::OTHER;
    case Op::RCP:
    case Op::SQRT:
    case Op::RSQRT:
    case Op::EX2:
    case Op::LG2:
    case Op::SIN:
    case Op::COS:
    case Op::TANH: return Class::SFU;
    case Op::DIV: return in.type == Type::F32 ? Class::SFU : in.type == Type::F64 ? Class::FP64 : Class::INT;
    default: return class_of_arithmetic(in);
  }
}

}  // namespace emulator
