"""Skills in Maze2D, and what they have to beat, one study at a time.

`python -m benchmarks.skills STUDY [--seeds N]` trains the presets a study needs and writes
`benchmarks/results/skills-STUDY.json` after each seed; with `--first-seed N` it adds to what the
file has. Studies:

- `medium`: SPlaTES in Maze2D-Medium: the planner over skills, random skills in its place, and the
  quality of the skills; and the straight line to the goal, which learns nothing.
- `dads`: DADS in Maze2D-Medium, its plans made of single steps, and of skills held for ten.
- `tdmpc2`: SPlaTES on small networks of TD-MPC2.
- `predictability`: SPlaTES and DADS in an empty maze: quality, and errors after a push.
- `ablations`: SPlaTES at half the steps, with one part changed at a time.
- `large`, `three-levels`: Maze2D-Large, and for the former which episodes fail.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gc
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import benchmarks
import lrl_jax as lrl
from benchmarks.failures import describe, follow_episodes
from lrl_jax.collectors import evaluate
from lrl_jax.levels import Decision, Level, PlannerLevel
from lrl_jax.training import TrainConfig, load_trainer, preset, to_json, with_settings
from lrl_jax.training.skill_tests import push_error, skill_quality

RESULTS = Path(__file__).parent / "results"
STEPS = 10  # environment steps over which skills are compared
EPISODES = 256
CURVE = (
    "env_steps",
    "seconds",
    "test_success",
    "test_return",
    "skill_phi",
    "skill_abs_delta_0",
    "skill_abs_delta_1",
    "skill_model_error",
)


@dataclasses.dataclass(frozen=True)
class RandomSkills(Level):
    """Draws each skill from the prior, also in eval mode; keeps the model, which skills see."""

    planner: PlannerLevel

    def latent_space(self, spec):
        """As of the planner."""
        return self.planner.latent_space(spec)

    def init_learner(self, key, spec):
        """As of the planner, so that what it has learned can be kept."""
        return self.planner.init_learner(key, spec)

    def act(self, learner, memory, obs, ctx):
        """A random action."""
        del obs
        return Decision(learner.spec.action_space.sample(ctx.key), memory)


@dataclasses.dataclass(frozen=True)
class StraightLine(Level):
    """Goes straight to the goal, walls or not."""

    def act(self, learner, memory, obs, ctx):
        """Full speed towards the desired goal."""
        del learner, ctx
        return Decision(jnp.clip((obs[2:4] - obs[0:2]) * 10, -1, 1), memory)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run: its trainer, its state, and what it reached."""

    trainer: Any
    state: Any
    result: dict[str, Any]

    def success(self, level: Any = None, seed: int = 0) -> float:
        """Success over whole episodes, with another highest level if given."""
        t = self.trainer
        hierarchy = t.hierarchy if level is None else self.below(level)
        return success_of(hierarchy, self.state, seed)

    def below(self, level: Any) -> lrl.Hierarchy:
        """The hierarchy with another highest level."""
        t = self.trainer
        levels = [level, *t.hierarchy.levels[1:]]
        return lrl.Hierarchy(levels, t.env, t.params, t.config.obs_maps)

    def failures(self, horizons: Sequence[int], n: int = EPISODES) -> dict[str, Any]:
        """Which episodes fail, with plans of the horizon trained with, and of others."""
        t, planner = self.trainer, self.trainer.hierarchy.levels[0]
        described = {}
        for horizon in (planner.optimizer.horizon, *horizons):
            optimizer = dataclasses.replace(planner.optimizer, horizon=horizon)
            hierarchy = self.below(dataclasses.replace(planner, optimizer=optimizer))
            paths = follow_episodes(hierarchy, self.state, n)
            described[f"horizon {horizon}"] = describe(t.env, *paths)
        return described

    def quality(self, margin: float = 0.0, n: int = 2048) -> dict[str, float]:
        """`skill_quality` over the free space, at least `margin` from walls."""
        t = self.trainer
        starts = t.env.free_positions(jax.random.key(1), n, margin)
        run = t.hierarchy.jitted(_quality)
        values = run(self.state, starts, jax.random.key(2))
        return {name: float(value) for name, value in values.items()}

    def push_errors(self) -> dict[str, float]:
        """`push_error`: relative errors of the end, with a push of 0.3 and without."""
        t = self.trainer
        pushed, free = push_error(t.hierarchy, self.state, jax.random.key(3))
        return {"with_push": pushed, "without_push": free}


def _quality(hierarchy, state, starts, key):
    return skill_quality(hierarchy, state, starts, key, n_steps=STEPS)


def success_of(hierarchy, state, seed: int) -> float:
    """Fraction of EPISODES with success at any step; the highest level may be another."""
    episodes = evaluate(hierarchy, state, jax.random.key(seed + 10_000), EPISODES)
    return float(episodes.success.mean(dtype=jnp.float32))


