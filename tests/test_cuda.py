"""The histogram on a CUDA device: equal to the one on the CPU, and never waiting for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vizlog.compute.bits import BitCounts, settled
from vizlog.compute.health import alive, saturated
from vizlog.compute.histogram import count_bits, count_each, histogram

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
DTYPES += [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64]


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Any operation that waits for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def values(dtype: torch.dtype, n: int) -> Tensor:
    x = torch.randn(n) * torch.exp(torch.randn(n) * 2)
    if dtype.is_floating_point:
        x[::17], x[1::19], x[2::23], x[3::29], x[4::31] = 0.0, -0.0, float("nan"), float("inf"), -float("inf")
    elif not dtype.is_complex:
        x = x.abs().clamp(max=100)
    return x.to(dtype)


def on_host(item: Any) -> Any:
    """What the monitor does with measured data: every tensor moved, everything else as it is."""
    if isinstance(item, Tensor):
        return item.cpu()
    if is_dataclass(item) and not isinstance(item, type):
        return replace(item, **{field.name: on_host(getattr(item, field.name)) for field in fields(item)})
    return item


def assert_equal(device: BitCounts, host: BitCounts) -> None:
    device = settled(on_host(device))
    for field in ("tallies", "bins", "counts"):
        np.testing.assert_array_equal(getattr(device, field), getattr(host, field), err_msg=field)
    np.testing.assert_allclose(device.moments, host.moments, rtol=1e-6, atol=1e-6)
    if host.linear is not None and not host.note:  # magnitudes may differ in their last bit
        assert device.linear is not None
        assert device.linear.exponent == host.linear.exponent
        np.testing.assert_array_equal(device.linear.bins, host.linear.bins)
        np.testing.assert_array_equal(device.linear.counts, host.linear.counts)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if not dtype.is_complex], ids=str)
@pytest.mark.parametrize("n", [0, 1, 10, 3000, 2_500_000])
def test_device_and_host_count_the_same_without_waiting(dtype: torch.dtype, n: int) -> None:
    tensor = values(dtype, n)
    there = tensor.cuda()
    count_bits(there)  # what is loaded or compiled at first may wait
    with no_synchronisation():
        counted = count_bits(there)
    assert_equal(counted, count_bits(tensor))


def test_many_tensors_of_all_types_are_counted_without_waiting() -> None:
    tensors = [values(dtype, n) for dtype in DTYPES if not dtype.is_complex for n in (1, 77, 5000)]
    tensors += [torch.randn(70, 90).t()[::2], torch.empty(0), torch.zeros(4000), torch.full((9,), 2.5)]
    there = [tensor.cuda() for tensor in tensors]
    count_each(there)
    with no_synchronisation():
        counted = count_each(there)
    for device, tensor in zip(counted, tensors, strict=True):
        assert_equal(device, count_bits(tensor))
        record = histogram("weights/a", on_host(device))
        assert record.count == tensor.numel()


def test_complex_magnitudes_are_counted() -> None:
    tensor = torch.randn(5000, dtype=torch.complex64)
    counted = on_host(count_bits(tensor.cuda()))
    assert counted.count == 5000
    np.testing.assert_allclose(counted.norm, float(tensor.norm()), rtol=1e-5)


def test_counts_are_deterministic_and_allowed_where_that_is_asked_for() -> None:
    tensor = values(torch.float32, 1_000_000).cuda()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = on_host(count_bits(tensor)), on_host(count_bits(tensor))
    finally:
        torch.use_deterministic_algorithms(False)
    for field in ("tallies", "moments", "counts"):
        assert torch.equal(getattr(first, field), getattr(second, field)), field


def test_the_memory_beside_a_large_tensor_is_bounded() -> None:
    tensor = torch.randn(50_000_000, device="cuda")
    count_bits(tensor)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    count_bits(tensor)
    assert torch.cuda.max_memory_allocated() - before < 64 * 2**20


def test_health_figures_do_not_wait() -> None:
    output = torch.randn(8, 16, 4, 4, device="cuda").relu()
    with no_synchronisation():
        flags, stuck = alive(output, 1), saturated(output.sigmoid(), 0.0, 1.0)
    assert torch.equal(flags.cpu(), alive(output.cpu(), 1))
    assert stuck.item() >= 0
