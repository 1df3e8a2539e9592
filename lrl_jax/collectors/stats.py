"""Statistics of collected experience."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class SequenceSummaryStats:
    """Mean, population standard deviation, maximum and minimum of a sequence."""

    mean: float
    std: float
    max: float
    min: float

    @classmethod
    def of(cls, values: np.ndarray) -> SequenceSummaryStats | None:
        """Summarise values [N]; None if there are none."""
        if not len(values):
            return None
        values = np.asarray(values, np.float64)
        return cls(
            float(values.mean()), float(values.std()), float(values.max()), float(values.min())
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectStatsBase:
    """The most basic statistics."""

    n_collected_episodes: int = 0
    n_collected_steps: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CollectStats(CollectStatsBase, Mapping):
    """Statistics of a call of collect; also reads as a mapping of plain numbers.

    Attributes:
        n_collected_episodes: episodes that finished.
        n_collected_steps: environment steps, all instances together.
        collect_time: seconds, around finished device work.
        collect_speed: environment steps per second.
        returns: returns of the finished episodes in order of completion (by tick, then
            instance), float [N].
        lens: their lengths, int [N].
        successes: whether they saw success at any step, bool [N].
        successes_at_end: whether they saw it at their last step, bool [N].
        returns_stat, lens_stat: summaries, None where no episode finished.
        mean_reward: mean reward per environment step.
        learning: metrics of the updates, `level{i}/{name}`.
        tests: results of the interim tests, (step, keys of `Collector.test`).
        truncated_by_limit: episodes that were still open when `max_steps` was reached; they are
            not counted.
        n_steps_beyond: steps that an `AsyncCollector` took beyond those asked for.
    """

    collect_time: float = 0.0
    collect_speed: float = 0.0
    returns: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    lens: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    successes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    successes_at_end: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    mean_reward: float = 0.0
    learning: dict[str, float] = dataclasses.field(default_factory=dict)
    tests: tuple[tuple[int, dict[str, Any]], ...] = ()
    truncated_by_limit: int = 0
    n_steps_beyond: int = 0
    returns_stat: SequenceSummaryStats | None = None
    lens_stat: SequenceSummaryStats | None = None

    def __post_init__(self):
        for name, values in (("returns_stat", self.returns), ("lens_stat", self.lens)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, SequenceSummaryStats.of(values))

    def _mapping(self) -> dict[str, Any]:
        some = len(self.returns) > 0
        return {
            "n_episodes": self.n_collected_episodes,
            "n_steps": self.n_collected_steps,
            "mean_reward": self.mean_reward,
            "mean_return": float(self.returns.mean()) if some else None,
            "mean_episode_length": float(self.lens.mean()) if some else None,
            "success_rate": float(self.successes.mean()) if some else None,
            "collect_time": self.collect_time,
            "collect_speed": self.collect_speed,
            **self.learning,
        }

    def __getitem__(self, name: str) -> Any:
        return self._mapping()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._mapping())

    def __len__(self) -> int:
        return len(self._mapping())
