"""A training run with its folder: the host loop around jitted chunks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from lrl_jax import devices
from lrl_jax.envs import GYMNASIUM, Maze2D
from lrl_jax.hierarchies import Hierarchy, HierarchyState
from lrl_jax.randomness import Salt, key_of
from lrl_jax.training import pictures, sessions
from lrl_jax.training.config import TrainConfig, load_config, to_json
from lrl_jax.training.logging import RunLog
from lrl_jax.training.sessions import Session, test_episodes
from lrl_jax.training.skill_pictures import skill_curves, skills_picture
from lrl_jax.training.statistics import bootstrap_interval, interquartile_mean, over_seeds
from lrl_jax.training.train import Trainer, take_seed


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run reached.

    Of several agents, figures of the final test are the interquartile mean over them, and the
    intervals 95% bootstrap intervals of it. Of one agent there is no interval.

    Attributes:
        run: the run folder.
        env_steps: environment steps taken by each agent.
        train_seconds: training with compilation and interim tests.
        steps_per_second: environment steps per second of training alone, after compilation, all
            agents together.
        test_success: fraction of episodes with success at any step, in the final test; None where
            the environment does not tell success.
        test_return: mean return of the final test.
        test_return_std: std of its episodes' returns, the mean over agents.
        test_episodes: its episodes, of each agent.
        test_seconds: its duration, compilation included.
        seeds: of the agents.
        success_of_seeds, return_of_seeds: of each agent in the final test.
        success_interval, return_interval: low and high.
        pictured: index of the agent in the pictures: the median one in the final test.
    """

    run: str
    env_steps: int
    train_seconds: float
    steps_per_second: float
    test_success: float | None
    test_return: float
    test_return_std: float
    test_episodes: int
    test_seconds: float
    seeds: tuple[int, ...]
    success_of_seeds: tuple[float, ...] | None
    return_of_seeds: tuple[float, ...]
    success_interval: tuple[float, float] | None
    return_interval: tuple[float, float] | None
    pictured: int


def run_training(config: TrainConfig, run: str | Path, progress: bool = True) -> Summary:
    """Train, test, save and draw into the folder `run`, which must not hold a run yet.

    Several processes that share the devices (`jax.distributed`) all call this with the same
    arguments. The first writes the folder, all of them the checkpoints in it.

    Raises:
        FileExistsError: if `run` holds one.
        ValueError: if the processes cannot share this run.
    """
    run = Path(run)
    _check_processes(config)
    if (run / "config.json").exists():
        raise FileExistsError(f"{run} already holds a run: choose another folder.")
    devices.wait_for_processes(f"run {run}")  # before the first of them writes there
    if jax.process_index() == 0:
        return _run_training(config, run, run / "checkpoints", progress)
    with tempfile.TemporaryDirectory() as unused:
        return _run_training(config, Path(unused), run / "checkpoints", progress=False)


def _check_processes(config: TrainConfig) -> None:
    """Refuse what several processes cannot share."""
    if jax.process_count() == 1:
        return
    if config.workers:
        raise ValueError(
            f"workers={config.workers} with {jax.process_count()} processes: workers on other "
            f"machines join one learner through Ray, use one process."
        )
    if config.env.startswith(GYMNASIUM):
        raise ValueError(
            f"{config.env} runs on the host, which {jax.process_count()} processes cannot share: "
            f"collect with a CWorkerSet, or use one process."
        )
    if config.seeds > 1:
        raise ValueError(
            f"seeds={config.seeds} with {jax.process_count()} processes: train several agents in "
            f"one process, or one in several."
        )


def _run_training(config: TrainConfig, run: Path, checkpoints: Path, progress: bool) -> Summary:
    trainer = Trainer.build(config)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(to_json(config))
    log = RunLog(run)
    began = time.monotonic()
    with contextlib.closing(sessions.begin(trainer)) as session:
        speed = _train(trainer, session, log, checkpoints, progress)
        seconds = time.monotonic() - began
        log.close()
        _save(trainer, session.state, checkpoints / "final")
        state = session.result()
    summary = _final_test(trainer, state, run, seconds, speed)
    (run / "summary.json").write_text(json.dumps(dataclasses.asdict(summary), indent=2))
    title = config.env
    if config.seeds > 1:
        title += f", interquartile mean of {config.seeds} seeds with 95% interval"
    pictures.curve_picture(log.rows, run / "learning_curve.png", title, log.seed_rows)
    if trainer.skill_starts is not None:
        skill_curves(log.rows, run / "skill_curves.png", title)
    draw(trainer, state, run, summary.pictured)
    return summary


