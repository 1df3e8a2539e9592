"""What a preset reaches over seeds in the final test, and how long training takes.

The return always, and success, at any step and at the last one, where the environment tells it. One
run after another, or all seeds in one vmapped call:

`python -m benchmarks.success_over_seeds --preset maze2d-medium-planner --seeds 5 [--vmapped]`
"""

from __future__ import annotations

import argparse
import contextlib
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
import lrl_jax as lrl
from lrl_jax.loggers import read_table
from lrl_jax.training import DEFAULT_PRESET, PRESETS, Summary, TrainConfig, to_json
from lrl_jax.training.statistics import bootstrap_interval, interquartile_mean

RESULTS = Path(__file__).parent / "results"
CURVE = ("env_steps", "seconds", "test_success", "test_success_at_end", "test_return")


def one_seed(config: TrainConfig, progress: bool, run: Path | None = None) -> dict[str, Any]:
    """Train with the config's seed; returns what it reached.

    Args:
        config: what is trained.
        progress: show a bar.
        run: folder, which is resumed if it holds a part of the run; a temporary one if None.
    """
    summary, table = _run(config, progress, run)
    return _reached(summary, 0, table) | {
        "train_seconds": summary.train_seconds,
        "steps_per_second": summary.steps_per_second,
        "test_seconds": summary.test_seconds,
    }


