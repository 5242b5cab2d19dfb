"""Hyperparameters for TensorBoard's HPARAMS tab, in the run itself: torch's `add_hparams` makes a run beside it."""

from __future__ import annotations

import contextlib
import time
from argparse import Namespace
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from vizlog.diagnosis import Diagnosis
from vizlog.records import without_surrogates

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

__all__ = ["HParams"]

_Value: TypeAlias = "bool | float | str"


class HParams:
    """A run's hyperparameters, and which of its scalars stand beside them.

    Args:
        values: name -> number, truth value or text; nested mappings and namespaces get names joined by dots, what else
            there is goes by its text, and None is left out.
        metrics: tags of scalars, or one tag; the health scalars stand after them.

    Attributes:
        start: what opens the run: the experiment as this run knows it, and its hyperparameters.

    Raises:
        TypeError: `values` has no names, or `metrics` are no tags.
    """

    def __init__(self, values: Mapping[str, Any] | Namespace, metrics: str | Sequence[str] = ()) -> None:
        if not isinstance(values, (Mapping, Namespace)):
            raise TypeError(
                "hparams= takes a mapping (name -> value; of a dataclass, dataclasses.asdict) or what argparse gives, "
                f"got {values!r}"
            )
        self.start: Sequence[Summary] = _start(dict(_flat(values)), [*_tags(metrics), *Diagnosis().scalars()])

    def end(self) -> Summary:
        """What closes the run."""
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        info = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
        return _summary(metadata.SESSION_END_INFO_TAG, session_end_info=info)


def _start(values: Mapping[str, _Value], metrics: Iterable[str]) -> list[Summary]:
    """The experiment and the start of a session.

    TensorBoard takes the experiment of whichever run it meets first, so all runs of a sweep should say the same: the
    domain of a parameter, which none of them knows, is left open.
    """
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    experiment = api_pb2.Experiment(
        hparam_infos=[api_pb2.HParamInfo(name=name, type=_type(value), differs=True) for name, value in values.items()],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics],
    )
    session = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for name, value in values.items():
        if isinstance(value, bool):
            session.hparams[name].bool_value = value
        elif isinstance(value, str):
            session.hparams[name].string_value = value
        else:
            session.hparams[name].number_value = value
    return [
        _summary(metadata.EXPERIMENT_TAG, experiment=experiment),
        _summary(metadata.SESSION_START_INFO_TAG, session_start_info=session),
    ]


def _tags(metrics: str | Sequence[str]) -> list[str]:
    given = [metrics] if isinstance(metrics, str) else metrics
    if not isinstance(given, Collection) or not all(isinstance(tag, str) for tag in given):
        raise TypeError(f"metrics= takes tags of scalars, such as ['accuracy'], got {metrics!r}")
    return [without_surrogates(tag) for tag in given]


def _flat(values: Mapping[str, Any] | Namespace, prefix: str = "") -> list[tuple[str, _Value]]:
    flat: list[tuple[str, _Value]] = []
    for name, value in (vars(values) if isinstance(values, Namespace) else values).items():
        if isinstance(value, (Mapping, Namespace)):
            flat += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat.append((without_surrogates(f"{prefix}{name}"), _plain(value)))
    return flat


def _plain(value: Any) -> _Value:
    """A number or truth value, numpy's and torch's too, as Python's; anything else as its text."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        with contextlib.suppress(Exception):  # a tensor on "meta" has no value
            value = value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        with contextlib.suppress(OverflowError):  # a whole number beyond any float
            return float(value)
    return without_surrogates(value if isinstance(value, str) else str(value))


def _type(value: object) -> Any:
    from tensorboard.plugins.hparams import api_pb2

    if isinstance(value, bool):
        return api_pb2.DATA_TYPE_BOOL
    return api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64


def _summary(tag: str, **data: Any) -> Summary:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    plugin_data = plugin_data_pb2.HParamsPluginData(**data)
    value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(plugin_data), tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])
