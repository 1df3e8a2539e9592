"""Loggers: files, other packages (as fakes, and for real where installed), several at once."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tiny import RANDOM

import lrl_jax as lrl
from lrl_jax import cli, loggers
from lrl_jax.levels import RandomLevel
from lrl_jax.loggers import CSV, Logger, MLflow, TensorBoard, Trackio, WandB, read_table
from lrl_jax.training import TrainConfig, load_config
from lrl_jax.training.logging import RunLog


class Recorder(Logger):
    """Remembers its calls."""

    def __init__(self):
        self.calls = []

    def begin(self, run, config, resume_at):
        self.calls.append(("begin", run.name, config.get("total_steps"), resume_at))

    def log(self, step, scalars):
        self.calls.append(("log", step, dict(scalars)))

    def figure(self, step, name, file):
        assert imageio.imread(file).ndim == 3
        self.calls.append(("figure", step, name))

    def close(self):
        self.calls.append(("close",))


# ------------------------------------------------------------------- in training


def test_a_run_logs_to_several_at_once_and_goes_on_with_them(tmp_path):
    run, first, other, later = tmp_path / "run", Recorder(), Recorder(), Recorder()

    def stop(env_steps, state, row):
        return env_steps == 16

    lrl.train(RANDOM, run, False, loggers=["tensorboard", first, other], callbacks=[stop])
    assert first.calls == other.calls
    assert (run / "tensorboard").is_dir()
    begin, *rows, figure, close = first.calls
    assert begin == ("begin", "run", 24, None) and close == ("close",)
    assert figure == ("figure", 16, "learning_curve")
    assert [{"env_steps": step, **scalars} for _, step, scalars in rows] == read_table(
        run / "metrics.csv"
    )
    lrl.train(RANDOM, run, False, loggers=[later], resume=True)
    begin, row, figure, close = later.calls
    assert begin == ("begin", "run", 24, 16) and row[:2] == ("log", 24)
    assert len(read_table(run / "metrics.csv")) == 3


def test_the_command_line_names_loggers(tmp_path, fakes):
    run = tmp_path / "run"
    options = ["--out", str(run), "--quiet", "--loggers", "csv", "wandb:mazes"]
    cli.main(["train", f"{__name__}:RANDOM", *options])
    assert not (run / "tensorboard").exists() and (run / "metrics.csv").is_file()
    assert load_config(run).loggers == ("csv", "wandb:mazes")
    (made,) = fakes["wandb"].runs
    assert made.project == "mazes" and made.settings["config"]["env"] == load_config(run).env
    assert made.rows[-1] == {"env_steps": 24, "learning_curve": "learning_curve.png"}
    assert made.steps == [8, 16, 24, 24] and made.finished


@pytest.mark.parametrize(
    ("names", "error", "match"),
    [
        ("wandb", TypeError, "tuple of names"),
        (("wnadb",), ValueError, "use one of csv, tensorboard, wandb, trackio, mlflow"),
        (("csv:x",), ValueError, "NAME:PROJECT"),
        (("wandb:",), ValueError, "NAME:PROJECT"),
        (("wandb:a", "wandb:b"), ValueError, "twice"),
        ((CSV("x.csv"),), TypeError, r"lrl_jax.train\(loggers="),
    ],
)
def test_a_config_refuses_what_is_no_name_of_a_logger(names, error, match):
    with pytest.raises(error, match=match):
        TrainConfig((RandomLevel(),), "Pendulum-v1", loggers=names)


class Lacks:
    def log(self, step, scalars): ...


class Silent(Logger):
    pass


@pytest.mark.parametrize(
    ("logger", "match"),
    [(Lacks(), "has no .*begin.*figure"), (Silent(), "does not define log"), (Recorder, "a class")],
)
def test_what_is_no_logger_is_refused_before_the_run(tmp_path, logger, match):
    with pytest.raises(TypeError, match=match):
        lrl.train(RANDOM, tmp_path / "run", False, loggers=[logger])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"pip install 'lrl_jax\[{name}\]'"):
        lrl.train(RANDOM, tmp_path / "run", False, loggers=[name])
    assert not (tmp_path / "run").exists()  # so that the same command works once it is installed


class Broken(Recorder):
    """Fails in all that it does but the beginning."""

    def log(self, step, scalars):
        raise KeyError("no server")

    figure = video = log

    def close(self):
        raise KeyError("no server")


def test_a_logger_that_fails_is_a_warning_and_no_other_misses_anything(tmp_path):
    after = Recorder()
    with (
        pytest.warns(RuntimeWarning, match=r"\(Broken\).*no server") as caught,
        RunLog(tmp_path, loggers=[Broken(), after]) as log,
    ):
        for step in (8, 16):
            log.write({"env_steps": step, "loss": 1.0})
    assert len(caught) == 1
    assert [call[:2] for call in after.calls[1:]] == [("log", 8), ("log", 16), ("close",)]
    assert len(read_table(tmp_path / "metrics.csv")) == 2


def test_a_logger_that_cannot_begin_ends_the_run_before_it_starts(tmp_path):
    class Refuses(Recorder):
        def begin(self, run, config, resume_at):
            raise ValueError("no such project")

    with pytest.raises(ValueError, match="no such project"):
        RunLog(tmp_path, loggers=[Refuses()])


# ------------------------------------------------------------------------- files


def events(folder: Path) -> list[Event]:
    found = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_tensorboard_gets_pictures_and_animations(tmp_path):
    image = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    imageio.imwrite(tmp_path / "a.png", image)
    imageio.imwrite(tmp_path / "b.gif", np.stack([image, 255 - image]), loop=0)
    board = TensorBoard(tmp_path / "events")
    board.figure(3, "a", tmp_path / "a.png")
    board.video(3, "b", tmp_path / "b.gif")
    board.close()
    picture, film = (v for e in events(tmp_path / "events") for v in e.summary.value)
    assert (picture.tag, picture.image.height, picture.image.width) == ("a", 6, 4)
    np.testing.assert_array_equal(imageio.imread(picture.image.encoded_image_string), image)
    assert film.image.encoded_image_string == (tmp_path / "b.gif").read_bytes()


def test_a_collector_writes_to_a_logger(tmp_path):
    table = CSV(tmp_path / "deep" / "collected.csv")
    agent = lrl.RandomHierarchy(*[lrl.make("Pendulum-v1", max_steps_in_episode=4)[0]])
    collector = lrl.Collector(agent, n_env_instances=2, writer=table)
    collector.collect(n_steps=9, log_interval=4, test_interval=8, n_test_steps=300)
    rows = read_table(tmp_path / "deep" / "collected.csv")
    assert [row["env_steps"] for row in rows] == [0, 8, 16]
    # Scalars of one step share a row.
    assert {"collect/n_steps", "test/test_return"} <= set(rows[2])


def test_files_without_a_place_say_so():
    with pytest.raises(ValueError, match=r"CSV\(path\)"):
        CSV().log(1, {"loss": 1.0})
    with pytest.raises(ValueError, match=r"TensorBoard\(folder\)"):
        TensorBoard().log(1, {"loss": 1.0})


def test_a_writer_that_writes_nothing_is_refused():
    agent = lrl.RandomHierarchy(lrl.make("Pendulum-v1")[0])
    with pytest.raises(TypeError, match="log or add_scalar"):
        lrl.Collector(agent, writer=3)


# ---------------------------------------------------------------- other packages


class FakeRun:
    """A run of wandb or trackio."""

    def __init__(self, project, settings):
        self.project, self.settings, self.rows = project, settings, []
        self.id = settings.get("id") or "id-1"
        self.name = settings.get("name") or "unnamed"
        self.steps, self.finished = [], False

    def define_metric(self, name, step_metric=None): ...

    def log(self, row, step=None):
        assert not self.finished
        self.rows.append(row)
        self.steps.append(row["env_steps"] if step is None else step)

    def finish(self):
        self.finished = True


def _package(name):
    module: Any = types.ModuleType(name)
    module.runs = []

    def init(project, **settings):
        module.runs.append(FakeRun(project, settings))
        return module.runs[-1]

    module.init = init
    module.Image = module.Video = lambda file, **_: Path(file).name
    return module


class FakeClient:
    """Runs of MLflow by id."""

    runs: dict = {}

    def __init__(self, uri=None):
        pass

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return f"experiment {name}"

    def create_run(self, where, run_name):
        run_id = f"{where}/{run_name}"
        self.runs[run_id] = {"metrics": [], "files": [], "status": "RUNNING"}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

    def update_run(self, run_id, status):
        self.runs[run_id]["status"] = status

    def log_dict(self, run_id, values, name):
        self.runs[run_id]["files"].append(name)

    def log_batch(self, run_id, metrics):
        self.runs[run_id]["metrics"] += metrics

    def log_artifact(self, run_id, file, folder):
        self.runs[run_id]["files"].append(f"{folder}/{Path(file).name}")

    def set_terminated(self, run_id):
        self.runs[run_id]["status"] = "FINISHED"


@pytest.fixture
def fakes(monkeypatch):
    """Stand-ins of the packages, by name."""
    found = {name: _package(name) for name in ("wandb", "trackio")}
    mlflow: Any = types.ModuleType("mlflow")
    monkeypatch.setattr(FakeClient, "runs", {})
    mlflow.MlflowClient = FakeClient
    mlflow.entities = types.SimpleNamespace(Metric=lambda *x: x)
    found["mlflow"] = mlflow
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


def play(kind, folder, steps, resume_at=None):
    """Log some rows and a picture as a run does."""
    folder.mkdir(exist_ok=True)
    imageio.imwrite(folder / "curve.png", np.zeros((4, 4, 3), np.uint8))
    imageio.imwrite(folder / "rollout.gif", np.zeros((2, 4, 4, 3), np.uint8))
    with RunLog(folder, resume_at, [kind], {"seed": 3}) as log:
        for step in steps:
            log.write({"env_steps": step, "loss": np.float32(step / 8)})
        log.pictures(steps[-1], [folder / "curve.png", folder / "rollout.gif"])


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracked_run_that_goes_on_is_the_same_run_and_logs_each_step_once(tmp_path, fakes, name):
    play(name, tmp_path / "run", [8, 16, 24])
    play(name, tmp_path / "run", [16, 24, 32], resume_at=8)  # it was killed after 24
    first, again = fakes[name].runs
    assert first.project == again.project == "lrl_jax"
    assert first.settings["name"] == "run" and first.settings["config"] == {"seed": 3}
    assert first.steps == [8, 16, 24, 24, 24] and again.steps == [32, 32, 32]
    assert first.rows[-2]["curve"] == "curve.png" and again.rows[0]["loss"] == 4.0
    assert first.rows[-1]["rollout"] == "rollout.gif"
    known = first.id if name == "wandb" else first.name
    assert again.settings["id" if name == "wandb" else "name"] == known
    assert again.settings["resume"] == "allow" and first.finished and again.finished


def test_mlflow_keeps_metrics_by_step_and_files_as_artifacts(tmp_path, fakes):
    play("mlflow:mazes", tmp_path / "run", [8, 16])
    play("mlflow:mazes", tmp_path / "run", [16, 24], resume_at=8)
    ((run_id, run),) = FakeClient.runs.items()
    assert run_id == "experiment mazes/run" and run["status"] == "FINISHED"
    assert [(name, value, step) for name, value, _, step in run["metrics"]] == [
        ("loss", 1.0, 8),
        ("loss", 2.0, 16),
        ("loss", 3.0, 24),
    ]
    assert run["files"] == [
        "config.json",
        "images/step_16/curve.png",
        "videos/step_16/rollout.gif",
        "images/step_24/curve.png",
        "videos/step_24/rollout.gif",
    ]


def test_a_new_run_in_the_place_of_an_old_one_is_another(tmp_path, fakes):
    play("wandb", tmp_path / "run", [8, 16])
    play("wandb", tmp_path / "run", [8])
    assert fakes["wandb"].runs[1].steps == [8, 8, 8]
    assert "id" not in fakes["wandb"].runs[1].settings


@pytest.mark.parametrize("kind", [WandB, Trackio])
def test_trackers_work_in_loops_of_your_own(fakes, kind):
    logger = kind("mine", group="a")
    logger.log(3, {"loss": 1.0})
    logger.close()
    (run,) = fakes[kind.package].runs
    assert run.project == "mine" and run.settings["group"] == "a" and run.steps == [3]


def test_names_make_loggers(fakes):
    made = loggers.make(["csv", "tensorboard", "mlflow:a", "trackio"])
    assert [type(x) for x in made] == [TensorBoard, MLflow, Trackio]
    assert [x.project for x in made[1:]] == ["a", "lrl_jax"]


# --------------------------------------------------------------- if they are there


@pytest.mark.extras
def test_wandb_takes_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    play("wandb", tmp_path / "run", [8, 16])
    play("wandb", tmp_path / "run", [24], resume_at=16)
    written = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    identity = json.loads((tmp_path / "run" / ".wandb.json").read_text())
    assert written and all(identity["id"] in path.name for path in written)
    assert identity["env_steps"] == 24


@pytest.mark.extras
def test_trackio_takes_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    play("trackio", tmp_path / "run", [8, 16])
    play("trackio", tmp_path / "run", [16, 24], resume_at=8)
    (run,) = trackio.Api().runs("lrl_jax")
    assert run.name == "run"


@pytest.mark.extras
def test_mlflow_takes_a_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)  # where artifacts go
    play(MLflow("mazes", uri), tmp_path / "run", [8, 16])
    play(MLflow("mazes", uri), tmp_path / "run", [16, 24], resume_at=8)
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("mazes").experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(8, 1.0), (16, 2.0), (24, 3.0)]
