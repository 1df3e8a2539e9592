"""Figures of the runs that are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite.agents import AGENTS
from benchmarks.suite.runs import RESULTS, read
from benchmarks.suite.tables import KINDS, best, values
from benchmarks.suite.tasks import TASKS
from lrl_jax.training.statistics import bootstrap_interval, interquartile_mean

TITLES = ("success at any step", "success at the last step")


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, title in zip(axes, TITLES, strict=True):
        ax.set_title(title)
        ax.set_ylim(-0.03, 1.03)
        ax.grid(alpha=0.3)
    return figure, axes


def against_horizon(tasks: Sequence[str], path: Path, results: Path = RESULTS) -> Path:
    """Success of the best hierarchy and of the best flat agent, against the task's horizon."""
    figure, axes = _axes()
    for ax, kind in zip(axes, KINDS, strict=True):
        for hierarchy, label in ((True, "best hierarchy"), (False, "best flat agent")):
            points = []
            for task in sorted(tasks, key=lambda name: TASKS[name].horizon):
                name = best(task, kind, hierarchy, results)
                data = read(task, name, results) if name else None
                if data is not None:
                    x = values(data, kind)
                    mean, (low, high) = float(interquartile_mean(x)), bootstrap_interval(x)
                    points.append((TASKS[task].horizon, mean, mean - low, high - mean))
            if points:
                steps, mean, below, above = np.array(points).T
                ax.errorbar(steps, mean, (below, above), marker="o", capsize=3, label=label)
        ax.set_xscale("log")
        ax.set_xlabel("horizon: steps of the longest shortest way")
    for task in tasks:
        axes[0].annotate(
            task, (TASKS[task].horizon, 0.0), fontsize=7, rotation=90, va="bottom", alpha=0.7
        )
    axes[0].legend()
    figure.savefig(path, dpi=120)
    return path


def profiles(tasks: Sequence[str], path: Path, results: Path = RESULTS) -> Path:
    """Performance profiles: the fraction of runs, over all tasks, above each success."""
    figure, axes = _axes()
    thresholds = np.linspace(0, 1, 201)
    for ax, kind in zip(axes, KINDS, strict=True):
        for name, agent in AGENTS.items():
            held = [data for task in tasks if (data := read(task, name, results))]
            if len(held) < len(tasks):
                continue  # an agent's easy tasks alone say nothing
            # Each task counts the same, however many seeds it has.
            above = [(np.array(values(data, kind))[:, None] > thresholds).mean(0) for data in held]
            ax.plot(thresholds, np.mean(above, 0), label=agent.what)
        ax.set_xlabel("success")
    axes[0].set_ylabel("fraction of runs with more")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    return path
