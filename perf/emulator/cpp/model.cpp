// The model of time: a kernel's SASS on a GPU's multiprocessors, L2 and DRAM. timer.py calls the functions below.
//
// Warps issue in order, and when is what the compiler wrote into each instruction (issue.hpp, blocks.hpp). Accesses to
// memory take the time of the queues that they go through (memory.hpp). Of values only those are computed that
// addresses, guards and branches need (values.hpp, compute.hpp).
#include <cstdio>

#include "model/launch.hpp"

extern "C" {

// Names of the parameters, in the order in which model_new takes them.
const char* model_parameters() {
  return PARAMETER_NAMES;
}

// Names of the results, in the order in which model_launch gives them; after them come the reasons and the pipes.
const char* model_results() {
  return RESULT_NAMES;
}

void* model_new(const double* parameters) {
  auto* gpu = new Gpu;
  memcpy(&gpu->parameters, parameters, sizeof(Parameters));
  gpu->l2.resize((u64)(gpu->parameters.l2 / std::max(1.0, gpu->parameters.share)), (u32)gpu->parameters.l2_ways);
  return gpu;
}

void model_free(void* gpu) {
  delete (Gpu*)gpu;
}

// What a launch is besides its GPU and its code; timer.py has the same structure.
struct Shape {
  u32 grid[3];
  u32 threads;
  u32 cluster;
  u32 shared;
  u32 registers;
  u32 local;
  u32 resident;
  u32 l1;
};

// Runs a launch; whether it came to an end, and if not why.
bool model_launch(void* gpu, const s32* rows, int count, const Shape* shape, const u8* constants, int constants_size,
                  double* result, char* error, int error_size) {
  Launch launch(*(Gpu*)gpu);
  launch.code = (const Row*)rows;
  launch.rows = count;
  memcpy(launch.grid, shape->grid, sizeof launch.grid);
  launch.threads = shape->threads;
  launch.cluster = shape->cluster;
  launch.shared = shape->shared;
  launch.registers = shape->registers;
  launch.local = shape->local;
  launch.constants.assign(constants, constants + constants_size);
  bool ended = run(launch, shape->resident, shape->l1);
  memcpy(result, &launch.result, sizeof(Result));
  snprintf(error, error_size, "%s", launch.error.c_str());
  return ended;
}
}
