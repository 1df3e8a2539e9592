"""Features of a state that let small networks resolve sharp edges."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.settings import check_positive, check_tuple


def check_periods(periods) -> tuple[float, ...]:
    """Check periods, positive and finite, and return them as a tuple."""
    return check_tuple("periods", periods, check_positive)


def fourier_features(x: jax.Array, periods: tuple[float, ...]) -> jax.Array:
    """Append sine and cosine of each entry at each period (Tancik et al. 2020).

    Networks on raw coordinates learn sharp edges, such as walls, slowly; on sines of them, fast.

    Args:
        x: [..., D].
        periods: in units of x; none returns x unchanged.

    Returns:
        [..., D + 2 D P].
    """
    if not periods:
        return x
    rates = (2 * np.pi / np.asarray(periods)).astype(np.float32)
    phase = (x[..., None] * rates).reshape(*x.shape[:-1], x.shape[-1] * len(periods))
    return jnp.concatenate([x, jnp.sin(phase), jnp.cos(phase)], axis=-1)
