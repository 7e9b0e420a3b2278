// A block's threads as fibers of one host thread, so that barriers and shuffles are real: a thread
// that arrives waits for the others, and what it was not made to wait for may come in any order.
#pragma once
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#pragma GCC visibility push(default)
extern "C" {
extern std::int64_t host_device;          // the current one
extern std::int64_t host_launched_on[2];  // device and stream of the last launch
extern std::int64_t host_counts_only;     // not 0: launches are counted and not made, to time the caller
}
#pragma GCC visibility pop

namespace host {

extern uint3 block_index;
extern dim3 block_dim;

// In which order threads that could run do: 0 by index, 1 from the last, else drawn at random with this seed.
// HOST_ORDER in the environment.
extern const std::uint64_t order;

const uint3& current_thread();
int lane();  // of the current thread

// Every thread of the block waits here for all others.
void block_barrier();

// The collective operations of a warp: all of `mask` must come to the same one.
enum class Tag { syncwarp, ballot, shfl, shfl_xor };
// Leaves a value and waits for the lanes of `mask`; what each of the 32 left is valid until the next exchange.
const std::uint64_t* warp_exchange(unsigned mask, std::uint64_t value, Tag tag);

// Ends the launch with an error.
[[noreturn]] void fail(const std::string& why);

// Runs `body(argument)` once a thread, block after block; shared memory is NaN when a block starts.
// Throws std::runtime_error where threads wait for others that never come.
void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, void (*body)(void*), void* argument);

}  // namespace host
