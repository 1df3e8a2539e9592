"""SAC with and without `running_normaliser` where observations have no bounds: returns over seeds.

Brax's reacher (backend spring), all seeds in one vmapped call, and Gymnasium's InvertedPendulum-v5,
one seed after another. Needs the extras brax and mujoco. The file is written after every run, and
runs that it holds are not made again. `TRIED` lists other settings that were tried:

`python -m benchmarks.normaliser [--env reacher] [--seeds 5] [--out FILE]`
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np

import benchmarks
import lrl_jax as lrl
from lrl_jax.algorithms import SAC
from lrl_jax.levels import SACLevel

OUT = Path(__file__).parent / "results" / "normaliser.json"


@dataclasses.dataclass(frozen=True)
class Study:
    """One environment's runs.

    Attributes:
        env_id: for `lrl.make`, or Gymnasium's.
        n: instances.
        total_steps: environment steps of a run, all instances together.
        n_tests: tests, evenly over the run.
        n_episodes: of a test.
        level: what learns, without the normaliser.
    """

    env_id: str
    n: int
    total_steps: int
    n_tests: int
    n_episodes: int
    level: SACLevel

    @property
    def ticks(self) -> int:
        """Between two tests."""
        return self.total_steps // self.n // self.n_tests


STUDIES = {
    "reacher": Study(
        "brax/reacher",
        n=16,
        total_steps=48_000,
        n_tests=4,
        n_episodes=32,
        level=SACLevel(
            SAC(hidden=(64, 64), gamma=0.95, learning_rate=1e-3),
            buffer_size=48_000,
            update_interval=16,
            n_updates=8,
            batch_size=128,
            warm_up_steps=2_000,
        ),
    ),
    "pendulum": Study(
        "InvertedPendulum-v5",
        n=8,
        total_steps=16_000,
        n_tests=4,
        n_episodes=16,
        level=SACLevel(
            SAC(hidden=(64, 64), learning_rate=5e-4),
            buffer_size=16_000,
            update_interval=8,
            n_updates=8,
            batch_size=128,
            warm_up_steps=1_000,
        ),
    ),
}

#: Other settings, 5 seeds each: mean return of the last test, and of all tests.
TRIED = (
    "reacher, learning_rate 1e-3, 1 update per 16 rows, 80,000 steps: "
    "with -146.1 and -155.0, without -139.1 and -155.5",
    "reacher, learning_rate 3e-4, 8 updates per 16 rows, 48,000 steps: "
    "with -128.0 and -139.8, without -129.5 and -144.9",
    "pendulum, learning_rate 1e-3, 4 updates per 8 rows, 12,000 steps: "
    "with 135 and 175, without 71 and 72",
)
NOTES = (
    "Reacher's observations have a normal size as they are: under random actions the stds of the "
    "11 entries are about 0.7 (four), 0.08 to 0.3 (six), and 0.0002 for the height of the tip "
    "over the target, which is next to constant and becomes noise of size 1. With or without the "
    "normaliser is within the spread over seeds. InvertedPendulum's stds are 0.06 to 1.8: it is "
    "learned with the normaliser, and by one seed of five without."
)


def level_of(study: Study, normalised: bool) -> SACLevel:
    """The study's level, with or without the normaliser."""
    return dataclasses.replace(study.level, running_normaliser=normalised)


def vmapped(study: Study, normalised: bool, seeds: list[int]) -> dict[str, list[float]]:
    """Mean returns of all tests of each seed, in a JAX environment."""
    env, params = lrl.make(study.env_id, backend="spring")
    hierarchy = lrl.Hierarchy([level_of(study, normalised)], env, params)

    @jax.jit
    @jax.vmap
    def begin(key):
        return lrl.init_carry(hierarchy, key, study.n)

    @functools.partial(jax.jit, donate_argnums=0)
    @jax.vmap
    def train(carry):
        return lrl.rollout(hierarchy, carry, study.ticks, learn=True)[0]

    @jax.jit
    @jax.vmap
    def test(carry, key):
        return lrl.evaluate(hierarchy, carry.hierarchy, key, study.n_episodes)

    keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
    carry, curve = begin(keys), []
    for _ in range(study.n_tests):
        carry = train(carry)
        episodes = test(carry, jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys))
        curve.append(np.asarray(episodes.episode_return).mean(-1))
    return {str(seed): [float(x[i]) for x in curve] for i, seed in enumerate(seeds)}


def one_seed(study: Study, normalised: bool, seed: int) -> list[float]:
    """Mean returns of all tests, in a Gymnasium environment."""
    env = gymnasium.make_vec(study.env_id, study.n)
    test_env = gymnasium.make_vec(study.env_id, study.n)
    hierarchy = lrl.Hierarchy([level_of(study, normalised)], env)
    curve = []
    collector, tested = lrl.Collector(hierarchy, env), hierarchy.eval()
    try:
        collector.reset(seed=seed)
        for _ in range(study.n_tests):
            collector.collect(n_steps=study.ticks, learn=True)
            tester = lrl.Collector(tested, test_env, state=tested.get_copy(collector.state))
            tester.reset(seed=seed + 1000)
            curve.append(float(tester.collect(n_episodes=study.n_episodes).returns.mean()))
    finally:
        env.close()
        test_env.close()
    return curve


def measure(name: str, seeds: int, out: Path) -> dict[str, Any]:
    """Make the runs of a study that `out` does not hold yet; returns all that it holds then."""
    study = STUDIES[name]
    data: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    settings = json.loads(json.dumps(dataclasses.asdict(study), default=str))
    held = data.get(name)
    if held is None or held["settings"] != settings:
        held = {"settings": settings, "with": {}, "without": {}, "seconds": {}}
    data |= {"about": benchmarks.about(), "tried": TRIED, "notes": NOTES, name: held}
    for case in ("without", "with"):
        missing = [seed for seed in range(seeds) if str(seed) not in held[case]]
        chunks = [missing] if name == "reacher" else [[seed] for seed in missing]
        for chunk in filter(None, chunks):
            start = time.monotonic()
            if name == "reacher":
                held[case] |= vmapped(study, case == "with", chunk)
            else:
                held[case][str(chunk[0])] = one_seed(study, case == "with", chunk[0])
            held["seconds"][case] = held["seconds"].get(case, 0.0) + time.monotonic() - start
            held["summary"] = summary(held)
            benchmarks.write_json(out, data)
            print(name, case, chunk, {k: held[case][str(k)] for k in chunk}, flush=True)
    return data


def summary(held: dict[str, Any]) -> dict[str, Any]:
    """Means over seeds of the last test, and of all tests."""
    result = {}
    for case in ("without", "with"):
        curves = list(held[case].values())
        if curves:
            result[case] = {
                "last_test": statistics.fmean(curve[-1] for curve in curves),
                "all_tests": statistics.fmean(statistics.fmean(curve) for curve in curves),
                "worst_last_test": min(curve[-1] for curve in curves),
            }
    return result


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m benchmarks.normaliser`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", choices=sorted(STUDIES), nargs="*", default=sorted(STUDIES))
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, 0 and up")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {args.seeds}.")
    for name in args.env:
        print(json.dumps(measure(name, args.seeds, args.out)[name]["summary"], indent=1))


if __name__ == "__main__":
    main()
