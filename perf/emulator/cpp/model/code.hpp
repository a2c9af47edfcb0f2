// A kernel as the model takes it: a row of integers for each instruction of its SASS.
//
// sass.py decodes a cubin into these rows. It reads the names and the order of every enumeration and of Row's fields
// out of this file, so that each has one home. What a row says of time is the compiler's own schedule: bits 105 to 121
// of an instruction hold the cycles to stall, the scoreboards that it sets and those that it waits for (Jia et al.,
// "Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking", 2018, arXiv:1804.06826).
#pragma once

#include <cstdint>

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t s32;
typedef int64_t s64;

// What the model does with an instruction. Most are named as in SASS; LDSM is STSM too, BRA is every jump.
enum Operation {
  NOP,
  UNKNOWN,  // an instruction that sass.py does not know
  OPAQUE,   // one that takes time, but whose result is not computed: float64, half precision, conversions
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
  MUFU,
  FADD,
  FMUL,
  FFMA,
  FCHK,
  CS2R,
  S2R,
  LDC,
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
  CLUSTER_ARRIVE,
  CLUSTER_WAIT,
};

// What executes an instruction. Each of a multiprocessor's four schedulers has its own; MIO is the way to what they
// share: the load/store unit, shuffles, constants. FMAH is the half of the FMA pipe that also multiplies integers.
enum Pipe {
  NONE,
  ALU,
  FMA,
  FMAH,
  XU,
  FP64,
  UNIFORM,
  BRANCH,
  MIO,
  PIPES,
};

enum OperandKind {
  EMPTY,
  REG,
  UREG,
  PREG,
  UPREG,
  IMM,
  CONST,  // of a constant bank: bank << 20 | offset in bytes
  SPECIAL,
  LABEL,
  OTHER,
};

// What S2R reads, named as in SASS with _ for its dots.
enum SpecialRegister {
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
  CLUSTER_NCTAID_X,
};

enum Space {
  GLOBAL,
  SHARED,
  GENERIC,  // global, or shared where the address's upper half says so
  LOCAL,
};

// Modifiers of an operand.
enum Modifier {
  NEGATED = 1,
  INVERTED = 2,
  ABSOLUTE = 4,
};

// Modifiers of an instruction: Row::mode is their sum.
enum Mode {
  WIDE = 1,   // IMAD: the product and the sum have 64 bits
  HIGH = 2,   // the upper half of the result
  CARRY = 4,  // adds a predicate
  UNSIGNED = 8,
  SIGN_EXTENDED = 16,  // LEA: the upper half of the operand is its sign. Loads of 1 or 2 bytes: of the result
  LEFT = 32,
  ARITHMETIC = 64,  // SHF: shifts signs in
  LONG = 128,       // SHF: the count may be up to 63
  WRAPPED = 256,    // SHF: the count is taken modulo its limit
  ROUNDED_UP = 512,
  EXTENDED = 1024,  // ISETP: goes on from a comparison of the lower halves
  PAST_L1 = 2048,
  NOT_WAITING = 4096,  // BAR: arrives only
};

// Row::choice of ISETP and FSETP: comparison + 16 * logic. The U ones are true of NaN.
enum Comparison { F, LT, EQ, LE, GT, NE, GE, T, NUM, NAN_, LTU, EQU, LEU, GTU, NEU, GEU };
enum Logic { AND, OR, XOR };
// Row::choice of MUFU, SHFL, VOTE.
enum Function { RCP, SQRT, RSQ, EX2, LG2, SIN, COS, TANH, OTHER_FUNCTION };
enum Shuffle { UP, DOWN, BFLY, IDX };
enum Vote { ANY, ALL, UNI };

// Registers that read as zero (predicates: as true), and what a scoreboard's number is where there is none.
enum Constant {
  ZERO_REGISTER = 255,
  ZERO_UNIFORM = 63,
  TRUE_PREDICATE = 7,
  NO_SCOREBOARD = 7,
  SCOREBOARDS = 6,
  DESTINATIONS = 4,
  SOURCES = 7,
};

namespace {  // the executor has types of the same names

struct Source {
  s32 kind;  // OperandKind
  s32 value;
  s32 modifiers;
};

struct Destination {
  s32 kind;
  s32 value;
};

struct Row {
  s32 operation;
  s32 pipe;
  s32 mode;
  s32 choice;            // a comparison, a function, a truth table: see above
  s32 guard;             // predicate << 2 | it is uniform << 1 | it is inverted; -1 is none
  s32 target;            // of a jump: a row
  s32 stall;             // cycles until the warp's next instruction
  s32 write_scoreboard;  // set when the result is there
  s32 read_scoreboard;   // set when the operands have been read
  s32 wait;              // for these scoreboards, a bit each, before it issues
  s32 live;              // an address, a guard or a branch needs the result: it is computed
  s32 space;
  s32 width;      // bytes a lane
  s32 base;       // register of the address
  s32 base_wide;  // it is a pair
  s32 uniform_base;
  s32 offset;
  s32 scale;  // factor of `base`
  Destination destinations[DESTINATIONS];
  Source sources[SOURCES];
};

}  // namespace
