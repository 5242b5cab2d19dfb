"""The CUDA kernels, run on the CPU: they count what `count_bits` and numpy do, in whatever order their threads run."""

from __future__ import annotations

import ctypes
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from kernels_on_cpu import kernel, kernels_run_on_cpu, library, run
from numpy.typing import NDArray
from torch import Tensor

from vizlog.compute.bits import LINEAR_BINS, BitCounts
from vizlog.compute.bits_cuda import ONE_AFTER_THE_OTHER, SHORTEST, TYPES, UNITS, Kernels, count_by_kernel
from vizlog.compute.histogram import count_bits
from vizlog.compute.uncollected import Uncollected, UncollectedAlive

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="g++ compiles the kernels, on Linux"
)

every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)


@pytest.fixture(params=[False, True], ids=["forwards", "backwards"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    return kernels_run_on_cpu(monkeypatch, backwards=request.param)


def mixed(n: int) -> Tensor:
    x = torch.randn(n) * torch.exp(torch.randn(n) * 2)
    x[::17], x[1::19], x[2::23], x[3::29], x[4::31] = 0.0, -0.0, math.nan, math.inf, -math.inf
    return x


def late(n: int) -> Tensor:
    """What comes first says nothing of what comes."""
    x = torch.zeros(n)
    x[n * 9 // 10 :] = 1e-6
    x[-1:] = -3e4
    return x


def powers(n: int) -> Tensor:
    """Of both signs and on both sides of every octave, after some that are equal."""
    x = (-1.0) ** torch.arange(n) * 2.0 ** (torch.arange(n) % 199 - 99)
    x[1::3] *= 1 - 2**-8
    x[:600] = 1
    return x


def ramp(n: int) -> Tensor:
    """As many bins of equal width as there are."""
    return (torch.arange(n) % LINEAR_BINS).float()


VALUES: dict[str, Callable[[int], Tensor]] = {
    "normal": torch.randn,
    "rectified": lambda n: torch.randn(n).relu(),
    "equal": lambda n: torch.full((n,), 2.5),
    "zeros": torch.zeros,
    "mixed": mixed,
    "far": lambda n: torch.randn(n) + 1000,
    "octaves": lambda n: torch.randn(n).sign() * torch.exp2(torch.rand(n) * 200 - 100),
    "subnormal": lambda n: torch.randn(n) * (1e-40 if n % 2 else 1e-6),  # of bfloat16 and float32, or of float16
    "late": late,
    "powers": powers,
    "ramp": ramp,
    "NaN": lambda n: torch.full((n,), math.nan),
    "one bit": lambda n: 1 + torch.randint(0, 2, (n,)) * 2.0**-7,  # which bins by upper bits do not tell apart
}

SIZES = [0, 1, 7, 511, 2 * SHORTEST + 999]  # the last by several programs


def numbers(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.double().numpy()


def assert_equal(found: BitCounts, tensor: Tensor) -> None:
    expected = count_bits(tensor)
    assert isinstance(expected, BitCounts)
    for field in ("tallies", "bins", "counts"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), err_msg=field)
    assert (found.linear is None) == (expected.linear is None)
    if found.linear is not None and expected.linear is not None:
        assert found.linear.exponent == expected.linear.exponent
        np.testing.assert_array_equal(found.linear.bins, expected.linear.bins)
        np.testing.assert_array_equal(found.linear.counts, expected.linear.counts)

    x = numbers(tensor).ravel()
    assert found.tallies == (x.size, (x == 0).sum(), np.isnan(x).sum(), (x == np.inf).sum(), (x == -np.inf).sum())
    x = x[np.isfinite(x)]
    low, high, total, squares = found.moments
    assert (low, high) == (x.min(initial=math.inf), x.max(initial=-math.inf))
    np.testing.assert_allclose(total, x.sum(), rtol=1e-12, atol=1e-12 * np.abs(x).sum())
    np.testing.assert_allclose(squares, ((x - x.mean()) ** 2).sum() if x.size else 0, rtol=1e-9)


def counted(tensors: list[Tensor]) -> list[BitCounts]:
    together = count_by_kernel(tensors)
    return [Uncollected(together, k).collected() for k in range(len(tensors))]


@every_type
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("kernels", [True], indirect=True, ids=["backwards"])  # where a missing barrier shows
def test_kernels_count_what_the_cpu_does(kernels: Kernels, name: str, dtype: torch.dtype) -> None:
    tensors = [VALUES[name](n).to(dtype) for n in SIZES]
    for found, tensor in zip(counted(tensors), tensors, strict=True):
        assert_equal(found, tensor)
        assert_equal(collected(kernels.look(tensor)[0]), tensor)


@every_type
def test_tensors_that_start_anywhere_are_counted_whole(kernels: Kernels, dtype: torch.dtype) -> None:
    wide = mixed(70_000).to(dtype)
    tensors = [wide[offset : offset + n] for offset in range(9) for n in (3, 64, 66_001)]
    for found, tensor in zip(counted(tensors), tensors, strict=True):
        assert_equal(found, tensor)
    for tensor in tensors[::4]:
        assert_equal(collected(kernels.look(tensor)[0]), tensor)


def test_a_large_tensor_is_counted_by_more_programs_than_threads_add_up(kernels: Kernels) -> None:
    tensor = torch.arange(140 * SHORTEST) / 1000
    assert_equal(collected(kernels.look(tensor)[0]), tensor)


def test_many_tensors_of_all_types_are_counted_in_one_launch(kernels: Kernels) -> None:
    names = list(VALUES)
    tensors = [VALUES[names[k % len(names)]](k * k % 3000).to([*TYPES][k % 3]) for k in range(100)]
    tensors[50] = mixed(100_000)
    for found, tensor in zip(counted(tensors), tensors, strict=True):
        assert_equal(found, tensor)


def test_tensors_looked_at_one_after_the_other_keep_apart(kernels: Kernels) -> None:
    tensors = [mixed(500 * k).to([*TYPES][k % 3]).reshape(-1, 20) for k in range(1, 2 * ONE_AFTER_THE_OTHER + 3)]
    looked = [kernels.look(tensor, 1, (-k, k)) for k, tensor in enumerate(tensors, 1)]
    assert len({id(counts.together) for counts, _, _ in looked}) == 3
    for k, ((counts, living, beyond), tensor) in enumerate(zip(looked, tensors, strict=True), 1):
        assert_equal(collected(counts), tensor)
        assert_alive(living, tensor, 1)
        assert beyond is not None
        assert beyond.collected() == (np.abs(numbers(tensor)) >= k).sum()


def collected(counts: Uncollected) -> BitCounts:
    """Once the memory has come to the host as it is now."""
    return replace(counts, together=replace(counts.together)).collected()


def assert_alive(found: UncollectedAlive | None, tensor: Tensor, dim: int) -> None:
    others = tuple(d for d in range(tensor.ndim) if d != dim % tensor.ndim)
    assert found is not None
    np.testing.assert_array_equal(found.collected(), (numbers(tensor) != 0).any(axis=others))


SHAPES = [
    ((300, 70), -1),
    ((5, 10, 33), -1),
    ((4, 6, 20, 21), 1),
    ((2, 3, 111, 111), 1),  # more than one program, and units that begin amid a vector
    ((90, 6, 7), 1),
    ((6,), 0),
    ((3, UNITS + 3), 1),  # which travels by itself
    ((3, 1, 5), 1),
    ((40_000, 1), 0),
]


@every_type
@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
def test_a_unit_is_alive_if_any_of_its_values_is_other_than_zero(
    kernels: Kernels, shape: tuple[int, ...], dim: int, dtype: torch.dtype
) -> None:
    output = torch.randn(shape).to(dtype)
    outputs = [output, output.relu(), torch.zeros_like(output), -torch.zeros_like(output)]
    few = output.clone()
    few.movedim(dim, 0)[::4] = 0
    last = torch.zeros_like(output)
    last.view(-1)[-1] = math.nan  # is not zero
    outputs += [few, last, ramp(output.numel()).to(dtype).view(shape)]
    if len(shape) == 4:
        outputs += [x.to(memory_format=torch.channels_last) for x in outputs]
    for x in outputs:
        counts, living, beyond = kernels.look(x, dim)
        assert_alive(living, x, dim)
        assert beyond is None
        assert_equal(collected(counts), x)


@every_type
@pytest.mark.parametrize("limits", [(0.0, 1.0), (-1.0, 1.0), (-0.1, 0.3), (-math.inf, 1e30), (3.0, -3.0)])
def test_values_at_the_limits_or_beyond_are_counted(
    kernels: Kernels, limits: tuple[float, float], dtype: torch.dtype
) -> None:
    low, high = (torch.tensor(limit).to(dtype).item() for limit in limits)
    for x in (mixed(40_003).to(dtype)[3:], torch.randn(600).sigmoid().to(dtype), torch.zeros(1, dtype=dtype)):
        x[::5], x[1::7] = low, high
        counts, living, beyond = kernels.look(x, limits=limits)
        assert beyond is not None
        assert beyond.collected() == ((numbers(x) <= low) | (numbers(x) >= high)).sum()
        assert living is None
        assert_equal(collected(counts), x)


@every_type
def test_all_that_is_found_is_the_same_in_whatever_order_threads_run(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, memories = mixed(350_000).to(dtype).reshape(-1, 70), []
    for backwards in (False, True):
        kernels = kernels_run_on_cpu(monkeypatch, backwards=backwards)
        (counts, _, _), together = kernels.look(x, 1, (0.0, 1.0)), count_by_kernel([x, x[7:]])
        memories += [(counts.together.memory, together.memory)]
        assert_equal(collected(counts), x)
    assert all(map(torch.equal, *memories))


# the harness itself

KERNELS = """
struct Given { int* found; };

extern "C" __global__ void exchanges(const Given given) {
  const int thread = threadIdx.x;
  if (thread % 32 == 31) return;
  const unsigned lanes = __activemask();
  double value = thread + 0.5;
  if (thread % 2) value = __shfl_xor_sync(lanes & 0xAAAAAAAAu, value, 2);
  const unsigned odd = __ballot_sync(lanes, thread % 2);
  const int all = __syncthreads_count(1), some = __syncthreads_or(thread == 5), every = __syncthreads_and(thread < 63);
  given.found[thread] = (int)value + 1000 * __popc(odd) + 100000 * all + (some && every ? 0 : 100);
}

extern "C" __global__ void no_barrier(const Given given) {
  __shared__ int values[64];
  values[threadIdx.x] = threadIdx.x;
  given.found[threadIdx.x] = values[63 - threadIdx.x];
}

extern "C" __global__ void hangs(const Given given) {
  if (threadIdx.x) __syncthreads();
  else given.found[0] = __shfl_sync(0xFFFFFFFFu, 1, 0);
}

extern "C" __global__ void reads_amid_a_word(const Given given) {
  given.found[0] = __ldg((int*)((char*)given.found + 2));
}
"""


def found_by(name: str, *, backwards: bool = False) -> list[int]:
    found = (ctypes.c_int * 64)()
    given = ctypes.c_void_p(ctypes.addressof(found))
    run(kernel(library(KERNELS, {}), name), 1, 64, ctypes.addressof(given), backwards=backwards)
    return list(found)


def test_threads_wait_for_each_other_as_in_cuda() -> None:
    expected = [0 if t % 32 == 31 else (t ^ 2 if t % 2 else t) + 15_000 + 6_200_000 for t in range(64)]
    found = found_by("exchanges")
    for t in (29, 61):  # the thread whose value these ask for has returned
        expected[t] = found[t]
    assert found == expected
    assert found_by("exchanges", backwards=True)[:29] == expected[:29]


def test_a_forgotten_barrier_shows() -> None:
    assert found_by("no_barrier")[32:] == list(range(32))[::-1]
    assert found_by("no_barrier", backwards=True)[32:] != list(range(32))[::-1]


def test_what_would_hang_or_stop_on_a_device_raises() -> None:
    with pytest.raises(RuntimeError, match="lanes that do not come"):
        found_by("hangs")
    with pytest.raises(RuntimeError, match="misaligned"):
        found_by("reads_amid_a_word")
    assert found_by("exchanges")[0] == 6_215_000
