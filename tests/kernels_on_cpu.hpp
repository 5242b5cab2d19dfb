// CUDA's C++ for g++, as far as kernels use it: they run on one CPU thread, to test what they do
// where there is no device. kernels_on_cpu.py compiles it in front of a kernel's source, and `KERNEL(name)` after it.
//
// Blocks run one after another, the threads of a block as fibers: each runs until it waits for others. Where a barrier
// or a mask is missing, results depend on the order; where threads wait for what does not come, the launch fails.

#include <math.h>
#include <string.h>
#include <ucontext.h>

#include <bit>
#include <type_traits>

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("shared_memory")))  // together, so that `run` finds them

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct uint3 {
  unsigned x, y, z;
};

static uint3 threadIdx, blockIdx, gridDim = {1, 1, 1};

extern "C" __attribute__((weak)) char __start_shared_memory[], __stop_shared_memory[];  // the linker's names

namespace on_cpu {

typedef unsigned long long u64;
typedef void* Place[5];  // as GCC's own setjmp has it

const int MOST_THREADS = 1024, GARBAGE = 0xA5;  // what CUDA leaves undefined
const int STACK = (1 << 16) + 192;  // a little more than a power of two, else all would share a few lines of the cache

struct Thread {
  enum { RUNS, AT_BARRIER, IN_WARP, RETURNED } state;
  bool begun;
  Place where;    // it goes on
  unsigned mask;  // the lanes that it exchanges values with,
  u64 given;      // its own value,
  u64 seen[32];   // and all of theirs, afterwards
};

static Thread threads[MOST_THREADS], *running;
static char stacks[MOST_THREADS][STACK] alignas(64);
static Place scheduler;
static void (*work)();
static const char* failure;
static int votes, voted;  // at the barrier, and at the one before

// GCC's own setjmp and longjmp save next to nothing, where swapcontext makes a system call; so callers have to expect
// that everything changes, which is what `noipa` says.
[[gnu::noipa]] static void go_on(Place& where) { __builtin_longjmp(where, 1); }

// Another thread's turn.
[[gnu::noipa]] static void leave() {
  if (!__builtin_setjmp(running->where)) go_on(scheduler);
}

[[gnu::noipa]] static void fail(const char* why) {
  failure = why;
  go_on(scheduler);
}

static void live() {
  for (;;) {
    work();
    running->state = Thread::RETURNED;
    leave();
  }
}

[[gnu::noipa]] static void resume(unsigned number) {
  running = &threads[number];
  threadIdx.x = number;
  if (__builtin_setjmp(scheduler)) return;
  if (running->begun) go_on(running->where);
  running->begun = true;
  ucontext_t fresh;
  getcontext(&fresh);
  fresh.uc_stack.ss_sp = stacks[number];
  fresh.uc_stack.ss_size = STACK;
  makecontext(&fresh, live, 0);
  setcontext(&fresh);
}

// Lanes that wait for each other see each other's values, once all of their mask that have not returned are there.
static bool exchanged(Thread* lanes) {
  for (int first = 0; first < 32; first++) {
    if (lanes[first].state != Thread::IN_WARP) continue;
    const unsigned mask = lanes[first].mask;
    bool all_wait = mask >> first & 1;
    u64 values[32];
    memset(values, GARBAGE, sizeof values);
    auto each = [&](auto visit) {
      for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1 && lanes[lane].state != Thread::RETURNED) visit(lanes[lane], values[lane]);
    };
    each([&](Thread& lane, u64& value) {
      all_wait &= lane.state == Thread::IN_WARP && lane.mask == mask;
      value = lane.given;
    });
    if (!all_wait) continue;
    each([&](Thread& lane, u64&) {
      memcpy(lane.seen, values, sizeof values);
      lane.state = Thread::RUNS;
    });
    return true;
  }
  return false;
}

// Until each thread has returned, or waits at the barrier or for ever.
static void run_warps(unsigned warps, bool backwards) {
  for (unsigned w = 0; w < warps; w++) {
    const unsigned first = 32 * (backwards ? warps - 1 - w : w);
    do {
      for (unsigned lane = 0; lane < 32; lane++) {
        const unsigned number = first + (backwards ? 31 - lane : lane);
        if (threads[number].state == Thread::RUNS) resume(number);
        if (failure) return;
      }
    } while (exchanged(threads + first));
  }
}

static void run_block(unsigned n, bool backwards) {
  for (unsigned i = 0; i < MOST_THREADS; i++) threads[i].state = i < n ? Thread::RUNS : Thread::RETURNED;
  for (bool waits = true; waits;) {
    votes = 0;
    run_warps((n + 31) / 32, backwards);
    voted = votes;
    waits = false;
    for (unsigned i = 0; i < n && !failure; i++) {
      if (threads[i].state == Thread::IN_WARP) failure = "a thread waits for lanes that do not come";
      if (threads[i].state != Thread::AT_BARRIER) continue;
      threads[i].state = Thread::RUNS;
      waits = true;
    }
    if (failure) return;
  }
}

