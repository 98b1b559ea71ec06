/* A CUDA driver without a GPU, for Triton, which loads modules and launches their functions. */
#include "cuda_standins.h"

#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A context is its device's number and 1. */
CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }

CUresult cuDriverGetVersion(int *version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int index) {
  if (index < 0 || index >= DEVICES) return CUDA_ERROR_INVALID_DEVICE;
  *device = index;
  return CUDA_SUCCESS;
}

/* The numbers of an H200, but that the last device is older. */
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device) {
  bool old = device == DEVICES - 1;
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = old ? 7 : 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = old ? 5 : 0; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: *value = 2048; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 49152; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 232448; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 233472; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: *value = 50 << 20; break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1980000; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 3201000; break;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 6144; break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = (CUcontext)(intptr_t)(current_device + 1);
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
  current_device = (int)(intptr_t)context - 1;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device) {
  *device = current_device;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = (CUcontext)(intptr_t)(device + 1);
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
  if (flags) *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult code, const char **text) {
  switch (code) {
    case CUDA_SUCCESS: *text = "no error"; break;
    case CUDA_ERROR_INVALID_HANDLE: *text = "a stream or a function of another device"; break;
    case CUDA_ERROR_ILLEGAL_ADDRESS: *text = "an address in another device's memory"; break;
    case CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: *text = "not while a stream is captured"; break;
    case CUDA_ERROR_NOT_SUPPORTED: *text = "the stand-ins for CUDA do not have this"; break;
    default: {
      static __thread char numbered[64];
      snprintf(numbered, sizeof numbered, "error %d of the stand-ins for CUDA", code);
      *text = numbered;
    }
  }
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute which, CUdeviceptr pointer) {
  struct block block;
  if (which != CU_POINTER_ATTRIBUTE_DEVICE_POINTER) return CUDA_ERROR_NOT_SUPPORTED;
  if (!find_block((void *)pointer, &block)) return CUDA_ERROR_INVALID_VALUE;
  *(CUdeviceptr *)value = pointer;
  return CUDA_SUCCESS;
}

/* A function of a module. The module itself is its image, an ELF file, which Triton keeps until it
 * has the function. */
struct function {
  char *name;
  int device;
  uint32_t parameters;
  uint32_t sizes[PARAMETERS];
};

#define KERNEL_PARAMETER_INFO 0x17

/* Reads the sizes of a kernel's parameters, which ptxas wrote into a section of the kernel's:
 * attributes of two bytes for format and kind and two for a value, which in the format 4 is the
 * number of bytes that follow. */
static bool read_parameters(const char *image, struct function *function) {
  const Elf64_Ehdr *header = (const Elf64_Ehdr *)image;
  const Elf64_Shdr *sections = (const Elf64_Shdr *)(image + header->e_shoff);
  const char *names = image + sections[header->e_shstrndx].sh_offset;
  for (int i = 0; i < header->e_shnum; i++) {
    const char *name = names + sections[i].sh_name;
    if (strncmp(name, ".nv.info.", 9) || strcmp(name + 9, function->name)) continue;
    const char *at = image + sections[i].sh_offset, *end = at + sections[i].sh_size;
    while (at < end) {
      uint8_t format = at[0], kind = at[1];
      uint16_t bytes = *(const uint16_t *)(at + 2);
      at += 4;
      if (format != 4) continue;
      if (kind == KERNEL_PARAMETER_INFO) {
        uint16_t place = *(const uint16_t *)(at + 4);
        if (place >= PARAMETERS) return false;
        function->sizes[place] = *(const uint32_t *)(at + 8) >> 18;
        if (function->parameters <= place) function->parameters = place + 1;
      }
      at += bytes;
    }
    return true;
  }
  return false;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  if (memcmp(image, ELFMAG, SELFMAG)) return CUDA_ERROR_INVALID_IMAGE;
  *module = (CUmodule)image;
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }

CUresult cuModuleGetFunction(CUfunction *found, CUmodule module, const char *name) {
  struct function *function = calloc(1, sizeof *function);
  function->name = strdup(name);
  function->device = current_device;
  if (!read_parameters((const char *)module, function)) return CUDA_ERROR_NOT_FOUND;
  *found = (CUfunction)function;
  struct event event = {
      .kind = LOAD,
      .function = (uint64_t)function,
      .name = function->name,
  };
  return submit(&event, NULL);
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction function) {
  *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
  return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache which) {
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction launched,
                                 void **parameters, void **extra) {
  const struct function *function = (const struct function *)launched;
  if (function->device != current_device) return CUDA_ERROR_INVALID_HANDLE;
  if (!watched(config->hStream)) return check_stream(config->hStream);
  struct event event = {
      .kind = LAUNCH,
      .triton = true,
      .parameters = function->parameters,
      .function = (uint64_t)function,
      .name = function->name,
      .grid = {config->gridDimX, config->gridDimY, config->gridDimZ},
      .threads = {config->blockDimX, config->blockDimY, config->blockDimZ},
      .bytes = config->sharedMemBytes,
  };
  for (uint32_t i = 0; i < function->parameters; i++) {
    struct parameter *parameter = &event.parameter[i];
    struct block block;
    parameter->size = function->sizes[i];
    if (parameter->size > sizeof parameter->value) return CUDA_ERROR_NOT_SUPPORTED;
    memcpy(&parameter->value, parameters[i], parameter->size);
    if (parameter->size != 8 || !find_block((void *)parameter->value, &block)) continue;
    if (block.device != current_device) return CUDA_ERROR_ILLEGAL_ADDRESS;
    parameter->block = block.number;
    parameter->offset = (char *)parameter->value - block.start;
    parameter->block_bytes = block.bytes;
  }
  return submit(&event, config->hStream);
}

/* torch's and Triton's libraries name these functions, and no test calls them. */
static __attribute__((used)) CUresult driver_lacks(void) { return CUDA_ERROR_NOT_SUPPORTED; }
#define LACKS(name) \
  __asm__(".globl " #name "\n.type " #name ", @function\n.set " #name ", driver_lacks");
LACKS(cuCtxGetLimit)
LACKS(cuCtxSetLimit)
LACKS(cuLaunchCooperativeKernel)
LACKS(cuLaunchKernel)
LACKS(cuLinkAddData_v2)
LACKS(cuLinkComplete)
LACKS(cuLinkCreate_v2)
LACKS(cuModuleLoad)
LACKS(cuModuleLoadDataEx)
LACKS(cuOccupancyMaxActiveBlocksPerMultiprocessor)
LACKS(cuOccupancyMaxActiveClusters)
LACKS(cuTensorMapEncodeTiled)
