"""Runs of agents on tasks, and what they reached, in a file for each pair."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks import flops
from benchmarks.success_over_seeds import one_seed
from benchmarks.suite.agents import AGENTS
from benchmarks.suite.tasks import TASKS
from lrl_jax.training import to_json

RESULTS = Path(__file__).parent.parent / "results" / "suite"


def path_of(task: str, agent: str, results: Path = RESULTS) -> Path:
    """The file of a pair."""
    return results / task / f"{agent}.json"


def read(task: str, agent: str, results: Path = RESULTS) -> dict[str, Any] | None:
    """What a pair reached; None before its first run."""
    path = path_of(task, agent, results)
    return json.loads(path.read_text()) if path.exists() else None


def missing(
    tasks: list[str], agents: list[str], seeds: int, results: Path = RESULTS
) -> Iterator[tuple[str, str, int]]:
    """Runs that are not there yet: the first seed of all pairs, then the second, and so on."""
    for seed in range(seeds):
        for task in tasks:
            for agent in agents:
                data = read(task, agent, results)
                done = {run["seed"] for run in data["seeds"]} if data else set()
                if seed not in done:
                    yield task, agent, seed


def make(task: str, agent: str, seed: int, folder: Path, results: Path = RESULTS) -> dict[str, Any]:
    """Train one seed, going on with what its folder holds, and add it to the pair's file.

    Raises:
        ValueError: if the file holds runs of other settings.
    """
    config = AGENTS[agent].build(TASKS[task])
    settings = json.loads(to_json(config))["config"]
    data = read(task, agent, results) or {
        "task": task,
        "agent": agent,
        "config": settings,
        "flops_per_step": [dataclasses.asdict(level) for level in flops.of_training(config)],
        "seeds": [],
    }
    if data["config"] != settings:
        raise ValueError(
            f"{path_of(task, agent, results)} holds runs of other settings: move it away to run "
            f"{agent} on {task} anew."
        )
    run = folder / task / f"{agent}-{seed}"
    result = one_seed(dataclasses.replace(config, seed=seed), False, run)
    data["seeds"] = sorted([*data["seeds"], benchmarks.about() | result], key=lambda x: x["seed"])
    benchmarks.write_json(path_of(task, agent, results), data)
    shutil.rmtree(run)
    return result
