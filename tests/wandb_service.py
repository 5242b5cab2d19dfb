"""A stand-in of the W&B service on this machine: the real client logs to it, sweeps with it and reads back from it.

What it answers is in wandb_schema.graphql; whatever else a client asks for is an error, kept in `unknown`. It shows
what the client sends, and not what the service accepts: it checks no key, refuses no row, and stops no run early.

    python -m tests.wandb_service

serves until it is killed, and prints the variables that a client needs.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import yaml
from graphql import build_schema, graphql_sync
from typing_extensions import Self

SCHEMA = build_schema(Path(__file__).with_name("wandb_schema.graphql").read_text())
ENTITY = "somebody"
NOW = "2026-01-01T00:00:00Z"
CLOSED = 0
"""An `answer` that is none: the connection is closed."""


@dataclass
class Run:
    """What has arrived of a run."""

    name: str
    project: str = ""
    entity: str = ENTITY
    display_name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "running"
    exitcode: int | None = None
    sweep: str | None = None
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None

    def of(self, key: str) -> list[Any]:
        """The values of `key`, in order."""
        return [row[key] for row in self.history if key in row]


@dataclass
class Sweep:
    """A sweep and its controller, which knows the methods grid and random."""

    name: str
    project: str
    entity: str
    config: dict[str, Any]
    seed: int = 0
    state: str = "PENDING"
    handed_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._trials = self._grid() if self.config.get("method") == "grid" else self._random()

    @property
    def expected(self) -> int | None:
        """How many trials there will be; None: no end."""
        cap = self.config.get("run_cap")
        if self.config.get("method") != "grid":
            return cap
        size = sum(1 for _ in self._grid())
        return size if cap is None else min(size, cap)

    def next_trial(self) -> dict[str, Any] | None:
        """The parameters of the trial to come; None once all were handed out, or the sweep was ended."""
        ended = self.state in {"STOPPED", "CANCELED", "FINISHED"}
        if ended or (self.expected is not None and len(self.handed_out) >= self.expected):
            return None
        self.state = "RUNNING"
        return next(self._trials)

    def _grid(self) -> Iterator[dict[str, Any]]:
        parameters = self.config["parameters"]
        choices = [parameter.get("values", [parameter.get("value")]) for parameter in parameters.values()]
        return (dict(zip(parameters, trial, strict=True)) for trial in itertools.product(*choices))

    def _random(self) -> Iterator[dict[str, Any]]:
        draw = random.Random(self.seed)
        while True:
            yield {name: _drawn(draw, parameter) for name, parameter in self.config["parameters"].items()}


def _drawn(draw: random.Random, parameter: Mapping[str, Any]) -> Any:
    match parameter:
        case {"value": value}:
            return value
        case {"values": values}:
            return draw.choices(values, parameter.get("probabilities"))[0]
        case {"distribution": "int_uniform", "min": low, "max": high}:
            return draw.randint(low, high)
        case {"distribution": "uniform", "min": low, "max": high}:
            return draw.uniform(low, high)
        case {"distribution": "log_uniform_values", "min": low, "max": high}:
            return low * (high / low) ** draw.random()
    raise ValueError(f"the stand-in cannot draw from {dict(parameter)}")


class WandbService:
    """Serves on 127.0.0.1, at a port that is free, while the context is open.

    Args:
        folder: where its clients shall write.
        port: 0 takes one that is free.
        seed: of what sweeps draw.

    `runs`, `sweeps`, `views` (by name), `alerts` and `artifacts` hold what has arrived; `unknown` what a client asked
    for in vain. `answer` is the HTTP status of every answer: 200, or what is to be survived. While `goes_on` is not
    set, requests wait.
    """

    def __init__(self, folder: Path, *, port: int = 0, seed: int = 0) -> None:
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.alerts: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.unknown: list[str] = []
        self.requests: list[str] = []
        self.answer = 200
        self.goes_on = threading.Event()
        self.goes_on.set()
        self._folder = folder
        self._seed = seed
        self._agents: dict[str, str] = {}  # agent -> sweep
        self._lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
        self._server.daemon_threads = True
        self._server.service = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the service: from now on connections are refused, and those that are open get no answer."""
        self.answer = CLOSED
        self.goes_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def environment(self) -> dict[str, str]:
        """All that a client needs to find this service, and to leave nothing anywhere else."""
        folders = {}
        for kind in ("DIR", "CONFIG_DIR", "CACHE_DIR", "DATA_DIR", "ARTIFACT_DIR"):
            folder = self._folder / kind.lower()
            folder.mkdir(parents=True, exist_ok=True)
            folders[f"WANDB_{kind}"] = str(folder)
        return folders | {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_MODE": "online",
            "WANDB_CONSOLE": "off",
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB__DISABLE_STATS": "true",
            "NETRC": str(self._folder / "netrc"),
        }

    # What HTTP brings

    def graphql(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One operation: {"query", "variables"} -> {"data"} or {"errors"}."""
        with self._lock:
            result = graphql_sync(
                SCHEMA,
                request["query"],
                root_value=_Roots(self),
                variable_values=request.get("variables"),
                operation_name=request.get("operationName") or None,
                field_resolver=_resolve,
            )
            self.unknown += [f"{error.message} ({_title(request['query'])})" for error in result.errors or ()]
        return result.formatted  # type: ignore[return-value]

    def stream(self, path: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """What a client sends of a run while it lives: lines of its files, from an offset on, and at last its exit."""
        with self._lock:
            run = self.run(*path.split("/"))
            for name, chunk in request.get("files", {}).items():
                lines, offset = chunk["content"], chunk["offset"]
                match name:
                    case "wandb-history.jsonl":
                        run.history[offset:] = map(json.loads, lines)
                    case "wandb-events.jsonl":
                        run.events[offset:] = map(json.loads, lines)
                    case "wandb-summary.json":
                        run.summary = json.loads(lines[-1])
                    case "output.log":
                        run.output[offset:] = lines
                    case _:
                        self.unknown.append(f"file stream of {name}")
            if request.get("complete"):
                run.exitcode = request["exitcode"]
                run.state = "failed" if run.exitcode else "finished"
            self.unknown += sorted(request.keys() - {"files", "complete", "exitcode", "uploaded", "dropped"})
            return {"exitcode": run.exitcode, "limits": {}}

    def run(self, entity: str, project: str, name: str) -> Run:
        """The run of this name, new where there is none."""
        if name not in self.runs:
            self.runs[name] = Run(name, project, entity, display_name=name)
        return self.runs[name]

    # Sweeps

    def enter_agent(self, sweep: str) -> str:
        agent = f"agent-{len(self._agents)}"
        self._agents[agent] = sweep
        return agent

    def command(self, agent: str, *, is_busy: bool) -> list[dict[str, Any]]:
        """What an agent is to do: nothing while it is busy, else the next trial, or to exit."""
        sweep = self.sweeps[self._agents[agent]]
        if is_busy:
            return []
        trial = sweep.next_trial()
        if trial is None:
            sweep.state = "FINISHED" if sweep.state == "RUNNING" else sweep.state
            return [{"type": "exit"}]
        run = f"{sweep.name}-{len(sweep.handed_out)}"
        sweep.handed_out.append(run)
        arguments = {name: {"value": value} for name, value in trial.items()}
        return [{"type": "run", "run_id": run, "args": arguments, "program": sweep.config.get("program")}]

    def upsert_sweep(self, config: str, **known: Any) -> Sweep:
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = Sweep(name, config=yaml.safe_load(config), seed=self._seed, **known)
        return self.sweeps[name]


class _Handler(BaseHTTPRequestHandler):
    """HTTP: where a request goes by its path."""

    protocol_version = "HTTP/1.1"  # connections stay open

    def log_message(self, *args: Any) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        path, body = self._open()
        if path is None:
            return
        if path == "graphql":
            self._send(json.dumps(self._service.graphql(json.loads(body))).encode())
        elif stream := re.fullmatch("files/(.+)/file_stream", path):
            self._send(json.dumps(self._service.stream(stream[1], json.loads(body))).encode())
        else:
            self._not_found(path)

    def do_PUT(self) -> None:
        path, body = self._open()
        if path is not None and (found := self._file(path)):
            run, name = found
            run.files[name] = body
            self._send(b"")
        elif path is not None:
            self._not_found(path)

    def do_GET(self) -> None:
        path, _ = self._open()
        if path is not None and (found := self._file(path)) and found[1] in found[0].files:
            self._send(found[0].files[found[1]])
        elif path is not None:
            self._not_found(path)

    @property
    def _service(self) -> WandbService:
        return self.server.service  # type: ignore[attr-defined, no-any-return]

    def _open(self) -> tuple[str | None, bytes]:
        """The path and the body of a request; None for a path where the answer has been given."""
        service = self._service
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(self.path).strip("/")
        service.requests.append(path)
        service.goes_on.wait()
        if service.answer == CLOSED:
            self.close_connection = True
            return None, body
        if service.answer != 200:
            self._send(b"{}", service.answer)
            return None, body
        return path, body

    def _file(self, path: str) -> tuple[Run, str] | None:
        match path.split("/", 4):
            case ["storage", entity, project, run, name]:
                return self._service.run(entity, project, run), name
        return None

    def _not_found(self, path: str) -> None:
        self._service.unknown.append(f"{self.command} {path}")
        self._send(b"{}", 404)

    def _send(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


# What each field of the schema is: a key of a mapping, or an attribute, in snake case; a function takes its arguments


def _resolve(source: Any, info: Any, **arguments: Any) -> Any:
    name = _snake(info.field_name)
    value = source[name] if isinstance(source, Mapping) else getattr(source, name)
    return value(**{_snake(key): item for key, item in arguments.items()}) if callable(value) else value


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _title(document: str) -> str:
    """`query Viewer` of a document."""
    found = re.search(r"\b(query|mutation)\s+(\w+)", document)
    return found[0] if found else "an operation without a name"


class _Roots:
    """The fields of Query and Mutation."""

    def __init__(self, service: WandbService) -> None:
        self._service = service

    # Query

    def viewer(self) -> dict[str, Any]:
        return _user()

    def server_info(self) -> dict[str, Any]:
        return {"features": []}

    def entity(self, name: str | None = None) -> dict[str, Any]:
        return _entity(name or ENTITY)

    def project(self, name: str | None = None, entity_name: str | None = None) -> dict[str, Any]:
        return _project(self._service, entity_name or ENTITY, name or "uncategorized")

    model = project

    def models(self, entity_name: str | None = None, **page: Any) -> dict[str, Any]:
        known = [*self._service.runs.values(), *self._service.sweeps.values()]
        entity = entity_name or ENTITY
        names = sorted({item.project for item in known if item.entity == entity})
        return _connection([self.project(name, entity) for name in names], **page)

    # Mutation

    def upsert_model(self, input: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002 -- GraphQL's name for it
        project = self.project(input.get("name"), input.get("entityName"))
        return {"project": project, "model": project, "inserted": True}

    def upsert_bucket(self, input: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002
        name = input.get("name") or input["id"]
        inserted = name not in self._service.runs
        known = self._service.runs.get(name)
        entity, project = (known.entity, known.project) if known else (ENTITY, "uncategorized")
        run = self._service.run(input.get("entityName") or entity, input.get("modelName") or project, name)
        _update(run, input)
        return {"bucket": _run(self._service, run), "inserted": inserted}

    def create_run_files(self, input: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002
        run = self._service.run(input["entityName"], input["projectName"], input["runName"])
        files = [_file(self._service, run, name) for name in input["files"]]
        return {"run_id": run.name, "upload_headers": [], "files": files}

    def notify_scriptable_run_alert(self, input: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002
        keys = {"runName": "run", "title": "title", "text": "text", "severity": "severity"}
        self._service.alerts.append({short: input.get(key) for key, short in keys.items()})
        return {"success": True}

    def create_artifact(self, input: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002
        names = input.get("artifactCollectionNames") or [input.get("artifactCollectionName")]
        number = len(self._service.artifacts)
        self._service.artifacts.append(
            {"run": input.get("runName"), "name": names[0], "type": input["artifactTypeName"]}
        )
        return {"artifact": _artifact(number)}

    def upsert_sweep(self, input: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002
        known = self._service.sweeps.get(input.get("id") or "")
        if known is None:
            known = self._service.upsert_sweep(
                input["config"],
                entity=input.get("entityName") or ENTITY,
                project=input.get("projectName") or "uncategorized",
            )
        known.state = input.get("state") or known.state
        return {"sweep": _sweep(self._service, known), "config_validation_warnings": []}

    def create_agent(self, input: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002
        return {"agent": {"id": self._service.enter_agent(input["sweep"])}}

    def agent_heartbeat(self, input: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002
        is_busy = bool(json.loads(input.get("runState") or "{}"))
        commands = self._service.command(input["id"], is_busy=is_busy)
        return {"agent": {"id": input["id"]}, "commands": json.dumps(commands)}

    def upsert_view(self, input: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002
        views = self._service.views
        old = next((view for view in views.values() if view["id"] == input.get("id")), None)
        name = old["name"] if old else input["name"]
        known = {_snake(key): value for key, value in input.items() if key != "id"}
        views[name] = (old or {"id": f"view{len(views)}"}) | known | {"name": name}
        return {"view": views[name], "inserted": old is None}


def _update(run: Run, said: Mapping[str, Any]) -> None:
    """Takes over what an UpsertBucket says of a run."""
    plain = {
        "displayName": "display_name",
        "groupName": "group",
        "jobType": "job_type",
        "notes": "notes",
        "tags": "tags",
        "state": "state",
        "sweep": "sweep",
    }
    for key, name in plain.items():
        if said.get(key) is not None:
            setattr(run, name, said[key])
    if said.get("config"):
        for key, item in json.loads(said["config"]).items():
            run.config[key] = item["value"] if isinstance(item, dict) and "value" in item else item
    if said.get("summaryMetrics"):
        run.summary = json.loads(said["summaryMetrics"])


def _user() -> dict[str, Any]:
    return {
        "id": "VXNlcjox",
        "name": ENTITY,
        "username": ENTITY,
        "email": f"{ENTITY}@example.com",
        "admin": False,
        "entity": ENTITY,
        "flags": "{}",
        "deleted_at": None,
        "teams": {"edges": []},
        "api_keys": {"edges": []},
    }


def _entity(name: str) -> dict[str, Any]:
    return {"id": f"entity-{name}", "name": name, "organization": None}


def _project(service: WandbService, entity: str, name: str) -> dict[str, Any]:
    def runs(filters: str | None = None, order: str | None = None, **page: Any) -> dict[str, Any]:
        return _connection([_run(service, run) for run in _ordered(matching(filters), order)], **page)

    def matching(filters: str | None) -> list[Run]:
        wanted = json.loads(filters or "{}")
        mine = [run for run in service.runs.values() if (run.entity, run.project) == (entity, name)]
        return [run for run in mine if _matches(run, wanted)]

    def run(name: str, **_: Any) -> dict[str, Any] | None:
        return _run(service, service.runs[name]) if name in service.runs else None

    def sweep(sweep_name: str) -> dict[str, Any] | None:
        return _sweep(service, service.sweeps[sweep_name]) if sweep_name in service.sweeps else None

    mine = [item for item in service.sweeps.values() if (item.entity, item.project) == (entity, name)]
    return {
        "id": f"project-{entity}-{name}",
        "internal_id": "1",
        "name": name,
        "entity": _entity(entity),
        "entity_name": entity,
        "created_at": NOW,
        "is_benchmark": False,
        "read_only": False,
        "user": _user(),
        "run": run,
        "bucket": run,
        "runs": runs,
        "run_count": lambda filters=None: len(matching(filters)),
        "sweep": sweep,
        "total_sweeps": len(mine),
        "sweeps": lambda filters=None, **page: _connection([_sweep(service, item) for item in mine], **page),
        "all_views": lambda view_name=None, **_: _connection(
            [view for view in service.views.values() if view_name in (None, view["name"])]
        ),
        "artifact": lambda name: None,  # none is kept
        "artifact_type": lambda name: {"id": f"type-{name}", "name": name},
    }


def _run(service: WandbService, run: Run) -> dict[str, Any]:
    config = {key: {"value": value} for key, value in run.config.items()}
    ended = run.state != "running"
    return {
        "id": run.name,
        "name": run.name,
        "display_name": run.display_name,
        "description": None,
        "notes": run.notes,
        "tags": run.tags,
        "group": run.group,
        "job_type": run.job_type,
        "commit": None,
        "read_only": False,
        "state": run.state,
        "exitcode": run.exitcode,
        "stopped": False,
        "should_stop": False,
        "failed": run.state == "failed",
        "running": not ended,
        "created_at": NOW,
        "heartbeat_at": NOW,
        "user": _user(),
        "project": lambda: _project(service, run.entity, run.project),
        "project_id": "1",
        "sweep_name": run.sweep,
        "config": json.dumps(config),
        "wandb_config": lambda keys: json.dumps({key: run.config.get("_wandb", {}).get(key) for key in keys}),
        "summary_metrics": json.dumps(run.summary),
        "system_metrics": "{}",
        "history_keys": lambda: _history_keys(run),
        "history_line_count": len(run.history),
        "events_line_count": len(run.events),
        "log_line_count": len(run.output),
        "history_tail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
        "events_tail": json.dumps([json.dumps(row) for row in run.events[-1:]]),
        "history": lambda min_step=0, max_step=None, samples=None: [
            json.dumps(row) for row in _between(run.history, min_step, max_step)[:samples]
        ],
        "events": lambda samples=None: [json.dumps(row) for row in run.events[:samples]],
        "sampled_history": lambda specs: [_sampled(run.history, json.loads(spec)) for spec in specs],
        "parquet_history": lambda live_keys: {
            "parquet_urls": [],
            "live_data": _sampled(run.history, {"keys": live_keys}),
        },
        "file_count": len(run.files),
        "files": lambda names=None, pattern=None, **page: _connection(
            [_file(service, run, name) for name in run.files if not names or name in names], **page
        ),
    }


def _between(rows: Sequence[dict[str, Any]], low: int | str, high: int | str | None) -> list[dict[str, Any]]:
    return [row for row in rows if int(low) <= row["_step"] and (high is None or row["_step"] < int(high))]


def _sampled(rows: Sequence[dict[str, Any]], spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows that have all the keys that are asked for, and nothing but these; without keys, all rows."""
    keys = spec.get("keys")
    inside = _between(rows, spec.get("minStep", 0), spec.get("maxStep"))
    whole = [row for row in inside if all(key in row for key in keys or ())]
    taken = whole[: spec.get("samples")]
    return [{key: row[key] for key in keys} for row in taken] if keys else taken


def _history_keys(run: Run) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for key in itertools.chain.from_iterable(run.history):
        counts[key] = counts.get(key, 0) + 1
    keys = {key: {"typeCounts": [{"type": "number", "count": number}]} for key, number in counts.items()}
    return {"keys": keys, "sets": [], "lastStep": run.history[-1]["_step"] if run.history else -1}


def _file(service: WandbService, run: Run, name: str) -> dict[str, Any]:
    url = f"{service.url}/storage/{run.entity}/{run.project}/{run.name}/{quote(name)}"
    content = run.files.get(name, b"")
    return {
        "id": f"{run.name}/{name}",
        "name": name,
        "url": lambda upload=None: url,
        "upload_url": url,
        "direct_url": url,
        "size_bytes": len(content),
        "mimetype": None,
        "md5": None,
        "updated_at": NOW,
    }


def _artifact(number: int) -> dict[str, Any]:
    return {"id": f"artifact{number}", "state": "COMMITTED", "artifact_sequence": {"latest_artifact": None}}


def _sweep(service: WandbService, sweep: Sweep) -> dict[str, Any]:
    runs = [run for run in service.runs.values() if run.sweep == sweep.name]
    return {
        "id": sweep.name,
        "name": sweep.name,
        "display_name": sweep.config.get("name"),
        "description": sweep.config.get("description"),
        "method": sweep.config.get("method"),
        "state": sweep.state,
        "config": yaml.safe_dump(sweep.config),
        "created_at": NOW,
        "heartbeat_at": NOW,
        "updated_at": NOW,
        "early_stop_job_running": False,
        "best_loss": None,
        "controller": None,
        "scheduler": None,
        "run_count": len(runs),
        "run_count_expected": sweep.expected,
        "project": lambda: _project(service, sweep.entity, sweep.project),
        "runs": lambda: _connection([_run(service, run) for run in runs]),
    }


def _connection(nodes: Sequence[Any], *, after: str | None = None, first: int | None = None) -> dict[str, Any]:
    """A page of `nodes`; a cursor is the number of the node after it."""
    start = int(after or 0)
    end = len(nodes) if first is None else min(start + first, len(nodes))
    edges = [{"node": node, "cursor": str(number + 1)} for number, node in enumerate(nodes)]
    return {"edges": edges[start:end], "page_info": {"end_cursor": str(end), "has_next_page": end < len(nodes)}}


# Which runs are asked for


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda value, wanted: value == wanted,
    "$ne": lambda value, wanted: value != wanted,
    "$in": lambda value, wanted: value in wanted,
    "$nin": lambda value, wanted: value not in wanted,
    "$gt": lambda value, wanted: value is not None and value > wanted,
    "$gte": lambda value, wanted: value is not None and value >= wanted,
    "$lt": lambda value, wanted: value is not None and value < wanted,
    "$lte": lambda value, wanted: value is not None and value <= wanted,
}