def _train(
    trainer: Trainer, session: Session, log: RunLog, checkpoints: Path, progress: bool
) -> float:
    """The chunks of a run; returns the steps per second without compiling."""
    config = trainer.config
    many = config.seeds > 1
    chunk_steps = config.rounds_per_chunk * config.round_steps
    began = time.monotonic()
    compile_seconds = session.compile()
    chunk_seconds: list[float] = []
    with tqdm(total=config.n_chunks * chunk_steps, unit="step", disable=not progress) as bar:
        bar.set_postfix_str("compiled")
        for i in range(config.n_chunks):
            start = time.monotonic()
            metrics = session.advance()
            chunk_seconds.append(time.monotonic() - start)
            metrics, tested = jax.device_get((metrics, session.test(i)))
            env_steps = (i + 1) * chunk_steps
            row = {
                "env_steps": env_steps,
                "seconds": time.monotonic() - began,
                "env_steps_per_second": config.seeds * chunk_steps / chunk_seconds[-1],
            }
            if many:
                agents = [
                    _agent_row(*jax.tree.map(lambda x, j=j: x[j], (metrics, tested)))
                    for j in range(config.seeds)
                ]
                row |= over_seeds(agents)
                log.write_seeds(
                    [
                        {"env_steps": env_steps, "agent": j, "seed": config.agent_seeds[j], **agent}
                        for j, agent in enumerate(agents)
                    ]
                )
            else:
                row |= _agent_row(metrics, tested)
            if i == 0:
                row["compile_seconds"] = compile_seconds
            log.write(row)
            bar.update(chunk_steps)
            bar.set_postfix_str(_postfix(row))
            every = config.checkpoint_interval
            if every and (i + 1) % every == 0:
                _save(trainer, session.state, checkpoints / f"step_{env_steps:09d}")
    if (trainer.on_host or config.workers) and config.n_chunks > 1:  # the first one has compiled
        chunk_seconds = chunk_seconds[1:]
    return config.seeds * chunk_steps * len(chunk_seconds) / sum(chunk_seconds)


def _agent_row(metrics: dict[str, Any], tested: dict[str, Any]) -> dict[str, float]:
    """An agent's metrics of a chunk and its test; means over episodes only where one ended."""
    row = {name: float(value) for name, value in metrics.items() if "/" in name}
    row["train_reward"] = float(metrics["reward_mean"])
    episodes = int(metrics["n_episodes"])
    row["train_episodes"] = episodes
    if episodes:
        row["train_return"] = float(metrics["return_sum"]) / episodes
        if "test_success" in tested:
            row["train_success"] = float(metrics["success_sum"]) / episodes
    return row | {name: float(value) for name, value in tested.items()}


def _postfix(row: dict[str, float]) -> str:
    success = f"success={row['test_success']:.2f}, " if "test_success" in row else ""
    return f"{success}return={row['test_return']:.1f}"


