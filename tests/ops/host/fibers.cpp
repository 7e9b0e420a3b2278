#include "fibers.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) (void)0
#define ASAN_UNPOISON_MEMORY_REGION(address, size) (void)0
#endif

#if !defined(__x86_64__) || defined(__SANITIZE_ADDRESS__)
#define HOST_UCONTEXT
#include <ucontext.h>
#endif

std::int64_t host_device = 0;
std::int64_t host_launched_on[2] = {-1, -1};
std::int64_t host_counts_only = 0;

namespace emosteer::cuda {
// The kernels' `extern __shared__ double shared[]`.
constexpr std::size_t kSharedDoubles = 48 * 1024 / sizeof(double);
alignas(16) double shared[kSharedDoubles];
}  // namespace emosteer::cuda

namespace host {

uint3 block_index;
dim3 block_dim;
const std::uint64_t order = std::getenv("HOST_ORDER") ? std::strtoull(std::getenv("HOST_ORDER"), nullptr, 10) : 0;

namespace {

constexpr std::size_t kStack = 256 * 1024;
constexpr int kMaxThreads = 1024;

// ---- switching from one stack to another ------------------------------------------------------------

#if defined(HOST_UCONTEXT)
struct Context {
  ucontext_t registers;
};
#else
struct Context {
  void* stack = nullptr;
};
extern "C" void emosteer_switch_stack(void** save, void* to);
// What a function must keep by the System V ABI; the rest the compiler has saved around the call.
asm(R"(
.text
.type emosteer_switch_stack, @function
emosteer_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#endif

enum class State { ready, in_warp, in_block, done };

struct Fiber {
  Context context;
  char* stack = nullptr;
  void* fake_stack = nullptr;
  uint3 index;
  int warp = 0, lane = 0;
  State state = State::done;
};

struct Warp {
  unsigned alive = 0, arrived = 0, mask = 0;
  Tag tag = Tag::syncwarp;
  int half = 0;
  // Two, since a lane may leave a value for the next exchange while others still read this one.
  std::uint64_t given[2][32];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<int> ready;
  std::size_t next = 0;  // of `ready`, where the order is a queue
  int size = 0, alive = 0, in_barrier = 0;
  int current = -1;
  Context main;
  void* main_fake_stack = nullptr;
  std::string error;
  std::mt19937_64 random;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
};

Block block;

void enter(int fiber);

void switch_to(Context& from, Context& to, void** fake_stack, const void* stack, std::size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, stack, size);
#else
  (void)fake_stack, (void)stack, (void)size;
#endif
#if defined(HOST_UCONTEXT)
  swapcontext(&from.registers, &to.registers);
#else
  emosteer_switch_stack(&from.stack, to.stack);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(*fake_stack, nullptr, nullptr);
#endif
}

#if defined(__SANITIZE_ADDRESS__)
const void* main_stack = nullptr;
std::size_t main_stack_size = 0;
#endif

void to_main() {
  Fiber& from = block.fibers[block.current];
  block.current = -1;
#if defined(__SANITIZE_ADDRESS__)
  switch_to(from.context, block.main, &from.fake_stack, main_stack, main_stack_size);
#else
  switch_to(from.context, block.main, &from.fake_stack, nullptr, 0);
#endif
}

int take_ready() {
  if (order < 2) return block.ready[block.next++];
  std::swap(block.ready[block.random() % block.ready.size()], block.ready.back());
  const int fiber = block.ready.back();
  block.ready.pop_back();
  return fiber;
}

bool none_ready() { return block.next == block.ready.size(); }

void make_ready(int fiber) {
  block.fibers[fiber].state = State::ready;
  if (block.next > 4096) {
    block.ready.erase(block.ready.begin(), block.ready.begin() + static_cast<std::ptrdiff_t>(block.next));
    block.next = 0;
  }
  block.ready.push_back(fiber);
}

// Leaves the current fiber to whichever can run, or to the launch where none can.
void leave() {
  if (none_ready()) {
    if (block.alive && block.error.empty())
      block.error = "threads wait at a barrier or in a shuffle for others that never come";
    return to_main();
  }
  Fiber& from = block.fibers[block.current];
  const int to = take_ready();
  if (to == block.current) return;
  block.current = to;
  Fiber& next = block.fibers[to];
  switch_to(from.context, next.context, &from.fake_stack, next.stack, kStack);
}

void release(State waiting, int first, int last) {
  for (int i = 0; i < last - first; ++i) {
    const int fiber = order == 1 ? last - 1 - i : first + i;
    if (fiber != block.current && block.fibers[fiber].state == waiting) make_ready(fiber);
  }
}

void start_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack;
  std::size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &size);
  if (!main_stack) main_stack = stack, main_stack_size = size;  // the first fiber comes from there
#endif
  block.body(block.argument);
  Fiber& mine = block.fibers[block.current];
  mine.state = State::done;
  --block.alive;
  block.warps[mine.warp].alive &= ~(1u << mine.lane);
  leave();
}

