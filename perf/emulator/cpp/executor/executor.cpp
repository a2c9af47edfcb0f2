// The library that executor.py builds as libcuda.so.1: functions for Python, and the CUDA driver API that Triton's
// launcher calls. A launch runs PTX on the CPU, a warp instruction at a time, on real memory, with checks.
//
// numbers      integers, floats and their rounding              barriers     what orders warps
// program      a parsed kernel and its instructions' encoding   arithmetic, bits, conversions, moves
// findings     what is checked for, and counted                 memory       loads, stores, copies, atomics
// machine      clusters, blocks, warps, registers, memory       scheduler    which warp runs what, and when
// checks       bounds, initialisation, races                    driver       the driver API
#include <cstdlib>

#include "driver.hpp"
#include "scheduler.hpp"

namespace emulator {

static Config config;
static Outcome outcome;
static std::vector<Allocation> registered;
static Program* last_program;
static long launches;

// Launches that are noted instead of run, for timer.py.
static struct {
  bool on;
  u32 launch[6];  // grid, threads of a block, blocks of a cluster, shared bytes
  std::vector<u8> parameters;
} noted;

// --------------------------------------------------------------------------------------------------------- a launch
static void refuse(const char* why, long is, long allowed) {
  outcome.findings.push_back({Kind::BAD_LAUNCH, NOTHING, 0, 1,
                              std::string(why) + " (" + std::to_string(is) + ", " + std::to_string(allowed) + ")"});
}
// What a driver refuses: PTX ISA 11.4 for directives, CUDA's programming guide for what a device can do.
static void check_launch(const Program& program, const LaunchShape& shape) {
  const u32* grid = shape.grid;
  u32 block = shape.block_threads, cluster = shape.cluster_blocks, most_cluster = program.nonportable_cluster ? 16 : 8;
  if (program.threads && (int)block != program.threads)
    refuse("threads of a block, and .reqntid", block, program.threads);
  if ((int)cluster != program.cluster) refuse("blocks of a cluster, and .reqnctapercluster", cluster, program.cluster);
  if (block > 1024 || block % LANES) refuse("threads of a block", block, 1024);
  if (grid[0] % cluster) refuse("blocks along x are no multiple of the cluster", grid[0], cluster);
  if (cluster > most_cluster) refuse("blocks of a cluster, and the most allowed", cluster, most_cluster);
  if (cluster > 1 && device.compute_capability < 90)
    refuse("a cluster on a device without", cluster, device.compute_capability);
  if ((int)shape.shared_bytes > program.most_dynamic_shared)
    refuse("shared bytes, and those allowed by cuFuncSetAttribute", shape.shared_bytes, program.most_dynamic_shared);
  if (grid[1] > 65535 || grid[2] > 65535 || grid[0] > 0x7fffffffu) refuse("the grid is too large", grid[0], grid[1]);
  if ((u64)grid[0] * grid[1] * grid[2] * block > 0xffffffffull)
    refuse("more threads than can be told apart", grid[0], grid[1]);
}
static std::vector<u8> copy_parameters(const Program& program, void** arguments) {
  std::vector<u8> bytes(program.parameter_bytes + 16, 0);
  for (size_t k = 0; k < program.parameters.size(); ++k)
    memcpy(bytes.data() + program.parameters[k].offset, arguments[k], program.parameters[k].bytes);
  return bytes;
}
static void note(const Program& program, const LaunchShape& shape, const std::vector<u8>& parameters) {
  std::copy_n(shape.grid, 3, noted.launch);
  noted.launch[3] = shape.block_threads;
  noted.launch[4] = shape.cluster_blocks;
  noted.launch[5] = shape.shared_bytes;
  noted.parameters.assign(parameters.begin(), parameters.begin() + program.parameter_bytes);
}
static void execute_launch(Program& program, const LaunchShape& shape, std::vector<u8> parameters) {
  Launch launch(shape, program, config, outcome);
  launch.shared_bytes = std::max<u32>(shape.shared_bytes, program.static_shared);
  launch.parameters = std::move(parameters);
  launch.allocations = registered;
  std::vector<std::vector<u8>> table_flags;
  for (auto& [base, bytes] : program.tables) {
    table_flags.emplace_back(bytes, VALID | INITIALISED);
    launch.allocations.push_back({base, bytes, 0, table_flags.back().data(), nullptr});
  }
  std::sort(launch.allocations.begin(), launch.allocations.end(),
            [](const Allocation& one, const Allocation& other) { return one.base < other.base; });
  std::vector<std::unique_ptr<GlobalStamp[], decltype(&free)>> stamps;  // pages are zero, and made when touched
  for (Allocation& one : launch.allocations) {
    if (!launch.checks(CHECK_GLOBAL)) break;
    stamps.emplace_back((GlobalStamp*)calloc((one.bytes >> one.granule_shift) + 1, sizeof(GlobalStamp)), free);
    one.stamps = stamps.back().get();
  }
  Scheduler(launch).run();
}

static int launch_program(Program& program, const LaunchShape& shape, void** arguments) {
  outcome = {};
  last_program = &program;
  launches++;
  check_launch(program, shape);
  if (!outcome.findings.empty()) return INVALID_VALUE;
  std::vector<u8> parameters = copy_parameters(program, arguments);
  if (noted.on) {
    note(program, shape, parameters);
    return SUCCESS;
  }
  execute_launch(program, shape, std::move(parameters));
  for (const Finding& finding : outcome.findings)
    if (finding.kind == Kind::TRAPPED || finding.kind == Kind::DEADLOCK) return LAUNCH_FAILED;
  return SUCCESS;
}

}  // namespace emulator

