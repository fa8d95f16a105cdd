// Runs independent chunks of work on several threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vidgen {

using ChunkFunction = void (*)(void* context, int64_t chunk);

// Calls function(context, c) once for every c in [0, chunks), on at most `threads` threads, and
// returns when all are done. Which thread runs which chunk is not defined.
void parallel_chunks(int64_t chunks, int threads, ChunkFunction function, void* context);

// Memory of the calling thread, kept between calls: valid until its next call of scratch().
float* scratch(std::size_t floats);

// Memory that all threads of a kernel share, on a cache line; free_floats gives it back.
float* allocate_floats(std::size_t floats);
void free_floats(float* memory);

}  // namespace vidgen
