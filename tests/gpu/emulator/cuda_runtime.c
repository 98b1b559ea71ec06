/* A CUDA runtime without a GPU, for torch: devices, memory, streams, events and graphs. */
#define _GNU_SOURCE
#include "cuda_standins.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

/* Codes are the driver's. The last error of a thread is kept for it. */
static __thread cudaError_t last_error;

cudaError_t checked(CUresult code) {
  if (code != CUDA_SUCCESS) last_error = (cudaError_t)code;
  return (cudaError_t)code;
}

cudaError_t cudaPeekAtLastError(void) { return last_error; }

cudaError_t cudaGetLastError(void) {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

const char *cudaGetErrorString(cudaError_t code) {
  const char *text;
  cuGetErrorString((CUresult)code, &text);
  return text;
}

const char *cudaGetErrorName(cudaError_t code) { return cudaGetErrorString(code); }

cudaError_t cudaDriverGetVersion(int *version) { return checked(cuDriverGetVersion(version)); }

cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
  *count = DEVICES;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  CUdevice found;
  CUresult code = cuDeviceGet(&found, device);
  if (code == CUDA_SUCCESS) current_device = device;
  return checked(code);
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int device) {
  return checked(cuDeviceGetAttribute(value, (CUdevice_attribute)which, device));
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *all, int device) {
  memset(all, 0, sizeof *all);
  strcpy(all->name, "Stand-in for a GPU");
  all->totalGlobalMem = 8UL << 30;
#define FROM(field, attribute)                                    \
  {                                                               \
    int value;                                                    \
    cudaDeviceGetAttribute(&value, cudaDevAttr##attribute, device); \
    all->field = value;                                           \
  }
  FROM(major, ComputeCapabilityMajor)
  FROM(minor, ComputeCapabilityMinor)
  FROM(multiProcessorCount, MultiProcessorCount)
  FROM(warpSize, WarpSize)
  FROM(maxThreadsPerBlock, MaxThreadsPerBlock)
  FROM(maxThreadsPerMultiProcessor, MaxThreadsPerMultiProcessor)
  FROM(maxBlocksPerMultiProcessor, MaxBlocksPerMultiprocessor)
  FROM(sharedMemPerBlock, MaxSharedMemoryPerBlock)
  FROM(sharedMemPerBlockOptin, MaxSharedMemoryPerBlockOptin)
  FROM(sharedMemPerMultiprocessor, MaxSharedMemoryPerMultiprocessor)
  FROM(regsPerBlock, MaxRegistersPerBlock)
  FROM(regsPerMultiprocessor, MaxRegistersPerMultiprocessor)
  FROM(l2CacheSize, L2CacheSize)
  all->maxThreadsDim[0] = all->maxThreadsDim[1] = 1024;
  all->maxThreadsDim[2] = 64;
  all->maxGridSize[0] = 0x7fffffff;
  all->maxGridSize[1] = all->maxGridSize[2] = 65535;
  all->textureAlignment = 512;
  all->pciDeviceID = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
  *can = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int device) {
  strncpy(text, "0000:00:00.0", length);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = *greatest = 0;
  return cudaSuccess;
}

static CUresult wait(void) {
  return forbidden_in_capture() ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

cudaError_t cudaDeviceSynchronize(void) { return checked(wait()); }

cudaError_t cudaMalloc(void **start, size_t bytes) { return checked(allocate(start, bytes)); }

cudaError_t cudaFree(void *start) { return checked(release(start)); }

cudaError_t cudaHostAlloc(void **start, size_t bytes, unsigned flags) {
  *start = aligned_alloc(512, (bytes + 511) / 512 * 512);
  return *start ? cudaSuccess : checked(CUDA_ERROR_OUT_OF_MEMORY);
}

cudaError_t cudaFreeHost(void *start) {
  free(start);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  *free = *total = 8UL << 30;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *all, const void *pointer) {
  struct block block;
  memset(all, 0, sizeof *all);
  if (find_block(pointer, &block)) {
    all->type = cudaMemoryTypeDevice;
    all->device = block.device;
    all->devicePointer = (void *)pointer;
  }
  return cudaSuccess;
}

/* Submits a fill or a copy, and tells whether it is to be done now. */
static bool due(enum kind kind, size_t bytes, CUstream stream, cudaError_t *code) {
  *code = cudaSuccess;
  if (!watched(stream)) return true;
  struct event event = {.kind = kind, .bytes = bytes};
  *code = checked(submit(&event, stream));
  return *code == cudaSuccess && !event.captured;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
  cudaError_t code;
  if (due(COPY, bytes, stream, &code)) memcpy(to, from, bytes);
  return code;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
  CUresult code = wait();
  return code ? checked(code) : cudaMemcpyAsync(to, from, bytes, kind, NULL);
}

cudaError_t cudaMemcpyPeerAsync(void *to, int device, const void *from, int other, size_t bytes,
                                cudaStream_t stream) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
}

cudaError_t cudaMemsetAsync(void *start, int value, size_t bytes, cudaStream_t stream) {
  cudaError_t code;
  if (due(FILL, bytes, stream, &code)) memset(start, value, bytes);
  return code;
}

cudaError_t cudaMemset(void *start, int value, size_t bytes) {
  return cudaMemsetAsync(start, value, bytes, NULL);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  struct stream *own = calloc(1, sizeof *own);
  own->device = current_device;
  *stream = (cudaStream_t)own;
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
  return cudaStreamCreateWithPriority(stream, 0, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  free(stream_of(stream));
  return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
  *priority = 0;
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) { return checked(wait()); }

cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return checked(wait()); }

/* An event has no content: all that it could wait for is done. */
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  *event = malloc(1);
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  free(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  return checked(check_stream(stream));
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}

cudaError_t cudaEventQuery(cudaEvent_t event) { return checked(wait()); }

cudaError_t cudaEventSynchronize(cudaEvent_t event) { return checked(wait()); }

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = 0;
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t awaited, unsigned flags) {
  if (!watched(stream)) return checked(check_stream(stream));
  struct event event = {.kind = WAIT};
  return checked(submit(&event, stream));
}