def _final_test(
    trainer: Trainer, state: HierarchyState, run: Path, seconds: float, speed: float
) -> Summary:
    config = trainer.config
    start = time.monotonic()
    many = config.seeds > 1
    seeds = config.agent_seeds if many else config.seed
    episodes = test_episodes(trainer, state, config.final_test_episodes, seeds)
    test_seconds = time.monotonic() - start
    returns = np.atleast_2d(np.asarray(episodes.episode_return, np.float64))
    return_of = returns.mean(axis=1)
    success_of = np.atleast_2d(episodes.success).mean(axis=1) if trainer.has_success else None
    rank = np.lexsort((return_of,) if success_of is None else (return_of, success_of))
    total = state.n_total_env_steps
    return Summary(
        run=str(run),
        env_steps=int(take_seed(total, 0) if many else total),
        train_seconds=round(seconds, 1),
        steps_per_second=round(speed, 1),
        test_success=None if success_of is None else float(interquartile_mean(success_of)),
        test_return=float(interquartile_mean(return_of)),
        test_return_std=float(returns.std(axis=1).mean()),
        test_episodes=config.final_test_episodes,
        test_seconds=round(test_seconds, 1),
        seeds=config.agent_seeds,
        success_of_seeds=None if success_of is None else tuple(success_of.tolist()),
        return_of_seeds=tuple(return_of.tolist()),
        success_interval=_interval(success_of) if many and success_of is not None else None,
        return_interval=_interval(return_of) if many else None,
        pictured=int(rank[(len(rank) - 1) // 2]),
    )


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = bootstrap_interval(values)
    return float(low), float(high)


def draw(trainer: Trainer, state: HierarchyState, run: Path, agent: int = 0) -> None:
    """Draw planned against executed paths and the animation of one agent, for mazes.

    Args:
        trainer: of the run.
        state: of all agents of the run.
        run: the run folder.
        agent: index of the agent.
    """
    if not isinstance(trainer.env, Maze2D):
        return
    config, about = trainer.config, ""
    if config.seeds > 1:
        state = take_seed(state, agent)
        about = (
            f"agent {agent} (seed {config.agent_seeds[agent]}), the median of {config.seeds} in "
            f"the final test"
        )
    paths = pictures.record_paths(
        trainer.hierarchy,
        state,
        key_of(config.agent_seeds[agent] + Salt.PICTURES),
        6,
        max(1, trainer.episode_ticks - 1),
    )
    pictures.paths_picture(trainer.env, paths, run / "paths.png", about=about)
    pictures.rollout_gif(trainer.env, paths, run / "rollout.gif")
    if trainer.skill_starts is not None:
        skills_picture(trainer.hierarchy, state, run / "skills.png", about=about)


def _save(trainer: Trainer, state: HierarchyState, path: Path) -> None:
    """Write a checkpoint; of several agents, a folder with one each, there once it is whole."""
    hierarchy = trainer.hierarchy
    if trainer.config.seeds == 1:
        hierarchy.save(state, path)
        return
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    if trainer.config.devices > 1:  # one move of all, not one program of all devices a leaf
        state = jax.device_put(state, jax.devices("cpu")[0])
    for i in range(trainer.config.seeds):
        hierarchy.save(take_seed(state, i), _of_agent(part, i))
    shutil.rmtree(path, ignore_errors=True)
    os.replace(part, path)


def _of_agent(checkpoint: Path, i: int) -> Path:
    return checkpoint / f"seed_{i:03d}"


def load_run(
    path: str | Path, seed: int | None = None
) -> tuple[Hierarchy, HierarchyState, Any, Any]:
    """Load what a run folder ended with: (hierarchy, state, env, params).

    Args:
        path: the run folder.
        seed: index of the agent to load, from 0, in a run of several seeds. None for all of them:
            the leaves of the state then have a leading axis, and `take_seed(state, i)` picks one.

    Raises:
        FileNotFoundError: if it is no run folder, or has no checkpoint yet.
        ValueError: if the run has no such agent.
    """
    trainer, state = load_trainer(Path(path), seed)
    return trainer.hierarchy, state, trainer.env, trainer.params


def load_trainer(run: Path, seed: int | None = None) -> tuple[Trainer, HierarchyState]:
    """The trainer of a run folder and the state of its last checkpoint; see `load_run`."""
    run = Path(run)
    config = load_config(run)
    if seed is not None and not 0 <= seed < config.seeds:
        count = "1 agent" if config.seeds == 1 else f"{config.seeds} agents"
        raise ValueError(
            f"there is no agent {seed} in {run}: the run has {count}, "
            f"take one from 0 to {config.seeds - 1}."
        )
    checkpoint = _last_checkpoint(run)
    trainer = Trainer.build(config)
    load: Callable[[Path], HierarchyState] = trainer.hierarchy.load
    if config.seeds == 1:
        return trainer, load(checkpoint)
    if seed is not None:
        return trainer, load(_of_agent(checkpoint, seed))
    states = [load(_of_agent(checkpoint, i)) for i in range(config.seeds)]
    return trainer, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _last_checkpoint(run: Path) -> Path:
    checkpoints = run / "checkpoints"
    if (checkpoints / "final").is_dir():
        return checkpoints / "final"
    saved = sorted(p for p in checkpoints.glob("step_*") if not p.name.endswith(".part"))
    if not saved:
        raise FileNotFoundError(f"{run} holds no checkpoint: the run has not got that far.")
    return saved[-1]