void prepare(Fiber& fiber) {
  if (!fiber.stack) {
    void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) throw std::runtime_error("no memory for a stack");
    fiber.stack = static_cast<char*>(stack);
  }
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack, kStack);  // an abandoned one may have left poison
#if defined(HOST_UCONTEXT)
  getcontext(&fiber.context.registers);
  fiber.context.registers.uc_stack.ss_sp = fiber.stack;
  fiber.context.registers.uc_stack.ss_size = kStack;
  fiber.context.registers.uc_link = nullptr;
  makecontext(&fiber.context.registers, start_fiber, 0);
#else
  // Six registers, the address to return to, and the alignment that a called function expects.
  void** top = reinterpret_cast<void**>(fiber.stack + kStack - 64);
  top[6] = reinterpret_cast<void*>(&start_fiber);
  fiber.context.stack = top;
#endif
}

void run_block(std::size_t shared_bytes) {
  block.size = static_cast<int>(block_dim.x * block_dim.y * block_dim.z);
  if (block.size > kMaxThreads || block.size % 32) throw std::runtime_error("blocks are whole warps here, up to 1024");
  block.fibers.resize(kMaxThreads);
  block.warps.assign(block.size / 32, Warp{});
  block.ready.clear();
  block.next = 0;
  block.alive = block.size;
  block.in_barrier = 0;
  block.error.clear();
  block.random.seed(order);
  ASAN_UNPOISON_MEMORY_REGION(emosteer::cuda::shared, sizeof emosteer::cuda::shared);
  std::memset(emosteer::cuda::shared, 0xff, sizeof emosteer::cuda::shared);  // NaN in every format
  ASAN_POISON_MEMORY_REGION(reinterpret_cast<char*>(emosteer::cuda::shared) + shared_bytes,
                            sizeof emosteer::cuda::shared - shared_bytes);
  (void)shared_bytes;
  for (int i = 0; i < block.size; ++i) {
    Fiber& fiber = block.fibers[i];
    const unsigned x = block_dim.x, y = block_dim.y, n = static_cast<unsigned>(i);
    fiber.index = uint3{n % x, n / x % y, n / x / y};
    fiber.warp = i / 32;
    fiber.lane = i % 32;
    block.warps[fiber.warp].alive |= 1u << fiber.lane;
    prepare(fiber);
  }
  for (int i = 0; i < block.size; ++i) make_ready(order == 1 ? block.size - 1 - i : i);
  block.current = take_ready();
  Fiber& first = block.fibers[block.current];
  switch_to(block.main, first.context, &block.main_fake_stack, first.stack, kStack);
  ASAN_UNPOISON_MEMORY_REGION(emosteer::cuda::shared, sizeof emosteer::cuda::shared);
  if (!block.error.empty()) throw std::runtime_error("in a kernel: " + block.error);
}

}  // namespace

const uint3& current_thread() { return block.fibers[block.current].index; }
int lane() { return block.fibers[block.current].lane; }

void fail(const std::string& why) {
  block.error = why;
  to_main();
  throw std::logic_error("unreachable");
}

void block_barrier() {
  if (block.alive != block.size) fail("a thread waits at __syncthreads and another has returned");
  if (++block.in_barrier == block.size) {
    block.in_barrier = 0;
    release(State::in_block, 0, block.size);
    return;
  }
  block.fibers[block.current].state = State::in_block;
  leave();
}

const std::uint64_t* warp_exchange(unsigned mask, std::uint64_t value, Tag tag) {
  const Fiber& mine = block.fibers[block.current];
  Warp& warp = block.warps[mine.warp];
  if (!(mask >> mine.lane & 1)) fail("a lane outside the mask takes part in a warp's operation");
  if (mask & ~warp.alive) fail("the mask of a warp's operation names a lane that has returned");
  if (!warp.arrived) {
    warp.mask = mask;
    warp.tag = tag;
  } else if (warp.mask != mask || warp.tag != tag) {
    fail("the lanes of a warp are at different operations");
  }
  const int half = warp.half;
  warp.given[half][mine.lane] = value;
  warp.arrived |= 1u << mine.lane;
  if (warp.arrived == mask) {
    warp.arrived = 0;
    warp.half ^= 1;
    release(State::in_warp, mine.warp * 32, mine.warp * 32 + 32);
  } else {
    block.fibers[block.current].state = State::in_warp;
    leave();
  }
  return warp.given[half];
}

void run_grid(dim3 grid, dim3 dim, std::size_t shared_bytes, void (*body)(void*), void* argument) {
  if (shared_bytes > sizeof emosteer::cuda::shared) throw std::runtime_error("more shared memory than a block has");
  block_dim = dim;
  block.body = body;
  block.argument = argument;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = uint3{x, y, z};
        run_block(shared_bytes);
      }
}

}  // namespace host
