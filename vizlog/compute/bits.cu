// The histogram's two passes over tensors on a device; the second one sees to two health figures of a layer's output too.
//
// A program (a block) reads a stretch of one tensor and counts it in shared memory: one addition to global memory for
// each value would wait for the few addresses that most values have. Counts are whole numbers, so the order in which
// programs add theirs does not matter; moments are written by each program, and the last one adds them up in a fixed
// order. Names in capitals that are not here are constants of bits_cuda.py, bits.py and passes.py.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

enum { FLOAT32, FLOAT16, BFLOAT16 };

const u32 INFINITE = 0x7F800000u;
const int SHIFT = 23 - MANTISSA_BITS;
const int FIRST_NEGATIVE = 1 << 14;  // the upper bits of -0.0
const int LINEAR_BINS = 1 << LINEAR_BITS;
const int SHOWN_BINS = 64;

// Values of 64 octaves are counted in shared memory, up to 8 above the largest of the first ones; others, which are
// rare, in global memory.
const int OCTAVES = 64;  // 32 where they have twice as many bins
const int ROOM = 8;
const int WINDOW = OCTAVES << MANTISSA_BITS;
const int USUAL_EXPONENT = 127;

const int WARPS = THREADS / 32;
const int FINISHERS = 128;  // threads that add up what the programs found

// What is counted: one tensor, or those that `numbers` lists. It holds their addresses (T), types (T) and sizes (T), and
// the number of each one's first program (T + 1). They have the slots from `slot` on of `memory`. bits_cuda.py has the
// same layout.
struct Given {
  const i64* numbers;
  i64 address;
  i64* memory;
  i64* partly;  // what each program found: tallies (5, P) and moments (4, P)
  u32* odd;     // (2 * FIRST_NEGATIVE), zero: of one bfloat16 tensor, those of its upper bits that have a 1 behind them
  int size, type, tensors;
  int length;  // of a stretch: a multiple of 8
  int slot, slots;
  int room;          // for flags of units, in each slot
  u32 units, inner;  // element i is of unit (i / inner) % units; 0: nothing is asked of units
  float low, high;   // count what is at most or at least this,
  int limited;       // if anything is asked of limits
};

// As `uncollected.Together` has it.
struct Memory {
  i64* tallies;             // (5, slots): elements, zeros, NaNs, +infs, -infs
  double* moments;          // (4, slots): minimum, maximum, sum, sum of squares about the mean
  i64 *exponents, *firsts;  // (slots): of the bins of equal width
  u64* done;                // (slots): programs that are done
  i64* needed;              // (slots): how bins of equal width are counted
  u64* beyond;              // (slots): values at the limits or beyond
  u32* table;               // (slots, 2 * FIRST_NEGATIVE): by upper bits, without zeros
  u32* linear;              // (slots, LINEAR_BINS)
  unsigned char* alive;     // (slots, room): 1 for each unit that has a value other than zero

  __device__ Memory(const Given& given) {
    const i64 slots = given.slots;
    tallies = given.memory;
    moments = (double*)(tallies + 5 * slots);
    exponents = (i64*)(moments + 4 * slots);
    firsts = exponents + slots;
    done = (u64*)(firsts + slots);
    needed = (i64*)(done + slots);
    beyond = (u64*)(needed + slots);
    table = (u32*)(beyond + slots);
    linear = table + slots * 2 * FIRST_NEGATIVE;
    alive = (unsigned char*)(linear + slots * LINEAR_BINS);
  }
};

// Whether bins of equal width are counted in a second pass, or from the counts of upper bits.
enum { NOT_NEEDED, BY_VALUES, BY_UPPER_BITS };

// What this program counts.
struct Stretch {
  int slot, type, first_program, programs, n;
  i64 size;
  bool exact;  // all bits of its values are counted
  const char* values;

