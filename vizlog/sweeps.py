"""Sweeps in Weights & Biases: the view that shows why trials die, and the configuration of a sweep that lets them stop.

    python -m vizlog.sweeps --help

prints such a view as JSON, or saves it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from vizlog.diagnosis import CONDITIONS, STOPPED_BECAUSE

__all__ = ["View", "best_and_worst", "sweep_config", "workspace"]

Goal: TypeAlias = Literal["maximize", "minimize"]

_STEP = "vizlog/step"
_HEALTH = ("dead_units_worst", "saturated_worst", "gradient_norm_max", "vanishing", "update_ratio_max", "knn_accuracy")
_BY_MAGNITUDE = {"gradient_norm", "gradient_norm_max", "vanishing", "update_ratio_worst", "update_ratio_max"}
_TENFOLD = 10 * (1 - 1e-6)  # as 3e-4 / 3e-5 comes out
_PICTURES = ("saliency/gradient", "saliency/gradcam", "saliency/gradient/predicted")

_LINES: Mapping[str, Sequence[str]] = {
    "dead units, worst and mean layer": ("health/dead_units_worst", "health/dead_units_mean"),
    "saturated outputs, worst layer": ("health/saturated_worst",),
    "gradient norm, largest and mean layer": ("health/gradient_norm_worst", "health/gradient_norm_mean"),
    "update / weight, largest and mean layer": ("health/update_ratio_worst", "health/update_ratio_mean"),
    "NaN and infinite values, worst layer": ("health/nonfinite_worst",),
    "attention entropy, lowest head": ("health/attention_entropy_worst",),
}

_HOW_TO_READ = """
## Why trials die

Each line of the parallel coordinates is a trial: what was swept on the left, its health in the middle, **{metric}** on
the right. Drag along the {metric} axis over its worst end: the axes on which those trials run together name the cause.

| figure | healthy | what is wrong beyond |
|---|---|---|
| `vizlog/dead_units_worst` | below 0.5 | a layer's units answer to no example: learning rate or bias too large |
| `vizlog/saturated_worst` | below 0.3 | outputs stuck at a limit: initialisation or learning rate too large |
| `vizlog/gradient_norm_max` | within 100 times of the others | gradients explode: clip, or a smaller gain |
| `vizlog/vanishing` | 0.01 to 100 | far below 1 the first layers learn nothing |
| `vizlog/update_ratio_max` | 1e-3 to 1e-1 | steps too large for the weights: learning rate, or no warm-up |
| `vizlog/first_bad_step` | -1 | the first step with NaN or infinite values |
| `vizlog/knn_accuracy` | rises | the features do not separate the classes |
| `vizlog/stopped_because` | empty | why `stop_when` ended the trial |

