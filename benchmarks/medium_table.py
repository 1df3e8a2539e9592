"""The table and the learning curves of Maze2D-Medium, from the results that are there.

`python -m benchmarks.medium_table` prints the table and writes `results/maze2d-medium.png`.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"


def rows(folder: Path = RESULTS) -> list[tuple[str, list[float], list[list[dict[str, float]]]]]:
    """(what, success of each seed, learning curve of each seed) of each result there is."""
    table: list[tuple[str, list[float], list[list[dict[str, float]]]]] = []

    def read(name: str) -> dict[str, Any] | None:
        path = folder / name
        return json.loads(path.read_text()) if path.is_file() else None

    def add(what: str, results: list[dict[str, Any]], key: str) -> None:
        curves = [result.get("learning_curve", []) for result in results]
        table.append((what, [result[key] for result in results], curves))

    medium = read("skills-medium.json")
    if medium:
        runs = [seed["splates"] for seed in medium["seeds"]]
        add("SPlaTES (SAC) + planner", runs, "success")
        table.append(("random skills of SPlaTES", [run["random_skills"] for run in runs], []))
        table.append(("straight line to the goal", [medium["straight_line"]["success"]], []))
    for what, study, agent in (
        ("SPlaTES (TD-MPC2, small) + planner", "tdmpc2", "splates-tdmpc2-small"),
        ("DADS + planner, plans of 10 steps", "dads", "dads"),
    ):
        data = read(f"skills-{study}.json")
        if data:
            add(what, [seed[agent] for seed in data["seeds"]], "success")
    data = read("skills-dads.json")
    if data:
        held = [seed["dads"]["success_held"] for seed in data["seeds"]]
        table.append(("DADS + planner, each skill held for 10 steps", held, []))
    for what, preset in (
        ("held actions + planner", "maze2d-medium-planner"),
        ("flat SAC", "maze2d-medium-sac"),
        ("flat SAC with hindsight", "maze2d-medium-sac-her"),
    ):
        data = read(f"success-{preset}.json")
        if data:
            add(what, data["seeds"], "test_success")
    return table


def text(table: list[tuple[str, list[float], Any]]) -> str:
    """The table in Markdown."""
    lines = ["| agent | seeds | success, mean | worst |", "| --- | --- | --- | --- |"]
    for what, values, _ in table:
        lines.append(
            f"| {what} | {len(values)} | {statistics.fmean(values):.3f} | {min(values):.3f} |"
        )
    return "\n".join(lines)


def picture(table: list[tuple[str, list[float], Any]], path: Path) -> Path:
    """Success of the interim tests over environment steps, mean and range over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for what, _, curves in table:
        curves = [curve for curve in curves if curve]
        if not curves:
            continue
        n = min(map(len, curves))
        steps = [point["env_steps"] for point in curves[0][:n]]
        values = np.array([[point["test_success"] for point in curve[:n]] for curve in curves])
        (line,) = ax.plot(steps, values.mean(0), marker="o", markersize=3, label=what)
        ax.fill_between(steps, values.min(0), values.max(0), alpha=0.15, color=line.get_color())
    ax.set_xlabel("environment steps")
    ax.set_ylabel("success of interim tests")
    ax.set_ylim(-0.02, 1.02)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    ax.set_title("Maze2D-Medium, mean and range over seeds")
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    found = rows()
    print(text(found))
    print(f"written to {picture(found, RESULTS / 'maze2d-medium.png')}")