def all_seeds(config: TrainConfig, progress: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train the config's seeds in one call; returns what each reached, and the time of all."""
    summary, table = _run(config, progress)
    results = [
        _reached(summary, i, [row for row in table if int(row.get("agent", 0)) == i])
        for i in range(config.seeds)
    ]
    return results, {
        "train_seconds_together": summary.train_seconds,
        "steps_per_second_together": summary.steps_per_second,
        "test_seconds_together": summary.test_seconds,
    }


def _run(
    config: TrainConfig, progress: bool, run: Path | None = None
) -> tuple[Summary, list[dict[str, Any]]]:
    """Train; returns the summary and the rows of the interim tests."""
    # Each run pays for its own compilation.
    jax.clear_caches()
    with contextlib.ExitStack() as stack:
        if run is None:
            run = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        summary = lrl.train(config, run, progress=progress, resume=True)
        table = read_table(run / ("seeds.csv" if config.seeds > 1 else "metrics.csv"))
    gc.collect()
    return summary, table


def _reached(summary: Summary, i: int, table: list[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {"seed": summary.seeds[i], "env_steps": summary.env_steps}
    if summary.success_of_seeds is not None:
        result["test_success"] = summary.success_of_seeds[i]
    if summary.success_at_end_of_seeds is not None:
        result["test_success_at_end"] = summary.success_at_end_of_seeds[i]
    result |= {"test_return": summary.return_of_seeds[i], "test_episodes": summary.test_episodes}
    # The tests between chunks are a look at few episodes; the final test has many.
    result["learning_curve"] = [
        {name: float(row[name]) for name in CURVE if name in row} for row in table
    ]
    return result


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds done so far; times where each seed has its own."""
    summary: dict[str, Any] = {"n_seeds": len(results)}
    for name in ("success", "success_at_end", "return"):
        values = [result[f"test_{name}"] for result in results if f"test_{name}" in result]
        if values:
            low, high = bootstrap_interval(values)
            summary |= {
                f"mean_{name}": statistics.fmean(values),
                f"worst_{name}": min(values),
                f"interquartile_mean_{name}": float(interquartile_mean(values)),
                f"interval_{name}": [float(low), float(high)],
            }
    if all("train_seconds" in result for result in results):
        seconds = [result["train_seconds"] for result in results]
        summary |= {
            "mean_train_seconds": statistics.fmean(seconds),
            "longest_train_seconds": max(seconds),
            "mean_steps_per_second": statistics.fmean(r["steps_per_second"] for r in results),
        }
    return summary


def measure(
    preset: str,
    seeds: Iterable[int],
    out: Path | None = None,
    progress: bool = False,
    *,
    vmapped: bool = False,
    total_steps: int | None = None,
) -> dict[str, Any]:
    """Train one seed after another, `out` being written after each; or all of them in one call.

    Args:
        preset: its name.
        seeds: one after the other; for `vmapped` they must be consecutive.
        out: JSON file, or None.
        progress: show the bar of each run.
        vmapped: train all seeds in one call.
        total_steps: in place of the preset's.

    Raises:
        ValueError: if `vmapped` and the seeds are not consecutive.
    """
    config = PRESETS[preset]()
    if total_steps is not None:
        config = dataclasses.replace(config, total_steps=total_steps)
    seeds = list(seeds)
    if vmapped:
        if seeds != list(range(seeds[0], seeds[0] + len(seeds))):
            raise ValueError(f"vmapped seeds must be consecutive, got {seeds}.")
        config = dataclasses.replace(config, seed=seeds[0], seeds=len(seeds))
    data = benchmarks.about() | {
        "preset": preset,
        "vmapped": vmapped,
        "config": json.loads(to_json(config))["config"],
        "summary": {},
        "seeds": [],
    }

    def add(results: list[dict[str, Any]], times: dict[str, Any]) -> None:
        data["seeds"] += results
        data["summary"] = summarise(data["seeds"]) | times
        if out is not None:
            benchmarks.write_json(out, data)
        for result in results:
            print(_line(result), flush=True)

    if vmapped:
        add(*all_seeds(config, progress))
    else:
        for seed in seeds:
            add([one_seed(dataclasses.replace(config, seed=seed), progress)], {})
    return data


def _line(result: dict[str, Any]) -> str:
    success = ""
    if "test_success" in result:
        success = f"success {result['test_success']:.3f}, "
    if "test_success_at_end" in result:
        success += f"at the last step {result['test_success_at_end']:.3f}, "
    line = (
        f"seed {result['seed']}: {success}return {result['test_return']:.1f} over "
        f"{result['test_episodes']} episodes after {result['env_steps']:,} steps"
    )
    if "train_seconds" in result:
        line += f", {result['train_seconds']:.0f} s, {result['steps_per_second']:,.0f} steps/s"
    return line


def _closing(summary: dict[str, Any]) -> str:
    parts = []
    for name, digits in (("success", 3), ("success_at_end", 3), ("return", 1)):
        if f"mean_{name}" in summary:
            low, high = summary[f"interval_{name}"]
            parts.append(
                f"{name}: mean {summary[f'mean_{name}']:.{digits}f}, worst "
                f"{summary[f'worst_{name}']:.{digits}f}, interquartile mean "
                f"{summary[f'interquartile_mean_{name}']:.{digits}f} "
                f"[{low:.{digits}f}, {high:.{digits}f}]"
            )
    if "train_seconds_together" in summary:
        parts.append(f"{summary['train_seconds_together']:.0f} s of training, all together")
    else:
        parts.append(f"{summary['mean_train_seconds']:.0f} s of training each")
    return f"{summary['n_seeds']} seeds\n" + "\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m benchmarks.success_over_seeds`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default=DEFAULT_PRESET)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, 0 and up")
    parser.add_argument("--vmapped", action="store_true", help="all seeds in one call")
    parser.add_argument("--total-steps", type=int, help="in place of the preset's")
    parser.add_argument(
        "--out",
        type=Path,
        help="JSON file; benchmarks/results/success-PRESET[-vmapped][-STEPS].json if left",
    )
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {args.seeds}.")
    name = f"success-{args.preset}"
    name += "-vmapped" if args.vmapped else ""
    name += "" if args.total_steps is None else f"-{args.total_steps}"
    out = args.out or RESULTS / f"{name}.json"
    data = measure(
        args.preset,
        range(args.seeds),
        out,
        vmapped=args.vmapped,
        total_steps=args.total_steps,
    )
    print(f"{_closing(data['summary'])}\nwritten to {out}")


if __name__ == "__main__":
    main()
