/* A CUDA driver without a GPU: loads nothing and tells of what would be launched. */
#include <cuda.h>
#include <string.h>

#define ACCEPT(name, ...) \
  CUresult name(__VA_ARGS__) { return CUDA_SUCCESS; }
ACCEPT(cuCtxSetCurrent, CUcontext context)
ACCEPT(cuCtxGetLimit, size_t *value, CUlimit which)
ACCEPT(cuCtxSetLimit, CUlimit which, size_t value)
ACCEPT(cuDevicePrimaryCtxRetain, CUcontext *context, CUdevice device)
ACCEPT(cuFuncSetAttribute, CUfunction function, CUfunction_attribute which, int value)
ACCEPT(cuFuncSetCacheConfig, CUfunction function, CUfunc_cache which)
ACCEPT(cuModuleUnload, CUmodule module)

typedef void (*report_t)(const char *kernel, int programs, int threads, void **parameters);
static report_t report;

void report_to(report_t to) { report = to; }

CUresult cuGetErrorString(CUresult code, const char **text) { *text = "stub"; return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *device) { *device = 0; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int index) { *device = index; return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device) {
  *value = which == CU_DEVICE_ATTRIBUTE_WARP_SIZE ? 32 : 1 << 16;
  return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *context) { *context = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  *module = (CUmodule)image;
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)strdup(name);
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction function) {
  *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute which, CUdeviceptr pointer) {
  *(CUdeviceptr *)value = pointer;
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters,
                          void **extra) {
  report((const char *)function, config->gridDimX, config->blockDimX, parameters);
  return CUDA_SUCCESS;
}
