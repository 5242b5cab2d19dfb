"""Histograms against numpy's, over every type, layout and value that a tensor can hold."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import importlib
import math
import mmap
import os
import pickle
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vizlog.compute import bits_torch, loops
from vizlog.compute import histogram as module
from vizlog.compute.bits import GRIDS, NO_MOMENTS, Grid, interpolation_error
from vizlog.compute.bits_numpy import PlainPass
from vizlog.compute.bits_torch import count_on_device
from vizlog.compute.histogram import BitCounts, Uncountable, count_bits, count_each, fine, histogram, histograms
from vizlog.compute.shown import shown
from vizlog.compute.transfer import to_host
from vizlog.records import Histogram

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
INTS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool]
NAN, INF = float("nan"), float("inf")


def everything(dtype: torch.dtype, n: int = 40_000) -> Tensor:
    """Values of all sizes, NaN, both infs, both zeros, denormals, both ends of the range."""
    x = torch.randn(n, dtype=torch.float64) * torch.exp(torch.randn(n, dtype=torch.float64) * 3)
    if dtype == torch.float64:
        x *= 1e250
    if not dtype.is_floating_point:
        bounds = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        return (x * bounds[1] / 9).clamp(*bounds).to(torch.int64).clamp(*bounds).to(dtype)
    limits = torch.finfo(dtype)
    x[::17], x[1::19] = 0.0, -0.0
    special = [NAN, INF, -INF, limits.max, limits.min, limits.smallest_normal, -limits.smallest_normal]
    special += [limits.smallest_normal / 2, -limits.smallest_normal / 2, limits.smallest_normal * limits.eps, 1.0, -1.0]
    x[2 : 2 + 7 * len(special) : 7] = torch.tensor(special, dtype=torch.float64)
    return x.to(dtype)


def values_of(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().to(torch.float64).numpy().ravel()


def total_variation(record: Any, values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(np.abs(np.histogram(finite, record.edges)[0] - record.counts).sum() / 2 / len(finite))


@pytest.fixture(params=["numba", "numpy"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to count on a CPU."""
    monkeypatch.setattr(module, "_idle", defaultdict(list))
    if request.param == "numpy":
        monkeypatch.setattr(loops, "_compiled", False)
    else:
        pytest.importorskip("numba")


# Fine bins


@pytest.mark.parametrize("dtype", FLOATS + INTS)
def test_fine_bins_are_what_numpy_counts_on_the_same_edges(passes: None, dtype: torch.dtype) -> None:
    tensor = everything(dtype)
    edges, counts = fine(count_bits(tensor))
    assert np.isfinite(edges).all()
    assert (np.diff(edges) > 0).all()
    assert len(counts) > (1 if dtype == torch.bool else 10)
    np.testing.assert_array_equal(counts, np.histogram(values_of(tensor), edges)[0])
    assert counts.sum() == np.isfinite(values_of(tensor)).sum()


@pytest.mark.parametrize("dtype", FLOATS + INTS)
def test_zeros_and_nonfinite_are_counted_and_everything_adds_up(passes: None, dtype: torch.dtype) -> None:
    tensor = everything(dtype)
    values, counts = values_of(tensor), count_bits(tensor)
    assert counts.count == tensor.numel()
    assert counts.zeros == (values == 0).sum()
    assert (counts.nans, counts.pos_infs) == (np.isnan(values).sum(), np.isposinf(values).sum())
    assert counts.neg_infs == np.isneginf(values).sum()
    assert fine(counts)[1].sum() + counts.nonfinite == counts.count


def test_a_fine_bin_is_narrow() -> None:
    edges, _ = fine(count_bits(torch.linspace(0.5, 100, 200_000)))
    assert (np.diff(edges) / edges[:-1]).max() <= 1 / 64


