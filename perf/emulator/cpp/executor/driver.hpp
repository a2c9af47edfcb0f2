// The part of the CUDA driver API that Triton's launcher links to (triton/backends/nvidia/driver.c): one device, one
// context, no streams. Launching itself stands in executor.cpp. Numbers and layouts are those of cuda.h.
#pragma once

#include "program.hpp"

namespace emulator {

static int launch_program(Program& program, const LaunchShape& shape, void** arguments);

static struct {
  int compute_capability = 90, multiprocessors = 132;
  Program* next_module = nullptr;  // that cuModuleLoadData hands out
} device;
static int context;  // only its address counts

enum Result { SUCCESS = 0, INVALID_VALUE = 1, NO_BINARY = 209, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

enum DeviceAttribute {
  MAX_SHARED_MEMORY_PER_BLOCK = 8,
  WARP_SIZE = 10,
  MAX_REGISTERS_PER_BLOCK = 12,
  CLOCK_RATE = 13,
  MULTIPROCESSOR_COUNT = 16,
  MEMORY_CLOCK_RATE = 36,
  GLOBAL_MEMORY_BUS_WIDTH = 37,
  COMPUTE_CAPABILITY_MAJOR = 75,
  COMPUTE_CAPABILITY_MINOR = 76,
  MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97
};
enum FunctionAttribute {
  MAX_THREADS_PER_BLOCK = 0,
  MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
  NON_PORTABLE_CLUSTER_SIZE_ALLOWED = 14
};
enum LaunchAttribute { CLUSTER_DIMENSION = 4 };

struct LaunchAttributeValue {
  int id, padding;
  union {
    char room[64];
    struct {
      u32 x, y, z;
    } cluster;
  } value;
};
struct LaunchConfiguration {
  u32 grid[3], block[3], shared_bytes;
  void* stream;
  LaunchAttributeValue* attributes;
  u32 attribute_count;
};

// CUDA C++ programming guide, "Technical specifications per compute capability"; clocks in kHz and the bus are an
// H100's, and nothing that is run depends on them.
inline int device_attribute(int attribute) {
  switch (attribute) {
    case MAX_SHARED_MEMORY_PER_BLOCK: return 49152;
    case MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return device.compute_capability == 80 ? 166912 : 232448;
    case MULTIPROCESSOR_COUNT: return device.multiprocessors;
    case WARP_SIZE: return 32;
    case MAX_REGISTERS_PER_BLOCK: return 65536;
    case CLOCK_RATE: return 1755000;
    case MEMORY_CLOCK_RATE: return 2619000;
    case GLOBAL_MEMORY_BUS_WIDTH: return 5120;
    case COMPUTE_CAPABILITY_MAJOR: return device.compute_capability / 10;
    case COMPUTE_CAPABILITY_MINOR: return device.compute_capability % 10;
    default: return 1;
  }
}

}  // namespace emulator

extern "C" {

int cuInit(unsigned) {
  return emulator::SUCCESS;
}
int cuDriverGetVersion(int* version) {
  *version = 13000;
  return emulator::SUCCESS;
}
int cuGetErrorString(int error, const char** text) {
  *text = error == emulator::LAUNCH_FAILED ? "launch failure (emulated)" : "invalid value (emulated)";
  return emulator::SUCCESS;
}
int cuDeviceGetCount(int* count) {
  *count = 1;
  return emulator::SUCCESS;
}
int cuDeviceGet(int* device, int) {
  *device = 0;
  return emulator::SUCCESS;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = emulator::device_attribute(attribute);
  return emulator::SUCCESS;
}
int cuCtxGetCurrent(void** context) {
  *context = &emulator::context;
  return emulator::SUCCESS;
}
int cuCtxSetCurrent(void*) {
  return emulator::SUCCESS;
}
int cuCtxGetDevice(int* device) {
  *device = 0;
  return emulator::SUCCESS;
}
int cuCtxGetLimit(size_t* bytes, int) {
  *bytes = 1 << 20;
  return emulator::SUCCESS;
}
int cuCtxSetLimit(int, size_t) {
  return emulator::SUCCESS;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &emulator::context;
  return emulator::SUCCESS;
}
int cuStreamIsCapturing(void*, int* capturing) {
  *capturing = 0;
  return emulator::SUCCESS;
}
int cuPointerGetAttribute(void* value, int, emulator::u64 pointer) {
  *(emulator::u64*)value = pointer;
  return emulator::SUCCESS;
}
int cuModuleLoadData(void** module, const void*) {
  *module = emulator::device.next_module;
  return *module ? emulator::SUCCESS : emulator::NO_BINARY;
}
int cuModuleUnload(void*) {
  return emulator::SUCCESS;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = module;
  return ((emulator::Program*)module)->name == name ? emulator::SUCCESS : emulator::NOT_FOUND;
}
int cuFuncGetAttribute(int* value, int attribute, void*) {
  *value = attribute == emulator::MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return emulator::SUCCESS;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  auto* program = (emulator::Program*)function;
  switch (attribute) {
    case emulator::MAX_DYNAMIC_SHARED_SIZE_BYTES: program->most_dynamic_shared = value; break;
    case emulator::NON_PORTABLE_CLUSTER_SIZE_ALLOWED: program->nonportable_cluster = value; break;
    default: return emulator::INVALID_VALUE;  // Triton 3.9 asks for more shared memory than a driver before it knows of
  }
  return emulator::SUCCESS;
}
int cuFuncSetCacheConfig(void*, int) {
  return emulator::SUCCESS;
}
int cuLaunchKernelEx(const emulator::LaunchConfiguration* given, void* function, void** arguments, void**) {
  emulator::LaunchShape shape{{given->grid[0], given->grid[1], given->grid[2]},
                              given->block[0] * given->block[1] * given->block[2],
                              1,
                              given->shared_bytes};
  for (unsigned k = 0; k < given->attribute_count; ++k)
    if (given->attributes[k].id == emulator::CLUSTER_DIMENSION)
      shape.cluster_blocks = given->attributes[k].value.cluster.x;
  return emulator::launch_program(*(emulator::Program*)function, shape, arguments);
}
}
