"""A record as an interactive figure, for Weights & Biases, notebooks and reports."""

from __future__ import annotations

import base64
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import assert_never

from vizlog.records import (
    Attention,
    Curves,
    Embedding,
    Heatmaps,
    Histogram,
    Images,
    Record,
    Scalar,
    Surface,
    Text,
)
from vizlog.views.colors import DIVERGING, NO_CLASS, QUANTITY, SEQUENTIAL, attention_top, class_color, point_colors
from vizlog.views.plots import shared_start
from vizlog.views.png import encode
from vizlog.views.raster import raster
from vizlog.views.typeset import token

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["figure", "plain"]

_COLUMNS = 4
_MOST_NAMES = 40
_MOST_MAPS = 64  # each is a plot of its own in the browser; more make it crawl
_SYMBOLS = ("circle", "square", "triangle-up", "diamond")


def figure(record: Record) -> Figure:
    """Makes an interactive figure: values on hover, classes and curves that can be switched off, surfaces that turn.

    Raises:
        ImportError: where plotly is not installed.
    """
    try:
        from plotly import graph_objects
    except ImportError as error:
        raise ImportError("interactive figures need plotly: pip install 'vizlog[wandb]'") from error
    made = _figure(record, graph_objects)
    made.update_layout(template="plotly_white")
    return made if isinstance(record, Images | Text) else _titled(made, record)


def plain(record: Record) -> dict[str, Any]:
    """The figure as JSON takes it, with lists in the place of arrays and None in the place of NaN and inf.

    plotly packs arrays as base64, which only plotly.js from 2.35 on reads.
    """
    found: dict[str, Any] = _plain(figure(record).to_plotly_json())
    return found


def _plain(value: Any) -> Any:
    match value:
        case {"bdata": str(data), "dtype": str(dtype), **rest}:
            array = np.frombuffer(base64.b64decode(data), dtype)
            shape = str(rest.get("shape", array.size)).split(",")
            return _plain(array.reshape([int(size) for size in shape]))
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case np.ndarray() | list() | tuple():
            return [_plain(item) for item in value]
        case np.generic():
            return _plain(value.item())
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def _titled(made: Figure, record: Record) -> Figure:
    """The figure with its tag, its figures in words and its caption over it."""
    told = [*_facts(record), *textwrap.wrap(record.caption, 120)[:6]]
    words = "".join(f'<br><span style="font-size:12px;color:#5d656e">{_escape(line)}</span>' for line in told)
    place = {"x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top"}
    title = {"text": f"<b>{_escape(record.tag)}</b>{words}", "font": {"size": 16}, "pad": {"t": 14, "l": 14}, **place}
    above = 92 + 17 * len(told)
    made.update_layout(title=title, margin={"l": 60, "r": 30, "t": above, "b": 60})
    if made.layout.height is not None:
        made.update_layout(height=made.layout.height + above)
    return made


def _facts(record: Record) -> list[str]:
    """What the drawing itself cannot show."""
    if isinstance(record, Histogram):
        bad = f"NaN {record.nans:,}, +inf {record.pos_infs:,}, -inf {record.neg_infs:,}"
        spread = f"mean {record.mean:.3g}, std {record.std:.3g}"
        return [f"{record.count:,} elements; {spread}; zeros {record.zeros:,}; {bad}"]
    if isinstance(record, Embedding):
        scores = ", ".join(f"{name} {score:.3g}" for name, score in record.scores.items())
        methods = ", ".join([*record.layouts, *(f"{name} 3-D" for name in record.layouts_3d)])
        return [line for line in (f"methods: {methods}", scores) if line]
    if isinstance(record, Heatmaps | Attention):
        count = record.values.shape[0] if isinstance(record, Heatmaps) else record.weights.shape[1]
        return [f"the first {_MOST_MAPS} of {count:,} are drawn"] if count > _MOST_MAPS else []
    return []


def _figure(record: Record, go: Any) -> Figure:
    match record:
        case Scalar():
            return go.Figure(go.Indicator(mode="number", value=record.value))
        case Histogram():
            return _histogram(record, go)
        case Images() | Text():
            return _pixels(record, go)
        case Heatmaps():
            return _heatmaps(record, go)
        case Attention():
            return _attention(record, go)
        case Embedding():
            return _embedding(record, go)
        case Curves():
            return _curves(record, go)
        case Surface():
            return _surface(record, go)
        case _:
            assert_never(record)


