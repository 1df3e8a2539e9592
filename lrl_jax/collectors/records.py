"""Records of a step: the transition, what each level did, the episode it belongs to.

The same records hold NumPy arrays on the host and JAX arrays on the device.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lrl_jax import struct
from lrl_jax.exact import Sum, module_of
from lrl_jax.tables import aligned, number


class Transitions(struct.Node):
    """Recorded environment transitions, leaves [ticks, n, ...]; rows not valid are zero.

    Attributes:
        obs: observation acted on.
        act: action as decided.
        rew: float32.
        terminated: bool.
        truncated: bool.
        obs_next: next observation, the true final one at an episode's end.
        valid: bool, whether the instance took this step.
    """

    obs: Any
    act: Any
    rew: Any
    terminated: Any
    truncated: Any
    obs_next: Any
    valid: Any


class LevelTransitions(struct.Node):
    """What one level did in each tick, leaves [ticks, n, ...]; zero where no step was taken.

    Attributes:
        decided: bool, whether the level decided in this tick.
        level_input: what the level above holds, [ticks, n, 0] for level 0.
        act: the decision it holds.
        store: fields that the decision keeps for the level's row, a dict; {} without.
        closed: bool, whether the level closed its row at the end of this tick.
        hands_back: bool, whether control went up then; at the end of an episode everywhere.
    """

    decided: Any
    level_input: Any
    act: Any
    store: Any
    closed: Any = None
    hands_back: Any = None


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
        summaries = (np.mean, np.std, np.max, np.min)
        return cls(*(float(of(np.asarray(values, np.float64))) for of in summaries))

    def __str__(self) -> str:
        """As in tables, the range in the order of numbers."""
        mean, std, high, low = (number(x) for x in dataclasses.astuple(self))
        return f"{mean} +- {std} ({low} to {high})"


class Episodes(struct.Node):
    """An episode of each instance, [n] each.

    Attributes:
        episode_return: float, as far as it went.
        length: int32.
        success: bool, at any step.
        success_at_end: bool, at its last step; False before that.
        finished: bool, whether it has ended.
        told: bool, whether the environment has reported success or its absence at any step.
    """

    episode_return: Any
    length: Any
    success: Any
    success_at_end: Any
    finished: Any
    told: Any

    def __str__(self) -> str:
        """A short table of those that have finished; plain numbers only, as outside of a jit."""
        if isinstance(self.finished, Tracer):
            return repr(self)
        ended = np.asarray(self.finished).ravel()
        n, told = int(ended.sum()), np.any(np.asarray(self.told).ravel() & ended)
        values = {
            name: np.asarray(getattr(self, name)).ravel()[ended]
            for name in ("episode_return", "length", "success", "success_at_end")
        }
        rows: list[tuple[str, Any]] = [
            ("episodes", number(n)),
            ("return", SequenceSummaryStats.of(values["episode_return"])),
            ("length", SequenceSummaryStats.of(values["length"])),
            ("success", number(float(values["success"].mean())) if told else None),
            ("success at end", number(float(values["success_at_end"].mean())) if told else None),
            ("unfinished", number(ended.size - n) if n < ended.size else None),
        ]
        return aligned([row for row in rows if row[1] is not None])


class Sums(struct.Node):
    """Sums over the episode that each instance is in, [n] each.

    Attributes:
        episode_return: a Sum, float32 on the device, float64 on the host.
        length: int32.
        success: bool, whether success was seen.
        told: bool, whether the environment has reported it or its absence.
    """

    episode_return: Sum
    length: Any
    success: Any
    told: Any

    @classmethod
    def zero(cls, n: int, xp: Any = jnp) -> Sums:
        """Before the first step, in NumPy or jax.numpy."""
        reward = np.float64 if xp is np else np.float32
        no = xp.zeros(n, bool)
        nothing = Sum(xp.zeros(n, reward), xp.zeros(n, reward))
        return cls(nothing, xp.zeros(n, np.int32), no, no)

    def after(
        self, rew: Any, done: Any, success: Any, told: Any, mask: Any = None
    ) -> tuple[Sums, Episodes]:
        """After a step [n]; instances outside the mask did not take it.

        Returns:
            The sums, zero where the step ended the episode, and the episodes with this step.
        """
        xp = module_of(done)
        if mask is not None:
            rew, done = xp.where(mask, rew, 0.0), done & mask
            success, told = success & mask, told & mask
        total = self.episode_return.plus(rew)
        episodes = Episodes(
            episode_return=total.value,
            length=self.length + (1 if mask is None else mask.astype(self.length.dtype)),
            success=self.success | success,
            success_at_end=success & done,
            finished=done,
            told=self.told | told,
        )
        return Sums(
            total.where(~done),
            xp.where(done, 0, episodes.length),
            episodes.success & ~done,
            episodes.told & ~done,
        ), episodes

    def episodes(self) -> Episodes:
        """The episodes as far as they went, on the device."""
        no = jnp.zeros(self.success.shape, bool)
        value = self.episode_return.value
        return Episodes(value, self.length, self.success, no, no, self.told)

    def cleared(self, mask: np.ndarray) -> Sums:
        """Zero in the mask, on the host: these instances were reset."""
        return jax.tree.map(lambda x: np.where(mask, np.zeros((), x.dtype), x), self)


def wide(mask: Any, like: Any) -> Any:
    """A mask [n] with the axes of `like` [n, ...]."""
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def zeroed(tree: Any, mask: Any) -> Any:
    """Leaves [n, ...], zero outside the mask [n]; unchanged if it is None."""
    if mask is None:
        return tree
    where = module_of(mask).where
    return jax.tree.map(lambda x: where(wide(mask, x), x, np.zeros((), x.dtype)), tree)


def nonfinite(tree: Any) -> Any:
    """Where leaves [n, ...] have a NaN or an infinity, bool [n]; one at least is of floats."""
    values = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    finite = (module_of(x).isfinite(x).all(tuple(range(1, x.ndim))) for x in values)
    return ~functools.reduce(operator.and_, finite)


def decisions(
    active: jax.Array, state: Any, mask: jax.Array | None
) -> tuple[LevelTransitions, ...]:
    """What the levels hold after `get_action`, which began with those active levels [n]."""
    no_input = jnp.zeros((active.shape[0], 0), jnp.float32)
    return tuple(
        LevelTransitions(
            decided=active <= i if mask is None else (active <= i) & mask,
            level_input=state.levels[i - 1].action if i else no_input,
            act=level.action,
            store=level.store,
        )
        for i, level in enumerate(state.levels)
    )


def closings(
    levels: tuple[LevelTransitions, ...], active: Any, done: Any, mask: Any = None
) -> tuple[LevelTransitions, ...]:
    """The same with what `process_transition` did, which left those active levels [n]."""
    return zeroed(
        tuple(
            level.replace(closed=(active <= i) | done, hands_back=(active < i) | done)
            for i, level in enumerate(levels)
        ),
        mask,
    )
