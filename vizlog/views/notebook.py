"""Records in a notebook: static pictures in HTML that need nothing from the network.

Importing this module lets every record show itself (`_repr_html_`).
"""

from __future__ import annotations

import base64
import html as markup
from typing import TYPE_CHECKING

from vizlog import records
from vizlog.views.png import encode
from vizlog.views.raster import raster

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vizlog.records import Record

__all__ = ["html", "html_many"]

_MOST = 20


def html(record: Record) -> str:
    """The record as a picture with its tag and caption, escaped; the PNG is inside."""
    return _framed(record, "")


def html_many(written: Sequence[tuple[int, Record]], *, most: int = _MOST) -> str:
    """The last `most` of (step, record), newest first; says how many were left out."""
    shown = list(written)[-most:][::-1]
    left_out = len(written) - len(shown)
    blocks = [_framed(record, f"step {step}: ") for step, record in shown]
    if left_out:
        blocks.append(f"<p>{left_out:,} earlier records are not shown; choose some by their tag to see them.</p>")
    return "<div>" + "".join(blocks or ["<p>No records yet.</p>"]) + "</div>"


def _framed(record: Record, prefix: str) -> str:
    picture = base64.b64encode(encode(raster(record))).decode("ascii")
    tag, caption = markup.escape(prefix + record.tag), markup.escape(record.caption)
    return (
        f'<figure style="margin:0 0 1em"><figcaption>{tag}</figcaption>'
        f'<img alt="{tag}" title="{caption}" style="max-width:100%" src="data:image/png;base64,{picture}"></figure>'
    )


records.shown_in_notebooks_by(html)
