"""MLflow: the server of MLFLOW_TRACKING_URI, or a SQLite file in tracking/ of the run folder.

MLflow is an optional package (pip install 'tencrop[mlflow]').
"""

from __future__ import annotations

import os
import shlex
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.loggers import MLFlowLogger

from tencrop.config import Config, UserError
from tencrop.records.redaction import redact_text
from tencrop.records.tracker import Tracker, answers, flattened, reason_of, tracked_id
from tencrop.text_tables import markdown_table

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

DEFAULT_EXPERIMENT = "tencrop"  # MLflow's own, "Default", keeps artifacts in the current folder
TAG = "tencrop.run"  # holds the id in tracking/run.json
# Used where the user has set nothing. MLflow's own are 7 retries of up to 120 s each: a dead server would stop the
# training for minutes.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class MLflowTracker(Tracker, MLFlowLogger):
    """An MLflow logger whose failure does not stop the run. Each call waits for the server, some milliseconds."""

    package = "mlflow"

    def __init__(self, uri: str, run: Run, last_steps: Mapping[str, int]):
        Tracker.__init__(self, last_steps)
        MLFlowLogger.__init__(self, tracking_uri=uri, run_id=run.info.run_id)
        self._known_params = set(run.data.params)

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        self.attempt(self._log_configuration, dict(vars(params) if isinstance(params, Namespace) else params))

    def _log_configuration(self, params: dict[str, Any]) -> None:
        # MLflow refuses another value of a parameter (a resumed run may have other hardware) and cuts it at 250
        # characters. The file is complete, and of the last session.
        new = {key: value for key, value in flattened(params).items() if key not in self._known_params}
        super().log_hyperparams(new)
        self._known_params |= set(new)
        self.experiment.log_dict(self.run_id, params, "configuration.yaml")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if new := self.select_new(metrics, step):
            self.attempt(super().log_metrics, new, step)

    def log_pictures(self, key: str, pixels: NDArray[np.uint8], step: int) -> None:
        row = np.concatenate(list(pixels), axis=1)  # side by side
        self.attempt(self.experiment.log_image, self.run_id, row, artifact_file=f"{key}.png")

    def log_rows(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        # As text: MLflow's own log_table appends the rows of a repeated evaluation to the old ones.
        text = markdown_table(columns, rows, left=range(len(columns)))
        self.attempt(self.experiment.log_text, self.run_id, text, f"{key}.md")

    def log_page(self, path: Path) -> None:
        self.attempt(self.experiment.log_artifact, self.run_id, path)

    def finalize(self, status: str = "success") -> None:
        self.attempt(super().finalize, status)

    def close(self, *, is_complete: bool) -> None:
        self.finalize("FINISHED" if is_complete else "KILLED")


def open_mlflow(
    config: Config, run_dir: Path, *, for_training: bool, say: Callable[[str], None]
) -> MLflowTracker | None:
    """None if the server does not answer or refuses the run; `say` receives the reason."""
    try:
        return _started_tracker(config, run_dir, for_training, say)
    except UserError:  # damaged id of the tracked run
        raise
    except Exception as error:  # from MLflow, SQLAlchemy or requests
        say(f"mlflow: not tracked ({reason_of(error)}); the run continues without it")
        return None


def _started_tracker(config: Config, run_dir: Path, for_training: bool, say: Callable[[str], None]) -> MLflowTracker:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)  # read when MLflow is imported
    folder = (run_dir / "tracking").absolute()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is not None and uri.startswith("http") and not answers(uri):
        raise ConnectionError(f"{uri} does not answer")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri or f"sqlite:///{folder}/mlflow.db")
    # A server chooses the place of artifacts itself; without one it would be the current folder.
    artifacts = None if uri and uri.startswith("http") else (folder / "artifacts").as_uri()
    run = _find_or_create(client, config.tracker.project or DEFAULT_EXPERIMENT, run_dir, artifacts)
    client.update_run(run.info.run_id, status="RUNNING")
    last_steps: dict[str, int] = {}
    if for_training:  # `metrics` has only the last value of each
        for key in run.data.metrics:
            last_steps[key] = max(point.step for point in client.get_metric_history(run.info.run_id, key))
    if uri:
        say(redact_text(f"mlflow: {uri}, experiment {run.info.experiment_id}, run {run.info.run_id}"))
    else:
        say(f"mlflow: mlflow ui --backend-store-uri {shlex.quote(f'sqlite:///{folder}/mlflow.db')}")
    tracker = MLflowTracker(client.tracking_uri, run, last_steps)
    _ = tracker.experiment  # connects now, where a failure is caught
    return tracker


def _find_or_create(client: MlflowClient, experiment: str, run_dir: Path, artifacts: str | None) -> Run:
    """The tracked run, found by its tag, so that one that was begun and then killed is found too."""
    found = client.get_experiment_by_name(experiment)
    experiment_id = client.create_experiment(experiment, artifacts) if found is None else found.experiment_id
    run_id = tracked_id(run_dir)
    runs = client.search_runs([experiment_id], f"tags.`{TAG}` = '{run_id}'", max_results=1)
    if runs:
        return runs[0]
    name = f"{run_dir.parent.name}-{run_dir.name}"
    return client.create_run(experiment_id, tags={TAG: run_id}, run_name=name)
