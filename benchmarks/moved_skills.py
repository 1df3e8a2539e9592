"""Skills learned in Medium under a fresh planner in Large, against skills learned there.

`python -m benchmarks.moved_skills --runs FOLDER` goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import lrl_jax as lrl
from benchmarks import about, write_json
from lrl_jax.training import Summary, TrainConfig, preset, with_settings

RESULT = Path(__file__).parent / "results" / "moved-skills.json"


def large(steps: int, seed: int) -> TrainConfig:
    """A planner over skills in Maze2D-Large."""
    config = with_settings(
        preset("maze2d-large-splates"), {"total_steps": steps, "test_interval": 25_000}
    )
    return dataclasses.replace(config, seed=seed)


def train(config: TrainConfig, run: Path, **options: Any) -> dict[str, Any]:
    """Train, or go on; returns what was reached."""
    summary: Summary = lrl.train(config, run, progress=False, resume=run.exists(), **options)
    found = {
        "env": config.env,
        "frozen": list(config.frozen),
        "env_steps": summary.env_steps,
        "success": summary.test_success,
        "success_at_end": summary.test_success_at_end,
        "return": summary.test_return,
        "test_episodes": summary.test_episodes,
        "train_seconds": summary.train_seconds,
        "seed": config.seed,
    }
    print(found, flush=True)
    return found


def main() -> None:
    """Train all three and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/moved-skills"))
    parser.add_argument("--steps", type=int, default=200_000, help="in Maze2D-Large")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    medium = args.runs / "medium"
    there = large(args.steps, args.seed)
    moved = dataclasses.replace(there, frozen=(1,))
    rows = {}
    first = dataclasses.replace(preset("maze2d-medium-splates"), seed=args.seed)
    rows["skills learned in Medium, there"] = train(first, medium)
    fresh = not (args.runs / "moved").exists()
    learners = {"learners": (None, medium)} if fresh else {}
    rows["the same skills, frozen, under a fresh planner in Large"] = train(
        moved, args.runs / "moved", **learners
    )
    rows["skills learned in Large"] = train(there, args.runs / "learned")
    write_json(args.out, {"about": about(), "rows": rows})


if __name__ == "__main__":
    main()
