"""Hindsight experience replay (Andrychowicz et al. 2017), strategy "future"."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax import buffers, envs
from lrl_jax.settings import check_float


@dataclasses.dataclass(frozen=True)
class RewardOf:
    """`compute_reward` of an environment; equal for equal environments, as methods are not."""

    env: Any

    def __call__(self, achieved_goal, desired_goal, info) -> jax.Array:
        """Rewards [B] of achieved and desired goals [B, G]."""
        return self.env.compute_reward(achieved_goal, desired_goal, info)


@dataclasses.dataclass(frozen=True)
class Hindsight:
    """Pretends, in some of the sampled rows, that a goal reached later had been the one desired.

    The goal of a relabelled row is what was achieved at its end or at the end of a row behind it,
    uniform over the rest of its episode as far as it is stored. All rows of a piece of trajectory
    get the same goal.

    Attributes:
        reward_fn: (achieved goals [B, G], desired goals [B, G], info) -> rewards [B], as
            Gymnasium's `compute_reward`. The achieved goals are those of the next observation; info
            is a dict of the rows' other fields, [B, ...]. Stored rewards are sums over
            `info["elapsed_env_steps"]` environment steps: above a level that holds control for
            several, `reward_fn` must be on that scale.
        achieved_goal: [start, stop) of the achieved goal in the (mapped, flat) observation, as
            `lrl_jax.envs.goal_indices` gives it.
        desired_goal: the same of the desired goal; None if the level's input is the goal. In that
            case the reward of all rows comes from `reward_fn`.
        ratio: fraction of rows, or pieces, that are relabelled.
        terminated_fn: like `reward_fn`, whether rows terminate, bool [B], where `reward_fn` is
            used; `info["terminated"]` is what is stored. None keeps that.
    """

    reward_fn: Callable[[jax.Array, jax.Array, dict[str, jax.Array]], jax.Array]
    achieved_goal: tuple[int, int]
    desired_goal: tuple[int, int] | None
    ratio: float = 0.8
    terminated_fn: Callable[[jax.Array, jax.Array, dict[str, jax.Array]], jax.Array] | None = None

    def __post_init__(self):
        if not callable(self.reward_fn):
            raise TypeError(f"reward_fn is not callable: {self.reward_fn!r}.")
        names = (
            ("achieved_goal",) if self.desired_goal is None else ("achieved_goal", "desired_goal")
        )
        for name in names:
            given = tuple(getattr(self, name))
            if len(given) != 2 or not 0 <= given[0] < given[1]:
                raise ValueError(f"{name} must be (start, stop) of some entries, got {given}.")
            object.__setattr__(self, name, (int(given[0]), int(given[1])))
        if self.desired_goal is not None and _size(self.desired_goal) != self.goal_dim:
            raise ValueError(
                f"the goals differ in size: achieved_goal={self.achieved_goal}, "
                f"desired_goal={self.desired_goal}."
            )
        check_float("ratio", self.ratio, 0.0, 1.0)

    @property
    def goal_dim(self) -> int:
        """Entries of a goal, G."""
        return _size(self.achieved_goal)

    @classmethod
    def of_env(cls, env: Any, ratio: float = 0.8) -> Hindsight:
        """For a goal-based environment that has `compute_reward`, observations not mapped.

        Raises:
            TypeError: if it has none.
        """
        if not callable(getattr(env, "compute_reward", None)):
            raise TypeError(
                f"{type(env).__name__} has no compute_reward: give Hindsight a reward_fn and the "
                f"entries of both goals."
            )
        indices = envs.goal_indices(env)
        return cls(RewardOf(env), indices["achieved_goal"], indices["desired_goal"], ratio)

    def check(self, obs_dim: int, input_dim: int | None) -> None:
        """Refuse entries that an observation of that size, or a level's input, does not have.

        Args:
            obs_dim: entries of the mapped observation.
            input_dim: entries of the level's input, None without one.
        """
        stop = max(self.achieved_goal[1], (self.desired_goal or (0, 0))[1])
        if stop > obs_dim:
            raise ValueError(
                f"hindsight uses entries up to {stop}, but the level sees {obs_dim} entries: "
                f"count in the mapped observation."
            )
        if self.desired_goal is None and input_dim != self.goal_dim:
            raise ValueError(
                f"desired_goal=None takes the level's input for the goal: it has {input_dim} "
                f"entries, but achieved_goal={self.achieved_goal} has {self.goal_dim}."
            )

    def relabel(
        self, buffer: buffers.Buffer, ids: jax.Array, rows: dict[str, Any], key: jax.Array
    ) -> dict[str, Any]:
        """Relabel gathered rows; consumes `key`.

        Args:
            buffer: where the rows were gathered.
            ids: their row ids, [B], or [T, B] for pieces of trajectories.
            rows: fields [B, ...] or [T, B, ...].
            key: typed key.

        Returns:
            Fields of the same shapes.
        """
        first = ids if ids.ndim == 1 else ids[0]
        u_steps, u_ratio = jax.random.uniform(key, (2, *first.shape))
        behind = buffers.rows_after(buffer, first)
        steps = jnp.minimum((u_steps * (behind + 1)).astype(jnp.int32), behind)
        later = buffers.gather(buffer, buffers.ids_after(buffer, first, steps))
        achieved = slice(*self.achieved_goal)
        goal = later["obs_next"][..., achieved]
        goal = jnp.broadcast_to(goal, (*ids.shape, goal.shape[-1]))
        chosen = jnp.broadcast_to(u_ratio < self.ratio, ids.shape)
        rows = dict(rows)
        if self.desired_goal is None:
            old = rows["level_input"].reshape(goal.shape)
            goal = jnp.where(chosen[..., None], goal, old)
            rows["level_input"] = goal.reshape(rows["level_input"].shape)
        else:
            for name in ("obs", "obs_next"):
                old = rows[name]
                new = old.at[..., slice(*self.desired_goal)].set(goal.astype(old.dtype))
                rows[name] = jnp.where(chosen[..., None], new, old)
        reached = rows["obs_next"][..., achieved]
        info = {k: v for k, v in rows.items() if k != "rew"}
        flat = jax.tree.map(
            lambda x: x.reshape(ids.size, *x.shape[ids.ndim :]), (reached, goal, info)
        )
        rew = jnp.asarray(self.reward_fn(*flat), jnp.float32).reshape(ids.shape)
        everywhere = self.desired_goal is None
        rows["rew"] = rew if everywhere else jnp.where(chosen, rew, rows["rew"])
        if self.terminated_fn is not None:
            ends = jnp.asarray(self.terminated_fn(*flat), bool).reshape(ids.shape)
            rows["terminated"] = ends if everywhere else jnp.where(chosen, ends, rows["terminated"])
        return rows


def _size(indices: tuple[int, int]) -> int:
    return indices[1] - indices[0]
