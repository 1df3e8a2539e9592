"""`print(hierarchy)`: the stack, one line per level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax.levels.base import SETTINGS, LevelSpec
from lrl_jax.spaces import Box
from lrl_jax.tables import aligned

_HEADING = ("", "level", "sees", "input", "decides", "lasts", "replay", "parameters")
_OPTIMISERS = ("opt", "opt_state", "optimizer", "optimiser")
#: Names of what learners carry along: bounds, running statistics, skills to compare with, counts.
_NOT_LEARNED = {"observation", "statistics", "running", "running_std", "moments"}
_NOT_LEARNED |= {"alternatives", "directions", "n_total_env_steps", *SETTINGS}


def n_parameters(learner: Any) -> int:
    """Numbers that a learner learns.

    Counted are floating-point leaves, but not copies of settings and running statistics, nor what
    stands under a name that begins with "target" or ends with "opt" or "opt_state", nor states of
    optax: target networks and moments are as large as what they belong to.
    """

    def is_moments(x: Any) -> bool:
        return type(x).__module__.partition(".")[0] == "optax"

    leaves = jax.tree_util.tree_flatten_with_path(learner, is_leaf=is_moments)[0]
    return sum(
        math.prod(leaf.shape)
        for path, leaf in leaves
        if not is_moments(leaf)
        and jnp.issubdtype(leaf.dtype, jnp.floating)
        and not any(_is_left_out(key) for key in path)
    )


def _is_left_out(key: Any) -> bool:
    name = getattr(key, "name", getattr(key, "key", None))
    if not isinstance(name, str):
        return False
    is_optimiser = name in _OPTIMISERS or name.endswith(("_opt", "_opt_state"))
    return name in _NOT_LEARNED or name.startswith("target") or is_optimiser


def stack(
    title: str,
    levels: Sequence[Any],
    specs: Sequence[LevelSpec],
    learners: Sequence[Any],
    frozen: Sequence[int],
) -> str:
    """The levels as a table under a title, the highest first.

    Args:
        title: first line.
        levels, specs, learners: of each level; leaves of learners may be shapes.
        frozen: indices of levels that do not learn.
    """
    rows: list[tuple[str, ...]] = [_HEADING]
    for i, (level, spec, learner) in enumerate(zip(levels, specs, learners, strict=True)):
        count = n_parameters(learner)
        rows.append(
            (
                str(i),
                type(level).__name__ + (" (frozen)" if i in frozen else ""),
                space_text(spec.obs_space or spec.obs_box),
                "-" if spec.input_space is None else space_text(spec.input_space),
                space_text(spec.action_space),
                _lasts(spec.decision_env_steps),
                _replay(level),
                f"{count:,}" if count else "-",
            )
        )
    return f"{title}\n{aligned(rows, numbers=(0, 7))}"


def space_text(space: Any) -> str:
    """A space in a few words; bounds only where they are finite and the same for all entries."""
    if not isinstance(space, Box):
        return str(space)
    low, high = set(space.low), set(space.high)
    whole = "" if space.dtype.startswith("float") else f" {space.dtype}"
    bounds = ""
    if len(low) == len(high) == 1 and space.is_bounded:
        bounds = f" in [{min(low):g}, {min(high):g}]"
    return f"Box{list(space.shape)}{whole}{bounds}"


def _lasts(steps: int | None) -> str:
    if steps is None:
        return "varies"
    return "1 step" if steps == 1 else f"{steps} steps"


def _replay(level: Any) -> str:
    if level.rollout_length is not None:
        return f"{level.rollout_length:,} rows each"
    return f"{level.buffer_size:,} rows" if level.buffer_size else "-"
