"""Log a pipeline run to an MLflow tracking store: parameters, every stage's figures, reports and ONNX files.

    with recorded("sqlite:///runs.db", "load_forecast", "lstm", folder, parameters):
        pipeline.run(...)

The store is opened before the run begins, so that a wrong address does not cost a run. A run whose gates failed is
logged too, as failed; one that did not get as far as a report is not. What the store refused half of stays there as
failed. MLflow is optional: ``pip install -e '.[mlflow]'``. Its own usage reports stay off.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import UserError
from optimize.report import Report, from_json
from optimize.verify import GateError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_AT_ONCE = 1000  # figures that MLflow takes together
_LONGEST = 6000  # characters of a parameter that MLflow takes
_SQLITE = "sqlite:///"


@contextmanager
def recorded(uri: str, model: str, variant: str, folder: Path, parameters: Mapping[str, Any]) -> Iterator[None]:
    """Log what ``folder`` holds after the block: an experiment for each model, a run for each time.

    Raises UserError: MLflow is not installed, or the store cannot be opened or written; a GateError stays one.
    """
    client = _client(uri)
    with _told(uri):
        experiment = _experiment(client, uri, model)
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except GateError as failed:
        try:
            _log(client, uri, experiment, variant, folder, parameters, status)
        except UserError as refused:
            raise GateError(f"{failed}\n{refused}") from failed
        raise
    _log(client, uri, experiment, variant, folder, parameters, status)


def metrics(report: Report) -> dict[str, float]:
    """The numbers of a report by name, such as ``student_onnx_int8/latency_ms/p50``; those that are none left out."""
    found: dict[str, float] = {}
    for stage in report.stages:
        figures = {key: value for key, value in asdict(stage).items() if key not in ("name", "role", "runtime")}
        found |= dict(_numbers(stage.name, figures))
    found |= {f"gate/{_name(gate.name)}": gate.value for gate in report.gates if math.isfinite(gate.value)}
    return found | {f"compared/{_name(name)}": ratio for name, ratio in report.comparisons.items()}


def _numbers(name: str, value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers(f"{name}/{_name(str(key))}", part)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, float(value)
    elif isinstance(value, tuple) and len(value) == 2:  # an interval
        yield from _numbers(name, dict(zip(("low", "high"), value, strict=True)))


def _name(text: str) -> str:
    """With what MLflow allows in a name."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in text)


def _client(uri: str) -> MlflowClient:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise UserError("--mlflow needs MLflow; install it with: pip install -e '.[mlflow]'") from None
    if uri.startswith(_SQLITE) and not (folder := _database(uri).parent).is_dir():  # MLflow would try for minutes
        raise UserError(f"--mlflow {uri}: the folder '{folder}' does not exist; create it first")
    with _told(uri):
        return MlflowClient(tracking_uri=uri)


def _experiment(client: MlflowClient, uri: str, model: str) -> str:
    """The model's experiment, made if need be; a local database has its files beside it."""
    known = client.get_experiment_by_name(model)
    if known is not None:
        return str(known.experiment_id)
    place = _database(uri).with_suffix(".files") if uri.startswith(_SQLITE) else None
    return str(client.create_experiment(model, artifact_location=place.as_uri() if place else None))


def _database(uri: str) -> Path:
    return Path(uri.removeprefix(_SQLITE)).resolve()


def _log(client: MlflowClient, uri: str, experiment: str, variant: str, folder: Path, parameters: Mapping[str, Any],
         status: str) -> None:  # fmt: skip
    from mlflow.entities import Metric, Param

    report = from_json((folder / "report.json").read_text())
    told = {**parameters, "variant": variant, "data": report.data, **report.environment}
    now_ms = time.time_ns() // 1_000_000
    numbers = [Metric(name, number, now_ms, 0) for name, number in metrics(report).items()]
    made = [f"report.{kind}" for kind in ("json", "md", "html")]
    made += [f"{stage.name}.onnx" for stage in report.stages if stage.runtime == "onnxruntime"]
    with _told(uri):
        run = client.create_run(experiment, run_name=variant).info.run_id
        try:
            for first in range(0, len(numbers), _AT_ONCE):
                client.log_batch(run, metrics=numbers[first : first + _AT_ONCE])
            client.log_batch(run, params=[Param(name, str(value)[:_LONGEST]) for name, value in told.items()])
            for name in made:
                client.log_artifact(run, str(folder / name))
            client.set_terminated(run, status)
        except BaseException:
            with suppress(Exception):  # the store may be gone
                client.set_terminated(run, "FAILED")
            raise


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """A store that refuses, in one line."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        reason = str(error).strip().partition("\n")[0][:500]
        raise UserError(
            f"--mlflow {uri}: {reason}; expected a server's http://HOST:PORT, or sqlite:///FILE for a local one"
        ) from error
