"""Whether a run that was stopped and goes on ends as one that was not.

Each agent trains 200 rounds in one process, and 100 rounds with 100 more in another; a SAC agent is
also killed, interrupted and terminated at random moments. All leaves of the last checkpoint and all
logged scalars but times must be the same.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import about, write_json
from lrl_jax.algorithms import DQN, PPO, SAC, TDMPC2
from lrl_jax.levels import DQNLevel, PPOLevel, SACLevel, TDMPC2Level
from lrl_jax.planners import ICEM
from lrl_jax.training import TrainConfig, Trainer, load_config, preset, with_settings
from lrl_jax.training.folder import last_checkpoint
from lrl_jax.training.sessions import read_checkpoint

RESULT = Path(__file__).parent / "results" / "resume.json"
ROUNDS = 200
TIMES = ("seconds", "per_second")  # what logged names of times contain

_REPLAY: dict[str, Any] = {"buffer_size": 2000, "batch_size": 16, "warm_up_steps": 64}


def _small(levels: Any, env: str, rounds: int = ROUNDS, **settings: Any) -> TrainConfig:
    sizes = {"n_env_instances": 4, "round_ticks": 5, "test_episodes": 2, "final_test_episodes": 2}
    settings = {**sizes, **settings}
    steps = settings["n_env_instances"] * settings["round_ticks"]
    config = TrainConfig(
        levels, env, total_steps=rounds * steps, test_interval=rounds // 8 * steps, **settings
    )
    # Fractions of the run are of all of it, also where its first half is a separate run.
    return dataclasses.replace(config, chunk_rounds=rounds // 8).resolved()


def sac(rounds: int = ROUNDS) -> TrainConfig:
    """SAC on Pendulum."""
    return _small((SACLevel(SAC(hidden=(16,)), **_REPLAY),), "Pendulum-v1", rounds)


def sac_long() -> TrainConfig:
    """The same for long enough to be killed on the way."""
    return sac(24_000)


def dqn() -> TrainConfig:
    """DQN on CartPole."""
    return _small((DQNLevel(DQN(hidden=(16,)), **_REPLAY),), "CartPole-v1")


def tdmpc2() -> TrainConfig:
    """TD-MPC2 on Pendulum."""
    algorithm = TDMPC2.small(latent_dim=8, hidden=(16,), encoder_hidden=(16,))
    level = TDMPC2Level(algorithm, update_interval=20, **_REPLAY)
    return _small((level,), "Pendulum-v1", round_ticks=1)


def ppo() -> TrainConfig:
    """PPO on CartPole."""
    return _small((PPOLevel(PPO(n_minibatches=2), rollout_length=5),), "CartPole-v1")


def planner() -> TrainConfig:
    """A planner over held actions in a maze."""
    config = with_settings(preset("smoke"), {"env_settings": {"max_steps": 40}})
    return _small(config.levels, config.env, round_ticks=10, env_settings=config.env_settings)


def splates() -> TrainConfig:
    """A planner over skills in a maze."""
    top = {
        "optimizer": ICEM(3, num_samples=16, n_iterations=2, elite_ratio=0.25),
        "chunk_size": None,
        "predictor_factory.partial_model.hidden": (16,),
        "predictor_factory.partial_rew_func.hidden": (16,),
        "n_updates": 2,
        "warm_up_steps": 64,
        "no_planning_steps": 64,
        "batch_size": 16,
        "model_batch_size": 16,
    }
    skills = {"algorithm.hidden": (16,), "n_updates": 2, "batch_size": 16, "warm_up_steps": 64}
    changes = {f"levels.0.{k}": v for k, v in top.items()}
    config = with_settings(
        preset("maze2d-medium-splates"), changes | {f"levels.1.{k}": v for k, v in skills.items()}
    )
    return _small(
        config.levels,
        config.env,
        round_ticks=10,
        obs_maps=config.obs_maps,
        env_settings={"max_steps": 60},
    )


def gymnasium_sac() -> TrainConfig:
    """SAC on Gymnasium's Pendulum."""
    return dataclasses.replace(sac(), env="gymnasium/Pendulum-v1", n_env_instances=4)


