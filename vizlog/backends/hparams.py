"""Hyperparameters for TensorBoard's HPARAMS tab, in the run itself: torch's `add_hparams` makes a run beside it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vizlog.diagnosis import Diagnosis

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

__all__ = ["HParams"]


class HParams:
    """A run's hyperparameters, and which of its scalars stand beside them.

    Args:
        values: name -> number, truth value or text; nested mappings get names joined by dots, what else there is goes
            by its text, and None is left out.
        metrics: tags of scalars; the health scalars stand after them.
    """

    def __init__(self, values: Mapping[str, Any], metrics: Sequence[str] = ()) -> None:
        self._values = dict(_flat(values))
        self._metrics = (*metrics, *Diagnosis().scalars())

    def start(self) -> list[Summary]:
        """What opens the run: the experiment as this run knows it, and its hyperparameters.

        TensorBoard takes the experiment of whichever run it meets first, so all runs of a sweep should say the same:
        the domain of a parameter, which none of them knows, is left open.
        """
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        experiment = api_pb2.Experiment(
            hparam_infos=[
                api_pb2.HParamInfo(name=name, type=_type(value), differs=True) for name, value in self._values.items()
            ],
            metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in self._metrics],
        )
        session = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in self._values.items():
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

    def end(self) -> Summary:
        """What closes the run."""
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        info = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
        return _summary(metadata.SESSION_END_INFO_TAG, session_end_info=info)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, bool | float | str]]:
    flat: list[tuple[str, bool | float | str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            is_plain = isinstance(value, (bool, int, float, str))
            flat.append((f"{prefix}{name}", value if is_plain else _number_or_text(value)))
    return flat


def _number_or_text(value: Any) -> float | str:
    """A number of numpy's or torch's as Python's; anything else as its text."""
    is_number = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    return float(value.item()) if is_number else str(value)


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
