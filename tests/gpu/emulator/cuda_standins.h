/* The parts that the stand-ins for CUDA's runtime and driver share.
 *
 * With the stand-ins torch and Triton work with tensors on `cuda` where there is no GPU. Device
 * memory is the host's. Copies and fills happen at once. Kernels do nothing: memory that a kernel
 * would write keeps its content. All that a GPU would be told can be recorded.
 */
#ifndef CUDA_STANDINS_H
#define CUDA_STANDINS_H

#include <cuda.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Two GPUs that run the Triton kernels, and one that is too old for them. */
#define DEVICES 3
#define PARAMETERS 256

#pragma GCC visibility push(hidden)

/* The device that the calling thread works with. */
extern __thread int current_device;

/* The mode in which the calling thread makes calls while a stream is captured. */
extern __thread int capture_mode;

enum kind { ALLOCATION, LOAD, LAUNCH, FILL, COPY, WAIT };

/* A parameter of a launch. The blocks of device memory are counted from 1. */
struct parameter {
  uint64_t value;
  uint32_t size;
  uint32_t block; /* The block that the address lies in, or 0. */
  uint64_t offset;
  uint64_t block_bytes;
};

/* A thing that a device is told. `standins.py` has the same fields, and describes them. */
struct event {
  int32_t kind;
  int32_t device;
  int32_t captured;
  int32_t replayed;
  int32_t triton;
  uint32_t parameters;
  uint64_t stream;
  uint64_t function;
  const char *name;
  uint32_t grid[3];
  uint32_t threads[3];
  uint64_t bytes;
  struct parameter parameter[PARAMETERS];
};

/* Whether an event on this stream is recorded or captured. The description of others is spared. */
bool watched(CUstream stream);

/* Records an event, and puts it into the graph that its stream is captured into. */
CUresult submit(struct event *event, CUstream stream);

struct block {
  char *start;
  size_t bytes;
  int device;
  uint32_t number;
  struct block *next;
};

CUresult allocate(void **start, size_t bytes);
CUresult release(void *start);
/* The block that an address lies in, or false. */
bool find_block(const void *address, struct block *found);

/* Whether a call may not be made now, because a stream is captured and the call would wait for it
 * or change memory. */
bool forbidden_in_capture(void);

struct graph {
  struct event *nodes;
  size_t count;
};

/* A stream of its own; the default stream of each device has none. */
struct stream {
  int device;
  struct graph *captured;
};

/* The stream of this name, or NULL for a default stream, which has three names. */
struct stream *stream_of(CUstream stream);

/* An error if the stream is another device's than the thread's. */
CUresult check_stream(CUstream stream);

CUresult begin_capture(CUstream stream);
CUresult end_capture(CUstream stream, struct graph **graph);

/* The code as the runtime returns it, kept as the thread's last error if it is one. */
enum cudaError checked(CUresult code);

#pragma GCC visibility pop

#endif
