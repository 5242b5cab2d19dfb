"""What vizlog says goes to the logger "vizlog"; a person who has not set up logging sees it on stderr."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter

__all__ = ["LOG", "one_line", "show"]


class _Unfailing(_Adapter):
    """The logger, where a person's handler or filter that raises reaches nobody who has something to say."""

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        try:
            super().log(level, msg, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 -- a handler may raise anything, and the training goes on
            with contextlib.suppress(Exception):  # stderr may be closed
                said = str(msg) % args if args else msg
                sys.stderr.write(f"{said}\n(a log handler raised {type(error).__name__}: {error})\n")


def one_line(error: BaseException) -> str:
    """An error in one line: torch lists every kernel it has under some of them."""
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 -- an exception of the user's own, whose __str__ fails
        said = "it cannot be shown"
    first = next(iter(said.strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:400]}"


LOG = _Unfailing(logging.getLogger("vizlog"), {})
"""What every message of vizlog goes through: never raises."""


class _Console(logging.Handler):
    """Silent once the root logger has a handler: then the person decides what is shown where.

    Tracebacks of what vizlog survived are for those who do; here one line says what happened.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            sys.stderr.write(record.getMessage() + "\n")  # where that fails, the logger survives it


def show() -> None:
    """Shows what vizlog says from INFO on, if nobody else does; may be called again."""
    logger = logging.getLogger("vizlog")
    if not any(isinstance(handler, _Console) for handler in logger.handlers):
        logger.addHandler(_Console())
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