  __device__ Stretch(const Given& given) {
    i64 address = given.address;
    slot = given.slot;
    type = given.type;
    size = given.size;
    first_program = 0;
    programs = gridDim.x;
    if (given.numbers) {
      const i64 *types = given.numbers + given.tensors, *sizes = types + given.tensors, *firsts = sizes + given.tensors;
      int owner = 0, above = given.tensors;
      while (above - owner > 1) {
        const int middle = (owner + above) / 2;
        if (firsts[middle] <= blockIdx.x)
          owner = middle;
        else
          above = middle;
      }
      slot += owner;
      address = given.numbers[owner];
      type = (int)types[owner];
      size = sizes[owner];
      first_program = (int)firsts[owner];
      programs = (int)firsts[owner + 1] - first_program;
    }
    const i64 start = (i64)(blockIdx.x - first_program) * given.length;
    n = (int)min((i64)given.length, size - start);
    values = (const char*)address + start * (type == FLOAT32 ? 4 : 2);
    exact = type == BFLOAT16 && given.odd;
  }
};

template <int TYPE>
struct Format {
  static const int BYTES = TYPE == FLOAT32 ? 4 : 2;
  static const int PER_WORD = 4 / BYTES;

  // The value that stands in a word of 4 bytes, at place 0 or 1.
  static __device__ __forceinline__ float value(u32 word, int place) {
    if (TYPE == FLOAT32) return __uint_as_float(word);
    const u32 half = place ? word >> 16 : word & 0xFFFFu;
    if (TYPE == BFLOAT16) return __uint_as_float(half << 16);
    float single;
    asm("cvt.f32.f16 %0, %1;" : "=f"(single) : "h"((unsigned short)half));
    return single;
  }

  static __device__ __forceinline__ float load(const char* values, int i) {
    if (TYPE == FLOAT32) return *((const float*)values + i);
    return value(*((const unsigned short*)values + i), 0);
  }
};

// Shows every value of a stretch to some thread, 16 bytes at a time where they are aligned. Those of which `visit` says
// so are shown to `rarely` too: what is done for all has no branches then, so that work on several values overlaps.
template <int TYPE, class Visit, class Rarely>
__device__ __forceinline__ void each(const char* values, int n, Visit visit, Rarely rarely) {
  typedef Format<TYPE> F;
  const int per_vector = 4 * F::PER_WORD;
  const int head = min(n, (int)((16 - ((u64)values & 15)) & 15) / F::BYTES);
  const uint4* body = (const uint4*)(values + (i64)head * F::BYTES);
  const int vectors = (n - head) / per_vector;
  const int tail = head + vectors * per_vector;
  auto show_one = [&](int i) {
    const float x = F::load(values, i);
    if (visit(x)) rarely(x);
  };
  if (threadIdx.x < head) show_one(threadIdx.x);
  if (tail + threadIdx.x < n) show_one(tail + threadIdx.x);

  auto show = [&](uint4 vector) {
    const u32 words[4] = {vector.x, vector.y, vector.z, vector.w};
    u32 rare = 0;
#pragma unroll
    for (int i = 0; i < per_vector; i++)
      if (visit(F::value(words[i / F::PER_WORD], i % F::PER_WORD))) rare |= 1u << i;
    if (!rare) return;
#pragma unroll
    for (int i = 0; i < per_vector; i++)
      if (rare >> i & 1) rarely(F::value(words[i / F::PER_WORD], i % F::PER_WORD));
  };
  int i = threadIdx.x;
  for (; i + (UNROLL - 1) * THREADS < vectors; i += UNROLL * THREADS) {
    uint4 loaded[UNROLL];  // all on their way before the first is needed
#pragma unroll
    for (int k = 0; k < UNROLL; k++) loaded[k] = __ldcs(body + i + k * THREADS);
#pragma unroll
    for (int k = 0; k < UNROLL; k++) show(loaded[k]);
  }
  for (; i < vectors; i += THREADS) show(__ldcs(body + i));
}

