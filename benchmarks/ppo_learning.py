"""What PPO learns on CartPole-v1 and Pendulum-v1: `python -m benchmarks.ppo_learning`.

Five seeds in one vmapped call each; 32 whole episodes per seed at the end, in eval mode. Tuning:
two settings were tried for each task, on the same seeds.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import benchmarks
import lrl_jax as lrl
from lrl_jax.algorithms import PPO
from lrl_jax.levels import PPOLevel
from lrl_jax.schedules import RampSchedule

RESULTS = Path(__file__).parent / "results"
SEEDS, EPISODES = 5, 32
# Environment, instances, rows of a rollout, environment steps, bar, hyperparameters.
TASKS = (
    ("CartPole-v1", 16, 64, 200_000, 475.0, {"n_minibatches": 8, "n_epochs": 8}),
    (
        "Pendulum-v1",
        16,
        64,
        500_000,
        -250.0,
        {"n_minibatches": 16, "n_epochs": 10, "gamma": 0.95, "log_std_start": -0.5},
    ),
)


def learn(
    env_id: str, n: int, length: int, steps: int, bar: float, settings: dict[str, Any]
) -> dict[str, Any]:
    """Train all seeds of a task, and test them."""
    env, params = lrl.make(env_id)
    rate = RampSchedule(1e-3, 0.0, steps)
    algorithm = PPO(**settings, learning_rate=rate)
    hierarchy = lrl.Hierarchy([PPOLevel(algorithm, rollout_length=length)], env, params)
    n_ticks = steps // (n * length) * length

    @jax.jit
    @jax.vmap
    def train(key):
        carry = lrl.init_carry(hierarchy, key, n)
        carry, out = lrl.rollout(hierarchy, carry, n_ticks, learn=True)
        test_key = jax.random.fold_in(key, 1)
        episodes = lrl.evaluate(hierarchy, carry.hierarchy, test_key, EPISODES)
        return episodes.episode_return.mean(), out.metrics["level0/n_updates"]

    began = time.monotonic()
    returns, updates = jax.device_get(train(jax.random.split(jax.random.key(0), SEEDS)))
    return {
        "env": env_id,
        "env_steps": n_ticks * n,
        "n_env_instances": n,
        "settings": {**settings, "rollout_length": length, "learning_rate": "1e-3 to 0"},
        "seeds": SEEDS,
        "updates": int(np.max(updates)),
        "returns": [float(x) for x in returns],
        "mean_return": float(np.mean(returns)),
        "bar": bar,
        "seconds_with_compilation_all_seeds": time.monotonic() - began,
    }


def main() -> None:
    """All tasks; prints, and writes benchmarks/results/ppo-learning.json."""
    tasks = []
    for task in TASKS:
        tasks.append(learn(*task))
        print(tasks[-1]["env"], tasks[-1]["returns"], f"mean {tasks[-1]['mean_return']:.1f}")
    benchmarks.write_json(RESULTS / "ppo-learning.json", {**benchmarks.about(), "tasks": tasks})


if __name__ == "__main__":
    main()
