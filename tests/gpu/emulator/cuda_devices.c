/* The devices of the stand-ins: their memory, their streams, and the recording of all they are told.
 *
 * They are stricter than tests need to work. These are errors, as on a GPU: a stream or a function
 * of another device than the thread's, a parameter in another device's memory, and, while a stream
 * is captured into a graph, a call that would wait or allocate.
 */
#include "cuda_standins.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

__thread int current_device;
__thread int capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

/* Guards all that threads share: the recording, the blocks and the number of captures. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static bool recording;
static struct event *events;
static size_t events_count;

static void append(struct event **list, size_t *count, const struct event *event) {
  /* The room doubles whenever the number of events reaches a power of two. */
  if ((*count & (*count - 1)) == 0)
    *list = realloc(*list, (*count ? 2 * *count : 1) * sizeof **list);
  (*list)[(*count)++] = *event;
}

EXPORT void standins_record(int on) {
  pthread_mutex_lock(&lock);
  recording = on;
  if (on) events_count = 0;
  pthread_mutex_unlock(&lock);
}

EXPORT size_t standins_events(const struct event **found) {
  *found = events;
  return events_count;
}

bool watched(CUstream stream) {
  struct stream *own = stream_of(stream);
  return recording || (own && own->captured);
}

CUresult submit(struct event *event, CUstream stream) {
  struct stream *own = stream_of(stream);
  CUresult code = check_stream(stream);
  if (code != CUDA_SUCCESS) return code;
  event->device = current_device;
  event->stream = own ? (uint64_t)own : 0;
  pthread_mutex_lock(&lock);
  event->captured = own && own->captured;
  if (event->captured) append(&own->captured->nodes, &own->captured->count, event);
  if (recording) append(&events, &events_count, event);
  pthread_mutex_unlock(&lock);
  return CUDA_SUCCESS;
}

static struct block *blocks;
static uint32_t blocks_count;

CUresult allocate(void **start, size_t bytes) {
  if (forbidden_in_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  size_t whole = (bytes + 511) / 512 * 512;
  *start = aligned_alloc(512, whole);
  if (!*start) return CUDA_ERROR_OUT_OF_MEMORY;
  /* Values that the host reads are then the same in each run. */
  memset(*start, 0, whole);
  struct block *block = malloc(sizeof *block);
  pthread_mutex_lock(&lock);
  *block = (struct block){*start, bytes, current_device, ++blocks_count, blocks};
  blocks = block;
  pthread_mutex_unlock(&lock);
  struct event event = {.kind = ALLOCATION, .bytes = bytes};
  return submit(&event, NULL);
}

CUresult release(void *start) {
  if (!start) return CUDA_SUCCESS;
  if (forbidden_in_capture()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  pthread_mutex_lock(&lock);
  struct block **place = &blocks;
  while (*place && (*place)->start != start) place = &(*place)->next;
  struct block *block = *place;
  if (block) *place = block->next;
  pthread_mutex_unlock(&lock);
  if (!block) return CUDA_ERROR_INVALID_VALUE;
  free(block->start);
  free(block);
  return CUDA_SUCCESS;
}

bool find_block(const void *address, struct block *found) {
  pthread_mutex_lock(&lock);
  struct block *block = blocks;
  while (block && (size_t)((char *)address - block->start) >= block->bytes) block = block->next;
  if (block) *found = *block;
  pthread_mutex_unlock(&lock);
  return block;
}

EXPORT uint32_t standins_block(const void *address) {
  struct block block;
  return find_block(address, &block) ? block.number : 0;
}

static int captures;

struct stream *stream_of(CUstream stream) {
  return stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD ? NULL
                                                                      : (struct stream *)stream;
}

CUresult check_stream(CUstream stream) {
  struct stream *own = stream_of(stream);
  return own && own->device != current_device ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

bool forbidden_in_capture(void) {
  return captures && capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED;
}

CUresult begin_capture(CUstream stream) {
  struct stream *own = stream_of(stream);
  if (!own || own->captured) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  own->captured = calloc(1, sizeof *own->captured);
  pthread_mutex_lock(&lock);
  captures++;
  pthread_mutex_unlock(&lock);
  return CUDA_SUCCESS;
}

CUresult end_capture(CUstream stream, struct graph **graph) {
  struct stream *own = stream_of(stream);
  if (!own || !own->captured) return CUDA_ERROR_ILLEGAL_STATE;
  *graph = own->captured;
  own->captured = NULL;
  pthread_mutex_lock(&lock);
  captures--;
  pthread_mutex_unlock(&lock);
  return CUDA_SUCCESS;
}
