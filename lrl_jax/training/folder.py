"""The folder of a run: who may write there, and its checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrl_jax import checkpoints
from lrl_jax.settings import check_choice
from lrl_jax.training.config import CONFIG, TrainConfig, to_json

FINAL = "final"
BEST = "best"
CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"
_LOCK = ".lock"


def new_folder(name: str, root: str | Path = "runs") -> Path:
    """Make `root/<name>-<time>`, a folder that no other run has, however many begin together."""
    Path(root).mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 10_000):
        path = Path(root) / (stem if number == 1 else f"{stem}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise FileExistsError(f"{root} has no room for another {stem}: clean up.")


def claim(run: Path, config: TrainConfig) -> None:
    """Make `run` the folder of a new run, by writing its config; one of several wins.

    Raises:
        FileExistsError: if it holds a run.
    """
    run.mkdir(parents=True, exist_ok=True)
    text = _with_start(config, config.total_steps)
    handle, part = tempfile.mkstemp(dir=run, prefix=".config-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(part, 0o644)
        os.link(part, run / CONFIG)  # fails where there is one, unlike a rename
    except FileExistsError:
        raise FileExistsError(
            f"{run} already holds a run: choose another folder, or continue it "
            f"(lrl-jax resume {run}, or resume=True)."
        ) from None
    finally:
        os.unlink(part)


def rewrite(run: Path, config: TrainConfig, first_total: int) -> None:
    """Replace the config of a run that is resumed; the file is complete at any moment."""
    part = run / f"{CONFIG}.part"
    part.write_text(_with_start(config, first_total))
    os.replace(part, run / CONFIG)


def _with_start(config: TrainConfig, total_steps: int) -> str:
    return json.dumps(json.loads(to_json(config)) | {"first_total_steps": total_steps}, indent=2)


def raw_config(run: Path) -> dict[str, Any]:
    """The config of a run folder as plain JSON.

    Raises:
        FileNotFoundError: if it is not a run folder.
    """
    path = run / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{run} is not a run folder: it has no {CONFIG}.")
    return json.loads(path.read_text())["config"]


def first_total_steps(run: Path) -> int:
    """The total that fractions of the run were resolved with."""
    data = json.loads((run / CONFIG).read_text())
    return data.get("first_total_steps", data["config"]["total_steps"])


@contextlib.contextmanager
def locked(run: Path, create: bool = True) -> Iterator[None]:
    """Hold a run's folder, so that no other process trains in it.

    Args:
        run: the folder.
        create: False to look whether a process does, where there is a lock.

    Raises:
        FileExistsError: if another process does.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    path = run / _LOCK
    with path.open("w" if create else "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FileExistsError(
                f"another process trains in {run}: wait for it, or choose another folder."
            ) from None
        try:
            yield
        finally:
            if create:
                path.unlink(missing_ok=True)


def is_locked(run: Path) -> bool:
    """Whether a process trains in a run's folder."""
    try:
        with locked(run, create=False):
            return False
    except FileExistsError:
        return True
    except OSError:  # there is no lock, or it cannot be read
        return False


# ------------------------------------------------------------------- checkpoints


def checkpoint_path(folder: Path, env_steps: int) -> Path:
    """Where the checkpoint after a number of environment steps goes."""
    return folder / f"step_{env_steps:012d}"


def numbered(folder: Path) -> list[Path]:
    """Checkpoints by number, the last one last."""
    found = {}
    for path in folder.glob("step_*"):
        number = path.name.removeprefix("step_")
        if number.isdigit():
            found[int(number)] = path
    return [path for _, path in sorted(found.items())]


def prune(folder: Path, max_to_keep: int) -> None:
    """Remove all but the last checkpoints."""
    for path in numbered(folder)[:-max_to_keep]:
        shutil.rmtree(path, ignore_errors=True)


def last_checkpoint(run: Path) -> Path:
    """The checkpoint of a run that is furthest.

    Raises:
        FileNotFoundError: if there is none.
    """
    folder = run / CHECKPOINTS
    paths = [*numbered(folder), folder / BEST, folder / FINAL]
    found = [path for path in paths if checkpoints.exists(path)]
    if not found:
        raise FileNotFoundError(f"{run} holds no checkpoint: the run has not got that far.")
    return max(found, key=lambda path: steps_of(path))


def checkpoint_of(run: Path, which: str | None) -> Path:
    """A checkpoint of a run: "best", "final", or for None the one that is furthest.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for another word.
    """
    if which is None:
        return last_checkpoint(run)
    check_choice("checkpoint", which, (BEST, FINAL))
    path = run / CHECKPOINTS / which
    if not checkpoints.exists(path):
        why = "it was not trained with save_best=True" if which == BEST else "it has not ended"
        raise FileNotFoundError(f"{run} has no checkpoint {which!r}: {why}.")
    return path


def go_back(run: Path, which: str) -> None:
    """Make a checkpoint the last one of a run: later ones, and what the run ended with, go."""
    path = checkpoint_of(run, which)
    folder, reached = path.parent, steps_of(path)
    for other in [*numbered(folder), folder / BEST, folder / FINAL]:
        if checkpoints.exists(other) and steps_of(other) > reached:
            checkpoints.remove(other)
    (run / SUMMARY).unlink(missing_ok=True)


def steps_of(path: Path) -> int:
    """Environment steps that a checkpoint is after."""
    number = path.name.removeprefix("step_")
    return int(number) if number.isdigit() else int(meta_of(path)["env_steps"])


def meta_of(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its run."""
    return checkpoints.read_meta(path, kind="run")
