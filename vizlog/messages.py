"""What vizlog says goes to the logger "vizlog"; a person who has not set up logging sees it on stderr."""

from __future__ import annotations

import logging
import sys

__all__ = ["show"]


class _Console(logging.Handler):
    """Silent once the root logger has a handler: then the person decides what is shown where.

    Tracebacks of what vizlog survived are for those who do; here one line says what happened.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers:
            return
        try:
            sys.stderr.write(record.getMessage() + "\n")
        except Exception:  # noqa: BLE001 -- as every handler: a closed stderr must not stop training
            self.handleError(record)


def show() -> None:
    """Shows what vizlog says from INFO on, if nobody else does; may be called again."""
    logger = logging.getLogger("vizlog")
    if not any(isinstance(handler, _Console) for handler in logger.handlers):
        logger.addHandler(_Console())
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
