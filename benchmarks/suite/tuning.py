"""Random search of the flat agent's settings, which the hierarchies do not get more of.

`python -m benchmarks.suite.tuning [large swimmer] [--trials 8] [--steps 100000]`: trials that the
file holds are not made again. The best is the one with the highest success over all interim tests
and the last, at any and at the last step alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np

import benchmarks
from benchmarks.flops import per_step
from benchmarks.success_over_seeds import one_seed
from benchmarks.suite.agents import TUNED, flat, from_trial
from benchmarks.suite.tasks import TASKS

SPACE: dict[str, tuple[float, ...]] = {
    "updates": (1, 2, 3),  # times the preset's 0.4 per environment step
    "width": (128, 256),
    "gamma": (0.98, 0.99, 0.995),
    "learning_rate": (3e-4, 1e-3),
    "hindsight": (0.5, 0.8),
}
#: The preset's own, which is a trial too.
FIRST = {"updates": 1, "width": 128, "gamma": 0.99, "learning_rate": 3e-4, "hindsight": 0.8}


def trials(n: int) -> list[dict[str, float]]:
    """The preset's settings and draws from the space, none twice; the same for every task.

    Raises:
        ValueError: for more trials than there are settings.
    """
    size = math.prod(map(len, SPACE.values()))
    if n > size:
        raise ValueError(f"{n} trials of {size} settings: ask for at most {size}.")
    rng, found = np.random.default_rng(0), [FIRST]
    while len(found) < n:
        trial = {name: values[rng.integers(len(values))] for name, values in SPACE.items()}
        if trial not in found:
            found.append(trial)
    return found


def score(result: dict[str, Any]) -> float:
    """Mean of the curve's success and the final one, at any and at the last step."""
    curve = [row["test_success"] + row["test_success_at_end"] for row in result["learning_curve"]]
    final = result["test_success"] + result["test_success_at_end"]
    return (statistics.fmean(curve) + final) / 4


def search(name: str, n: int, steps: int, out: Path = TUNED) -> dict[str, Any]:
    """Make the trials that the file does not hold yet; returns all that it holds then."""
    data = json.loads(out.read_text()) if out.exists() else {}
    held = data.setdefault(name, {"steps": steps, "trials": []})
    if held["steps"] != steps:
        raise ValueError(f"{out} holds trials of {held['steps']} steps, not {steps}.")
    task = dataclasses.replace(TASKS[name], total_steps=steps)
    done = [trial["settings"] for trial in held["trials"]]
    for settings in trials(n):
        if settings in done:
            continue
        config = from_trial(flat(task), settings)
        result = one_seed(config, False)
        trial = {"settings": settings, "score": score(result), "flops_per_step": per_step(config)}
        held["trials"].append(trial | result)
        best = max(held["trials"], key=lambda trial: trial["score"])
        held["best"], held["about"] = best["settings"], benchmarks.about()
        benchmarks.write_json(out, data)
        print(name, settings, f"score {held['trials'][-1]['score']:.3f}", flush=True)
    return data


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m benchmarks.suite.tuning`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=["large", "swimmer"], choices=sorted(TASKS))
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100_000)
    args = parser.parse_args(argv)
    for name in args.tasks:
        found = search(name, args.trials, args.steps)[name]
        print(f"{name}: best of {len(found['trials'])}: {found['best']}")


if __name__ == "__main__":
    main()