template <class Visit>
__device__ __forceinline__ void each_of(const Stretch& stretch, Visit visit) {
  auto all = [&](float x) {
    visit(x);
    return false;
  };
  auto none = [](float) {};
  if (stretch.type == FLOAT32)
    each<FLOAT32>(stretch.values, stretch.n, all, none);
  else if (stretch.type == FLOAT16)
    each<FLOAT16>(stretch.values, stretch.n, all, none);
  else
    each<BFLOAT16>(stretch.values, stretch.n, all, none);
}

struct Moments {
  double n, low, high, total, squares;  // squares about the mean

  // Chan, Golub and LeVeque 1979, eq. 2.1.
  __device__ void add(const Moments& other) {
    if (!other.n) return;
    if (!n) {
      *this = other;
      return;
    }
    const double delta = other.total / other.n - total / n;
    squares += other.squares + delta * delta * (n * (other.n / (n + other.n)));
    low = fmin(low, other.low);
    high = fmax(high, other.high);
    total += other.total;
    n += other.n;
  }
};

// As `bits.linear_exponent`.
__device__ int linear_exponent(double low, double high) {
  const double span = high / 2 - low / 2;
  int exponent = -1021, of_largest;
  if (span > 0) {
    frexp(span, &exponent);
    exponent += 1 - LINEAR_BITS;
  }
  frexp(fmax(fabs(low), fabs(high)), &of_largest);
  exponent = max(max(exponent, of_largest - 30), -1021);
  while (floor(ldexp(high, -exponent)) - floor(ldexp(low, -exponent)) >= LINEAR_BINS) exponent++;
  return exponent;
}

// The number of a bin as `bits.Grid.number` has it, and what was counted there.
__device__ int bin_of(double value) {
  if (value == 0) return 0;
  const u32 bits = __float_as_uint((float)value);
  const int k = (int)((bits & 0x7FFFFFFFu) >> SHIFT) + 1;
  return bits >> 31 ? -k : k;
}

__device__ double height(const u32* table, i64 zeros, int bin) {
  if (bin == 0) return (double)zeros;
  return __ldcg(table + (bin > 0 ? bin - 1 : FIRST_NEGATIVE - bin - 1));
}

struct Finishing {
  Moments added[FINISHERS];
  i64 tallied[5][FINISHERS];
  double jumps[FINISHERS];
};

struct Shared {
  union {
    u32 counts[2 * WINDOW + 1];  // positive, then negative, then all others
    Finishing finishing;
  };
  u32 largest, rare, nans, pos_infs, neg_infs;
  float lows[WARPS], highs[WARPS];
  double totals[WARPS], squares[WARPS];
  bool last;
};

// What all programs of a tensor found, together; and where its bins of equal width lie, and whether they are needed.
__device__ __noinline__ void finish(Finishing& shared, const Stretch& stretch, const Memory& memory, const i64* partly) {
  const int thread = threadIdx.x, all_programs = gridDim.x;
  Moments own = {0, __longlong_as_double(0x7FF0000000000000LL), -__longlong_as_double(0x7FF0000000000000LL), 0, 0};
  i64 sums[5] = {0, 0, 0, 0, 0};
  if (thread < FINISHERS) {
    for (int p = stretch.first_program + thread; p < stretch.first_program + stretch.programs; p += FINISHERS) {
      i64 finite = 0;
      for (int k = 0; k < 5; k++) {
        const i64 number = __ldcg(partly + (i64)k * all_programs + p);
        sums[k] += number;
        finite += k == 0 ? number : k == 1 ? 0 : -number;
      }
      double m[4];
      for (int k = 0; k < 4; k++) m[k] = __ldcg((const double*)partly + (i64)(5 + k) * all_programs + p);
      own.add({(double)finite, m[0], m[1], m[2], m[3]});
    }
    for (int k = 0; k < 5; k++) shared.tallied[k][thread] = sums[k];
    shared.added[thread] = own;
  }
  for (int half = FINISHERS / 2; half; half /= 2) {
    __syncthreads();
    if (thread < half) {
      for (int k = 0; k < 5; k++) shared.tallied[k][thread] += shared.tallied[k][thread + half];
      shared.added[thread].add(shared.added[thread + half]);
    }
  }
  __syncthreads();

  const Moments all = shared.added[0];
  const i64 zeros = shared.tallied[1][0];
  const u32* table = memory.table + (i64)stretch.slot * 2 * FIRST_NEGATIVE;
  // As `bits.interpolation_error`, an edge a thread.
  double jump = 0;
  if (thread < SHOWN_BINS - 1 && all.n) {
    const int bin = bin_of((all.low / 2 + (thread + 1) * ((all.high / 2 - all.low / 2) / SHOWN_BINS)) * 2);
    const double at = height(table, zeros, bin);
    jump = fmax(fabs(at - height(table, zeros, bin - 1)), fabs(height(table, zeros, bin + 1) - at));
  }
  if (thread < FINISHERS) shared.jumps[thread] = jump;
  for (int half = FINISHERS / 2; half; half /= 2) {
    __syncthreads();
    if (thread < half) shared.jumps[thread] += shared.jumps[thread + half];
  }
}

