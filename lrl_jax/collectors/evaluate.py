"""Evaluation: one whole episode in each of n instances, from a reset, in eval mode."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lrl_jax.collectors.rollout import init_carry, tick
from lrl_jax.hierarchies import Hierarchy, HierarchyState


@struct.dataclass
class Episodes:
    """The first episode of each instance, [n] each.

    Attributes:
        episode_return: float32, as far as it went.
        length: int32.
        success: bool, at any step.
        success_at_end: bool, at its last step.
        finished: bool, whether it ended within the ticks allowed.
    """

    episode_return: jax.Array
    length: jax.Array
    success: jax.Array
    success_at_end: jax.Array
    finished: jax.Array


def evaluate(
    hierarchy: Hierarchy,
    env: Any,
    params: Any,
    state: HierarchyState,
    key: jax.Array,
    n_episodes: int,
    max_steps: int,
) -> Episodes:
    """Run one episode in each of `n_episodes` instances; `state` is left alone. Can be traced.

    One episode an instance, whole, so that short ones are not favoured.

    Args:
        hierarchy: evaluated in eval mode.
        env: gymnax environment.
        params: its parameters.
        state: its learners are evaluated; of any number of instances.
        key: consumed.
        n_episodes: number of episodes, n.
        max_steps: ticks; what has not ended by then is reported as not finished.
    """
    hierarchy = hierarchy.eval()
    state_key, carry_key = jax.random.split(key)
    test_state = hierarchy.for_testing(state, state_key, n_episodes)
    carry = init_carry(hierarchy, env, params, carry_key, n_episodes, test_state)
    n = n_episodes
    episodes = Episodes(
        episode_return=jnp.zeros(n, jnp.float32),
        length=jnp.zeros(n, jnp.int32),
        success=jnp.zeros(n, bool),
        success_at_end=jnp.zeros(n, bool),
        finished=jnp.zeros(n, bool),
    )

    def step(loop, _):
        carry, seen = loop
        before = carry
        carry, transitions, ended = tick(hierarchy, env, params, carry)
        running = ~seen.finished
        success = jnp.where(ended.done, ended.success, carry.episode_success)
        seen = Episodes(
            episode_return=jnp.where(
                running, before.episode_return + transitions.rew, seen.episode_return
            ),
            length=seen.length + running,
            success=jnp.where(running, success, seen.success),
            success_at_end=jnp.where(running, ended.success_at_end, seen.success_at_end),
            finished=seen.finished | ended.done,
        )
        return (carry, seen), None

    (_, episodes), _ = jax.lax.scan(step, (carry, episodes), length=max_steps)
    return episodes
