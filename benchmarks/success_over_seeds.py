"""What a preset reaches over seeds: success in the final test, and how long training takes.

`python -m benchmarks.success_over_seeds --preset maze2d-medium-planner --seeds 5`
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gc
import json
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

import benchmarks
from lrl_jax.training import DEFAULT_PRESET, PRESETS, TrainConfig, run_training, to_json

RESULTS = Path(__file__).parent / "results"
CURVE = ("env_steps", "seconds", "test_success", "test_return")


def one_seed(config: TrainConfig, progress: bool) -> dict[str, Any]:
    """Train with the config's seed in a temporary folder; returns what it reached."""
    # Each seed pays for its own compilation.
    jax.clear_caches()
    with tempfile.TemporaryDirectory() as folder:
        summary = run_training(config, Path(folder) / "run", progress=progress)
        with (Path(folder) / "run" / "metrics.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
    gc.collect()
    result = {"seed": config.seed, **dataclasses.asdict(summary)}
    del result["run"]
    # The tests between chunks are a look at few episodes; the final test has many.
    result["learning_curve"] = [{name: float(row[name]) for name in CURVE} for row in table]
    return result


def summarise(results: list[dict[str, Any]]) -> dict[str, float]:
    """Over the seeds done so far."""
    success = [result["test_success"] for result in results]
    seconds = [result["train_seconds"] for result in results]
    return {
        "n_seeds": len(results),
        "mean_success": statistics.fmean(success),
        "worst_success": min(success),
        "mean_train_seconds": statistics.fmean(seconds),
        "longest_train_seconds": max(seconds),
        "mean_steps_per_second": statistics.fmean(r["steps_per_second"] for r in results),
    }


def measure(
    preset: str, seeds: Iterable[int], out: Path | None = None, progress: bool = False
) -> dict[str, Any]:
    """Train one seed after another; `out` is written after each."""
    config = PRESETS[preset][1]
    data = benchmarks.about() | {
        "preset": preset,
        "config": json.loads(to_json(config)),
        "summary": {},
        "seeds": [],
    }
    for seed in seeds:
        result = one_seed(dataclasses.replace(config, seed=seed), progress)
        data["seeds"].append(result)
        data["summary"] = summarise(data["seeds"])
        if out is not None:
            benchmarks.write_json(out, data)
        print(
            f"seed {seed}: success {result['test_success']:.3f} of {result['test_episodes']} "
            f"episodes after {result['env_steps']:,} steps, {result['train_seconds']:.0f} s, "
            f"{result['steps_per_second']:,.0f} steps/s",
            flush=True,
        )
    return data


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m benchmarks.success_over_seeds`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default=DEFAULT_PRESET)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, 0 and up")
    parser.add_argument(
        "--out", type=Path, help="JSON file; benchmarks/results/PRESET.json if left"
    )
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {args.seeds}.")
    out = args.out or RESULTS / f"success-{args.preset}.json"
    summary = measure(args.preset, range(args.seeds), out)["summary"]
    print(
        f"{summary['n_seeds']} seeds: mean success {summary['mean_success']:.3f}, worst "
        f"{summary['worst_success']:.3f}, {summary['mean_train_seconds']:.0f} s of training each\n"
        f"written to {out}"
    )


if __name__ == "__main__":
    main()
