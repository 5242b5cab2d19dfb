"""What a person gives as `to=` -> a backend."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from vizlog.backends.base import Backend

__all__ = ["check_destination", "open_backend"]


def open_backend(to: Any) -> Backend:
    """A path (TensorBoard there), a SummaryWriter, a W&B run, a backend, or a list of these -> one backend.

    Raises:
        TypeError: it is none of these; says what was expected.
        ImportError: the library that it needs is missing; says what to type.
    """
    check_destination(to)
    if isinstance(to, Sequence) and not isinstance(to, str):
        from vizlog.backends.fanout import FanOut

        return FanOut(*(open_backend(part) for part in to))
    if isinstance(to, (str, os.PathLike)) or _is_writer(to):
        from vizlog.backends.tensorboard import TensorBoard

        return TensorBoard(to)
    if _is_run(to):
        from vizlog.backends.wandb import WandB

        return WandB(to)
    backend: Backend = to
    return backend


def check_destination(to: Any) -> None:
    """Raises what `open_backend` does of what is no destination, and opens none.

    Raises:
        TypeError: says what was expected.
    """
    if isinstance(to, type):
        raise TypeError(f"to= takes a destination, got the class {to.__name__}: call it, {to.__name__}(…)")
    if to == "":
        raise TypeError('to="" names no folder: give one such as "runs/a", or None to write nothing')
    if to == "wandb":  # also where the client keeps its own files
        raise TypeError('to="wandb" would be a folder of that name: give the run, to=wandb.init()')
    if isinstance(to, Sequence) and not isinstance(to, (str, bytes, bytearray, memoryview, range)):
        for part in to:
            check_destination(part)
    elif not (isinstance(to, (str, os.PathLike, Backend)) or _is_writer(to) or _is_run(to)):
        raise TypeError(
            "to= takes a path, a SummaryWriter, a wandb run, a vizlog backend or a list of these "
            f"(None: write nothing), got {type(to).__name__}"
        )


def _is_writer(to: Any) -> bool:
    return hasattr(to, "add_summary") or hasattr(to, "_get_file_writer")


def _is_run(to: Any) -> bool:
    return hasattr(to, "define_metric") and hasattr(to, "log")