__device__ __noinline__ void write(const Finishing& shared, const Stretch& stretch, const Memory& memory, int slots) {
  const Moments all = shared.added[0];
  const int slot = stretch.slot;
  for (int k = 0; k < 5; k++) memory.tallies[k * slots + slot] = shared.tallied[k][0];
  const double moments[4] = {all.low, all.high, all.total, all.squares};
  for (int k = 0; k < 4; k++) memory.moments[k * slots + slot] = moments[k];
  const int exponent = all.n ? linear_exponent(all.low, all.high) : 0;
  const bool always = stretch.type != FLOAT32 || stretch.size <= ALWAYS_LINEAR;
  const bool wanted = all.n && (always || shared.jumps[0] / 8 / all.n > TOLERABLE_ERROR);
  memory.exponents[slot] = exponent;
  memory.firsts[slot] = all.n ? (i64)floor(ldexp(all.low, -exponent)) : 0;
  memory.needed[slot] = stretch.exact ? BY_UPPER_BITS : wanted ? BY_VALUES : NOT_NEEDED;
  if (wanted && all.low == all.high) {  // which leaves nothing to find out
    memory.linear[(i64)slot * LINEAR_BINS] = (u32)all.n;
    memory.needed[slot] = stretch.exact ? BY_UPPER_BITS : NOT_NEEDED;
  }
}

// What one thread found.
struct Own {
  float low, high;
  double total, squares;  // of deviations from the pivot

  __device__ __forceinline__ void add(float x, float pivot, u32 count = 1) {
    const double deviation = (double)x - pivot, of_all = count * deviation;
    low = fminf(low, x);
    high = fmaxf(high, x);
    total += of_all;
    squares = fma(of_all, deviation, squares);
  }
};

// Upper bits of which each has a place in shared memory, and where others are counted.
struct Window {
  u32 first;
  int more;     // bits beyond those of a bin: 1 where all of a bfloat16's are counted
  u32 *table, *odd;

  __device__ void add(u32 upper_bits, u32 sign, u32 count) const {  // to global memory
    const u32 place = (upper_bits >> more) + sign * FIRST_NEGATIVE;
    atomicAdd(&table[place], count);
    if (upper_bits & more) atomicAdd(&odd[place], count);
  }
};

