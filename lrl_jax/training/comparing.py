"""Several runs in one figure and one table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrl_jax.loggers import read_table
from lrl_jax.loggers.files import STEP, Row
from lrl_jax.tables import aligned, number
from lrl_jax.training.folder import raw_config
from lrl_jax.training.pictures import save_curves
from lrl_jax.training.summary import Summary

_SUCCESS, _RETURN = "test_success", "test_return"


@dataclasses.dataclass(frozen=True)
class Curve:
    """Agents that were trained with the same settings.

    Attributes:
        label: of the run, with the swept settings of these agents.
        run: the run folder.
        agents: their indices in the run.
        rows: of the interim tests of each agent, [agents][tests].
    """

    label: str
    run: Path
    agents: tuple[int, ...]
    rows: tuple[tuple[Row, ...], ...]

    def has(self, measure: str) -> bool:
        """Whether the interim tests have a measure."""
        return all(any(measure in row for row in rows) for rows in self.rows)

    def values(self, measure: str) -> tuple[np.ndarray, np.ndarray]:
        """Environment steps [tests] and the measure of each agent then, [agents, tests]."""
        by_step = [
            {row[STEP]: row[measure] for row in rows if measure in row} for rows in self.rows
        ]
        steps = sorted(set.intersection(*(set(each) for each in by_step)))
        values = [[each[step] for step in steps] for each in by_step]
        return np.array(steps), np.array(values, np.float64)

    @functools.cached_property
    def summary(self) -> Summary | None:
        """What the run reached; None if it has not ended."""
        return Summary.load(self.run)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs side by side; `print` shows a table.

    Attributes:
        curves: one for each run, of a sweep one for each combination of settings.
        measure: column of `metrics.csv` that is compared.
    """

    curves: tuple[Curve, ...]
    measure: str

    def draw(self, path: str | Path) -> Path:
        """Draw the measure over environment steps into a file; returns it.

        Of several agents the mean is a line, and from the worst to the best of them is shaded.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.2), layout="constrained")
        ax = figure.subplots()
        for i, curve in enumerate(self.curves):
            steps, values = curve.values(self.measure)
            n = len(curve.agents)
            label = curve.label + (f" ({n} agents)" if n > 1 else "")
            ax.plot(steps, values.mean(0), marker=".", color=f"C{i}", label=label)
            if n > 1:
                shade = {"color": f"C{i}", "alpha": 0.2, "linewidth": 0}
                ax.fill_between(steps, values.min(0), values.max(0), **shade)
        ax.set_ylabel(self.measure.replace("_", " "))
        if self.measure == _SUCCESS:
            ax.set_ylim(-0.02, 1.02)
        ax.legend()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return save_curves(figure, Path(path), "")

    def __str__(self) -> str:
        """A line for each curve: what its interim tests and its final test say."""
        name = self.measure.removeprefix("test_")
        heading = ("run", "environment", "agents", "steps", f"last {name}", f"best {name}")
        heading += ("final success", "final return", "minutes")
        rows = [heading, *(self._line(curve) for curve in self.curves)]
        return aligned(rows, numbers=range(2, len(heading)))

    def _line(self, curve: Curve) -> tuple[Any, ...]:
        steps, values = curve.values(self.measure)
        summary, means = curve.summary, values.mean(0)
        success = final = None
        if summary is not None:
            final = _spread([summary.return_of_seeds[i] for i in curve.agents])
            if summary.success_of_seeds is not None:
                success = _spread([summary.success_of_seeds[i] for i in curve.agents])
        told = means[~np.isnan(means)]
        return (
            curve.label,
            environment_of(raw_config(curve.run)),
            len(curve.agents),
            number(int(steps[-1])) if len(steps) else None,
            _spread(values[:, -1]) if len(steps) else None,
            number(float(told.max())) if len(told) else None,
            success,
            final,
            None if summary is None else f"{summary.train_seconds / 60:.1f}",
        )


def _spread(values: Sequence[float] | np.ndarray) -> str:
    """A mean, and of several values their range."""
    values = np.asarray(values, np.float64)
    mean, low, high = (number(float(x)) for x in (values.mean(), values.min(), values.max()))
    return f"{mean}" if len(values) == 1 else f"{mean} [{low}, {high}]"


def environment_of(config: dict[str, Any]) -> str:
    """Name of the environment in a run's config as plain JSON."""
    env = config["env"]
    return env if isinstance(env, str) else env.get("object", env.get("class", "?"))


def compare(*runs: str | Path, measure: str | None = None) -> Comparison:
    """Put runs side by side: `print(compare("runs/a", "runs/b"))`, `.draw("figure.png")`.

    Args:
        runs: run folders; runs that have not ended may be among them.
        measure: column of `metrics.csv` to compare; if None test_success if all runs have it,
            else test_return.

    Raises:
        FileNotFoundError: for a folder that is not a run, or has no interim test yet.
        ValueError: without a run, or for a measure that one of them does not have.
    """
    if not runs:
        raise ValueError("there is nothing to compare: give one or more run folders.")
    paths = [Path(run) for run in runs]
    names = [path.resolve().name for path in paths]
    labels = names if len(set(names)) == len(names) else [str(path) for path in paths]
    curves = [
        curve for path, label in zip(paths, labels, strict=True) for curve in _curves(path, label)
    ]
    if measure is None:
        measure = _SUCCESS if all(curve.has(_SUCCESS) for curve in curves) else _RETURN
    for curve in curves:
        if not curve.has(measure):
            there = ", ".join(dict.fromkeys(name for row in curve.rows[0] for name in row))
            raise ValueError(f"{curve.run} has no {measure}: it has {there}.")
    return Comparison(tuple(curves), measure)


def _curves(run: Path, label: str) -> list[Curve]:
    """The agents of a run, those with the same swept settings together."""
    sweep = raw_config(run).get("sweep") or ()
    rows = read_table(run / "metrics.csv")
    if not rows:
        raise FileNotFoundError(f"{run} has no interim test yet: there is no metrics.csv in it.")
    of_agents: dict[int, list[Row]] = {}
    for row in read_table(run / "seeds.csv"):
        of_agents.setdefault(int(row["agent"]), []).append(row)
    of_agents = of_agents or {0: rows}
    groups: dict[tuple[Any, ...], list[int]] = {}
    for agent, own in of_agents.items():
        settings = tuple((path, own[0][path]) for path, _ in sweep)
        groups.setdefault(settings, []).append(agent)
    return [
        Curve(
            label=", ".join([label, *(f"{path}={x:g}" for path, x in settings)]),
            run=run,
            agents=tuple(agents),
            rows=tuple(tuple(of_agents[i]) for i in agents),
        )
        for settings, agents in groups.items()
    ]