Parameter importance says for one figure at a time which parameter it follows. In the gallery rows are trials, columns
steps: look at one column to compare the best and the worst at the same step.
"""


class View:
    """A saved view of a W&B project, before it is saved.

    Attributes:
        workspace: the `Workspace` of wandb-workspaces, to add to or take from.
    """

    def __init__(self, workspace: Any) -> None:
        self.workspace = workspace

    def to_json(self) -> str:
        """The view as W&B stores it; no server is asked."""
        text: str = self.workspace._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2)  # noqa: SLF001 -- it has no public name
        return text

    @staticmethod
    def from_json(text: str) -> View:
        """What `to_json` gave, as a view again."""
        workspaces, internal = _library()[0], _library()[2]
        return View(workspaces.Workspace._from_model(internal.View.model_validate_json(text)))  # noqa: SLF001 -- as above

    def save(self) -> str:
        """Saves it in the project; returns its address."""
        self.workspace.save()
        return str(self.workspace.url)


def workspace(
    entity: str,
    project: str,
    *,
    metric: str,
    goal: Goal = "maximize",
    parameters: Iterable[str] | Mapping[str, Any] = (),
    pictures: str | Sequence[str] = _PICTURES,
    best: str | None = None,
    worst: str | None = None,
    name: str = "Why trials die",
) -> View:
    """A view of a sweep: what was swept, what it did to the runs' health, and how they ended.

    Parallel coordinates, parameter importance for the metric and each health figure, health over steps, a gallery of
    pictures, a run comparer, and a text that says how to read them. Runs stand in order of the metric, the best first.

    Args:
        entity, project: where the runs are.
        metric: what the sweep is for, as it was logged.
        goal: "maximize" or "minimize".
        parameters: what is swept: names, or a sweep's `parameters`; log-distributed ones get a logarithmic axis.
        pictures: tags for the gallery, or one tag.
        best, worst: ids of runs to keep in sight, as `best_and_worst` finds them.
        name: of the view.

    Raises:
        ImportError: wandb-workspaces is not installed.
        TypeError, ValueError: `goal` is neither, or one of the others is no name.
    """
    _one_of("goal", goal, ("maximize", "minimize"))
    _check_names(entity=entity, project=project, metric=metric, name=name)
    axes = _axes(parameters)
    pictures = _names("pictures", pictures)
    workspaces, reports, _ = _library()
    from wandb_workspaces import expr

    pinned = [run for run in (best, worst) if run is not None]
    columns = ["run:displayName", f"summary:{metric}", *(f"summary:vizlog/{figure}" for figure in _HEALTH)]
    made = workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            _overview(workspaces, reports, metric, axes),
            _importance(workspaces, reports, metric),
            _over_steps(workspaces, reports),
            _gallery(workspaces, reports, pictures),
        ],
        settings=workspaces.WorkspaceSettings(x_axis=_STEP, max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            order=[expr.Ordering(expr.Summary(metric), ascending=goal == "minimize")],
            pinned_columns=[*columns, f"summary:{STOPPED_BECAUSE}"],
            pinned_runs=pinned,
        ),
    )
    return View(made)


def best_and_worst(entity: str, project: str, *, metric: str, goal: Goal = "maximize") -> tuple[str, str] | None:
    """The ids of the best and the worst finished run; None where fewer than two have the metric. Asks the service.

    Raises:
        TypeError, ValueError: `goal` is neither, or one of the others is no name.
    """
    _one_of("goal", goal, ("maximize", "minimize"))
    _check_names(entity=entity, project=project, metric=metric)
    import wandb

    ended = [
        (float(value), run.id)
        for run in wandb.Api().runs(f"{entity}/{project}")
        if run.state == "finished"
        and isinstance(value := run.summary.get(metric), (int, float))
        and math.isfinite(value)
    ]
    if len(ended) < 2:
        return None
    ended.sort(reverse=goal == "maximize")
    return ended[0][1], ended[-1][1]


def sweep_config(
    parameters: Mapping[str, Any],
    *,
    metric: str,
    goal: Goal = "maximize",
    method: Literal["grid", "random", "bayes"] = "random",
    program: str | None = None,
    runs: int | None = None,
    stop_when: str | Sequence[str] | None = ("nonfinite", "dead"),
    early_terminate: int | Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A sweep's configuration, for `wandb.sweep` or a YAML file.

    ```python
    config = sweep_config({"lr": (1e-4, 1e-1), "activation": ["relu", "tanh"], "width": 64}, metric="accuracy")
    ```

    Args:
        parameters: name -> a list of values, a pair (low, high) to draw from (of numbers > 0 that lie a factor of ten
            or more apart: logarithmically), one value, or what W&B's own syntax has, a mapping.
        metric, goal: what the sweep is for.
        method: how W&B chooses.
        program: the script that agents run; None for agents that call a function.
        runs: how many at most.
        stop_when: conditions that go to each trial as its parameter `stop_when`, for
            `vizlog.watch(..., stop_when=run.config.stop_when)`; None: none.
        early_terminate: after how many logged values of the metric W&B may stop a trial that falls behind (hyperband),
            or W&B's own syntax. That ends the process, whatever it is doing; `stop_when` lets it finish.

    Raises:
        TypeError: `parameters` is no mapping, or one of them, or anything else, is nothing that a sweep can hold.
        ValueError: an unknown goal, method or condition, a number below 1, or a parameter that nothing can be drawn
            from.
    """
    _one_of("goal", goal, ("maximize", "minimize"))
    _one_of("method", method, ("grid", "random", "bayes"))
    _check_names(metric=metric)
    if not isinstance(parameters, Mapping):
        raise TypeError(f"parameters= takes a mapping, {{'lr': [0.01, 0.1]}}, got {parameters!r}")
    config: dict[str, Any] = {"method": method, "metric": {"name": metric, "goal": goal}}
    if program is not None:
        _check_names(program=program)
        # Without ${args}: the client hands the parameters to wandb.init.
        config |= {"program": program, "command": ["${env}", "${interpreter}", "${program}"]}
    config["parameters"] = {name: _parameter(name, given) for name, given in parameters.items()}
    if stop_when is not None:
        names = [stop_when] if isinstance(stop_when, str) or not isinstance(stop_when, Sequence) else list(stop_when)
        unknown = [condition for condition in names if not isinstance(condition, str) or condition not in CONDITIONS]
        if unknown:
            raise ValueError(f"stop_when= of a sweep takes some of {', '.join(map(repr, CONDITIONS))}, got {unknown}")
        config["parameters"].setdefault("stop_when", {"value": names})  # a swept one goes first
    if runs is not None:
        config["run_cap"] = _number("runs= takes a number", runs)
    if isinstance(early_terminate, Mapping):
        config["early_terminate"] = dict(early_terminate)
    elif early_terminate is not None:
        least = _number("early_terminate= takes a mapping or a number of logged values", early_terminate)
        config["early_terminate"] = {"type": "hyperband", "min_iter": least}
    return config


