"""What a person gives as `to=` -> a backend."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from vizlog.backends.base import Backend

__all__ = ["open_backend"]


def open_backend(to: Any) -> Backend:
    """A path (TensorBoard there), a SummaryWriter, a W&B run, a backend, or a list of these -> one backend.

    Raises:
        TypeError: it is none of these; says what was expected.
        ImportError: the library that it needs is missing; says what to type.
    """
    if to == "":
        raise TypeError('to="" names no folder: give one such as "runs/a", or None to write nothing')
    if isinstance(to, (str, os.PathLike)):
        from vizlog.backends.tensorboard import TensorBoard

        return TensorBoard(to)
    if isinstance(to, Sequence) and not isinstance(to, (bytes, bytearray, memoryview, range)):
        from vizlog.backends.fanout import FanOut

        return FanOut(*(open_backend(part) for part in to))
    if hasattr(to, "add_summary") or hasattr(to, "_get_file_writer"):
        from vizlog.backends.tensorboard import TensorBoard

        return TensorBoard(to)
    if hasattr(to, "define_metric") and hasattr(to, "log"):
        from vizlog.backends.wandb import WandB

        return WandB(to)
    if isinstance(to, Backend):
        return to
    raise TypeError(
        "to= takes a path, a SummaryWriter, a wandb run, a vizlog backend or a list of these "
        f"(None: write nothing), got {type(to).__name__}"
    )