def _escape(text: str) -> str:
    """Text for plotly's labels, which understand some HTML."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _css(color: Sequence[int]) -> str:
    return f"rgb({int(color[0])},{int(color[1])},{int(color[2])})"


def _scale(colormap: str, *, power: float = 1.0) -> list[tuple[float, str]]:
    """Our colormap as plotly wants it; with power 2, colours go by the square root of the value."""
    table = SEQUENTIAL if colormap == "sequential" else DIVERGING
    chosen = np.linspace(0, len(table) - 1, 33).astype(int)
    return [(float(i / (len(table) - 1)) ** power, _css(table[i])) for i in chosen]


def _histogram(record: Histogram, go: Any) -> Figure:
    edges, counts = np.asarray(record.edges, np.float64), np.asarray(record.counts, np.float64)
    names = [
        f"{low:.4g} to {high:.4g}: {count:,.6g}" for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    bars = go.Bar(
        x=edges[:-1] / 2 + edges[1:] / 2, y=counts, width=np.diff(edges), hovertext=names, hoverinfo="text",
        marker={"color": _css(class_color(0)), "line": {"width": 0}},
    )  # fmt: skip
    made = go.Figure(bars)
    made.update_layout(bargap=0, xaxis_title="value", yaxis_title="elements")
    return made


def _pixels(record: Images | Text, go: Any) -> Figure:
    """The raster itself, which can be zoomed into."""
    drawn = raster(record)
    source = "data:image/png;base64," + base64.b64encode(encode(drawn)).decode("ascii")
    made = go.Figure(go.Image(source=source, hoverinfo="skip"))
    made.update_layout(width=drawn.shape[1], height=drawn.shape[0], margin={"l": 0, "r": 0, "t": 0, "b": 0})
    made.update_xaxes(visible=False)
    made.update_yaxes(visible=False)
    return made


def _grid(titles: Sequence[str], columns: int, tile: tuple[int, int]) -> Figure:
    """Empty plots in rows, one for each title, in order."""
    from plotly.subplots import make_subplots

    columns = max(1, min(columns, len(titles)))
    rows = -(-len(titles) // columns)
    made = make_subplots(
        rows=rows, cols=columns, subplot_titles=list(titles),
        horizontal_spacing=0.1 / columns, vertical_spacing=0.25 / rows,
    )  # fmt: skip
    made.update_annotations(font_size=12)
    made.update_layout(width=max(500, tile[0] * columns + 160), height=tile[1] * rows + 60)
    return made


def _heatmaps(record: Heatmaps, go: Any) -> Figure:
    count = min(len(record.values), _MOST_MAPS)
    both = zip(record.titles[:count], record.notes[:count], strict=True)
    titles = [f"{_escape(title)}<br>{_escape(note)}" if note else _escape(title) for title, note in both]
    strips = record.values.shape[1] == 1
    columns = 1 if strips else min(_COLUMNS, count)
    made = _grid(titles, columns, (840, 130) if strips else (210, 230))
    for i in range(count):
        values = np.asarray(record.values[i], np.float64)
        map_ = go.Heatmap(
            z=values, coloraxis="coloraxis", hovertemplate="row %{y}, column %{x}: %{z:.4g}<extra></extra>",
        )  # fmt: skip
        made.add_trace(map_, row=i // columns + 1, col=i % columns + 1)
        _name_axes(
            made, (i // columns + 1, i % columns + 1),
            rows=record.row_labels[i] if record.row_labels else (),
            columns=record.column_labels[i] if record.column_labels else (),
        )  # fmt: skip
    low, high = record.limits
    bar = {"title": "value", "len": 1 if strips else 0.6}
    made.update_layout(coloraxis={"colorscale": _scale(record.colormap), "cmin": low, "cmax": high, "colorbar": bar})
    return made


def _name_axes(made: Figure, cell: tuple[int, int], *, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Row 0 on top, and names along the axes where there are few enough to be read; numbers would say nothing."""
    row, column = cell
    made.update_yaxes(autorange="reversed", row=row, col=column)
    for update, names in ((made.update_yaxes, rows), (made.update_xaxes, columns)):
        text = _ticks(names)
        ticks = {"tickvals": list(range(len(text))), "ticktext": text}
        update(showgrid=False, zeroline=False, tickfont_size=10, tickangle=0, row=row, col=column, **ticks)
    made.update_xaxes(tickangle=-90, row=row, col=column)