def _one_of(what: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise ValueError(f"{what}= takes {' or '.join(map(repr, known))}, got {given!r}")


def _check_names(**names: object) -> None:
    for what, name in names.items():
        if not isinstance(name, str):
            raise TypeError(f"{what}= takes a text, got {name!r}")
        if not name.strip():
            raise ValueError(f"{what}= takes a text that says something, got {name!r}")


def _names(what: str, given: Any) -> list[str]:
    names = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{what}= takes names, got {given!r}")
    return names


def _number(what: str, given: object) -> int:
    number = _plain(given)
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{what} >= 1, got {given!r}")
    if number < 1:
        raise ValueError(f"{what} >= 1, got {given!r}")
    return number


def _parameter(name: str, given: Any) -> dict[str, Any]:
    if not isinstance(name, str) or not name:
        raise TypeError(f"parameters= takes names, as texts, got {name!r}")
    match _plain(given):
        case Mapping() as mapping:
            if not mapping:
                raise ValueError(f"the mapping of {name!r} is empty: W&B needs a 'value', 'values' or a distribution")
            return dict(mapping)
        case list(values):
            return _values(name, values)
        case (int() | float() as low, int() | float() as high) if not (isinstance(low, bool) or isinstance(high, bool)):
            return _range(name, low, high)
        case tuple():
            raise ValueError(f"a tuple is a range of two numbers, and {name!r} has {given!r}; values are a list")
        case str() | int() | float() | None as value:
            return {"value": value}
        case _:
            raise TypeError(
                f"{name!r} takes a list of values, a pair (low, high), one value or a mapping, got {given!r}"
            )


def _values(name: str, values: list[Any]) -> dict[str, Any]:
    if not values:
        raise ValueError(f"the list of {name!r} needs a value")
    for value in values:
        if not isinstance(value, (str, int, float, list, tuple, Mapping, type(None))):
            raise TypeError(f"the list of {name!r} takes numbers, truth values and texts, got {value!r}")
    return {"values": values}


def _range(name: str, low: float, high: float) -> dict[str, Any]:
    if not low < high or math.isinf(low) or math.isinf(high):
        raise ValueError(f"the range of {name!r} needs low < high, and both finite, got {(low, high)}")
    if isinstance(low, int) and isinstance(high, int):
        return {"distribution": "int_uniform", "min": low, "max": high}
    kind = "log_uniform_values" if low > 0 and high / low > _TENFOLD else "uniform"
    return {"distribution": kind, "min": low, "max": high}


def _plain(given: Any) -> Any:
    """Numbers and arrays of numpy and torch, and ranges, as what a YAML file can hold."""
    if hasattr(given, "tolist"):
        return given.tolist()
    if isinstance(given, (list, tuple, range)):
        parts = map(_plain, given)
        return tuple(parts) if isinstance(given, tuple) else list(parts)
    return {name: _plain(part) for name, part in given.items()} if isinstance(given, Mapping) else given


def _axes(parameters: Iterable[str] | Mapping[str, Any]) -> dict[str, bool]:
    """Name of what is swept -> whether its axis is logarithmic."""
    if not isinstance(parameters, Mapping):
        return dict.fromkeys(_names("parameters", parameters), False)
    axes: dict[str, bool] = {}
    for name, given in parameters.items():
        parameter = _parameter(name, given)
        if isinstance(inner := parameter.get("parameters"), Mapping):  # W&B's nested ones
            axes |= {f"{name}.{part}": log for part, log in _axes(inner).items()}
            continue
        numbers = [value for value in parameter.get("values", ()) if isinstance(value, (int, float))]
        spans = len(numbers) > 1 and len(numbers) == len(parameter["values"]) and 0 < 10 * min(numbers) <= max(numbers)
        if "value" not in parameter:
            axes[name] = spans or str(parameter.get("distribution", "")).startswith(("log", "q_log", "inv_log"))
    return axes


def _overview(workspaces: Any, reports: Any, metric: str, axes: Mapping[str, bool]) -> Any:
    column = reports.ParallelCoordinatesPlotColumn
    swept = [column(metric=reports.Config(name), log=log) for name, log in axes.items()]
    health = [
        column(metric=reports.SummaryMetric(f"vizlog/{figure}"), display_name=figure, log=figure in _BY_MAGNITUDE)
        for figure in _HEALTH
    ]
    target = column(metric=reports.SummaryMetric(metric))
    return workspaces.Section(
        name="Why trials die",
        is_open=True,
        panels=[
            reports.ParallelCoordinatesPlot(
                title=f"swept -> health -> {metric}",
                columns=[*swept, *health, target],
                layout=reports.Layout(x=0, y=0, w=24, h=12),
            ),
            reports.MarkdownPanel(
                markdown=_HOW_TO_READ.format(metric=metric).strip(), layout=reports.Layout(x=0, y=12, w=12, h=14)
            ),
            reports.RunComparer(diff_only="split", layout=reports.Layout(x=12, y=12, w=12, h=14)),
        ],
    )


def _importance(workspaces: Any, reports: Any, metric: str) -> Any:
    targets = [metric, *(f"vizlog/{figure}" for figure in _HEALTH)]
    return workspaces.Section(
        name="Which parameter it follows",
        is_open=True,
        panels=[reports.ParameterImportancePlot(with_respect_to=target) for target in targets],
    )


def _over_steps(workspaces: Any, reports: Any) -> Any:
    lines = [
        reports.LinePlot(title=title, x=_STEP, y=list(keys), log_y="norm" in title or "update" in title)
        for title, keys in _LINES.items()
    ]
    separates = reports.LinePlot(
        title="how well classes separate", x=_STEP, metric_regex="embeddings/.*/(knn_accuracy|silhouette)"
    )
    return workspaces.Section(name="Health over steps", is_open=True, panels=[*lines, separates])


def _gallery(workspaces: Any, reports: Any, pictures: Sequence[str]) -> Any:
    panels = [
        reports.MediaBrowser(
            title=f"{key}: best and worst runs at the same step",
            media_keys=[key],
            mode="grid",
            grid_x_axis="step",
            grid_y_axis="run",
            layout=reports.Layout(w=24, h=10),
        )
        for key in pictures
    ]
    return workspaces.Section(name="Pictures, the best runs first", is_open=True, panels=panels)


def _library() -> tuple[Any, Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        from wandb_workspaces import workspaces
        from wandb_workspaces.workspaces import internal
    except ImportError:
        raise ImportError("W&B views need wandb-workspaces: pip install 'vizlog[wandb]'") from None
    return workspaces, reports, internal


def _known(sweep: Path) -> dict[str, Any]:
    """What a sweep's file, YAML or JSON, says of it."""
    import yaml  # comes with wandb

    try:
        config = yaml.safe_load(sweep.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{sweep} is no YAML: {error}") from None
    match config:
        case {"parameters": dict(parameters)}:
            metric = config.get("metric") or {}
            if isinstance(metric, dict):
                goal = metric.get("goal", "minimize")  # which is W&B's default
                return {"metric": metric.get("name"), "goal": goal, "parameters": parameters}
    raise ValueError(
        f"{sweep} is no sweep's configuration: it needs `parameters:` and `metric: {{name: ..., goal: ...}}`"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the view as JSON, or saves it."""
    parser = argparse.ArgumentParser(prog="python -m vizlog.sweeps", description=main.__doc__)
    parser.add_argument("entity")
    parser.add_argument("project")
    parser.add_argument("--sweep", type=Path, help="the sweep's YAML file: its metric, goal and parameters")
    parser.add_argument("--metric", help="what the sweep is for, as it was logged")
    parser.add_argument("--goal", choices=["maximize", "minimize"])
    parser.add_argument("--parameters", nargs="+", metavar="NAME", help="what is swept")
    parser.add_argument("--pictures", nargs="+", metavar="TAG", default=_PICTURES, help="tags for the gallery")
    parser.add_argument(
        "--save", action="store_true", help="save it in the project, with its best and worst run pinned"
    )
    given = parser.parse_args(arguments)
    try:
        chosen = {"goal": "maximize", "parameters": ()} | (_known(given.sweep) if given.sweep else {})
        _one_of("goal", given.goal or chosen["goal"], ("maximize", "minimize"))
    except (OSError, ValueError) as error:
        parser.error(f"--sweep: {error}")
    chosen |= {key: value for key in ("metric", "goal", "parameters") if (value := getattr(given, key)) is not None}
    if not chosen.get("metric"):
        parser.error("give --metric, or a --sweep that has one")
    where, runs = (given.entity, given.project), None
    try:
        if given.save:
            runs = best_and_worst(*where, metric=chosen["metric"], goal=chosen["goal"])
        best, worst = runs or (None, None)
        view = workspace(*where, pictures=given.pictures, best=best, worst=worst, **chosen)
        found = view.save() if given.save else view.to_json()
    except Exception as error:  # noqa: BLE001 -- a library that is missing, or whatever the service says
        parser.exit(1, f"{parser.prog}: there is no view: {type(error).__name__}: {error}\n")
    sys.stdout.write(found + "\n")


if __name__ == "__main__":
    main()