// Null, or what went wrong. One launch at a time.
template <class Given, void (*kernel)(Given)>
const char* run(unsigned blocks, unsigned n, const void* given, bool backwards) {
  static Given argument;
  memcpy(&argument, given, sizeof argument);
  work = [] { kernel(argument); };
  failure = n > MOST_THREADS ? "too many threads" : nullptr;
  gridDim.x = blocks;
  for (unsigned b = 0; b < blocks && !failure; b++) {
    blockIdx.x = backwards ? blocks - 1 - b : b;
    // Nothing is written there: neither true nor false is what a kernel can rely on.
    if (__start_shared_memory)
      memset(__start_shared_memory, backwards ? 0 : GARBAGE, __stop_shared_memory - __start_shared_memory);
    run_block(n, backwards);
  }
  if (failure)
    for (Thread& thread : threads) thread.begun = false;  // some are in the midst of something
  return failure;
}

template <class Given>
Given given_to(void (*)(Given));

static int at_barrier(bool vote) {
  votes += vote;
  running->state = Thread::AT_BARRIER;
  leave();
  return voted;
}

template <class T>
struct Seen {
  T operator[](int lane) const {
    T value;
    memcpy(&value, &running->seen[lane & 31], sizeof value);
    return value;
  }
};

template <class T>
Seen<T> seen(unsigned mask, T value) {
  static_assert(sizeof value <= sizeof running->given);
  running->given = 0;
  memcpy(&running->given, &value, sizeof value);
  running->mask = mask;
  running->state = Thread::IN_WARP;
  leave();
  return {};
}

static unsigned present() {
  unsigned lanes = 0;
  for (int i = 0; i < 32; i++) lanes |= (threads[threadIdx.x / 32 * 32 + i].state != Thread::RETURNED) * 1u << i;
  return lanes;
}

template <class T>
T* aligned(T* address) {
  if ((size_t)address % sizeof(T)) fail("a misaligned address");
  return address;
}

}  // namespace on_cpu

#define KERNEL(name)                                                                                 \
  extern "C" const char* run_##name(unsigned blocks, unsigned n, const void* given, bool backwards) { \
    return on_cpu::run<decltype(on_cpu::given_to(name)), name>(blocks, n, given, backwards);          \
  }

static void __syncthreads() { on_cpu::at_barrier(false); }
static int __syncthreads_count(int vote) { return on_cpu::at_barrier(vote != 0); }
static int __syncthreads_or(int vote) { return on_cpu::at_barrier(vote != 0) != 0; }
static int __syncthreads_and(int vote) { return on_cpu::at_barrier(vote == 0) == 0; }
static void __threadfence() {}

static unsigned __activemask() { return on_cpu::present(); }
static unsigned __ballot_sync(unsigned mask, int vote) {
  const auto votes = on_cpu::seen(mask, int(vote != 0));
  unsigned lanes = 0;
  for (int lane = 0; lane < 32; lane++) lanes |= (votes[lane] == 1) * 1u << lane;
  return lanes;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
  return on_cpu::seen(mask, value)[from];
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int step) {
  return on_cpu::seen(mask, value)[threadIdx.x ^ step];
}

#define EXTREME(name, of_reals, sign)                                       \
  template <class A, class B, class T = std::common_type_t<A, B>>           \
  T name(A a, B b) {                                                        \
    if constexpr (std::is_floating_point_v<T>) return of_reals(T(a), T(b)); \
    return T(a) sign T(b) ? T(a) : T(b);                                    \
  }
EXTREME(min, fmin, <)
EXTREME(max, fmax, >)

#define ATOMIC(name, result)                          \
  template <class T>                                  \
  T name(T* address, std::type_identity_t<T> value) { \
    const T old = *on_cpu::aligned(address);          \
    *address = result;                                \
    return old;                                       \
  }
ATOMIC(atomicAdd, old + value)
ATOMIC(atomicMax, max(old, value))
ATOMIC(atomicOr, old | value)

#define LOAD(name) template <class T> T name(const T* from) { return *on_cpu::aligned(from); }
LOAD(__ldg)
LOAD(__ldcg)
LOAD(__ldcs)

static float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
static unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
static double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
static int __double2int_rd(double x) { return (int)fmin(fmax(floor(x), -0x1p31), 0x1p31 - 1); }
static int __popc(unsigned x) { return std::popcount(x); }

// The instruction cvt.f32.f16. A power of two as a factor makes normal and subnormal ones the same number as a float.
static float cvt_f32_f16(unsigned short half) {
  const unsigned bits = (half & 0x7FFFu) << 13, infinite = 0x1Fu << 23;
  const float value = bits < infinite ? __uint_as_float(bits) * 0x1p112f : __uint_as_float(bits | 0x7F800000u);
  return half >> 15 ? -value : value;
}
