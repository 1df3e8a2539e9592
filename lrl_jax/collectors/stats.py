"""What a call of `collect` returns: its episodes and their statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax import struct
from lrl_jax.collectors.counting import Owed
from lrl_jax.collectors.records import (
    Episodes,
    LevelTransitions,
    SequenceSummaryStats,
    Transitions,
)
from lrl_jax.tables import aligned, number

#: Words for what LayeredRL says otherwise, in statistics and in results of tests.
ALIASES = {
    "mean_return": "return",
    "mean_episode_length": "length",
    "success_rate": "success",
    "test_success_in_ep": "test_success",
    "test_success_frac": "test_success_at_end",
}
_SUMMARISED = ("return", "reward", "success", "success_at_end")  # of interim tests


def with_aliases(values: dict[str, Any]) -> dict[str, Any]:
    """The same values, also under LayeredRL's names."""
    return values | {old: values[new] for old, new in ALIASES.items() if new in values}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectStatsBase:
    """The most basic statistics."""

    n_collected_episodes: int = 0
    n_collected_steps: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CollectStats(CollectStatsBase, Mapping):
    """Statistics of a call of collect; also reads as a mapping of plain numbers.

    As a mapping it has `n_episodes`, `n_steps`, `mean_reward` and, of the finished episodes, the
    mean `return` and `length`, and the fractions with success at any step (`success`) and at the
    last (`success_at_end`); None without episodes or where the environment reports no success.
    LayeredRL's `mean_return`, `mean_episode_length` and `success_rate` are the same. With interim
    tests also `mean_test_return`, `last_test_return` and `last_5_test_return` (over all tests, of
    the last, over the last five), and the same for reward, success and success_at_end.

    Attributes:
        n_collected_episodes: episodes that finished.
        n_collected_steps: environment steps, summed over instances.
        collect_time: seconds, around finished device work.
        collect_speed: environment steps per second.
        returns: returns of the finished episodes in order of completion (by tick, then
            instance), float [N].
        lens: their lengths, int [N].
        successes: whether they saw success at any step, bool [N].
        successes_at_end: whether they saw it at their last step, bool [N].
        successes_told: whether the environment reported it or its absence, bool [N]. Where it
            reports none, success rates are None.
        returns_stat, lens_stat: summaries, None where no episode finished.
        mean_reward: mean reward per environment step.
        learning: metrics of the updates, `level{i}/{name}`.
        tests: results of the interim tests, (step, keys of `Collector.test`).
        truncated_by_limit: episodes that were still open when `max_steps` was reached; they are
            not counted.
        n_nonfinite: steps that were dropped, as their reward, observation or signals were NaN or
            infinite.
        n_steps_beyond: steps that an `AsyncCollector` took beyond those asked for.
    """

    collect_time: float = 0.0
    collect_speed: float = 0.0
    returns: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    lens: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    successes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    successes_at_end: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    successes_told: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    mean_reward: float = 0.0
    learning: dict[str, float] = dataclasses.field(default_factory=dict)
    tests: tuple[tuple[int, dict[str, Any]], ...] = ()
    truncated_by_limit: int = 0
    n_steps_beyond: int = 0
    n_nonfinite: int = 0
    returns_stat: SequenceSummaryStats | None = None
    lens_stat: SequenceSummaryStats | None = None

    def __post_init__(self):
        for name, values in (("returns_stat", self.returns), ("lens_stat", self.lens)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, SequenceSummaryStats.of(values))

    @property
    def episodes(self) -> Episodes:
        """The finished episodes, leaves [N]."""
        return Episodes(
            episode_return=self.returns,
            length=self.lens,
            success=self.successes,
            success_at_end=self.successes_at_end,
            finished=np.ones(len(self.lens), bool),
            told=self.successes_told,
        )

    def rate(self, successes: np.ndarray) -> float | None:
        """Fraction of the finished episodes; None where the environment reports no success."""
        return float(successes.mean()) if self.successes_told.any() else None

    def __str__(self) -> str:
        """A short table."""
        values = self._mapping()
        rows: list[tuple[str, Any]] = [
            ("episodes", number(self.n_collected_episodes)),
            ("steps", number(self.n_collected_steps)),
            ("return", self.returns_stat),
            ("length", self.lens_stat),
            ("success", number(values["success"])),
            ("success at end", number(values["success_at_end"])),
            ("mean reward", number(self.mean_reward)),
            ("steps/s", number(round(self.collect_speed)) if self.collect_time else None),
        ]
        if self.tests:
            words = ("return", "success")
            last = {word: number(values[f"last_test_{word}"]) for word in words}
            told = ", ".join(f"{word} {x}" for word, x in last.items() if x is not None)
            rows.append((f"last of {len(self.tests)} tests", told))
        rows += [(name, number(float(x))) for name, x in self.learning.items()]
        for name, x in (("dropped", self.n_nonfinite), ("unfinished", self.truncated_by_limit)):
            rows += [(name, number(x))] if x else []
        return aligned([row for row in rows if row[1] is not None])

    def _mapping(self) -> dict[str, Any]:
        some = len(self.returns) > 0
        values = {
            "n_episodes": self.n_collected_episodes,
            "n_steps": self.n_collected_steps,
            "mean_reward": self.mean_reward,
            "return": float(self.returns.mean(dtype=np.float64)) if some else None,
            "length": float(self.lens.mean()) if some else None,
            "success": self.rate(self.successes),
            "success_at_end": self.rate(self.successes_at_end),
            "collect_time": self.collect_time,
            "collect_speed": self.collect_speed,
        }
        return with_aliases(values) | self._of_tests() | self.learning

    def _of_tests(self) -> dict[str, Any]:
        """Interim tests in numbers; those without an episode that ended count for nothing."""
        out = {}
        for word in _SUMMARISED if self.tests else ():
            values = [result[f"test_{word}"] for _, result in self.tests]
            for name, some in (("mean", values), ("last_5", values[-5:])):
                told = [x for x in some if x is not None]
                out[f"{name}_test_{word}"] = float(np.mean(told)) if told else None
            out[f"last_test_{word}"] = values[-1]
        return out

    def __getitem__(self, name: str) -> Any:
        return self._mapping()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._mapping())

    def __len__(self) -> int:
        return len(self._mapping())


