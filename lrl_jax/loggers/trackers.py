"""Loggers of other packages: Weights & Biases, trackio, MLflow. Each is an extra of its name."""

from __future__ import annotations

import abc
import importlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lrl_jax.loggers.base import Logger
from lrl_jax.loggers.files import STEP

PROJECT = "lrl_jax"


class _Tracker(Logger, abc.ABC):
    """A run of another package, which a resumed run finds again.

    The folder of the run keeps a file with the id that the package gave it, and the last step that
    was logged. Steps up to there are not logged again by a run that resumes from before: they are
    the same in JAX environments.
    """

    package: ClassVar[str]

    def __init__(self, project: str = PROJECT, **settings: Any):
        self.project, self._settings = project, settings
        self._run: Any = None  # the package's run, or its client
        try:
            self._package: Any = importlib.import_module(self.package)
        except ImportError as error:
            raise ImportError(
                f"{type(self).__name__} needs {self.package} ({error}): "
                f"pip install 'lrl_jax[{self.package}]'."
            ) from error
        self._file: Path | None = None
        self._id: str | None = None
        self._known = -1  # last step that an earlier process logged
        self._is_open = False

    def begin(self, run: Path, config: Mapping[str, Any], resume_at: int | None) -> None:
        """Begin a run there, or resume the one that this run had."""
        self._file = Path(run) / f".{self.package}.json"
        known: dict[str, Any] = {}
        if resume_at is not None and self._file.is_file():
            known = json.loads(self._file.read_text())
        self._known = known.get(STEP, -1)
        self._id = self._open(Path(run).resolve(), config, known.get("id"))
        self._is_open = True
        self._remember(self._known)

    def _ready(self) -> None:
        """Begin a run of no folder, where nobody has begun one."""
        if not self._is_open:
            self._id = self._open(None, {}, None)
            self._is_open = True

    def _remember(self, step: int) -> None:
        if self._file is not None:
            part = self._file.with_name(f"{self._file.name}.part")
            part.write_text(json.dumps({"id": self._id, STEP: step}))
            os.replace(part, self._file)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log scalars, unless an earlier process has."""
        self._ready()
        if step > self._known:
            self._log(step, {name: float(x) for name, x in scalars.items()})
            self._remember(step)

    def figure(self, step: int, name: str, file: Path) -> None:
        """Log a picture."""
        self._ready()
        self._media(step, name, file, "Image")

    def video(self, step: int, name: str, file: Path) -> None:
        """Log an animation."""
        self._ready()
        self._media(step, name, file, "Video")

    def close(self) -> None:
        """End the run there."""
        if self._is_open:
            self._is_open = False
            self._finish()

    @abc.abstractmethod
    def _open(self, run: Path | None, config: Mapping[str, Any], known: str | None) -> str:
        """Begin a run, or resume the one with an id; returns its id."""

    @abc.abstractmethod
    def _log(self, step: int, scalars: dict[str, float]) -> None: ...

    @abc.abstractmethod
    def _media(self, step: int, name: str, file: Path, kind: str) -> None: ...

    @abc.abstractmethod
    def _finish(self) -> None: ...


class WandB(_Tracker):
    """Weights & Biases (extra "wandb"); scalars are drawn against `env_steps`.

    Args:
        project: name of the project there.
        settings: further arguments of `wandb.init`, such as `entity`, `group` or `mode="offline"`.

    Raises:
        ImportError: if wandb is not installed.
    """

    package = "wandb"

    def _open(self, run: Path | None, config: Mapping[str, Any], known: str | None) -> str:
        place = {} if run is None else {"name": run.name, "dir": str(run)}
        again = {} if known is None else {"id": known, "resume": "allow"}
        settings = {**place, **again, "config": dict(config), **self._settings}
        self._run = self._package.init(project=self.project, **settings)
        # Its own steps count calls, and cannot go back.
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        return self._run.id

    def _log(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log({STEP: step, **scalars})

    def _media(self, step: int, name: str, file: Path, kind: str) -> None:
        more = {"format": "gif"} if kind == "Video" else {}
        self._run.log({STEP: step, name: getattr(self._package, kind)(str(file), **more)})

    def _finish(self) -> None:
        self._run.finish()


class Trackio(_Tracker):
    """trackio (extra "trackio"), on this machine unless settings say otherwise.

    Args:
        project: name of the project there.
        settings: further arguments of `trackio.init`, such as `space_id`.

    Raises:
        ImportError: if trackio is not installed.
    """

    package = "trackio"

    def _open(self, run: Path | None, config: Mapping[str, Any], known: str | None) -> str:
        name = known if known is not None else None if run is None else run.name
        again = "never" if known is None else "allow"
        settings = {"config": dict(config), "embed": False, **self._settings}
        self._run = self._package.init(project=self.project, name=name, resume=again, **settings)
        return self._run.name

    def _log(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=step)

    def _media(self, step: int, name: str, file: Path, kind: str) -> None:
        self._run.log({name: getattr(self._package, kind)(str(file))}, step=step)

    def _finish(self) -> None:
        self._run.finish()


class MLflow(_Tracker):
    """MLflow (extra "mlflow"): metrics by step, the config and pictures as artifacts.

    Args:
        project: name of the experiment there.
        tracking_uri: of the server or folder; MLflow's own setting, such as the environment
            variable MLFLOW_TRACKING_URI, if None.

    Raises:
        ImportError: if mlflow is not installed.
    """

    package = "mlflow"

    def __init__(self, project: str = PROJECT, tracking_uri: str | None = None):
        super().__init__(project)
        self._tracking_uri = tracking_uri

    def _open(self, run: Path | None, config: Mapping[str, Any], known: str | None) -> str:
        client = self._run = self._package.MlflowClient(self._tracking_uri)
        if known is not None:
            client.update_run(known, status="RUNNING")
            return known
        experiment = client.get_experiment_by_name(self.project)
        where = (
            client.create_experiment(self.project)
            if experiment is None
            else experiment.experiment_id
        )
        name = None if run is None else run.name
        made = client.create_run(where, run_name=name).info.run_id
        client.log_dict(made, dict(config), "config.json")
        return made

    def _log(self, step: int, scalars: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        metric = self._package.entities.Metric
        metrics = [metric(name, x, now, step) for name, x in scalars.items()]
        self._run.log_batch(self._id, metrics=metrics)

    def _media(self, step: int, name: str, file: Path, kind: str) -> None:
        self._run.log_artifact(self._id, str(file), f"{kind.lower()}s/step_{step}")

    def _finish(self) -> None:
        self._run.set_terminated(self._id)
