"""Results over several seeds: the interquartile mean and its bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000


def interquartile_mean(x: ArrayLike, axis: int = 0) -> np.ndarray:
    """Mean of the middle half of the values (Agarwal et al. 2021, arXiv:2108.13264).

    A quarter of the weight is cut off at each end: of n sorted values, the k-th (from 0) counts
    with the part of [k, k + 1] that lies in [n / 4, 3 n / 4]. Where 4 divides n, that is
    `scipy.stats.trim_mean(x, 0.25)`, which rliable takes; elsewhere trim_mean cuts whole values
    only, so that what it leaves out jumps with n. One value is its own interquartile mean, and of
    two it is the mean.

    Args:
        x: numbers, at least one along `axis`.
        axis: of the seeds.

    Returns:
        Float64, without `axis`; NaN where a value is NaN.

    Raises:
        ValueError: if there is nothing along `axis`.
    """
    values = np.moveaxis(np.asarray(x, np.float64), axis, -1)
    n = values.shape[-1]
    if n == 0:
        raise ValueError(f"there is nothing to average: axis {axis} of {np.shape(x)} is empty.")
    edges = np.clip(np.arange(n + 1), n / 4, 3 * n / 4)
    # NaN times any weight is NaN, but infinities outside the middle must not count.
    weights = np.diff(edges) / (n / 2)
    ordered = np.sort(values, axis=-1)
    counted = np.where((weights > 0) | np.isnan(ordered), ordered, 0.0)
    return (counted * weights).sum(axis=-1)


def bootstrap_interval(
    x: ArrayLike, axis: int = 0, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the interquartile mean.

    Whole seeds are drawn with replacement, as many as there are; the random numbers are the same in
    every call. The interval of a single seed is its value.

    Args:
        x: numbers, at least one along `axis`.
        axis: of the seeds.
        level: probability between the bounds.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        Lower and upper bound, float64, without `axis`.

    Raises:
        ValueError: for a level outside (0, 1), no resamples, or nothing along `axis`.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}: take 0.95 for 95%.")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    values = np.moveaxis(np.asarray(x, np.float64), axis, 0)
    n = values.shape[0]
    if n == 0:
        raise ValueError(f"there is nothing to draw from: axis {axis} of {np.shape(x)} is empty.")
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
    means = interquartile_mean(values[drawn], axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def over_seeds(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """One row of several agents': what they have in common, and how sure that is.

    `test_...`, `train_return` and `train_success` become interquartile means over the agents that
    have them, with `_low` and `_high` of the bootstrap interval; all else becomes a mean.
    """
    out: dict[str, float] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        if name.startswith("test_") or name in ("train_return", "train_success"):
            low, high = bootstrap_interval(values)
            out[name] = float(interquartile_mean(values))
            out[f"{name}_low"], out[f"{name}_high"] = float(low), float(high)
        else:
            out[name] = float(np.mean(values))
    return out
