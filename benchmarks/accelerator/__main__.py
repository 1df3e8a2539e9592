"""Run what is missing, write it down, and print the table."""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
from pathlib import Path
from typing import Any

import jax

import benchmarks
from benchmarks import Row, accelerator
from benchmarks.accelerator import Found, Job, Sizes, agreement, ceilings, learning, rollouts
from lrl_jax.benchmark import Timing, device_name

PART_MINUTES = 4.0
CEILING = "TF32 products of"


def all_jobs(sizes: Sizes) -> list[Job]:
    """Jobs of all parts, in the order that they run."""
    rolled, learned = rollouts.jobs(sizes), learning.jobs(sizes)
    # What matters most first; one part's jobs keep their order.
    first = [*ceilings.JOBS, rolled[0], *(job for job in learned if job.part == 1), *rolled[1:]]
    second = [job for job in learned if job.part == 2]
    return [*first, *second, *agreement.JOBS, *learning.large_jobs()]


class Results:
    """What was found so far, in a file that is whole at any moment."""

    def __init__(self, path: Path, sizes: Sizes):
        self.path, self.entries = path, {}
        about = {"device": device_name(), "jax": jax.__version__, "sizes": repr(sizes)}
        if path.exists():
            stored = json.loads(path.read_text())
            if stored["of"] != about:
                raise SystemExit(
                    f"{path} is of {stored['of']}, this is {about}: give another --out, or "
                    f"delete it."
                )
            self.entries = stored["entries"]
        self.data: dict[str, Any] = {"about": benchmarks.about(), "of": about}

    def add(self, name: str, found: Found, seconds: float) -> None:
        """Store an entry."""
        rows = [row.as_json() for row in found.rows]
        self.entries[name] = {"rows": rows, "facts": found.facts, "seconds": round(seconds, 2)}
        benchmarks.write_json(self.path, {**self.data, "entries": self.entries})

    def rows(self) -> list[Row]:
        """All rows, with shares of the ceiling where products were counted."""
        ceiling = 0.0
        result = []
        for entry in self.entries.values():
            for stored in entry["rows"]:
                row = _as_row(stored)
                if row.case.startswith(CEILING):
                    ceiling = row.timing.rate(row.work)
                rate = entry["facts"].get("products_per_second")
                if rate and ceiling:
                    row = Row(row.case, row.timing, row.work, row.unit, rate / ceiling, "ceiling")
                result.append(row)
        return result


def _as_row(stored: dict[str, Any]) -> Row:
    fields = {k: v for k, v in stored.items() if k not in ("rate", "met")}
    timing = fields.pop("timing")
    return Row(timing=Timing(**{**timing, "repeats": tuple(timing["repeats"])}), **fields)


def run_part(jobs: list[Job], results: Results, sizes: Sizes, minutes: float) -> None:
    """Run what is missing of a part, until its minutes are over."""
    start = time.perf_counter()
    for job in jobs:
        if job.name in results.entries and "error" not in results.entries[job.name]["facts"]:
            continue
        if time.perf_counter() - start > 60 * minutes:
            print(f"the {minutes:g} minutes of part {job.part} are over: run it again to go on")
            return
        began = time.perf_counter()
        try:
            found = job.run(sizes)
        except Exception as error:  # the rows behind it are worth having
            traceback.print_exc()
            found = Found(facts={"error": f"{type(error).__name__}: {error}"[:500]})
        results.add(job.name, found, time.perf_counter() - began)
        print(f"{job.name}: {time.perf_counter() - began:.1f} s", flush=True)
        if found.rows:
            print(benchmarks.table(found.rows), flush=True)
        for name, value in found.facts.items():
            print(f"  {name}: {value}", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m benchmarks.accelerator`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator",
        description=accelerator.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", type=int, choices=(1, 2, 3, 4), action="append")
    parser.add_argument("--out", type=Path, help="folder; runs/accelerator if left")
    parser.add_argument("--rehearse", action="store_true", help="sizes of seconds")
    parser.add_argument("--minutes", type=float, help="of part 4, which runs if this is given")
    args = parser.parse_args(argv)
    sizes = accelerator.REHEARSAL if args.rehearse else Sizes()
    out = args.out or Path("runs/accelerator-rehearsal" if args.rehearse else "runs/accelerator")
    out.mkdir(parents=True, exist_ok=True)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(out.resolve() / "cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    results = Results(out / "accelerator.json", sizes)
    print(device_name(), "jax", jax.__version__, flush=True)
    wanted = args.part or [1, 2, 3] + ([4] if args.minutes else [])
    for part in wanted:
        jobs = [job for job in all_jobs(sizes) if job.part == part]
        run_part(jobs, results, sizes, (args.minutes or 30.0) if part == 4 else PART_MINUTES)
    print(f"\n{benchmarks.table(results.rows())}\nwritten to {results.path}")
    failed = [name for name, entry in results.entries.items() if "error" in entry["facts"]]
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