def mean_over_updates(metrics: dict[str, Any]) -> dict[str, Any]:
    """Combine metrics of several calls of learn, [rounds] each, weighted by their updates."""
    out = {}
    for name, value in metrics.items():
        level, _, short = name.partition("/")
        weight = metrics[f"{level}/n_updates"]
        if short == "n_updates":
            out[name] = value.sum()
        else:
            out[name] = (value * weight).sum() / jnp.maximum(weight.sum(), 1.0)
    return out


def diverged(name: str, values: Any) -> str | None:
    """What is wrong with a metric `level{i}/{name}` of updates; None if it is finite."""
    values = np.asarray(values)
    if np.isfinite(values).all():
        return None
    level, _, metric = name.partition("/")
    return (
        f"the updates of {level} diverged: {metric} is {values[~np.isfinite(values)][0]}. Lower "
        f"its learning rate or scale its rewards, and continue from an older checkpoint."
    )


def check_finite(metrics: dict[str, Any]) -> dict[str, Any]:
    """Refuse what a rollout with `stop_at_nan` came upon, and losses that are not finite.

    Args:
        metrics: of a rollout, scalars, or [seeds] each.

    Returns:
        The metrics without `nonfinite_tick` and `nonfinite_instance`.

    Raises:
        FloatingPointError: with the instance and the tick, or the level and the metric.
    """
    metrics = dict(metrics)
    found = [metrics.pop(f"nonfinite_{name}", -1) for name in ("tick", "instance")]
    ticks, instances = (np.atleast_1d(np.asarray(x)) for x in found)
    for agent in np.flatnonzero(ticks >= 0).tolist():
        raise FloatingPointError(
            f"instance {instances[agent]} had a reward, an observation or a signal that is not "
            f"finite at tick {ticks[agent]} of the rollout"
            + (f" of agent {agent}" if len(ticks) > 1 else "")
            + ": nothing of it was stored or learned from. Mend the environment; a Collector with "
            'nan="drop" continues without such steps.'
        )
    for name, values in metrics.items():
        wrong = diverged(name, values) if name.startswith("level") else None
        if wrong is not None:
            raise FloatingPointError(wrong)
    return metrics