def train(config: TrainConfig) -> Trained:
    """Train from scratch in a temporary folder."""
    jax.clear_caches()
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        summary = lrl.train(config, run, progress=False)
        trainer, state = load_trainer(run)
        with (run / "metrics.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
    result = {
        "seed": config.seed,
        "config": json.loads(to_json(config))["config"],
        "env_steps": summary.env_steps,
        "train_seconds": summary.train_seconds,
        "steps_per_second": summary.steps_per_second,
        "success": summary.test_success,
        "return": summary.test_return,
        "learning_curve": [
            {name: float(row[name]) for name in CURVE if name in row} for row in table
        ],
    }
    return Trained(trainer, state, result)


def straight_line() -> dict[str, Any]:
    """The greedy straight line in Maze2D-Medium."""
    env, params = lrl.make("Maze2D-Medium-v0")
    hierarchy = lrl.Hierarchy([StraightLine()], env, params)
    state = hierarchy.init(jax.random.key(0), 1)
    return {"success": success_of(hierarchy, state, 0)}


def medium(seed: int) -> dict[str, Any]:
    """One seed of the main job, its skills, and random ones in place of plans."""
    run = train(_preset("maze2d-medium-splates", seed))
    planner = run.trainer.hierarchy.levels[0]
    random = run.success(RandomSkills(planner))
    return {"splates": run.result | {"random_skills": random, "quality": run.quality()}}


def dads(seed: int) -> dict[str, Any]:
    """One seed of DADS, tested both ways."""
    run = train(_preset("maze2d-medium-dads", seed))
    held = dataclasses.replace(run.trainer.hierarchy.levels[0], hold=STEPS)
    result = run.result | {
        "success_held": run.success(held),
        "plan_env_steps": run.trainer.hierarchy.levels[0].optimizer.horizon,
        "quality": run.quality(),
    }
    return {"dads": result}


def tdmpc2(seed: int) -> dict[str, Any]:
    """One seed of SPlaTES on small networks of TD-MPC2."""
    run = train(_preset("maze2d-medium-splates-tdmpc2-small", seed))
    return {"splates-tdmpc2-small": run.result | {"quality": run.quality()}}


def predictability(seed: int) -> dict[str, Any]:
    """One seed of SPlaTES and one of DADS in an empty maze."""
    results = {}
    for name in ("splates", "dads"):
        run = train(_preset(f"maze2d-empty-{name}", seed))
        results[name] = run.result | {
            "quality_away_from_walls": run.quality(margin=1.05),
            "push": run.push_errors(),
        }
    return results


ABLATIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "reward at the last step": {"levels.1.reward_mode": "last_step"},
    "no averaged value": {"levels.1.averaged_value": False},
    "no symmetry-breaking start": {"levels.0.sb_start_duration": 0},
    "no standardizer": {"levels.0.delta_standardizer": False},
}


def ablations(seed: int) -> dict[str, Any]:
    """One seed of each variant, at half the steps of the main job."""
    results = {}
    for name, changes in ABLATIONS.items():
        config = _preset("maze2d-medium-splates", seed)
        half = {"total_steps": config.total_steps // 2}
        run = train(with_settings(config, changes | half))
        results[name] = run.result | {"quality": run.quality()}
    return results


def large(seed: int) -> dict[str, Any]:
    """One seed in Maze2D-Large."""
    run = train(_preset("maze2d-large-splates", seed))
    failures = run.failures(horizons=(15, 40))
    return {"splates": run.result | {"quality": run.quality(), "failures": failures}}


def three_levels(seed: int) -> dict[str, Any]:
    """One seed of subgoals over plans over skills in Maze2D-Large."""
    run = train(_preset("maze2d-large-three-levels", seed))
    return {"three levels": run.result | {"quality": run.quality()}}


STUDIES: dict[str, Callable[[int], dict[str, Any]]] = {
    "medium": medium,
    "dads": dads,
    "tdmpc2": tdmpc2,
    "predictability": predictability,
    "ablations": ablations,
    "large": large,
    "three-levels": three_levels,
}


def _preset(name: str, seed: int) -> TrainConfig:
    return dataclasses.replace(preset(name), seed=seed, final_test_episodes=EPISODES)


def summarise(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and range over seeds of each number, for each agent of a study."""
    summary = {}
    for name in seeds[0]:
        flat = [_flat(each[name]) for each in seeds if name in each]
        summary[name] = {
            key: {
                "mean": statistics.fmean(x[key] for x in flat if key in x),
                "least": min(x[key] for x in flat if key in x),
                "most": max(x[key] for x in flat if key in x),
                "seeds": sum(key in x for x in flat),
            }
            for key in _keys(flat)
        }
    return summary


def _keys(flat: list[dict[str, Any]]) -> list[str]:
    """All keys, in the order in which they come first."""
    return list(dict.fromkeys(key for x in flat for key in x))


def _flat(result: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in result.items():
        if key == "config":
            continue
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and key != "seed":
            out[prefix + key] = value
    return out


def joined(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Results of later seeds with those of earlier ones, and how those were got."""
    how = {key: earlier[key] for key in benchmarks.about()}
    seeds = [*earlier["seeds"], *later["seeds"]]
    more = {"earlier": [*earlier.get("earlier", []), how], "seeds": seeds}
    return earlier | later | more | {"summary": summarise(seeds)}


def measure(study: str, seeds: list[int], out: Path | None) -> dict[str, Any]:
    """Run a study for each seed; `out` is written after each, behind earlier seeds it has."""
    data = benchmarks.about() | {"study": study, "summary": {}, "seeds": []}
    if seeds[0] and out is not None and out.exists():
        data = joined(json.loads(out.read_text()), data)
    if study == "medium":
        data["straight_line"] = straight_line()
    for seed in seeds:
        data["seeds"].append(STUDIES[study](seed))
        data["summary"] = summarise(data["seeds"])
        if out is not None:
            benchmarks.write_json(out, data)
        for name, result in data["seeds"][-1].items():
            shown = {k: round(v, 3) for k, v in _flat(result).items()}
            print(f"seed {seed}, {name}: {shown}", flush=True)
    return data


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m benchmarks.skills`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.skills", description=__doc__)
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file; results/skills-STUDY.json if left")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {args.seeds}.")
    out = args.out or RESULTS / f"skills-{args.study}.json"
    seeds = list(np.arange(args.seeds) + args.first_seed)
    measure(args.study, [int(seed) for seed in seeds], out)
    print(f"written to {out}")


if __name__ == "__main__":
    main()