// Counts the values of a stretch. Where `EXACT`, moments are found from the counts, which takes less than from each
// value, but for values outside of the window.
template <int TYPE, bool EXACT>
__device__ __forceinline__ void count(Shared& shared, Own& own, const Stretch& stretch, const Window& window, float pivot) {
  const int shift = SHIFT - EXACT;
  each<TYPE>(
      stretch.values, stretch.n,
      [&](float x) {
        const u32 bits = __float_as_uint(x), magnitude = bits & 0x7FFFFFFFu;
        const u32 place = (magnitude >> shift) - window.first;
        const bool inside = place < WINDOW;  // neither zero nor what is not finite is
        atomicAdd(&shared.counts[inside ? place + (bits >> 31) * WINDOW : 2 * WINDOW], 1u);
        const bool rare = !inside && magnitude;
        if (!EXACT && !rare) own.add(x, pivot);
        return rare;
      },
      [&](float x) {
        const u32 bits = __float_as_uint(x), magnitude = bits & 0x7FFFFFFFu, sign = bits >> 31;
        atomicAdd(&shared.rare, 1u);
        if (magnitude >= INFINITE) {
          atomicAdd(magnitude > INFINITE ? &shared.nans : sign ? &shared.neg_infs : &shared.pos_infs, 1u);
          return;
        }
        own.add(x, pivot);
        window.add(magnitude >> shift, sign, 1);
      });
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) scan(const Given given) {
  __shared__ Shared shared;
  const Stretch stretch(given);
  const Memory memory(given);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  for (int i = threadIdx.x; i <= 2 * WINDOW; i += THREADS) shared.counts[i] = 0;
  if (threadIdx.x == 0) shared.largest = shared.rare = shared.nans = shared.pos_infs = shared.neg_infs = 0;
  __syncthreads();
  if (threadIdx.x < stretch.n) {
    const float x = stretch.type == FLOAT32   ? Format<FLOAT32>::load(stretch.values, threadIdx.x)
                    : stretch.type == FLOAT16 ? Format<FLOAT16>::load(stretch.values, threadIdx.x)
                                              : Format<BFLOAT16>::load(stretch.values, threadIdx.x);
    const u32 bits = __float_as_uint(x), magnitude = bits & 0x7FFFFFFFu;
    if (magnitude < INFINITE) atomicMax(&shared.largest, magnitude << 1 | bits >> 31);
  }
  __syncthreads();
  // Deviations from one of the values lose nothing where the mean is far larger than the spread.
  const float pivot = __uint_as_float(shared.largest >> 1 | shared.largest << 31);
  const int exponent = shared.largest ? (int)(shared.largest >> 24) : USUAL_EXPONENT;
  // All 16 bits of a bfloat16 are counted: bins of any kind can be made of that without reading the values again.
  const int more = stretch.exact, octaves = OCTAVES >> more;
  const u32 lowest = (min(max(exponent + ROOM, octaves - 1), 254) - octaves + 1) << (MANTISSA_BITS + more);
  const u32 first = max(lowest, 1u);  // zero is outside
  const Window window = {first, more, memory.table + (i64)stretch.slot * 2 * FIRST_NEGATIVE, given.odd};

  Own own = {__uint_as_float(INFINITE), -__uint_as_float(INFINITE), 0, 0};
  if (stretch.type == FLOAT32)
    count<FLOAT32, false>(shared, own, stretch, window, pivot);
  else if (stretch.type == FLOAT16)
    count<FLOAT16, false>(shared, own, stretch, window, pivot);
  else if (stretch.exact)
    count<BFLOAT16, true>(shared, own, stretch, window, pivot);
  else
    count<BFLOAT16, false>(shared, own, stretch, window, pivot);

  __syncthreads();
  const u32 zeros = shared.counts[2 * WINDOW] - shared.rare;
  if (stretch.exact && zeros && threadIdx.x == 0) own.add(0, pivot, zeros);
  for (int i = threadIdx.x; i < 2 * WINDOW; i += THREADS) {
    const u32 count = shared.counts[i], upper_bits = first + i % WINDOW, sign = i / WINDOW;
    if (!count) continue;
    window.add(upper_bits, sign, count);
    if (stretch.exact) own.add(__uint_as_float(sign << 31 | upper_bits << (SHIFT - 1)), pivot, count);
  }
  for (int step = 16; step; step /= 2) {
    own.low = fminf(own.low, __shfl_xor_sync(0xFFFFFFFFu, own.low, step));
    own.high = fmaxf(own.high, __shfl_xor_sync(0xFFFFFFFFu, own.high, step));
    own.total += __shfl_xor_sync(0xFFFFFFFFu, own.total, step);
    own.squares += __shfl_xor_sync(0xFFFFFFFFu, own.squares, step);
  }
  if (lane == 0) {
    shared.lows[warp] = own.low;
    shared.highs[warp] = own.high;
    shared.totals[warp] = own.total;
    shared.squares[warp] = own.squares;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    float low = shared.lows[0], high = shared.highs[0];
    double total = shared.totals[0], squares = shared.squares[0];
    for (int w = 1; w < WARPS; w++) {
      low = fminf(low, shared.lows[w]);
      high = fmaxf(high, shared.highs[w]);
      total += shared.totals[w];
      squares += shared.squares[w];
    }
    const i64 nonfinite = (i64)shared.nans + shared.pos_infs + shared.neg_infs;
    const double finite = (double)(stretch.n - nonfinite);
    const i64 tallies[5] = {stretch.n, zeros, shared.nans, shared.pos_infs, shared.neg_infs};
    const double moments[4] = {low, high, total + pivot * finite,
                               finite ? fmax(squares - total * (total / finite), 0.0) : 0.0};
    const i64 stride = gridDim.x;
    for (int k = 0; k < 5; k++) given.partly[k * stride + blockIdx.x] = tallies[k];
    for (int k = 0; k < 4; k++) ((double*)given.partly)[(5 + k) * stride + blockIdx.x] = moments[k];
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) shared.last = atomicAdd(&memory.done[stretch.slot], 1ull) == stretch.programs - 1;
  __syncthreads();
  if (!shared.last) return;
  __threadfence();
  finish(shared.finishing, stretch, memory, given.partly);
  if (threadIdx.x == 0) write(shared.finishing, stretch, memory, given.slots);
}

