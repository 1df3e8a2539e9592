"""A summary of a run as text: its settings and how it went."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lrl_jax import checkpoints
from lrl_jax.env_spec import is_gymnasium
from lrl_jax.loggers import read_table
from lrl_jax.loggers.files import STEP
from lrl_jax.tables import aligned, number
from lrl_jax.training import folder, loading
from lrl_jax.training.comparing import environment_of
from lrl_jax.training.config import TrainConfig, load_config
from lrl_jax.training.serial import encode
from lrl_jax.training.summary import Summary
from lrl_jax.training.train import hierarchy_of, make_env

_TESTS = ("test_success", "test_success_at_end", "test_return", "train_return")
_LAST = 5


def report(run: str | Path, *, classes: Iterable[Any] = (), env: Any = None) -> str:
    """What a run is and how it went: levels, settings, steps, last tests, files, how to continue.

    Levels are shown with their spaces where the hierarchy can be built: where the environment is
    installed, and classes of your own are given or registered. Else they are named.

    Args:
        run: the run folder; it may be of a run that has not ended.
        classes, env: see `load_run`.

    Raises:
        FileNotFoundError: if it is not a run folder.
    """
    run = Path(run)
    raw = folder.raw_config(run)
    summary = Summary.load(run)
    parts = [
        f"{run}: {environment_of(raw)}, {_state(run, raw, summary)}",
        _levels(run, raw, classes, env),
        _settings(raw),
        _tests(run),
    ]
    if summary is not None:
        parts.append(f"final test\n{_indented(str(summary))}")
    files = sorted(path.name for path in run.iterdir() if not path.name.startswith("."))
    parts.append(f"files\n{_indented(', '.join(files))}")
    parts.append(_commands(run, summary))
    return "\n\n".join(part for part in parts if part)


def _state(run: Path, raw: dict[str, Any], summary: Summary | None) -> str:
    reached, total = loading.steps_reached(run), raw["total_steps"]
    of = f"{reached:,} of {total:,} environment steps"
    if folder.is_locked(run):
        return f"training; the last checkpoint is after {of}"
    if summary is not None:
        why = "" if summary.stopped_at is None else f", as a test reached {summary.stopped_at:g}"
        return f"finished after {of}{why}"
    return f"stopped after {of}" if reached else "stopped before its first checkpoint"


def _levels(run: Path, raw: dict[str, Any], classes: Iterable[Any], env: Any) -> str:
    try:
        return _stack(load_config(run, classes, env))
    except Exception as error:  # whatever keeps it from being built
        names = [str(i) + "  " + level.get("class", "?") for i, level in enumerate(raw["levels"])]
        return "\n".join(["levels", *names, f"(spaces are not shown: {error})"])


def _stack(config: TrainConfig) -> str:
    config = dataclasses.replace(config, devices=1, workers=0)
    env, params = make_env(config)
    try:
        return str(hierarchy_of(config, env, params))
    finally:
        if is_gymnasium(env):
            env.close()


def _settings(raw: dict[str, Any]) -> str:
    """Settings of the run itself that are not the defaults."""
    rows = [
        (name, raw[name])
        for name, default in _defaults().items()
        if name in raw and name not in ("env", "chunk_rounds") and raw[name] != default
    ]
    more = "all settings are in config.json"
    return f"settings\n{_indented(aligned([*rows, (more, '')]))}"


def _defaults() -> dict[str, Any]:
    fields = dataclasses.fields(TrainConfig)
    return {f.name: encode(f.default) for f in fields if f.default is not dataclasses.MISSING}


def _tests(run: Path) -> str:
    rows = read_table(run / "metrics.csv")
    if not rows:
        return ""
    names = [name for name in _TESTS if any(name in row for row in rows)]
    lines: list[tuple[str | None, ...]] = [(STEP, *names)]
    for row in rows[-_LAST:]:
        lines.append((number(row[STEP]), *(number(row.get(name)) for name in names)))
    text = aligned(lines, numbers=range(len(names) + 1))
    best = run / folder.CHECKPOINTS / folder.BEST
    if checkpoints.exists(best):
        meta = folder.meta_of(best)
        score = number(meta["score"][0])
        text += f"\nbest checkpoint: {score} after {meta['env_steps']:,} environment steps"
    return f"last of {len(rows)} interim tests\n{_indented(text)}"


def _commands(run: Path, summary: Summary | None) -> str:
    longer = "--total-steps N" if summary is not None else "[--total-steps N]"
    rows = [
        ("continue", f"lrl-jax resume {run} {longer}"),
        ("test again", f"lrl-jax test {run}"),
        ("load", f'lrl_jax.load_run("{run}")'),
    ]
    return aligned(rows)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
