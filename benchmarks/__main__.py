"""Run benchmarks, print their tables, and write what was measured as JSON."""

from __future__ import annotations

import argparse
import datetime
import importlib
from pathlib import Path

import benchmarks

NAMES = (
    "throughput",
    "gating",
    "predictor",
    "planning",
    "learners",
    "ppo",
    "collecting",
    "scaling",
    "main_job",
)
RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m benchmarks`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats")
    parser.add_argument("--out", type=Path, help="JSON file; benchmarks/results/DATE.json if left")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in NAMES]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}: choose from {', '.join(NAMES)}.")
    now = datetime.datetime.now(datetime.UTC)
    out = args.out or RESULTS / f"{now:%Y-%m-%d-%H%M%S}{'-quick' if args.quick else ''}.json"
    data = benchmarks.about() | {"quick": args.quick, "benchmarks": {}}
    print(f"{data['device']}, {data['cpu']}, {data['cpu_count']} cores, jax", end=" ")
    print(data["versions"]["jax"], flush=True)
    for name in args.names or NAMES:
        rows = importlib.import_module(f"benchmarks.{name}").run(args.quick)
        print(f"\n{name}\n{benchmarks.table(rows)}", flush=True)
        data["benchmarks"][name] = [row.as_json() for row in rows]
        benchmarks.write_json(out, data)
    print(f"\nwritten to {out}")


if __name__ == "__main__":
    main()