// Finite values in [k, k + 1) * 2**exponent, k from the tensor's first bin.
struct Linear {
  int first;
  double scale;

  __device__ Linear(const Memory& memory, int slot) {
    first = (int)memory.firsts[slot];
    scale = ldexp(1.0, -(int)memory.exponents[slot]);
  }

  __device__ int bin(float x) const { return min(max(__double2int_rd(x * scale) - first, 0), LINEAR_BINS - 1); }
};

__device__ __forceinline__ void count_linear(u32* counts, const Stretch& stretch, const Memory& memory) {
  const Linear linear(memory, stretch.slot);
  for (int i = threadIdx.x; i < LINEAR_BINS; i += THREADS) counts[i] = 0;
  __syncthreads();
  each_of(stretch, [&](float x) {
    if ((__float_as_uint(x) & 0x7FFFFFFFu) < INFINITE) atomicAdd(&counts[linear.bin(x)], 1u);
  });
  __syncthreads();
  for (int i = threadIdx.x; i < LINEAR_BINS; i += THREADS)
    if (counts[i]) atomicAdd(&memory.linear[(i64)stretch.slot * LINEAR_BINS + i], counts[i]);
}

// The same of one bfloat16 tensor, from how often each of its values occurs; and `odd` is zero again.
__device__ __forceinline__ void sort_linear(const Given& given, const Stretch& stretch, const Memory& memory) {
  const Linear linear(memory, stretch.slot);
  const u32* table = memory.table + (i64)stretch.slot * 2 * FIRST_NEGATIVE;
  u32* counts = memory.linear + (i64)stretch.slot * LINEAR_BINS;
  const bool sorted = memory.moments[stretch.slot] == memory.moments[given.slots + stretch.slot];  // all are equal
  const u32 own = blockIdx.x * THREADS + threadIdx.x;
  for (u32 i = own; i < 2 * FIRST_NEGATIVE; i += gridDim.x * THREADS) {
    const u32 all = table[i], odd = given.odd[i];
    if (!all) continue;
    if (odd) given.odd[i] = 0;
    if (sorted) continue;
    const u32 bits = (i / FIRST_NEGATIVE) << 31 | (i % FIRST_NEGATIVE) << SHIFT;
    if (all > odd) atomicAdd(&counts[linear.bin(__uint_as_float(bits))], all - odd);
    if (odd) atomicAdd(&counts[linear.bin(__uint_as_float(bits | 1u << (SHIFT - 1)))], odd);
  }
  const u32 zeros = (u32)memory.tallies[given.slots + stretch.slot];
  if (own == 0 && zeros && !sorted) atomicAdd(&counts[linear.bin(0.0f)], zeros);
}

