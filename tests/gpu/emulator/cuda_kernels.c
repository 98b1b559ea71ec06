/* The part of the stand-in runtime for kernels that nvcc compiled: torch's own. */
#include "cuda_standins.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

/* The names of kernels, and the addresses of their functions on the host, by which libraries
 * register and launch them. */
static struct {
  const void *function;
  const char *name;
} *kernels;
static size_t kernels_count, kernels_room;

static const char *kernel_name(const void *function) {
  for (size_t i = 0; i < kernels_count; i++)
    if (kernels[i].function == function) return kernels[i].name;
  return "";
}

static cudaError_t launch(const void *function, dim3 grid, dim3 threads, size_t shared,
                          cudaStream_t stream) {
  if (!watched(stream)) return checked(check_stream(stream));
  struct event event = {
      .kind = LAUNCH,
      .function = (uint64_t)function,
      .name = kernel_name(function),
      .grid = {grid.x, grid.y, grid.z},
      .threads = {threads.x, threads.y, threads.z},
      .bytes = shared,
  };
  return checked(submit(&event, stream));
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 threads, void **parameters,
                             size_t shared, cudaStream_t stream) {
  return launch(function, grid, threads, shared, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function,
                                void **parameters) {
  return launch(function, config->gridDim, config->blockDim, config->dynamicSmemBytes,
                config->stream);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 threads, void **parameters,
                               size_t shared, cudaStream_t stream) {
  return launch(kernel, grid, threads, shared, stream);
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
  *kernel = (cudaKernel_t)function;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *all, const void *function) {
  memset(all, 0, sizeof *all);
  all->maxThreadsPerBlock = 1024;
  all->numRegs = 32;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute which, int value) {
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks,
                                                                   const void *function,
                                                                   int threads, size_t shared,
                                                                   unsigned flags) {
  *blocks = 2;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function,
                                                          int threads, size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared,
                                                                0);
}

/* The compiler writes `kernel<<<grid, threads, shared, stream>>>()` as a push, and a pop in the
 * function that launches. */
static __thread struct {
  dim3 grid, threads;
  size_t shared;
  void *stream;
} pushed;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 threads, size_t shared, void *stream) {
  pushed.grid = grid;
  pushed.threads = threads;
  pushed.shared = shared;
  pushed.stream = stream;
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *threads, size_t *shared, void *stream) {
  *grid = pushed.grid;
  *threads = pushed.threads;
  *shared = pushed.shared;
  *(void **)stream = pushed.stream;
  return cudaSuccess;
}

void **__cudaRegisterFatBinary(void *binary) {
  static void *handle;
  return &handle;
}

void __cudaRegisterFatBinaryEnd(void **handle) {}

void __cudaUnregisterFatBinary(void **handle) {}

char __cudaInitModule(void **handle) { return 1; }

void __cudaRegisterFunction(void **handle, const char *function, char *device_function,
                            const char *name, int limit, void *thread, void *block,
                            void *block_size, void *grid_size, int *warp_size) {
  if (kernels_count == kernels_room) {
    kernels_room = kernels_room ? 2 * kernels_room : 1024;
    kernels = realloc(kernels, kernels_room * sizeof *kernels);
  }
  kernels[kernels_count].function = function;
  kernels[kernels_count++].name = name;
}

void __cudaRegisterVar(void **handle, char *variable, char *device_variable, const char *name,
                       int external, size_t bytes, int constant, int global) {}
