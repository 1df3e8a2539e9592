"""What the runs say together: tables with intervals, as Agarwal et al. (2021) ask for.

Success is between 0 and 1 and so is the area under its curve. The interquartile mean cuts off a
quarter of the runs at each end; intervals are 95% percentile bootstraps over seeds, drawn within
each task (stratified) where tasks are taken together. Fewer than five seeds get no interval.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite.agents import AGENTS
from benchmarks.suite.runs import RESULTS, read
from benchmarks.suite.tasks import TASKS
from lrl_jax.training.statistics import RESAMPLES, bootstrap_interval, interquartile_mean

FULL = 5  # seeds that an interval asks for
KINDS = ("test_success", "test_success_at_end")


def values(data: dict[str, Any], kind: str) -> list[float]:
    """A figure of each seed."""
    return [run[kind] for run in data["seeds"]]


def area(run: dict[str, Any], kind: str) -> float:
    """Area under the curve of the interim tests, over environment steps, 0 at the start."""
    points = [(0.0, 0.0)] + [(row["env_steps"], row[kind]) for row in run["learning_curve"]]
    steps, heights = np.array(points).T
    return float(np.trapezoid(heights, steps) / steps[-1]) if len(points) > 1 else float("nan")


def probability_of_improvement(a: Sequence[float], b: Sequence[float]) -> float:
    """How often a run of `a` is better than one of `b`, ties counting half."""
    first, second = np.asarray(a)[:, None], np.asarray(b)[None]
    return float(((first > second) + 0.5 * (first == second)).mean())


def interval(x: Sequence[float]) -> str:
    """95% bootstrap interval of the interquartile mean, or nothing for few seeds."""
    if len(x) < FULL:
        return ""
    low, high = bootstrap_interval(x)
    return f" [{low:.2f}, {high:.2f}]"


def task_table(task: str, results: Path = RESULTS) -> str:
    """All agents of a task, in Markdown."""
    head = (
        "agent",
        "seeds",
        "steps",
        "success at any step",
        "at the last step",
        "area under the curve, any / last",
        "seconds",
        "TFLOP",
    )
    lines: list[tuple[str, ...]] = [head]
    for name, agent in AGENTS.items():
        data = read(task, name, results)
        if data is None:
            continue
        runs = data["seeds"]
        per_step = sum(x["deciding"] + x["learning"] for x in data["flops_per_step"])
        both = [values(data, kind) for kind in KINDS]
        figures = [f"{float(interquartile_mean(x)):.2f}{interval(x)}" for x in both]
        areas = [statistics.fmean(area(run, kind) for run in runs) for kind in KINDS]
        steps = runs[0]["env_steps"]
        lines.append(
            (
                agent.what,
                str(len(runs)),
                f"{steps:,}",
                *figures,
                " / ".join(f"{x:.2f}" for x in areas),
                f"{statistics.median(run['train_seconds'] for run in runs):.0f}",
                f"{per_step * steps / 1e12:.1f}",
            )
        )
    title = f"**{task}**: {TASKS[task].env}, horizon {TASKS[task].horizon:,} steps"
    return f"{title}\n\n{_markdown(lines)}"


def taken_together(
    agents: Sequence[str], tasks: Sequence[str], kind: str, results: Path = RESULTS
) -> dict[str, tuple[float, float, float]]:
    """Interquartile mean over the runs of all tasks, and its stratified bootstrap interval.

    Agents that lack a task, or seeds of it, are left out.
    """
    rng, found = np.random.default_rng(0), {}
    for agent in agents:
        held = [read(task, agent, results) for task in tasks]
        if any(data is None or len(data["seeds"]) < FULL for data in held):
            continue
        scores = [np.array(values(data, kind)) for data in held if data]
        drawn = [x[rng.integers(0, len(x), (RESAMPLES, len(x)))] for x in scores]
        low, high = np.quantile(interquartile_mean(np.concatenate(drawn, 1), 1), [0.025, 0.975])
        mean = float(interquartile_mean(np.concatenate(scores)))
        found[agent] = (mean, float(low), float(high))
    return found


def best(task: str, kind: str, hierarchy: bool, results: Path = RESULTS) -> str | None:
    """The hierarchy, or the flat agent, with the highest interquartile mean on a task."""
    found = {
        name: float(interquartile_mean(values(data, kind)))
        for name, agent in AGENTS.items()
        if agent.hierarchy == hierarchy and (data := read(task, name, results))
    }
    return max(found, key=found.__getitem__) if found else None


def comparison(tasks: Sequence[str], results: Path = RESULTS) -> str:
    """The best hierarchy against the best flat agent of each task, in Markdown."""
    head = ("task", "at", "best hierarchy", "best flat agent", "probability of improvement")
    lines: list[tuple[str, ...]] = [head]
    for task in tasks:
        for kind, at in zip(KINDS, ("any step", "the last step"), strict=True):
            names = [best(task, kind, hierarchy, results) for hierarchy in (True, False)]
            if None in names:
                continue
            pair = [values(read(task, name, results) or {}, kind) for name in names if name]
            cells = [
                f"{name} {float(interquartile_mean(x)):.2f}{interval(x)}"
                for name, x in zip(names, pair, strict=True)
            ]
            lines.append((task, at, *cells, f"{probability_of_improvement(*pair):.2f}"))
    return _markdown(lines)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of which is the heading, as a table."""
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