AGENTS = (sac, dqn, tdmpc2, ppo, planner, splates, gymnasium_sac)


# --------------------------------------------------------------------- processes


def command(name: str, run: Path, *options: str) -> list[str]:
    """The command that trains an agent, or goes on with it."""
    place = [f"benchmarks.resume:{name}", "--out", str(run), "--quiet", "--resume"]
    return [sys.executable, "-m", "lrl_jax.cli", "train", *place, *options]


def finish(name: str, run: Path, *options: str) -> None:
    """Train to the end in a separate process."""
    subprocess.run(command(name, run, *options), check=True, capture_output=True, text=True)


def stop_after(name: str, run: Path, seconds: float, number: int) -> int:
    """Train in a process that gets a signal after some seconds; returns its exit status."""
    process = subprocess.Popen(
        command(name, run), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    try:
        return process.wait(timeout=120)
    finally:
        process.kill()


# -------------------------------------------------------------------- comparison


def leaves(run: Path) -> dict[str, np.ndarray]:
    """All arrays of a run's last checkpoint by path."""
    trainer = Trainer.build(load_config(run))
    carry = read_checkpoint(trainer, last_checkpoint(run))
    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(carry):
        is_key = jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
        found[jax.tree_util.keystr(path)] = np.asarray(jax.random.key_data(x) if is_key else x)
    return found


def scalars(run: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv without what tells times."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: x for k, x in row.items() if not any(t in k for t in TIMES)} for row in rows]


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two runs: paths of leaves, and rows of the log."""
    one, two = leaves(a), leaves(b)
    found = [k for k in one if k not in two or one[k].tobytes() != two[k].tobytes()]
    found += [k for k in two if k not in one]
    rows = zip(scalars(a), scalars(b), strict=False)
    found += [f"row {i} of the log" for i, (x, y) in enumerate(rows) if x != y]
    if len(scalars(a)) != len(scalars(b)):
        found.append(f"{len(scalars(a))} and {len(scalars(b))} rows of the log")
    return found


def halves(name: str, folder: Path) -> dict[str, Any]:
    """200 rounds in one process against 100 and 100 in two."""
    config: TrainConfig = globals()[name]()
    whole, parts = folder / f"{name}-whole", folder / f"{name}-parts"
    finish(name, whole)
    finish(name, parts, "--total-steps", str(config.total_steps // 2))
    finish(name, parts)
    found = differences(whole, parts)
    return {"agent": name, "leaves": len(leaves(whole)), "differences": found[:8]}


def stopped(number: int, times: int, folder: Path, seed: int) -> dict[str, Any]:
    """Runs stopped at random moments against one that was not."""
    rng, name = random.Random(seed), "sac_long"
    whole = folder / f"{name}-whole"
    if not whole.exists():
        finish(name, whole)
    start = time.monotonic()
    finish(name, folder / f"{signal.Signals(number).name}-timed")
    seconds = time.monotonic() - start
    same, statuses = 0, []
    for i in range(times):
        run = folder / f"{signal.Signals(number).name}-{i}"
        statuses.append(stop_after(name, run, rng.uniform(0.3, 0.95) * seconds, number))
        finish(name, run)
        same += not differences(whole, run)
    name = signal.Signals(number).name
    return {"signal": name, "runs": times, "the same": same, "exit statuses": statuses}


def main() -> None:
    """Run what is asked for and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", nargs="*", default=[f.__name__ for f in AGENTS])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signals", type=int, default=5, help="runs with SIGINT and SIGTERM each")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    result: dict[str, Any] = {"about": about(), "halves": [], "stopped": []}
    with tempfile.TemporaryDirectory() as name:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{name}/cache")
        folder = Path(name)
        for agent in args.agents:
            result["halves"].append(halves(agent, folder))
            print(result["halves"][-1], flush=True)
            write_json(args.out, result)
        for number, times in (
            (signal.SIGKILL, args.kills),
            (signal.SIGINT, args.signals),
            (signal.SIGTERM, args.signals),
        ):
            if times:
                result["stopped"].append(stopped(number, times, folder, seed=int(number)))
                print(result["stopped"][-1], flush=True)
                write_json(args.out, result)


if __name__ == "__main__":
    main()