class Record(struct.Node):
    """Some ticks on the host.

    Attributes:
        episodes: that each instance is in, leaves [ticks, n]; those finished count.
        reward: sum over the steps of a tick, float [ticks].
        steps: steps taken in a tick, summed over instances, int [ticks].
        metrics: of the updates, leaves [ticks].
        transitions: leaves [ticks, n, ...], or None.
        levels: one per level, leaves [ticks, n, ...], or None.
        obs_next: [n, ...] of the last tick where ticks are taken one by one, else None.
        frame: state of the first instance's JAX environment after the last tick, before any reset,
            where it is drawn and can be had.
    """

    episodes: Episodes
    reward: Any
    steps: Any
    metrics: dict[str, Any]
    transitions: Transitions | None = None
    levels: tuple[LevelTransitions, ...] | None = None
    obs_next: Any = None
    frame: Any = None

    @property
    def n_ticks(self) -> int:
        """Number of ticks."""
        return len(self.steps)


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Steps of a tick that were not finite.

    Attributes:
        tick: number of the tick, from 0.
        bad: whose step, bool [n].
        rew, obs_next, signals: of the step, [n, ...].
    """

    tick: int
    bad: np.ndarray
    rew: np.ndarray
    obs_next: np.ndarray
    signals: dict[str, np.ndarray]

    def described(self) -> str:
        """What is wrong with the first instances."""
        ids = np.flatnonzero(self.bad)
        texts = []
        for i in ids[:3].tolist():
            parts = [("reward", self.rew[i])]
            parts += [(f"signal {name!r}", values[i]) for name, values in self.signals.items()]
            wrong = [f"{name} {value}" for name, value in parts if not np.isfinite(value)]
            entries = np.flatnonzero(~np.isfinite(self.obs_next[i])).tolist()
            if entries:
                first = self.obs_next[i].ravel()[entries[0]]
                wrong.append(f"observation with {first} at {entries[:5]}")
            of = " and ".join(wrong) or "observation after the reset that is not finite"
            texts.append(f"instance {i} has a {of}")
        return "; ".join(texts) + (f"; and {len(ids) - 3} more" if len(ids) > 3 else "")


class _Totals:
    """Sums over ticks; of their episodes those that finished are kept, nothing per tick."""

    def __init__(self):
        self.n_ticks, self.n_steps, self.reward = 0, 0, 0.0
        self._episodes: dict[str, list[np.ndarray]] = {name: [] for name in _OF_EPISODES}
        self._metrics: dict[str, float] = {}  # sums, weighted by the updates

    def add(self, record: Record) -> None:
        self.n_ticks += record.n_ticks
        self.n_steps += int(record.steps.sum())
        self.reward += float(record.reward.sum())
        finished = np.asarray(record.episodes.finished)
        if finished.any():
            for name, parts in self._episodes.items():
                parts.append(np.asarray(getattr(record.episodes, name))[finished])
        for name, values in record.metrics.items():
            values, updates = np.asarray(values, np.float64), _updates_of(record.metrics, name)
            is_count = name.endswith(_N_UPDATES)
            total = values.sum() if is_count else (values * updates).sum()
            self._metrics[name] = self._metrics.get(name, 0.0) + float(total)

    def episodes(self, name: str) -> np.ndarray:
        """Of those that finished, in order of completion."""
        parts = self._episodes[name]
        return np.concatenate(parts) if parts else np.zeros(0, _OF_EPISODES[name])

    def learning(self) -> dict[str, float]:
        """Metrics of the updates, means over these; their numbers are summed."""
        out = {}
        for name, total in self._metrics.items():
            updates = _updates_of(self._metrics, name)
            out[name] = total if name.endswith(_N_UPDATES) else total / max(updates, 1.0)
        return out


_N_UPDATES = "/n_updates"
_OF_EPISODES: dict[str, Any] = {
    "episode_return": np.float64,
    "length": np.int32,
    "success": bool,
    "success_at_end": bool,
    "told": bool,
}


def _updates_of(metrics: dict[str, Any], name: str) -> Any:
    """Updates of the level that a metric is of."""
    return metrics[name.partition("/")[0] + _N_UPDATES]


class Collected:
    """What a request brought. It grows with the episodes, and what is recorded, alone.

    Args:
        mode: of counting, see `counting.MODES`.
        owed: what is still owed.

    Attributes:
        latest: records of the current chunk of ticks.
        owed: what is still owed.
        seconds: they took.
    """

    def __init__(self, mode: str, owed: Owed):
        self.mode, self.owed, self.seconds = mode, owed, 0.0
        self.latest: list[Record] = []
        self._recorded: list[tuple[Any, Any]] = []
        self._all, self._recent = _Totals(), _Totals()
        self._dropped: Dropped | None = None  # the last, until it was looked at
        self._n_nonfinite = 0
        self._shown: dict[str, str | None] = {}

    def show(self, values: Mapping[str, float | None]) -> None:
        """Show values in progress bars; None is left out."""
        self._shown |= {name: number(x) for name, x in values.items() if x is not None}

    def shown(self) -> dict[str, str | None]:
        """What a progress bar says: of the episodes that ended last, and what it was told."""
        lately = _Totals()
        for record in self.latest:
            lately.add(record)
        returns = lately.episodes("episode_return")
        if len(returns):
            told = lately.episodes("told").any()
            rate = float(lately.episodes("success").mean()) if told else None
            self.show({"return": float(returns.mean()), "success": rate})
        return self._shown

    def add(self, record: Record) -> None:
        """Count some ticks in."""
        self.latest.append(record)
        self._all.add(record)
        self._recent.add(record)
        if record.transitions is not None:
            self._recorded.append((record.transitions, record.levels))

    def drop(self, dropped: Dropped) -> None:
        """Count steps that were not finite."""
        self._dropped = dropped
        self._n_nonfinite += int(dropped.bad.sum())

    def check(self, start: int, raises: bool) -> None:
        """Look at what came in the current chunk.

        Args:
            start: number of the first tick.
            raises: whether steps that were not finite are an error; losses always are.

        Raises:
            FloatingPointError: with the instance and the tick, or the level and the metric.
        """
        found = self._dropped
        if found is not None and raises:
            raise FloatingPointError(
                f"{found.described()} at tick {start + found.tick}: that step was dropped and its "
                f'episode cut, nothing of it was stored. Mend the environment, or pass nan="drop" '
                f'to continue and count such steps (stats.n_nonfinite), or nan="allow".'
            )
        for record in self.latest:
            for name, values in record.metrics.items():
                wrong = diverged(name, values)
                if wrong is not None:
                    raise FloatingPointError(f'{wrong} Or learn on with nan="allow".')

    @property
    def n_ticks(self) -> int:
        """Ticks taken."""
        return self._all.n_ticks

    @property
    def n_open(self) -> int:
        """Episodes that a limit left open; 0 where steps are counted."""
        return int(np.sum(self.owed.active)) if self.mode.startswith("n_episodes") else 0

    @property
    def recorded(self) -> tuple[Any, ...]:
        """The transitions and, where asked for, what the levels did, leaves [ticks, n, ...]."""
        transitions, levels = jax.tree.map(lambda *x: np.concatenate(x), *self._recorded)
        return (transitions,) if levels is None else (transitions, levels)

    def recent_stats(self) -> CollectStats:
        """Statistics of what came since the last call."""
        recent, self._recent = self._recent, _Totals()
        return self._stats_of(recent)

    def stats(self) -> CollectStats:
        """Statistics of all."""
        return self._stats_of(self._all)

    def _stats_of(self, totals: _Totals) -> CollectStats:
        returns = totals.episodes("episode_return")
        beyond = -int(self.owed.left) if self.mode == "n_steps_or_more" else 0
        return CollectStats(
            n_collected_episodes=len(returns),
            n_collected_steps=totals.n_steps,
            collect_time=self.seconds,
            collect_speed=totals.n_steps / self.seconds if self.seconds else 0.0,
            returns=returns,
            lens=totals.episodes("length").astype(np.int32),
            successes=totals.episodes("success"),
            successes_at_end=totals.episodes("success_at_end"),
            successes_told=totals.episodes("told"),
            mean_reward=totals.reward / max(totals.n_steps, 1),
            learning=totals.learning(),
            truncated_by_limit=self.n_open,
            n_steps_beyond=max(0, beyond),
            n_nonfinite=self._n_nonfinite,
        )