def _matches(run: Run, wanted: Mapping[str, Any]) -> bool:
    """Whether a run fits a filter in MongoDB's form."""
    for key, value in wanted.items():
        if key == "$and":
            fits = all(_matches(run, part) for part in value)
        elif key == "$or":
            fits = any(_matches(run, part) for part in value)
        elif isinstance(value, Mapping):
            fits = all(_COMPARISONS[name](_part(run, key), item) for name, item in value.items())
        else:
            fits = _part(run, key) == value
        if not fits:
            return False
    return True


def _ordered(runs: list[Run], order: str | None) -> list[Run]:
    if order is None or order.lstrip("+-") == "created_at":
        return runs[::-1] if (order or "+").startswith("-") else runs
    key = order.lstrip("+-")
    ranked = [run for run in runs if _part(run, key) is not None]
    ranked.sort(key=lambda run: _part(run, key), reverse=order.startswith("-"))
    return ranked + [run for run in runs if run not in ranked]


def _part(run: Run, key: str) -> Any:
    """`config.lr.value` or `summary_metrics.loss` of a run, or one of its own fields."""
    match re.sub(r"\.value$", "", key).split(".", 1):
        case ["config", name]:
            return run.config.get(name)
        case ["summary_metrics" | "summaryMetrics", name]:
            return run.summary.get(name)
    return getattr(run, _snake(key))


def main() -> None:
    """Serves until it is killed."""
    with tempfile.TemporaryDirectory() as folder, WandbService(Path(folder)) as service:
        lines = [service.url, *(f"export {name}={value}" for name, value in service.environment.items())]
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        os._exit(0)