// ------------------------------------------------------------------------------------------------------- for Python
using namespace emulator;

extern "C" {

// A program as executor.py packs it; the next module that the driver loads is this one.
void* emulator_load(const char* name, const s32* code, int instructions, const u32* constants32, int count32,
                    const u64* constants64, int count64, const s32* registers, const s32* parameters,
                    int parameter_count, const s32* sizes) {
  auto* program = new Program;
  program->name = name;
  program->code.resize(instructions);
  memcpy((void*)program->code.data(), code, instructions * sizeof(Instruction));
  for (const Instruction& in : program->code) program->classes.push_back(classify(in));
  for (int k = 0; k < count32; ++k) program->constants32.insert(program->constants32.end(), LANES, constants32[k]);
  for (int k = 0; k < count64; ++k) program->constants64.insert(program->constants64.end(), LANES, constants64[k]);
  program->registers32 = registers[0];
  program->registers64 = registers[1];
  program->predicates = registers[2];
  for (int k = 0; k < parameter_count; ++k) program->parameters.push_back({parameters[2 * k], parameters[2 * k + 1]});
  program->parameter_bytes = sizes[0];
  program->static_shared = sizes[1];
  program->local_bytes = sizes[2];
  program->threads = sizes[3];
  program->cluster = sizes[4];
  device.next_module = program;
  return program;
}
// A constant table of a program.
void emulator_table(Program* program, u64 base, u64 bytes) {
  program->tables.push_back({base, bytes});
}
void emulator_configure(u64 seed, int checks, int approximate, int resident, long most_clusters, int quantum,
                        int chaos) {
  config = {seed, checks, approximate, resident, most_clusters, quantum, chaos};
}
void emulator_device(int capability, int count) {
  device.compute_capability = capability;
  device.multiprocessors = count;
}
// What the next launches may access.
void emulator_memory(int count, const u64* base, const u64* bytes, const u32* granule_shift, const u64* flags) {
  registered.clear();
  for (int k = 0; k < count; ++k) registered.push_back({base[k], bytes[k], granule_shift[k], (u8*)flags[k], nullptr});
}
void emulator_clear() {
  outcome = {};
}
int emulator_report(int k, int* kind, int* line, int* source, u64* count, char* text, int room) {
  if (k >= (int)outcome.findings.size()) return 0;
  const Finding& finding = outcome.findings[k];
  *kind = (int)finding.kind;
  *line = finding.line;
  *source = finding.source;
  *count = finding.count;
  snprintf(text, room, "%s", finding.text.c_str());
  return 1;
}
const char* emulator_kind(int kind) {
  return kind < KINDS ? KIND_NAMES[kind] : nullptr;
}
void emulator_counts(u64* to) {
  memcpy(to, &outcome.counts, sizeof outcome.counts);
}
int emulator_counts_size() {
  return sizeof outcome.counts / sizeof(u64);
}
void emulator_note(int on) {
  noted.on = on;
}
int emulator_noted(u32* launch, u8* parameters, int room) {
  std::copy_n(noted.launch, 6, launch);
  memcpy(parameters, noted.parameters.data(), std::min<size_t>(room, noted.parameters.size()));
  return (int)noted.parameters.size();
}
long emulator_launches() {
  return launches;
}
void* emulator_last() {
  return last_program;
}
}