/* A graph is the events of its capture, which a launch repeats. */
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  return checked(begin_capture(stream));
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  return checked(end_capture(stream, (struct graph **)graph));
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  struct stream *own = stream_of(stream);
  *status = own && own->captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **dependencies,
                                     const cudaGraphEdgeData **edges, size_t *count) {
  struct stream *own = stream_of(stream);
  cudaStreamIsCapturing(stream, status);
  if (*status == cudaStreamCaptureStatusNone) return cudaSuccess;
  if (id) *id = (unsigned long long)own->captured;
  if (graph) *graph = (cudaGraph_t)own->captured;
  if (count) *count = 0;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
  enum cudaStreamCaptureMode before = (enum cudaStreamCaptureMode)capture_mode;
  capture_mode = (int)*mode;
  *mode = before;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
  *count = ((struct graph *)graph)->count;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  struct graph *own = (struct graph *)graph;
  free(own->nodes);
  free(own);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *instance, cudaGraph_t graph,
                                          unsigned long long flags) {
  struct graph *from = (struct graph *)graph, *own = malloc(sizeof *own);
  own->count = from->count;
  own->nodes = malloc(from->count * sizeof *own->nodes + 1);
  memcpy(own->nodes, from->nodes, from->count * sizeof *own->nodes);
  *instance = (cudaGraphExec_t)own;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t instance) {
  return cudaGraphDestroy((cudaGraph_t)instance);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t instance, cudaStream_t stream) {
  struct graph *own = (struct graph *)instance;
  for (size_t i = 0; i < own->count; i++) {
    struct event event = own->nodes[i];
    event.replayed = true;
    CUresult code = submit(&event, stream);
    if (code != CUDA_SUCCESS) return checked(code);
  }
  return cudaSuccess;
}

/* torch's libraries name these functions, and no test calls them. */
static __attribute__((used)) cudaError_t runtime_lacks(void) {
  return checked(CUDA_ERROR_NOT_SUPPORTED);
}
#define LACKS(name) \
  __asm__(".globl " #name "\n.type " #name ", @function\n.set " #name ", runtime_lacks");
LACKS(cudaDeviceEnablePeerAccess)
LACKS(cudaDeviceGetDefaultMemPool)
LACKS(cudaFreeAsync)
LACKS(cudaGetSymbolAddress)
LACKS(cudaGraphDebugDotPrint)
LACKS(cudaGraphNodeGetDependencies)
LACKS(cudaHostRegister)
LACKS(cudaHostUnregister)
LACKS(cudaIpcCloseMemHandle)
LACKS(cudaIpcGetEventHandle)
LACKS(cudaIpcGetMemHandle)
LACKS(cudaIpcOpenEventHandle)
LACKS(cudaIpcOpenMemHandle)
LACKS(cudaLaunchCooperativeKernel)
LACKS(cudaLaunchHostFunc)
LACKS(cudaMallocAsync)
LACKS(cudaMemPoolGetAttribute)
LACKS(cudaMemPoolSetAccess)
LACKS(cudaMemPoolSetAttribute)
LACKS(cudaMemPoolTrimTo)
LACKS(cudaMemcpy2DAsync)
LACKS(cudaMemcpyToSymbol)
LACKS(cudaProfilerStart)
LACKS(cudaProfilerStop)
LACKS(cudaStreamAddCallback)

/* Finds a function of the driver by its name. A library asks for many and calls few. */
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *status) {
  void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  *function = driver ? dlsym(driver, name) : NULL;
  if (!*function) *function = (void *)runtime_lacks;
  if (status) *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