@pytest.mark.parametrize("center", [0.0, 1e6, -3.0])
def test_moments_are_numpys(passes: None, center: float) -> None:
    tensor = torch.randn(100_000) + center
    tensor[::1000] = NAN
    tensor[7] = INF
    values = values_of(tensor)
    values = values[np.isfinite(values)]
    counts = count_bits(tensor)
    assert (counts.min, counts.max) == (values.min(), values.max())
    np.testing.assert_allclose(counts.mean, values.mean(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(counts.std, values.std(), rtol=1e-9)
    np.testing.assert_allclose(math.sqrt(counts.squares), np.linalg.norm(values), rtol=1e-10)


def test_an_outlier_that_comes_first_does_not_spoil_the_spread(passes: None) -> None:
    tensor = torch.cat([torch.tensor([1e12]), torch.randn(99_999)])
    np.testing.assert_allclose(count_bits(tensor).std, values_of(tensor).std(), rtol=1e-9)


@pytest.mark.parametrize("dtype", FLOATS + INTS)
def test_without_numba_the_counts_are_equal(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    pytest.importorskip("numba")
    tensors = [everything(dtype), everything(dtype, 1000)]
    compiled = count_each(tensors)
    monkeypatch.setattr(module, "_idle", defaultdict(list))
    monkeypatch.setattr(loops, "_compiled", False)
    for a, b in zip(compiled, count_each(tensors), strict=True):
        assert_equal_counts(a, b)


def assert_equal_counts(a: BitCounts, b: BitCounts) -> None:
    assert a.grid == b.grid
    for field in ("tallies", "bins", "counts"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)
    rounding = 1e-13 * max(abs(a.min), abs(a.max)) * a.count if a.finite else 0
    np.testing.assert_allclose(np.asarray(a.moments)[:2], np.asarray(b.moments)[:2], rtol=0)
    np.testing.assert_allclose(np.asarray(a.moments)[2], np.asarray(b.moments)[2], rtol=0, atol=rounding)
    squared = min(rounding * rounding, sys.float_info.max)
    np.testing.assert_allclose(np.asarray(a.moments)[3], np.asarray(b.moments)[3], rtol=1e-9, atol=squared)
    assert (a.linear is None) == (b.linear is None)
    if a.linear is not None and b.linear is not None:
        assert a.linear.exponent == b.linear.exponent
        np.testing.assert_array_equal(a.linear.bins, b.linear.bins)
        np.testing.assert_array_equal(a.linear.counts, b.linear.counts)


@pytest.mark.parametrize("power", [-44, -38, -30, -8, -3, 0, 3, 4, 8, 30, 38])
def test_linear_bins_are_exact_at_any_width(power: int) -> None:
    """Beside numpy's: widths below and above one, numbers at a bin's edge, next to it, and just below zero."""
    pytest.importorskip("numba")
    values = (torch.randn(4000, dtype=torch.float64) * 10.0**power).clamp(-3e38, 3e38).float()
    width = 2.0 ** count_bits(values).linear.exponent  # type: ignore[union-attr]
    edges = (torch.arange(-1000, 1000) * width).float().numpy()
    beside = [np.nextafter(edges, np.float32(way)) for way in (-np.inf, np.inf)]
    near = torch.from_numpy(np.concatenate([edges, *beside, np.float32([-1e-45, -1e-38, 1e-45, -0.0])]))
    for some in (torch.cat([values, near]), torch.cat([values, near]) + values[0]):
        plain = PlainPass(GRIDS["float32"]).count_place(some.data_ptr(), some.numel())
        assert_equal_counts(count_bits(some), plain)
        finite = some[some.isfinite()].double().numpy()
        exponent = plain.linear.exponent  # type: ignore[union-attr]
        found, counts = np.unique(np.floor(np.ldexp(finite, -exponent)), return_counts=True)
        np.testing.assert_array_equal(plain.linear.bins, found)  # type: ignore[union-attr]
        np.testing.assert_array_equal(plain.linear.counts, counts)  # type: ignore[union-attr]


# Adding


def test_parts_add_up_to_the_whole_exactly(passes: None) -> None:
    whole = everything(torch.float32, 60_000)
    parts = [whole[:100], whole[100:20_000], whole[20_000:20_000], whole[20_000:]]
    added = count_bits(parts[0])
    for part in parts[1:]:
        added = added + count_bits(part)
    counts = count_bits(whole)
    np.testing.assert_array_equal(added.tallies, counts.tallies)
    np.testing.assert_array_equal(added.bins, counts.bins)
    np.testing.assert_array_equal(added.counts, counts.counts)
    np.testing.assert_allclose(added.std, counts.std, rtol=1e-9)


def test_ranges_that_do_not_meet_add_up() -> None:
    a, b = torch.rand(5000) + 100, -torch.rand(300) * 1e-3
    added, values = count_bits(a) + count_bits(b), values_of(torch.cat([a, b]))
    edges, counts = fine(added)
    np.testing.assert_array_equal(counts, np.histogram(values, edges)[0])
    record = histogram("weights/a", added)
    np.testing.assert_array_equal(record.counts, np.histogram(values, record.edges)[0])
    assert (record.min, record.max) == (values.min(), values.max())


def test_addition_is_commutative_and_none_is_neutral() -> None:
    a, b = count_bits(torch.randn(3000)), count_bits(torch.randn(5000) * 10 + 3)
    assert_equal_counts(a + b, b + a)
    assert_equal_counts(a + count_bits(torch.empty(0)), a)
    only_nan = a + count_bits(torch.tensor([NAN]))
    assert (only_nan.nans, only_nan.std) == (1, a.std)


def test_different_bins_do_not_add() -> None:
    with pytest.raises(ValueError, match="float64 and of float32"):
        count_bits(torch.ones(3, dtype=torch.float64)) + count_bits(torch.ones(3))


@pytest.mark.parametrize("n", [*range(1, 70), 127, 16_383, 16_384, 16_385, 16_417])
def test_every_length_and_alignment_is_counted_whole(n: int) -> None:
    for dtype in (torch.float32, torch.float64):
        tensor = torch.randn(n + 1, dtype=dtype)[1:]
        counts, values = count_bits(tensor), values_of(tensor)
        edges, found = fine(counts)
        np.testing.assert_array_equal(found, np.histogram(values, edges)[0])
        assert found.sum() == n
        assert (counts.min, counts.max) == (values.min(), values.max())
        np.testing.assert_allclose(counts.mean, values.mean(), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(counts.std, values.std(), rtol=1e-9, atol=1e-12)


def test_compiled_code_has_the_bins_of_the_grids() -> None:
    shifts = pytest.importorskip("vizlog.compute.bits_numba").SHIFTS
    assert shifts == {grid.unsigned(0).itemsize * 8: grid.shift for grid in GRIDS.values()}


@pytest.mark.parametrize("n", [20_000, 400_000])
def test_compiled_code_expects_the_same_of_interpolation(n: int) -> None:
    jumps = pytest.importorskip("vizlog.compute.bits_numba").jumps
    for dtype in (torch.float32, torch.float64):
        for make in DISTRIBUTIONS.values():
            counts = count_bits(make(n).to(dtype))
            grid, edge = GRIDS[counts.grid], np.empty(1, GRIDS[counts.grid].real)
            table, (low, high) = np.zeros(2 * grid.first_negative, np.uint32), counts.moments[:2]
            for k, number in zip(counts.bins, counts.counts, strict=True):
                if k:
                    table[k - 1 if k > 0 else grid.first_negative - 1 - k] = number
            scratch = edge, edge.view(grid.unsigned), grid.unsigned(grid.shift)
            found = jumps(low, high, *scratch, table, counts.zeros) / 8 / counts.finite
            np.testing.assert_allclose(found, interpolation_error(counts), rtol=0.02, atol=1e-6)


# What is shown


def trained_weight(n: int) -> Tensor:
    """A least-squares weight after twenty steps of gradient descent from a uniform start."""
    inputs = torch.randn(512, n // 100)
    weight = (torch.rand(100, n // 100) - 0.5) / 5
    for _ in range(20):
        weight -= 1e-3 * ((inputs @ weight.t()).tanh() - 0.5).t() @ inputs / 5
    return weight


DISTRIBUTIONS: dict[str, Callable[[int], Tensor]] = {
    "normal": torch.randn,
    "relu": lambda n: torch.randn(n).relu(),
    "laplace": lambda n: torch.distributions.Laplace(0.0, 1.0).sample((n,)),
    "two narrow modes": lambda n: torch.randn(n) * 0.01 + torch.randint(0, 2, (n,)) * 2 - 1,
    "N(10, 1)": lambda n: torch.randn(n) + 10,
    "N(1000, 1)": lambda n: torch.randn(n) + 1000,
    "N(1, 0.01)": lambda n: torch.randn(n) * 0.01 + 1,
    "N(1e6, 1)": lambda n: torch.randn(n) + 1e6,
    "one outlier": lambda n: torch.cat([torch.randn(n - 1), torch.tensor([1e4])]),
    "uniform": torch.rand,
    "few levels": lambda n: torch.randint(0, 256, (n,)) / 255,
    "rounded to bfloat16": lambda n: torch.randn(n).bfloat16().float(),
    "after training": trained_weight,
}


@pytest.mark.parametrize("n", [2, 300, 40_000, 300_000])
def test_compiled_code_shows_to_the_last_bit_what_numpy_does(n: int) -> None:
    compiled = pytest.importorskip("vizlog.compute.shown_numba").shown
    some = [make(n) for make in DISTRIBUTIONS.values()] + [everything(dtype, n + 200) for dtype in FLOATS]
    others = [torch.tensor([1.0, 1.0000001]), torch.empty(0), torch.tensor([NAN, INF]), torch.tensor([NAN, 0.3, 0.3])]
    limits = [sign * torch.finfo(dtype).max for sign in (1, -1) for dtype in (torch.float32, torch.float64)]
    alike = [torch.full((n,), value, dtype=torch.float64) for value in (0.0, -0.0, 1.0, -0.1, 5e-324, 1e-45, *limits)]
    counts = count_each([*some, *others, *alike, *(values.float() for values in alike)])
    for bins in (64, 7, 1):
        for found, expected in zip(compiled(counts, bins), shown(counts, bins), strict=True):
            for mine, numpys in zip(found, expected, strict=True):
                np.testing.assert_array_equal(mine, numpys)
        assert compiled([], bins) == []


def test_counts_show_the_same_wherever_their_bins_are() -> None:
    """Where they were counted, pickled, and added up; all at once."""
    compiled = pytest.importorskip("vizlog.compute.shown_numba").shown
    halves = [make(n).chunk(2) for make in DISTRIBUTIONS.values() for n in (2, 300, 40_000)]
    wholes = count_each([torch.cat(parts) for parts in halves])
    added = [count_bits(one) + count_bits(other) for one, other in halves]
    pickled = pickle.loads(pickle.dumps(wholes))
    assert len(pickle.dumps(wholes[0])) < 2_000  # two values: not all that stands beside theirs
    for whole, arrived in zip(wholes, pickled, strict=True):
        assert_equal_counts(whole, arrived)
    each = [counts for three in zip(wholes, pickled, added, strict=True) for counts in three]
    for found, expected in zip(compiled(each, 64), shown(each, 64), strict=True):
        for mine, numpys in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mine, numpys)


@pytest.mark.parametrize("dtype", [np.uint64, np.float64, np.int32])
def test_counts_that_compiled_code_would_misread_are_refused(dtype: type[np.generic]) -> None:
    compiled = pytest.importorskip("vizlog.compute.shown_numba").shown
    counts = copy.copy(count_bits(torch.randn(300)))
    assert type(counts) is BitCounts
    counts.counts = counts.counts.astype(dtype)
    with pytest.raises(TypeError, match="Cannot cast"):
        compiled([count_bits(torch.randn(300)), counts], 64)


def test_few_values_are_counted_rightly_whatever_was_counted_before() -> None:
    """In one table of those that many values are counted in, zeros apart."""
    few = pytest.importorskip("vizlog.compute.bits_numba").FEW
    zeros, tiny = torch.zeros(70_000), torch.randn(few, dtype=torch.float64).mul(1e-44).float()
    zeros[::2] *= -1
    ends = torch.tensor([NAN, INF, -INF, 0.0, -0.0])
    for before in (zeros, torch.cat([zeros, ends]), torch.randn(50_000) * 1e-40, torch.randn(few + 1)):
        for number in (1, 33, few - 1, few):
            for some in (tiny[:number], torch.randn(number), torch.cat([ends, tiny])[:number], zeros[:number]):
                count_bits(before)
                place = some.contiguous().data_ptr(), number
                assert_equal_counts(count_bits(some), PlainPass(GRIDS["float32"]).count_place(*place))


def test_histograms_made_together_are_those_made_one_by_one() -> None:
    tensors = [make(n) for make in DISTRIBUTIONS.values() for n in (1, 300, 40_000)]
    tensors += [everything(dtype) for dtype in FLOATS] + [torch.empty(0), torch.tensor([NAN, INF])]
    named = [(f"weights/{k}", counts, f"caption {k}") for k, counts in enumerate(count_each(tensors))]
    for (tag, counts, caption), found in zip(named, histograms(named), strict=True):
        one = histogram(tag, counts, caption=caption)
        checked = Histogram(**vars(found))
        for field in dataclasses.fields(Histogram):
            for other in (one, checked):
                np.testing.assert_equal(getattr(found, field.name), getattr(other, field.name))
        assert (found.mean, found.std) == pytest.approx((counts.mean, counts.std), nan_ok=True)
        assert sum(found.counts) == pytest.approx(counts.finite)
    with pytest.raises(ValueError, match="a record needs a tag"):
        histograms([("", named[0][1], "")])


@pytest.mark.parametrize("room", [1 << 19, 3000, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_of_many_are_those_of_each_wherever_memory_ends(
    monkeypatch: pytest.MonkeyPatch, room: int, dtype: torch.dtype
) -> None:
    compiled = pytest.importorskip("vizlog.compute.bits_numba")
    magnitudes = [10.0 ** torch.randint(-20, 20, (n,)) for n in (1, 7, 300, 20_000, 16_384, 16_385, 5)]
    tensors = [(torch.randn(len(scale)) * scale).to(dtype) for scale in magnitudes]
    tensors += [
        torch.empty(0, dtype=dtype),
        torch.randn(40, 30, dtype=dtype).t(),
        torch.randn(2, 3, 4, 5, dtype=dtype)[..., ::2],
    ]
    monkeypatch.setattr(module, "_idle", defaultdict(list))
    monkeypatch.setattr(compiled, "SLAB", room)
    monkeypatch.setattr(compiled, "AT_ONCE", 10 * room)
    monkeypatch.setattr(compiled, "ROWS", 4)
    together = count_each(tensors * 2)
    one_by_one = [count_bits(tensor) for tensor in tensors * 2]
    monkeypatch.setattr(module, "_idle", defaultdict(list))
    monkeypatch.setattr(loops, "_compiled", False)
    expected = count_each(tensors * 2)
    for found in together, one_by_one:
        for its, alone in zip(found, expected, strict=True):
            assert_equal_counts(its, alone)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_values_that_change_between_two_passes_are_not_counted(passes: None, grid: Grid) -> None:
    values = iter([np.arange(5.0), np.arange(5.0) * 10])
    with pytest.raises(RuntimeError, match="changed while they were counted"):
        module._taken(grid).count_pieces(lambda: [next(values).astype(grid.real)], always_linear=True)


def test_what_another_thread_writes_meanwhile_is_counted_rightly_or_not_at_all() -> None:
    shared, others, done = torch.zeros(1 << 16), torch.randn(1 << 16), threading.Event()

    def write() -> None:
        while not done.is_set():
            shared.copy_(others)
            shared.zero_()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(500):
            with contextlib.suppress(Uncountable):
                counts = count_bits(shared)
                assert counts.counts.sum() == counts.finite == 1 << 16
                assert sum(histogram("weights/a", counts).counts) == pytest.approx(1 << 16)
    finally:
        done.set()
        writer.join()
    for found, alone in zip(count_each([others, shared]), [others, shared], strict=True):
        assert_equal_counts(found, PlainPass(GRIDS["float32"]).count_place(alone.data_ptr(), alone.numel()))


@pytest.mark.parametrize(
    ("before", "after"), [([8, 9, 8.5, 0.25, 0], [8, 9, 8.5, 0, 0]), ([8, NAN, 8.5, 0.25, 3], [8, NAN, 8.5, NAN, 3])]
)
@pytest.mark.parametrize("swapped", [False, True])
def test_what_is_written_while_a_block_is_counted_leaves_nothing_for_the_next(
    before: list[float], after: list[float], *, swapped: bool
) -> None:
    """The block is read several times: here first as it was before another thread wrote, and then as it was after."""
    compiled = pytest.importorskip("vizlog.compute.bits_numba")
    then, now = (np.array(values, np.float32) for values in ((after, before) if swapped else (before, after)))
    counting = compiled.CompiledPass(GRIDS["float32"])
    tables, merged, span = counting._tables[0], counting._merged[0], np.empty(2, np.int64)
    tallies, moments = np.zeros(5, np.int64), np.array(NO_MOMENTS)
    shift, negative_zero = counting._shift, counting._negative_zero
    compiled.scan(now, now.view(np.int32), then.view(np.uint32), negative_zero, shift, tables, tallies, moments)
    compiled.gather(tables, tallies, moments, 64, merged, span)
    found = compiled.extract(merged, *span, tallies[1], *counting._found[:2])
    accepted = counting._found[1, :found].sum() == tallies[0] - tallies[2:].sum()
    assert not accepted or not tables.any()  # what is not accepted is thrown away with its tables


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_channels_are_counted_dequantised() -> None:
    weights = torch.quantize_per_channel(
        torch.randn(4, 50), torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.zeros(4), 0, torch.qint8
    )
    assert_equal_counts(count_bits(weights), count_bits(weights.dequantize()))


@pytest.mark.parametrize("n", [1_000, 20_000, 400_000])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_shown_bins_are_within_one_percent_of_numpys(name: str, n: int) -> None:
    tensor = DISTRIBUTIONS[name](n)
    record = histogram("weights/a", count_bits(tensor))
    assert len(record.counts) <= 64
    assert (record.edges[0], record.edges[-1]) == (tensor.min(), tensor.max())
    assert total_variation(record, values_of(tensor)) <= 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.int64])
def test_shown_bins_of_coarse_types_are_exact(dtype: torch.dtype) -> None:
    tensor = (torch.randn(50_000) * 20).to(dtype)
    assert total_variation(histogram("weights/a", count_bits(tensor)), values_of(tensor)) == 0


def test_small_tensors_are_shown_exactly() -> None:
    for n in (2, 10, 333, 5000):
        tensor = torch.randn(n) * 7 - 3
        record = histogram("weights/a", count_bits(tensor))
        np.testing.assert_array_equal(record.counts, np.histogram(values_of(tensor), record.edges)[0])


def test_shown_bins_are_of_equal_width_to_two_percent() -> None:
    for tensor in (torch.randn(300), torch.randn(300_000), torch.randn(300) + 1000):
        widths = np.diff(histogram("weights/a", count_bits(tensor)).edges)
        np.testing.assert_allclose(widths, widths.mean(), rtol=0.035)


def test_quantiles_are_values_of_that_rank() -> None:
    for tensor in (torch.randn(200_000), torch.randn(2000) + 1000, torch.randn(5000).relu(), torch.randn(9000).exp()):
        record = histogram("weights/a", count_bits(tensor))
        assert list(record.quantiles) == [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]
        ordered = np.sort(values_of(tensor))
        for q, value in record.quantiles.items():
            exact = np.quantile(ordered, q)
            assert abs(value - exact) <= max(abs(exact) / 64, (ordered[-1] - ordered[0]) / 2048), q


@pytest.mark.parametrize("n", [300, 40_000])
def test_quantiles_among_zeros_are_zero_and_not_nearly(n: int) -> None:
    mostly = torch.zeros(n)
    mostly[:2], mostly[2:4] = 1.0, -1.0
    for tensor in (mostly, mostly.double(), mostly.clamp_min(0)):
        assert set(histogram("activations/relu", count_bits(tensor)).quantiles.values()) == {0.0}
        [(*_, values)] = shown([count_bits(tensor)], 64)
        assert set(values) == {0.0}


def test_edges_are_distinct_as_float32_which_is_how_event_files_keep_them() -> None:
    close = torch.tensor([1.0, 1.0 + 1e-9, 1.0 + 2e-9], dtype=torch.float64)
    for tensor in (torch.randn(1000) + 1e6, close, torch.tensor([1e6, 1e6 + 0.125]), torch.tensor([0.0, 1e-45])):
        record = histogram("weights/a", count_bits(tensor))
        assert (np.diff(record.edges.astype(np.float32)) > 0).all()
        assert record.counts.sum() == tensor.numel()


LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize("value", [0.0, -2.5, 1e-45, -1e-9, LARGEST, -LARGEST])
@pytest.mark.parametrize("n", [1, 30_000])
def test_equal_values_stand_in_one_bin(passes: None, value: float, n: int) -> None:
    record = histogram("weights/a", count_bits(torch.full((n,), value)))
    assert record.min == record.max == record.mean == np.float32(value)
    assert record.std == 0
    assert (
        np.flatnonzero(record.counts).tolist() == np.flatnonzero(np.histogram([record.min], record.edges)[0]).tolist()
    )
    assert record.counts.max() == n
    assert np.isfinite(record.edges.astype(np.float32)).all()
    assert set(record.quantiles.values()) == {record.min}


@pytest.mark.parametrize("tensor", [torch.empty(0), torch.empty(3, 0, 2), torch.tensor([NAN, INF, -INF, NAN])])
def test_no_finite_value_gives_an_empty_record(passes: None, tensor: Tensor) -> None:
    record = histogram("weights/a", count_bits(tensor))
    assert record.counts.sum() == 0
    assert record.nans == (2 if tensor.numel() else 0)
    assert np.isnan([record.min, record.max, record.mean, record.std]).all()
    assert record.quantiles == {}


def test_extremes_of_both_signs_are_shown() -> None:
    for dtype in (torch.float32, torch.float64):
        limits = torch.finfo(dtype)
        tensor = torch.tensor([limits.min, -1.0, 0.0, 1.0, limits.max], dtype=dtype)
        record = histogram("weights/a", count_bits(tensor))
        assert record.counts.tolist()[0] == record.counts.tolist()[-1] == 1
        assert record.counts.sum() == 5


# Tensors of every kind


def test_any_memory_layout_is_counted() -> None:
    base = torch.randn(6, 40, 50)
    layouts = {
        "transposed": base.transpose(0, 2),
        "strided": base[:, ::3, 1::2],
        "expanded": base[:, :, :1].expand(6, 40, 9),
        "channels last": torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(2.0),
        "grad": torch.randn(10, requires_grad=True),
        "parameter": torch.nn.Parameter(torch.randn(10)),
        "negated view": torch.randn(9, dtype=torch.complex64).conj().imag,
    }
    for name, tensor in layouts.items():
        values = values_of(tensor.resolve_neg())
        edges, counts = fine(count_bits(tensor))
        np.testing.assert_array_equal(counts, np.histogram(values, edges)[0], err_msg=name)
        assert counts.sum() == tensor.numel(), name


def test_complex_values_are_counted_by_magnitude_and_the_caption_says_so() -> None:
    tensor = torch.randn(1000, dtype=torch.complex64)
    counts = count_bits(tensor)
    assert counts.max == tensor.abs().max()
    assert histogram("weights/a", counts, caption="step 3").caption == "step 3; magnitudes of complex values"


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_count_their_implicit_zeros() -> None:
    dense = torch.randn(100, 70) * (torch.rand(100, 70) < 0.1)
    twice = torch.sparse_coo_tensor(torch.tensor([[0, 0]]), torch.tensor([1.0, 2.0]), (3,))
    assert count_bits(twice).max == 3
    for tensor in (dense.to_sparse(), dense.to_sparse_csr(), dense.to_sparse_csc()):
        assert_equal_counts(count_bits(tensor), count_bits(dense))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_count_their_values(layout: torch.layout) -> None:
    parts = [torch.randn(3, 4), torch.randn(7, 4)]
    nested = torch.nested.nested_tensor(parts, layout=layout)
    assert_equal_counts(count_bits(nested), count_bits(torch.cat(parts)))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_are_dequantised() -> None:
    tensor = torch.quantize_per_tensor(torch.randn(5000), 0.1, 3, torch.qint8)
    assert_equal_counts(count_bits(tensor), count_bits(tensor.dequantize()))


def test_tensors_without_values_say_why() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(3)
    for tensor, reason in [
        (torch.empty(3, device="meta"), "meta"),
        (fake, "fake"),
        (torch.nn.LazyLinear(3).weight, "lazy"),
        (torch.zeros(3, 3).to_mkldnn(), "layout"),
    ]:
        with pytest.raises(Uncountable, match=reason):
            count_bits(tensor)


def test_counting_leaves_the_tensor_and_the_random_state_alone() -> None:
    tensor = everything(torch.float32)
    before, state = tensor.clone(), torch.get_rng_state()
    counts = count_bits(tensor)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(tensor.view(torch.int32), before.view(torch.int32))
    kept = counts.counts.copy()
    tensor.zero_()
    count_bits(torch.randn(1000))
    np.testing.assert_array_equal(counts.counts, kept)


def test_counts_keep_occupied_bins_alone() -> None:
    counts = count_bits(torch.randn(1_000_000))
    assert counts.bins.nbytes + counts.counts.nbytes < 40_000


def test_counts_are_their_own_however_many_follow() -> None:
    tensors = [torch.randn(3_000) * scale for scale in torch.linspace(0.1, 3, 400)]  # some 10 MB of counts
    counted = [count_bits(tensor) for tensor in tensors]
    for tensor, counts in zip(tensors, counted, strict=True):
        edges, found = fine(counts)
        assert np.array_equal(found, np.histogram(values_of(tensor), edges)[0])
        assert counts.linear is not None
        assert np.sum(counts.linear.counts) == len(tensor)


def test_two_threads_count_at_once() -> None:
    tensors = [torch.randn(300_000) * k for k in range(1, 9)]
    expected, found = count_each(tensors), [None] * 8

    def count(k: int) -> None:
        for _ in range(5):
            found[k] = count_bits(tensors[k])  # type: ignore[call-overload]

    threads = [threading.Thread(target=count, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(expected, found, strict=True):
        assert_equal_counts(a, b)  # type: ignore[arg-type]


def test_what_an_error_leaves_half_counted_is_not_used_again(passes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks_off(tensor: Tensor, most: int) -> Iterator[Tensor]:
        yield tensor[:500]
        raise RuntimeError("out of memory")

    tensor = torch.randn(5000, dtype=torch.float64).to(torch.bfloat16)
    expected = count_bits(tensor)
    with monkeypatch.context() as broken:
        broken.setattr(module, "flat_chunks", breaks_off)
        with pytest.raises(Uncountable, match="out of memory"):
            count_bits(tensor)
    assert_equal_counts(count_bits(tensor), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_memory_beside_a_large_tensor_is_bounded() -> None:
    """In a process of its own, whose peak nothing else has raised."""
    code = """
import torch
from vizlog.compute.histogram import count_bits, prepare
from vizlog.compute.loops import load
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
torch.set_num_threads(1)
load()
prepare()
kinds = [torch.zeros(4000, 8000)[:, ::2] + 1, torch.zeros(4000, 4000), torch.zeros(4000, 8000)[:, ::2]]
kinds += [torch.zeros(16_000_000, dtype=torch.bfloat16), torch.zeros(1).expand(16_000_000)]
before = max(kilobytes("VmHWM"), kilobytes("VmRSS"))
for tensor in kinds:
    count_bits(tensor)
print(kilobytes("VmHWM") - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert int(done.stdout) < 64 * 1024


# Several threads on one tensor


def counted_by(number: int, tensors: Sequence[Tensor]) -> list[BitCounts]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        return count_each(tensors)  # type: ignore[return-value]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_threads_counts_the_same_to_the_last_bit(dtype: torch.dtype) -> None:
    """More threads than there are tables for, too; sizes around those from which a tensor is counted in parts."""
    sizes = (1, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, 100_001, 1_000_003)
    tensors = [(torch.randn(n) * 3 + 1).to(dtype) for n in sizes]
    tensors += [make(200_000).to(dtype) for make in DISTRIBUTIONS.values()] + [everything(dtype, 300_000)]
    tensors += [torch.full((100_000,), value, dtype=dtype) for value in (0.0, -0.0, NAN, INF, 3.0, 1e-40)]
    by_one = counted_by(1, tensors)
    for number in (2, 3, 20):
        for found, alone in zip(counted_by(number, tensors), by_one, strict=True):
            np.testing.assert_array_equal(found.moments, alone.moments)
            assert_equal_counts(found, alone)
    for tensor, found in zip(tensors, by_one, strict=True):
        plain = PlainPass(GRIDS[found.grid]).count_place(tensor.data_ptr(), tensor.numel())
        assert_equal_counts(found, plain)


def test_threads_of_torch_take_part() -> None:
    """Where torch has them: elsewhere a tensor is counted by one."""
    team = pytest.importorskip("vizlog.compute.team")
    compiled = importlib.import_module("vizlog.compute.bits_numba")
    if not team.team()[0]:
        pytest.skip("this torch is not linked to an OpenMP library with GNU's entry point")
    values = torch.randn(5_000_000)
    counting = compiled.CompiledPass(GRIDS["float32"])
    before = torch.get_num_threads()
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            counting._task["rest"] = 0  # on a busy machine one may have come too late
            counting.count_place(values.data_ptr(), values.numel())
            assert counting._task["seated"] == number
    finally:
        torch.set_num_threads(before)


def test_after_a_thread_came_too_late_tensors_are_counted_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    team = pytest.importorskip("vizlog.compute.team")
    compiled = importlib.import_module("vizlog.compute.bits_numba")
    asked = []
    entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)

    @entry
    def one_after_the_other(function: int, argument: int, number: int, _flags: int) -> None:
        asked.append(number)
        for _ in range(number):  # the first takes all there is
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(argument)

    monkeypatch.setattr(team, "_openmp", ctypes.cast(one_after_the_other, ctypes.c_void_p).value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for number, times in ((200_000, 5), (100_000, 30)):  # of a few parts one tells nothing
        asked.clear()
        counting, tensor = compiled.CompiledPass(GRIDS["float32"]), torch.randn(number)
        place = tensor.data_ptr(), number
        expected = PlainPass(GRIDS["float32"]).count_place(*place)
        for _ in range(30):  # of which the team is asked for the 1st, the 3rd, the 6th, the 11th and the 20th
            assert_equal_counts(counting.count_place(*place), expected)
        assert asked == [2] * times


def test_a_forked_process_counts_alone() -> None:
    """Its parent's threads have stayed behind; the library would wait for them for ever."""
    code = """
import os, signal, sys, torch
from vizlog.compute.histogram import count_bits
torch.set_num_threads(2)
tensor = torch.randn(1_000_000)
before = count_bits(tensor)
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(0 if (count_bits(tensor).counts == before.counts).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="memory is protected by Linux's mprotect")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_read_behind_a_tensor(dtype: torch.dtype) -> None:
    """There lies a page that ends a process that reads it."""
    pages, page = 40, mmap.PAGESIZE
    memory = mmap.mmap(-1, (pages + 1) * page)
    whole = torch.frombuffer(memory, dtype=dtype)
    end = pages * page // dtype.itemsize
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(whole.data_ptr() + pages * page), ctypes.c_size_t(page), 0) == 0
    for number in (33, 3_000, 8_192, end):
        values = whole[end - number : end].normal_()
        if (child := os.fork()) == 0:
            os._exit(0 if count_bits(values).count == number else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("n", [5000, (1 << 16) - 1, 100_000])
def test_a_sum_near_the_largest_number_is_finite(n: int) -> None:
    tensor = torch.zeros(n, dtype=torch.float64)
    tensor[-1] = torch.finfo(torch.float64).max
    assert count_bits(tensor).mean == float(tensor[-1]) / n


def test_the_team_is_the_one_that_torch_is_linked_to() -> None:
    team = pytest.importorskip("vizlog.compute.team")
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not team.team()[0] or "LD_PRELOAD" in os.environ:
        pytest.skip("this torch is not linked to an OpenMP library with GNU's entry point, or it is a preloaded one")
    entry = ctypes.CDLL(str(library)).GOMP_parallel
    assert team.team()[0] == ctypes.cast(entry, ctypes.c_void_p).value


def test_what_is_only_recorded_has_no_values_to_count() -> None:
    def counts(x: Tensor) -> Tensor:
        with pytest.raises(Uncountable, match="has no memory"):
            count_bits(x)
        return x * 2

    torch.func.functionalize(counts)(torch.randn(100))


def test_a_torch_without_openmp_has_no_team(monkeypatch: pytest.MonkeyPatch) -> None:
    team = pytest.importorskip("vizlog.compute.team")
    tensor = torch.randn(200_000)
    expected = count_bits(tensor)
    for missing in (OSError("no such file"), None):
        library = Mock(side_effect=missing, return_value=object())
        monkeypatch.setattr(team.ctypes, "CDLL", library)
        assert team._find() == 0
    monkeypatch.setattr(team, "_openmp", 0)
    assert team.team() == (0, 1)
    assert_equal_counts(count_bits(tensor), expected)


# On a device


class Unsynchronised(TorchDispatchMode):
    """Raises at operations that make a CUDA device wait, and remembers how many others ran."""

    BANNED = (
        "item",
        "_local_scalar_dense",
        "nonzero",
        "bincount",
        "unique",
        "histc",
        "masked_select",
        "is_nonzero",
        "equal",
    )

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith(self.BANNED):
            raise RuntimeError(f"{name} makes a device wait")
        if name in {"index", "index_put", "index_put_"}:
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a boolean mask makes a device wait"
        self.calls += 1
        return func(*args, **(kwargs or {}))


def of_all_kinds() -> Iterator[Tensor]:
    for dtype in FLOATS + INTS:
        yield everything(dtype, 3000)
    yield torch.randn(1_300_000) + 1000
    yield torch.randn(40, 60).t()[::2]
    yield from (torch.empty(0), torch.tensor(-4.0), torch.full((9,), NAN), torch.zeros(500), torch.full((20,), -1.5))
    yield torch.randn(50, dtype=torch.complex64)


def collected(tensors: list[Tensor]) -> list[BitCounts]:
    """As the device counts them, and as they come to the host."""
    return list(to_host(count_on_device(tensors)).wait())


def test_the_device_path_counts_the_same() -> None:
    tensors = list(of_all_kinds())
    for tensor, moved, host in zip(tensors, collected(tensors), count_each(tensors), strict=True):
        # In plain torch the second pass is always made: to ask whether it is needed would be to wait.
        assert_equal_counts(host, replace(copy.copy(moved), linear=moved.linear if host.linear else None))
        assert moved.count == tensor.numel()
        histogram("weights/a", moved)


@pytest.mark.parametrize("each", [1, 1 << 12])
def test_compiled_code_collects_what_numpy_does(monkeypatch: pytest.MonkeyPatch, each: int) -> None:
    compiled = pytest.importorskip("vizlog.compute.uncollected_numba")
    monkeypatch.setattr(compiled, "EACH", each)  # with 1 there is not room for all
    tensors = [*of_all_kinds(), torch.tensor([1e-45, -1e-38, 3e38]), torch.tensor([5e-324, -1e300, 0.0]).double()]
    for found in count_on_device(tensors):
        expected = found.together._collected(found.index)
        assert_equal_counts(found.together.counts[found.index], expected)


def test_the_device_path_never_waits() -> None:
    tensors = list(of_all_kinds())
    with Unsynchronised() as mode:
        count_on_device(tensors)
    assert mode.calls > 100
    with pytest.raises(RuntimeError, match="device wait"), Unsynchronised():
        torch.ones(3).sum().item()
    with pytest.raises(AssertionError, match="boolean mask"), Unsynchronised():
        torch.ones(3)[torch.tensor([True, False, True])]


def test_many_small_tensors_take_few_launches() -> None:
    tensors = [torch.randn(n) for n in range(1, 61)]
    with Unsynchronised() as one:
        count_on_device(tensors[:1])
    with Unsynchronised() as many:
        count_on_device(tensors)
    # Slicing the results apart is a view for each; no arithmetic is.
    assert many.calls - one.calls < 10 * len(tensors)


def test_device_counts_add_up_once_they_are_on_the_host() -> None:
    a, b = torch.randn(3000), torch.randn(2000) - 50
    together = collected([a])[0] + collected([b])[0]
    assert_equal_counts(together, count_bits(a) + count_bits(b))


def test_a_device_counts_more_than_32_bits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits_torch, "MOST", 1000)
    tensor = torch.randn(5000)
    (counted,) = count_on_device([tensor])
    assert counted.together.pieces()["table"].dtype == torch.int64
    (moved,) = collected([tensor])
    assert_equal_counts(count_bits(tensor), replace(copy.copy(moved), linear=count_bits(tensor).linear))


@pytest.mark.parametrize("left", [0, 20])
@pytest.mark.parametrize("start", [0, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_has_no_memory_any_more_is_said(dtype: torch.dtype, start: int, left: int) -> None:
    flat = torch.ones(40, dtype=dtype)
    tensors = flat[start:], flat[start:].view(-1, 2).t(), flat[start::3]
    flat.untyped_storage().resize_(left)
    for tensor in tensors:
        with pytest.raises(Uncountable, match="given up"):
            count_bits(tensor)
    assert count_bits(flat[: left // 4]).count == left // 4


def test_edges_number_the_bins_they_bound() -> None:
    for grid in GRIDS.values():
        bins = np.arange(-grid.top, grid.top + 1)
        edges = grid.lower_edges(bins)
        np.testing.assert_array_equal(grid.bins_of(edges), bins)
