"""The table and the plots of benchmarks/README.md, made from what lies in results/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.results import Plot, Row, read
from vizlog.records import Curves
from vizlog.views import png
from vizlog.views.raster import raster

__all__ = ["table", "update_readme"]

_FOLDER = Path(__file__).parent
_BEGIN, _END = "<!-- made by python -m benchmarks: begin -->", "<!-- made by python -m benchmarks: end -->"


def update_readme(names: Sequence[str]) -> None:
    """Writes the table and draws the plots again."""
    parts = []
    for name in names:
        kept = read(name)
        if kept is None:
            continue
        content, found = kept
        machine = content["machine"]
        versions = ", ".join(f"{package} {version}" for package, version in content["versions"].items())
        made = f"`{content['command']}`, {content['seconds']} s on {content['date']}: "
        made += f"{machine['gpu']}, " if "gpu" in machine else ""
        made += f"{machine['cpu']}, "
        made += f"{machine['cores']} cores, Python {machine['python']}, {versions}."
        parts.append(f"### {name}\n\n{table(found.rows)}\n\n{made}")
        parts += [_drawn(plot) for plot in found.plots]
    path = _FOLDER / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    path.write_text("\n\n".join([before + _BEGIN, *parts, _END]) + after, encoding="utf-8")


def table(rows: Sequence[Row]) -> str:
    """Rows as markdown."""
    lines = ["| what | asked | measured | |", "|---|---|---|---|"]
    for row in rows:
        sign, measured = "≤" if row.at_most else "≥", f"{_number(row.measured)} {row.unit}"
        asked = f"{sign} {_number(row.asked)} {row.unit}" if row.asked is not None else ""
        met = "" if row.asked is None else "met" if row.met else "**missed**"
        lines.append(f"| {row.what} | {asked} | {measured} | {met} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _drawn(plot: Plot) -> str:
    """Draws a plot into results/ and returns the markdown that shows it."""
    lines = {name: np.array(values) for name, values in plot.lines.items()}
    record = Curves(
        plot.name, np.array(plot.x), lines, plot.x_label, plot.y_label, log_x=True, log_y=True, caption=plot.caption
    )
    file = f"results/{plot.name.replace(' ', '_')}.png"
    (_FOLDER / file).write_bytes(png.encode(raster(record, width=720)))
    return f"![{plot.caption}]({file})"
