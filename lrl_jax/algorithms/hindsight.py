"""Hindsight experience replay (Andrychowicz et al. 2017), strategy "future"."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.buffers import Replay, Row
from lrl_jax.buffers.rows import to_fields
from lrl_jax.env_spec import goal_indices, is_gymnasium
from lrl_jax.settings import check_float, check_function, check_range, optional, put_checked


def _said_of_goals(env, method, dtype, achieved_goal, desired_goal, info) -> jax.Array:
    """What a method says of goals [B, G], [B]; Gymnasium's are called on the host."""
    if not is_gymnasium(env):
        return getattr(env, method)(achieved_goal, desired_goal, info)

    def on_host(achieved_goal, desired_goal, info):
        arrays = jax.tree.map(np.asarray, (achieved_goal, desired_goal, info))
        said = np.asarray(env.get_wrapper_attr(method)(*arrays), dtype)
        if said.shape != (len(achieved_goal),):
            raise ValueError(
                f"{method} of {type(env.unwrapped).__name__} gave {said.shape} for goals of shape "
                f"{np.shape(achieved_goal)}: hindsight asks for many goals at a time."
            )
        return said

    result = jax.ShapeDtypeStruct(achieved_goal.shape[:1], jnp.dtype(dtype))
    goals = (achieved_goal, desired_goal, info)
    return jax.pure_callback(on_host, result, *goals, vmap_method="sequential")


def _one_of(env: Any) -> Any:
    """An environment's first instance, where it is a vector of Gymnasium's."""
    if not isinstance(env, gymnasium.vector.VectorEnv):
        return env
    there = getattr(env.unwrapped, "envs", None)  # other processes do not show theirs
    if there:
        return there[0]
    if env.spec is None:
        raise TypeError(
            f"{type(env).__name__} shows no instance and has no spec to make one of, which "
            f"hindsight needs for compute_reward: give Hindsight a reward_fn, or register the "
            f"environment and use gymnasium.make_vec."
        )
    of_vectors = ("num_envs", "vectorization_mode", "vector_kwargs", "wrappers")
    settings = {k: v for k, v in env.spec.kwargs.items() if k not in of_vectors}
    return gymnasium.make(env.spec.id, **settings)


def _has(env: Any, method: str) -> bool:
    if isinstance(env, gymnasium.Env):
        return env.has_wrapper_attr(method)
    return callable(getattr(env, method, None))


@dataclasses.dataclass(frozen=True)
class RewardOf:
    """`compute_reward` of an environment, on the scale of rows that take several of its steps.

    Of such a row only the end is known: each of its steps counts as the last one does. Equal for
    equal environments, as methods are not.
    """

    env: Any

    def __call__(self, achieved_goal, desired_goal, info) -> jax.Array:
        """Rewards [B] of achieved and desired goals [B, G]."""
        goals = (achieved_goal, desired_goal, info)
        rew = _said_of_goals(self.env, "compute_reward", jnp.float32, *goals)
        steps = info.get("elapsed_env_steps")
        return rew if steps is None else rew * steps.astype(rew.dtype)


@dataclasses.dataclass(frozen=True)
class TerminationOf:
    """`compute_terminated` of an environment."""

    env: Any

    def __call__(self, achieved_goal, desired_goal, info) -> jax.Array:
        """Whether achieved and desired goals [B, G] terminate, bool [B]."""
        goals = (achieved_goal, desired_goal, info)
        return _said_of_goals(self.env, "compute_terminated", bool, *goals)


