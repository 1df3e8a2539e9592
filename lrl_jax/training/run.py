"""A training run with its folder: the host loop around jitted chunks."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from lrl_jax.collectors import Episodes, RolloutCarry
from lrl_jax.envs import Maze2D
from lrl_jax.hierarchies import Hierarchy, HierarchyState
from lrl_jax.training import pictures
from lrl_jax.training.config import TrainConfig, load_config, to_json
from lrl_jax.training.logging import RunLog
from lrl_jax.training.train import Trainer

_FINAL_TEST_STREAM = 0xF17A


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run reached.

    Attributes:
        run: the run folder.
        env_steps: environment steps taken.
        train_seconds: training with compilation and interim tests.
        steps_per_second: environment steps per second of training alone, after compilation.
        test_success: fraction of episodes with success at any step, in the final test.
        test_return: mean return of the final test.
        test_episodes: its episodes.
        test_seconds: its duration, compilation included.
    """

    run: str
    env_steps: int
    train_seconds: float
    steps_per_second: float
    test_success: float
    test_return: float
    test_episodes: int
    test_seconds: float


def test_episodes(trainer: Trainer, state: HierarchyState, n: int, seed: int) -> Episodes:
    """One whole episode in each of n instances, on the host; see `evaluate`."""
    key = jax.random.fold_in(jax.random.key(seed), _FINAL_TEST_STREAM)
    test = trainer.hierarchy.jitted(_test, trainer, n)
    return jax.device_get(test(state, key))


def _test(hierarchy, trainer, n, state, key):
    del hierarchy
    return trainer.test(state, key, n)


def _chunk(hierarchy, trainer, carry):
    del hierarchy
    return trainer.chunk(carry)


def _test_metrics(hierarchy, trainer, state, i):
    del hierarchy
    return trainer.test_metrics(state, i)


def run_training(config: TrainConfig, run: Path, progress: bool = True) -> Summary:
    """Train, test, save and draw into the folder `run`, which must not hold a run yet.

    Raises:
        FileExistsError: if `run` holds one.
    """
    run = Path(run)
    if (run / "config.json").exists():
        raise FileExistsError(f"{run} already holds a run: choose another folder.")
    trainer = Trainer.build(config)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(to_json(config))
    log = RunLog(run)
    began = time.monotonic()
    carry, speed = _train(trainer, run, log, progress)
    seconds = time.monotonic() - began
    log.close()
    state = carry.hierarchy
    trainer.hierarchy.save(state, run / "checkpoints" / "final")
    summary = _final_test(trainer, state, run, seconds, speed)
    (run / "summary.json").write_text(json.dumps(dataclasses.asdict(summary), indent=2))
    pictures.curve_picture(log.rows, run / "learning_curve.png", config.env)
    draw(trainer, state, run)
    return summary


def _train(trainer: Trainer, run: Path, log: RunLog, progress: bool) -> tuple[RolloutCarry, float]:
    """The chunks of a run; returns the last carry and the steps per second without compiling."""
    config = trainer.config
    hierarchy = trainer.hierarchy
    chunk = hierarchy.jitted(_chunk, trainer, donate=0)
    test = hierarchy.jitted(_test_metrics, trainer)
    carry = trainer.init(jax.random.key(config.seed))
    # Leaves may share arrays (constants); what is donated must not.
    carry = jax.tree.map(lambda x: x.copy(), carry)
    chunk_steps = config.rounds_per_chunk * config.round_steps
    began = time.monotonic()
    compiled = chunk.lower(carry).compile()
    compile_seconds = time.monotonic() - began
    chunk_seconds: list[float] = []
    with tqdm(total=config.n_chunks * chunk_steps, unit="step", disable=not progress) as bar:
        bar.set_postfix_str("compiled")
        for i in range(config.n_chunks):
            start = time.monotonic()
            carry, metrics = compiled(carry)
            metrics = jax.device_get(jax.block_until_ready(metrics))
            chunk_seconds.append(time.monotonic() - start)
            tested = jax.device_get(test(carry.hierarchy, i))
            row = {
                "env_steps": (i + 1) * chunk_steps,
                "seconds": time.monotonic() - began,
                "env_steps_per_second": chunk_steps / chunk_seconds[-1],
                **_train_row(metrics),
                **{name: float(value) for name, value in tested.items()},
            }
            if i == 0:
                row["compile_seconds"] = compile_seconds
            log.write(row)
            bar.update(chunk_steps)
            bar.set_postfix(success=f"{row['test_success']:.2f}", ret=f"{row['test_return']:.1f}")
            every = config.checkpoint_interval
            if every and (i + 1) % every == 0:
                hierarchy.save(
                    carry.hierarchy, run / "checkpoints" / f"step_{row['env_steps']:09d}"
                )
    return carry, chunk_steps * config.n_chunks / sum(chunk_seconds)


def _train_row(metrics: dict[str, Any]) -> dict[str, float]:
    """Metrics of a chunk as a row; means over episodes only where one ended."""
    row = {name: float(value) for name, value in metrics.items() if "/" in name}
    row["train_reward"] = float(metrics["reward_mean"])
    episodes = int(metrics["n_episodes"])
    row["train_episodes"] = episodes
    if episodes:
        row["train_return"] = float(metrics["return_sum"]) / episodes
        row["train_success"] = float(metrics["success_sum"]) / episodes
    return row


def _final_test(
    trainer: Trainer, state: HierarchyState, run: Path, seconds: float, speed: float
) -> Summary:
    config = trainer.config
    start = time.monotonic()
    episodes = test_episodes(trainer, state, config.final_test_episodes, config.seed)
    return Summary(
        run=str(run),
        env_steps=int(state.n_total_env_steps),
        train_seconds=round(seconds, 1),
        steps_per_second=round(speed, 1),
        test_success=float(np.mean(episodes.success)),
        test_return=float(np.mean(episodes.episode_return)),
        test_episodes=config.final_test_episodes,
        test_seconds=round(time.monotonic() - start, 1),
    )


def draw(trainer: Trainer, state: HierarchyState, run: Path) -> None:
    """Draw planned against executed paths and the animation, for mazes."""
    if not isinstance(trainer.env, Maze2D):
        return
    paths = pictures.record_paths(
        trainer.hierarchy,
        trainer.env,
        trainer.params,
        state,
        jax.random.key(trainer.config.seed + 1),
        6,
        max(1, trainer.episode_ticks - 1),
    )
    pictures.paths_picture(trainer.env, paths, run / "paths.png")
    pictures.rollout_gif(trainer.env, paths, run / "rollout.gif")


def load_run(path: str | Path) -> tuple[Hierarchy, HierarchyState, Any, Any]:
    """Load what a run folder ended with: (hierarchy, state, env, params).

    Raises:
        FileNotFoundError: if it is no run folder, or the run has not finished.
    """
    trainer, state = load_trainer(Path(path))
    return trainer.hierarchy, state, trainer.env, trainer.params


def load_trainer(run: Path) -> tuple[Trainer, HierarchyState]:
    """The trainer of a run folder and the state of its last checkpoint."""
    trainer = Trainer.build(load_config(run))
    checkpoints = run / "checkpoints"
    final = checkpoints / "final"
    if not final.is_dir():
        saved = sorted(p for p in checkpoints.glob("step_*") if not p.name.endswith(".part"))
        if not saved:
            raise FileNotFoundError(f"{run} holds no checkpoint: the run has not got that far.")
        final = saved[-1]
    return trainer, trainer.hierarchy.load(final)
