/* The order of things on a stream, as far as the host can see it. */
#ifndef DEV_EMU_STREAM_H
#define DEV_EMU_STREAM_H

#include <cuda_runtime.h>

/* Notes the status for cudaGetLastError, and returns it. */
cudaError_t emu_status(cudaError_t status);

/* An asynchronous copy to pinned memory has been made: its bytes are taken back, and 0xff stands
 * there until the host has waited for it. */
void emu_stream_arrives_late(void *to, size_t bytes);

/* One from pinned memory has been made: nobody may change that memory until the host has waited. */
void emu_stream_reads_late(const void *from, size_t bytes);

/* The number of the last thing that was given to a stream; the host has waited for all up to one.
 */
uint64_t emu_stream_end(void);
void emu_stream_reach(uint64_t number);

#endif