@dataclasses.dataclass(frozen=True)
class Hindsight:
    """Relabels a fraction of the sampled rows as if a goal reached later had been the desired one.

    The goal of a relabelled row is what was achieved at its end or at the end of a later row,
    uniform over the rest of its episode as far as it is stored. All rows of a piece of trajectory
    get the same goal.

    Without `reward_fn` and goals it takes those of the hierarchy's environment, which must be
    goal based and have `compute_reward`; the level must then see the whole observation. A row of
    several environment steps gets the reward of its end, times their number. A Gymnasium
    environment is asked on the host: the first instance, or one made of the spec.

    Attributes:
        reward_fn: (achieved goals [B, G], desired goals [B, G], info) -> rewards [B], as
            Gymnasium's `compute_reward`. The achieved goals are those of the next observation; info
            is a dict of the rows' other fields, [B, ...]. Stored rewards are sums over
            `info["elapsed_env_steps"]` environment steps: above a level that holds control for
            several, a `reward_fn` of your own must be on that scale.
        achieved_goal: [start, stop) of the achieved goal in the (mapped, flat) observation, as
            `lrl_jax.envs.goal_indices` gives it.
        desired_goal: the same of the desired goal; None if the level's input is the goal. In that
            case the reward of all rows comes from `reward_fn`.
        ratio: fraction of rows, or pieces, that are relabelled.
        terminated_fn: like `reward_fn`, whether rows terminate, bool [B], where `reward_fn` is
            used; `info["terminated"]` is what is stored. None keeps that; from the environment, its
            `compute_terminated` where it has one.
    """

    reward_fn: Callable[[jax.Array, jax.Array, dict[str, jax.Array]], jax.Array] | None = None
    achieved_goal: tuple[int, int] | None = None
    desired_goal: tuple[int, int] | None = None
    ratio: float = 0.8
    terminated_fn: Callable[[jax.Array, jax.Array, dict[str, jax.Array]], jax.Array] | None = None

    def __post_init__(self):
        put_checked(self, check_float, ("ratio",), 0.0, 1.0)
        put_checked(self, optional(check_function), ("terminated_fn",))
        if self.reward_fn is None and self.achieved_goal is None and self.desired_goal is None:
            return  # taken from the environment
        put_checked(self, check_function, ("reward_fn",))
        put_checked(self, check_range, ("achieved_goal",))
        put_checked(self, optional(check_range), ("desired_goal",))
        if self.desired_goal is not None and _size(self.desired_goal) != self.goal_dim:
            raise ValueError(
                f"the goals differ in size: achieved_goal={self.achieved_goal}, "
                f"desired_goal={self.desired_goal}."
            )

    @property
    def goal_dim(self) -> int:
        """Entries of a goal, G."""
        assert self.achieved_goal is not None
        return _size(self.achieved_goal)

    @classmethod
    def of_env(cls, env: Any, ratio: float = 0.8) -> Hindsight:
        """For a goal-based environment that has `compute_reward`, observations not mapped.

        Raises:
            TypeError: if it has none.
        """
        one = _one_of(env)
        if not _has(one, "compute_reward"):
            raise TypeError(
                f"{type(env).__name__} has no compute_reward: give Hindsight a reward_fn and the "
                f"entries of both goals."
            )
        indices = goal_indices(env)
        return cls(
            RewardOf(one),
            indices["achieved_goal"],
            indices["desired_goal"],
            ratio,
            TerminationOf(one) if _has(one, "compute_terminated") else None,
        )

    def bind_env(self, env: Any) -> Hindsight:
        """With the reward and the goals of an environment, where none are given; see `of_env`."""
        if self.reward_fn is not None:
            return self
        found = Hindsight.of_env(env, self.ratio)
        return dataclasses.replace(found, terminated_fn=self.terminated_fn or found.terminated_fn)

    def check(self, obs_dim: int, input_dim: int | None, is_discounted: bool = False) -> None:
        """Refuse entries that an observation of that size, or a level's input, does not have.

        Args:
            obs_dim: entries of the mapped observation.
            input_dim: entries of the level's input, None without one.
            is_discounted: whether rewards inside rows of several steps are.
        """
        assert self.achieved_goal is not None, "bind_env comes first"
        if is_discounted and isinstance(self.reward_fn, RewardOf):
            raise ValueError(
                "hindsight with the environment's own reward adds it up over the steps of a row, "
                "but reward_discount weighs them: give a reward_fn on that scale."
            )
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

    def relabel(self, replay: Replay, rows: Row, key: jax.Array) -> Row:
        """Relabel sampled rows; consumes `key`.

        Args:
            replay: the view that the rows are of.
            rows: [B], or [T, B] for pieces of trajectories.
            key: typed key.
        """
        lead = rows.terminated.shape
        first = rows if len(lead) == 1 else jax.tree.map(lambda x: x[0], rows)
        key_later, key_ratio = jax.random.split(key)
        later, _ = replay.later(key_later, first)
        assert self.achieved_goal is not None
        achieved = slice(*self.achieved_goal)

        def flat_obs(obs, axes=None):
            axes = len(lead) if axes is None else axes
            return obs.reshape(*obs.shape[:axes], math.prod(obs.shape[axes:]))

        goal = flat_obs(later.obs_next, 1)[..., achieved]
        goal = jnp.broadcast_to(goal, (*lead, goal.shape[-1]))
        chosen = jax.random.uniform(key_ratio, lead[-1:], jnp.float32) < self.ratio
        chosen = jnp.broadcast_to(chosen, lead)
        if self.desired_goal is None:
            old = rows.level_input.reshape(goal.shape)
            goal = jnp.where(chosen[..., None], goal, old)
            rows = rows.replace(level_input=goal.reshape(rows.level_input.shape))
        else:
            place = slice(*self.desired_goal)

            def with_goal(old):
                flat = flat_obs(old)
                new = flat.at[..., place].set(goal.astype(old.dtype))
                return jnp.where(chosen[..., None], new, flat).reshape(old.shape)

            rows = rows.replace(obs=with_goal(rows.obs), obs_next=with_goal(rows.obs_next))
        reached = flat_obs(rows.obs_next)[..., achieved]
        fields = to_fields(rows)
        info = {k: x for k, x in fields.items() if k != "rew" and not k.startswith("_")}
        flat = jax.tree.map(
            lambda x: x.reshape(math.prod(lead), *x.shape[len(lead) :]), (reached, goal, info)
        )

        def where_relabelled(fn, old, dtype):
            if fn is None:
                return old
            new = jnp.asarray(fn(*flat), dtype).reshape(lead)
            return new if self.desired_goal is None else jnp.where(chosen, new, old)

        return rows.replace(
            rew=where_relabelled(self.reward_fn, rows.rew, jnp.float32),
            terminated=where_relabelled(self.terminated_fn, rows.terminated, bool),
        )


def _size(indices: tuple[int, int]) -> int:
    return indices[1] - indices[0]
