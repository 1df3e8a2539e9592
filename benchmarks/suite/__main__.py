"""Agents on tasks: runs what is missing, and writes tables and figures.

`python -m benchmarks.suite [--tasks medium large ...] [--agents splates ...] [--seeds N]`

Without tasks and agents those of the matrix, five seeds each. Runs that results hold are not made
again; a run that was stopped goes on where its last checkpoint is. `--report` makes no runs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.suite import figures, tables
from benchmarks.suite.agents import AGENTS
from benchmarks.suite.runs import RESULTS, make, missing, path_of
from benchmarks.suite.tasks import TASKS


def report(tasks: list[str], results: Path = RESULTS) -> str:
    """Tables of the tasks that have runs, and figures beside them."""
    there = [t for t in tasks if any(path_of(t, a, results).exists() for a in AGENTS)]
    text = "\n\n".join(tables.task_table(task, results) for task in there)
    text += "\n\n" + tables.comparison(there, results) + "\n"
    core = [task for task in there if TASKS[task].core]
    for kind in tables.KINDS:
        for name, found in tables.taken_together(list(AGENTS), core, kind, results).items():
            text += f"\n{kind} over {', '.join(core)}: {name} {found[0]:.2f} "
            text += f"[{found[1]:.2f}, {found[2]:.2f}]"
    if there:
        figures.against_horizon(there, results / "horizon.png", results)
        figures.profiles(core, results / "profiles.png", results)
        (results / "tables.md").write_text(text + "\n")
    return text


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m benchmarks.suite`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    core_tasks = [name for name, task in TASKS.items() if task.core]
    core_agents = [name for name, agent in AGENTS.items() if agent.core]
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=core_tasks)
    parser.add_argument("--agents", nargs="+", choices=list(AGENTS), default=core_agents)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, 0 and up")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--folder", type=Path, default=Path("runs/suite"), help="of runs under way")
    parser.add_argument("--report", action="store_true", help="make no runs")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {args.seeds}.")
    runs = [] if args.report else list(missing(args.tasks, args.agents, args.seeds, args.results))
    for i, (task, agent, seed) in enumerate(runs):
        start = time.monotonic()
        result = make(task, agent, seed, args.folder, args.results)
        print(
            f"{i + 1} of {len(runs)}: {agent} on {task}, seed {seed}: success "
            f"{result['test_success']:.3f} at any step, {result['test_success_at_end']:.3f} at the "
            f"last, {time.monotonic() - start:.0f} s",
            flush=True,
        )
    print(report(args.tasks, args.results))


if __name__ == "__main__":
    main()
