"""The results of a run, and the final test of its agents."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrl_jax.hierarchies import HierarchyState
from lrl_jax.training.folder import SUMMARY
from lrl_jax.training.sessions import test_episodes
from lrl_jax.training.statistics import bootstrap_interval, interquartile_mean
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
            the environment reports no success.
        test_return: mean return of the final test.
        test_return_std: std of its episodes' returns, the mean over agents.
        test_episodes: its episodes, of each agent.
        test_seconds: its duration, compilation included.
        seeds: of the agents.
        success_of_seeds, return_of_seeds: of each agent in the final test.
        success_interval, return_interval: low and high.
        success_at_end_of_seeds: the same, of success at the last step.
        test_success_at_end: fraction of episodes with success at their last step, or None.
        settings_of_seeds: the swept settings of each agent, by path; empty without a sweep.
        pictured: index of the agent in the pictures: the median one in the final test.
        stopped_at: the figure of the interim test that reached `stop_at` and ended the run; None
            where it ended otherwise.
    """

    run: str
    env_steps: int
    train_seconds: float
    steps_per_second: float
    test_success: float | None
    test_success_at_end: float | None
    test_return: float
    test_return_std: float
    test_episodes: int
    test_seconds: float
    seeds: tuple[int, ...]
    success_of_seeds: tuple[float, ...] | None
    success_at_end_of_seeds: tuple[float, ...] | None
    return_of_seeds: tuple[float, ...]
    success_interval: tuple[float, float] | None
    return_interval: tuple[float, float] | None
    settings_of_seeds: tuple[dict[str, float], ...]
    pictured: int
    stopped_at: float | None = None

    def __str__(self) -> str:
        """What was reached, and how long it took."""
        agents = len(self.seeds) > 1
        return (
            f"{_results(self)} over {self.test_episodes} test episodes"
            f"{' of each agent' if agents else ''} after {self.env_steps} environment steps\n"
            f"training took {self.train_seconds:.0f} s with compilation and interim tests "
            f"({self.steps_per_second:.0f} environment steps/s while training"
            f"{', summed over agents' if agents else ''})"
        )

    def save(self) -> None:
        """Write the run's summary.json; there is a whole one at any moment."""
        path = Path(self.run) / SUMMARY
        part = path.with_name(f"{SUMMARY}.part")
        part.write_text(json.dumps(dataclasses.asdict(self), indent=2))
        os.replace(part, path)

    @classmethod
    def load(cls, run: Path) -> Summary | None:
        """The summary of a run folder; None where the run has not ended."""
        path = run / SUMMARY
        if not path.is_file():
            return None
        data = json.loads(path.read_text())
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            value = data.get(field.name)
            fields[field.name] = tuple(value) if isinstance(value, list) else value
        return cls(**fields)


def final_test(
    trainer: Trainer,
    state: HierarchyState,
    run: Path,
    seconds: float,
    speed: float,
    stopped_at: float | None = None,
) -> Summary:
    """Test what a run ended with; see Summary."""
    config = trainer.config
    start = time.monotonic()
    many = config.n_agents > 1
    seeds = config.agent_seeds if many else config.seed
    episodes = test_episodes(trainer, state, config.final_test_episodes, seeds)
    test_seconds = time.monotonic() - start
    returns = np.atleast_2d(np.asarray(episodes.episode_return, np.float64))
    return_of = returns.mean(axis=1)
    success_of = end_of = None
    if trainer.has_success:
        success_of = np.atleast_2d(episodes.success).mean(axis=1)
        end_of = np.atleast_2d(episodes.success_at_end).mean(axis=1)
    rank = np.lexsort((return_of,) if success_of is None else (return_of, success_of))
    total = state.n_total_env_steps
    return Summary(
        run=str(run),
        env_steps=int(take_seed(total, 0) if many else total),
        train_seconds=round(seconds, 1),
        steps_per_second=round(speed, 1),
        test_success=None if success_of is None else float(interquartile_mean(success_of)),
        test_success_at_end=None if end_of is None else float(interquartile_mean(end_of)),
        test_return=float(interquartile_mean(return_of)),
        test_return_std=float(returns.std(axis=1).mean()),
        test_episodes=config.final_test_episodes,
        test_seconds=round(test_seconds, 1),
        seeds=config.agent_seeds,
        success_of_seeds=None if success_of is None else tuple(success_of.tolist()),
        success_at_end_of_seeds=None if end_of is None else tuple(end_of.tolist()),
        return_of_seeds=tuple(return_of.tolist()),
        success_interval=_interval(success_of) if many and success_of is not None else None,
        return_interval=_interval(return_of) if many else None,
        settings_of_seeds=config.agent_settings if config.sweep else (),
        pictured=int(rank[(len(rank) - 1) // 2]),
        stopped_at=stopped_at,
    )


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = bootstrap_interval(values)
    return float(low), float(high)


# ------------------------------------------------------------------------ text


def _results(summary: Summary) -> str:
    if summary.return_interval is None:
        if summary.test_success is None:
            return f"return {summary.test_return:.1f} +- {summary.test_return_std:.1f}"
        return (
            f"success {summary.test_success:.3f} (at the last step "
            f"{summary.test_success_at_end:.3f}), return {summary.test_return:.1f}"
        )
    if not summary.settings_of_seeds:
        return over_agents(summary.success_of_seeds, summary.return_of_seeds)
    return "\n".join(
        f"{', '.join(f'{path}={x:g}' for path, x in swept)}: {_of_combination(summary, swept)}"
        for swept in dict.fromkeys(tuple(x.items()) for x in summary.settings_of_seeds)
    )


def _of_combination(summary: Summary, swept: Any) -> str:
    """What the agents with some of the swept settings reached."""
    mine = [tuple(x.items()) == swept for x in summary.settings_of_seeds]

    def pick(values: Sequence[float] | None) -> Sequence[float] | None:
        return values and [x for x, own in zip(values, mine, strict=True) if own]

    return over_agents(pick(summary.success_of_seeds), pick(summary.return_of_seeds) or [])


def over_agents(success: Sequence[float] | None, returns: Sequence[float]) -> str:
    """The interquartile mean with its interval, of success (where there is) and return."""

    def figure(values: Sequence[float], digits: int) -> str:
        low, high = bootstrap_interval(values)
        mean = interquartile_mean(values)
        return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    parts = [] if success is None else [f"success {figure(success, 3)}"]
    parts.append(f"return {figure(returns, 1)}")
    return (
        f"{', '.join(parts)} (interquartile mean of {len(returns)} agents, 95% bootstrap interval)"
    )