const int SEEN_WORDS = LINEAR_BINS - 32;
const int PIECE = 8 * THREADS;

// Which units a program has seen alive, a bit for each, and how many.
struct Seen {
  u32 bits[SEEN_WORDS];
  u32 number;
};

// Without a zero, no unit has to be looked at; else a program reads until it has seen all of them alive.
__device__ __forceinline__ void find_alive(Seen& seen, const Given& given, const Stretch& stretch, const Memory& memory) {
  unsigned char* flags = memory.alive + (i64)stretch.slot * given.room;
  if (!memory.tallies[given.slots + stretch.slot]) {
    for (u32 unit = blockIdx.x * THREADS + threadIdx.x; unit < given.units; unit += gridDim.x * THREADS) flags[unit] = 1;
    return;
  }
  for (int i = threadIdx.x; i < SEEN_WORDS; i += THREADS) seen.bits[i] = 0;
  if (threadIdx.x == 0) seen.number = 0;
  __syncthreads();
  const u32 start = blockIdx.x * (u32)given.length;
  for (int piece = 0; piece < stretch.n; piece += PIECE) {
    const int stop = min(piece + PIECE, stretch.n);
    for (int i = piece + threadIdx.x; i < stop; i += THREADS) {
      const u32 bits = stretch.type == FLOAT32 ? ((const u32*)stretch.values)[i] << 1
                                               : (u32)((const unsigned short*)stretch.values)[i] << 17;
      if (!bits) continue;
      const u32 unit = (start + i) / given.inner % given.units, bit = 1u << unit % 32;
      if (unit >= 32 * SEEN_WORDS) {
        flags[unit] = 1;  // beyond what there is room for
      } else if (!(seen.bits[unit / 32] & bit) && !(atomicOr(&seen.bits[unit / 32], bit) & bit)) {
        flags[unit] = 1;
        atomicAdd(&seen.number, 1u);
      }
    }
    if (__syncthreads_and(seen.number == given.units)) return;
  }
}

__device__ __forceinline__ void count_beyond(const Given& given, const Stretch& stretch, const Memory& memory) {
  u32 own = 0;
  each_of(stretch, [&](float x) { own += x <= given.low || x >= given.high; });
  for (int step = 16; step; step /= 2) own += __shfl_xor_sync(0xFFFFFFFFu, own, step);
  if (threadIdx.x % 32 == 0 && own) atomicAdd(&memory.beyond[stretch.slot], (u64)own);
}

union Again {
  u32 counts[LINEAR_BINS];
  Seen seen;
};

// What could not be told in the first pass; units and limits only of a tensor that is counted by itself.
extern "C" __global__ void __launch_bounds__(THREADS) again(const Given given) {
  __shared__ Again shared;
  const Stretch stretch(given);
  const Memory memory(given);
  const i64 needed = memory.needed[stretch.slot];
  if (needed == BY_VALUES) count_linear(shared.counts, stretch, memory);
  if (needed == BY_UPPER_BITS) sort_linear(given, stretch, memory);
  __syncthreads();
  if (given.units) find_alive(shared.seen, given, stretch, memory);
  if (given.limited) count_beyond(given, stretch, memory);
}
