"""Whether W&B's own process, to which the client hands everything, runs: then it takes later what it does not now."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import wandb

__all__ = ["runs"]

_CREDENTIALS = struct.Struct("3i")  # process, user, group


def runs(run: wandb.Run) -> bool:
    """Whether the process at the other end of the client's socket runs; False also where that cannot be known.

    One that was killed or stopped does not. Known on Linux alone; the client has no public name for it.
    """
    try:
        connection = run._interface._client._writer.get_extra_info("socket")  # type: ignore[union-attr]  # noqa: SLF001
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        process, _, _ = _CREDENTIALS.unpack(found)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0]
    except Exception:  # noqa: BLE001 -- another version of the client, another system, or no such process any more
        return False
    return state not in "TtZXx"
