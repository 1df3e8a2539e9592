"""Settings of running statistics that levels share, and what becomes of them."""

from __future__ import annotations

import warnings
from typing import Any

from lrl_jax.levels.base import Level, LevelSpec
from lrl_jax.models.running_statistics import RunningStatistics, without_bounds
from lrl_jax.settings import check_flag, check_positive, put_checked
from lrl_jax.spaces import Box


def check_normalised(level: Any) -> None:
    """Check `running_normaliser`, `reward_scaling` and `normaliser_clip`, in a `__post_init__`.

    Rows of a level that scales its rewards keep their discounted returns.
    """
    put_checked(level, check_flag, ("running_normaliser", "reward_scaling"))
    put_checked(level, check_positive, ("normaliser_clip",))
    if level.reward_scaling:
        object.__setattr__(level, "needs", (*level.needs, "return"))


def check_entries(level: Any, spec: LevelSpec) -> None:
    """Warn where a normaliser has nothing to do."""
    if level.running_normaliser and not without_bounds(spec.feature_box).any():
        warnings.warn(
            f"running_normaliser=True of level {spec.index} ({type(level).__name__}) does nothing: "
            f"every entry of its observation has finite bounds, which it is scaled by.",
            stacklevel=2,
        )


def statistics_of(level: Any, box: Box) -> RunningStatistics:
    """A level's statistics of observations in this flat box, before the first row."""
    return RunningStatistics.of(
        box,
        running_normaliser=level.running_normaliser,
        reward_scaling=level.reward_scaling,
        clip=level.normaliser_clip,
    )


def hook(level: Level, update: Any) -> Any:
    """`update` as a level's `update_statistics`; None where it keeps none."""
    keeps: Any = level
    return update if keeps.running_normaliser or keeps.reward_scaling else None