def _attention(record: Attention, go: Any) -> Figure:
    """All heads of an example in a grid; a menu chooses the example."""
    examples, heads = record.weights.shape[0], min(record.weights.shape[1], _MOST_MAPS)
    columns = min(_COLUMNS, heads)
    made = _grid([f"head {head}" for head in record.heads[:heads]], columns, (210, 260))
    for example in range(examples):
        queries, keys = record.query_tokens[example], record.key_tokens[example]
        for head in range(heads):
            cell = (head // columns + 1, head % columns + 1)
            made.add_trace(_head(record.weights[example, head], queries, keys, go).update(visible=example == 0), *cell)
            if example == 0:
                _name_axes(made, cell, rows=queries if cell[1] == 1 else (), columns=keys)
    shades = {"colorscale": _scale("sequential", power=2.0), "cmin": 0, "cmax": attention_top(record.weights)}
    shades["colorbar"] = {"title": "attention"}
    made.update_layout(coloraxis=shades)
    axes = [
        {
            **{f"{axis}.ticktext": _ticks(record.key_tokens[i]) for axis in _axis_names("xaxis", heads)},
            "yaxis.ticktext": _ticks(record.query_tokens[i]),
        }
        for i in range(examples)
    ]
    _menu(made, [f"example {example}" for example in record.examples], [heads] * examples, changes=axes)
    return made


def _head(weights: Any, queries: Sequence[str], keys: Sequence[str], go: Any) -> Any:
    """One head's map; on hover, who looks at whom."""
    looks = [[f"{_escape(token(q))} looks at {_escape(token(k))}" for k in keys] for q in queries]
    few = len(queries) * len(keys) <= _MOST_NAMES**2  # the words cost more bytes than the numbers
    return go.Heatmap(
        z=np.asarray(weights, np.float64), text=looks if few else None, coloraxis="coloraxis",
        hovertemplate=("%{text}" if few else "query %{y}, key %{x}") + ": %{z:.3f}<extra></extra>",
    )  # fmt: skip


def _ticks(names: Sequence[str]) -> list[str]:
    return [_escape(token(name)) for name in names] if len(names) <= _MOST_NAMES else []


def _axis_names(axis: str, number: int) -> list[str]:
    """Plotly's names: xaxis, xaxis2, xaxis3."""
    return [axis if i == 0 else f"{axis}{i + 1}" for i in range(number)]


def _menu(made: Figure, names: Sequence[str], traces: Sequence[int], *, changes: Sequence[dict[str, Any]]) -> None:
    """Buttons that show one group of traces at a time: the first `traces[0]` of them, then the next `traces[1]`."""
    if len(names) < 2:
        return
    ends = np.cumsum(traces)
    buttons = []
    for i, (name, end) in enumerate(zip(names, ends, strict=True)):
        visible = [bool(end - traces[i] <= trace < end) for trace in range(int(ends[-1]))]
        buttons.append({"label": _escape(name), "method": "update", "args": [{"visible": visible}, changes[i]]})
    place = {"x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "pad": {"b": 30}}
    made.update_layout(updatemenus=[{"buttons": buttons, "type": "dropdown", "direction": "down", **place}])


def _embedding(record: Embedding, go: Any) -> Figure:
    """Points by class, ids on hover; a menu chooses the method."""
    made, traces, planes = go.Figure(), [], []
    layouts = [(name, xy, False) for name, xy in record.layouts.items()]
    layouts += [(f"{name} 3-D", xyz, True) for name, xyz in record.layouts_3d.items()]
    for number, (_, layout, solid) in enumerate(layouts):
        points = _points(record, np.asarray(layout, np.float64), go, solid=solid)
        for each in points:
            made.add_trace(each.update(visible=number == 0))
        traces.append(len(points))
        planes.append({"xaxis.visible": not solid, "yaxis.visible": not solid})
    made.update_layout(height=620, width=860, legend={"itemsizing": "constant"})
    made.update_yaxes(scaleanchor="x", showticklabels=False, zeroline=False)
    made.update_xaxes(showticklabels=False, zeroline=False)
    _menu(made, [name for name, _, _ in layouts], traces, changes=planes)
    return made


def _points(record: Embedding, layout: Any, go: Any, *, solid: bool) -> list[Any]:
    """One trace a class, or one with a bar of colours."""
    if record.is_of_quantity:
        return _points_of_quantity(record, layout, go, solid=solid)
    traces = []
    for label in np.unique(record.labels):
        chosen = np.flatnonzero(record.labels == label)
        name = record.class_names[label] if 0 <= label < len(record.class_names) else str(label)
        name = "no class" if label < 0 else name
        marker = {"color": _css(class_color(int(label))), "size": 4 if solid else 7}
        marker["symbol"] = "circle" if solid or label < 0 else _SYMBOLS[int(label) // 10 % 4]
        axes = dict(zip("xyz", layout[chosen].T, strict=False))
        hover = [f"example {record.ids[i]}<br>{_escape(name)}" for i in chosen]
        kind = go.Scatter3d if solid else go.Scatter
        traces.append(
            kind(**axes, mode="markers", name=_escape(name), marker=marker, hovertext=hover, hoverinfo="text")
        )
    return traces


def _points_of_quantity(record: Embedding, layout: Any, go: Any, *, solid: bool) -> list[Any]:
    """One trace with a bar of colours, and one of the points that have no value."""
    values = np.asarray(record.labels, np.float64)
    _, (low, high) = point_colors(values)
    name = _escape(", ".join(record.class_names) or "value")
    scale = [(at / (len(QUANTITY) - 1), _css(color)) for at, color in enumerate(QUANTITY.tolist())]
    bar = {"colorscale": scale, "cmin": low, "cmax": high, "showscale": True, "colorbar": {"title": name}}
    traces, kind, has_none = [], go.Scatter3d if solid else go.Scatter, np.isnan(values)
    shown = np.nan_to_num(values[~has_none], posinf=high, neginf=low)  # JSON has no infinite numbers
    for chosen, marker in ((~has_none, {"color": shown, **bar}), (has_none, {"color": _css(NO_CLASS)})):
        if chosen.any():
            points = zip(record.ids[chosen], values[chosen], strict=True)
            hover = [f"example {i}<br>{name}: {'none' if np.isnan(value) else f'{value:.5g}'}" for i, value in points]
            look = {"mode": "markers", "marker": {**marker, "size": 4 if solid else 7}, "showlegend": False}
            axes = dict(zip("xyz", layout[chosen].T, strict=False))
            traces.append(kind(**axes, **look, name=name, hovertext=hover, hoverinfo="text"))
    return traces


def _curves(record: Curves, go: Any) -> Figure:
    made = go.Figure()
    x = np.asarray(record.x, np.float64)
    shared = shared_start(record.x_names or ())
    names = [_escape(name[len(shared) :]) for name in record.x_names] if record.x_names is not None else None
    x_label = f"{record.x_label} (each name starts with {shared})" if shared else record.x_label
    for i, (name, y) in enumerate(record.ys.items()):
        shown = np.where(np.isfinite(y), np.asarray(y, np.float64), np.nan)
        where = "%{text}" if names else "%{x:.6g}"
        line = go.Scatter(
            x=x, y=shown, name=_escape(name), text=names, line={"color": _css(class_color(i))},
            mode="lines+markers" if len(x) <= 60 else "lines", hovertemplate=where + ": %{y:.4g}",
        )  # fmt: skip
        made.add_trace(line)
    made.update_layout(xaxis_title=_escape(x_label), yaxis_title=_escape(record.y_label), showlegend=len(record.ys) > 1)
    made.update_xaxes(type="log" if record.log_x else "linear")
    made.update_yaxes(type="log" if record.log_y else "linear")
    if names and len(names) <= 60:
        made.update_xaxes(tickvals=x, ticktext=names, tickangle=-90)
    return made


def _surface(record: Surface, go: Any) -> Figure:
    z = np.asarray(record.z, np.float64)
    x, y = np.asarray(record.x, np.float64), np.asarray(record.y, np.float64)
    bar = {"title": _escape(record.z_label)}
    made = go.Figure(go.Surface(x=x, y=y, z=z, colorscale=_scale("sequential"), colorbar=bar, name="", opacity=0.95))
    if record.path is not None and len(record.path):
        path = np.asarray(record.path, np.float64)
        lift = 0.01 * float(np.nanmax(z) - np.nanmin(z)) if np.isfinite(z).any() else 0.0
        heights = path[:, 2] if path.shape[1] == 3 else _heights(x, y, z, path)
        line = go.Scatter3d(
            x=path[:, 0], y=path[:, 1], z=heights + lift, mode="lines+markers", name="path",
            line={"color": "#d62828", "width": 6}, marker={"size": 2, "color": "#d62828"},
        )  # fmt: skip
        made.add_trace(line)
    axes = {"xaxis_title": record.x_label, "yaxis_title": record.y_label, "zaxis_title": record.z_label}
    camera = {"eye": {"x": -1.1, "y": -1.5, "z": 1.5}}
    made.update_layout(height=640, width=860, scene={**{k: _escape(v) for k, v in axes.items()}, "camera": camera})
    return made


def _heights(x: Any, y: Any, z: Any, path: Any) -> Any:
    """Heights under each point of the path, linear between the grid's points."""
    rising_x, rising_y = np.argsort(x), np.argsort(y)
    at_x = np.array([np.interp(path[:, 0], x[rising_x], row[rising_x]) for row in z[rising_y]])
    return np.array([np.interp(point, y[rising_y], at_x[:, i]) for i, point in enumerate(path[:, 1])])
