"""Tests on engines: the one way in which collectors, workers and training runs evaluate."""

from __future__ import annotations

from typing import Any

import jax

from lrl_jax import interrupts
from lrl_jax.collectors.base import Engine, make_engine
from lrl_jax.collectors.requests import Request, carry_out
from lrl_jax.collectors.stats import Collected, CollectStats
from lrl_jax.hierarchies import Hierarchy, HierarchyState
from lrl_jax.randomness import Stream


def run_test(
    request: Request,
    hierarchy: Hierarchy,
    engine: Engine,
    state: HierarchyState,
    key: jax.Array,
    stream: Stream | None = None,
) -> Collected:
    """Carry out a request from a reset, in eval mode; neither state nor hierarchy change.

    Args:
        request: how much.
        hierarchy: built for such an environment.
        engine: of the environments, a new one.
        state: of any number of instances; its learners are tested.
        key: consumed.
        stream: of the decisions; begun from `key` if None.
    """
    hierarchy = hierarchy.eval()
    # The replay takes no part: carrying it would copy it.
    tested = hierarchy.for_testing(state, key, engine.n)
    if stream is not None:
        tested = tested.replace(stream=stream)
    out = request.begun(engine.n)
    with interrupts.held():
        engine.reset(hierarchy, tested, None, key=key)
        carry_out(request, hierarchy, engine, out)
    return out


def whole_episodes(
    hierarchy: Hierarchy,
    state: HierarchyState,
    key: jax.Array,
    n_episodes: int,
    n: int,
    env: Any,
    env_params: Any = None,
    max_steps: int | None = None,
) -> CollectStats:
    """An exact number of whole episodes; instances get equal shares, give or take one.

    Args:
        hierarchy, state, key: see `run_test`.
        n_episodes: number of episodes, summed over instances.
        n: number of instances.
        env, env_params: environment that was checked.
        max_steps: ticks after which it is an error that episodes are open.

    Raises:
        ValueError: for episodes that do not end.
    """
    amounts = {"n_episodes": n_episodes}
    request = Request.checked(
        hierarchy, n, amounts, episode_allocation="quota", max_steps=max_steps
    )
    engine = make_engine(hierarchy, env, env_params, n)
    stats = run_test(request, hierarchy, engine, state, key).stats()
    if stats.truncated_by_limit:
        raise ValueError(
            f"{stats.truncated_by_limit} of {n_episodes} test episodes had not ended after "
            f"{request.limit} ticks: give the environment a time limit, such as gymnasium's "
            f"max_episode_steps."
        )
    return stats
