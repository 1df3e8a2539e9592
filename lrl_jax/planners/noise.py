"""Coloured noise over the steps of a plan, as one matrix."""

from __future__ import annotations

import functools

import numpy as np


@functools.lru_cache(maxsize=64)
def _colouring(horizon: int, beta: float) -> np.ndarray:
    steps = np.arange(horizon)
    columns, frequencies = [np.ones(horizon)], [0]
    for k in range(1, horizon // 2 + 1):
        angle = 2.0 * np.pi * k * steps / horizon
        columns.append(np.cos(angle) * np.sqrt(2.0 if 2 * k < horizon else 1.0))
        frequencies.append(k)
        if 2 * k < horizon:
            columns.append(np.sin(angle) * np.sqrt(2.0))
            frequencies.append(k)
    # A constant has frequency 0, where the law is infinite: as in usual implementations it is cut
    # off at the lowest frequency that fits into the horizon.
    amplitude = np.maximum(np.asarray(frequencies, np.float64), 1.0) ** (-beta / 2.0)
    matrix = np.stack(columns, axis=1) * amplitude
    matrix /= np.sqrt((matrix**2).sum(axis=1, keepdims=True))
    matrix = matrix.astype(np.float32)
    matrix.setflags(write=False)
    return matrix


def colouring_matrix(horizon: int, beta: float) -> np.ndarray:
    """Matrix that turns white noise over a plan's steps into noise with a power-law spectrum.

    For white z of shape [H], `matrix @ z` has a spectral density proportional to f**(-beta) at
    the frequencies f = 1/H, 2/H, ..., 1/2 (the constant part gets the density of the lowest
    one), and variance 1 at every step, taken over draws. The columns are the real Fourier basis
    scaled by the amplitudes, so sampling is one matrix product instead of an FFT.

    Source: Timmer and Koenig 1995; used for planning by Pinneri et al. 2020 (iCEM), section 3.1.

    Args:
        horizon: number of steps H, at least 1.
        beta: exponent; 0 is white, 1 pink, 2 red. Negative values are blue.

    Returns:
        Read-only float32 array [H, H]; the identity where `beta` is 0.

    Raises:
        ValueError: for a horizon below 1 or an exponent that is not finite.
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}.")
    if not np.isfinite(beta):
        raise ValueError(f"beta must be finite, got {beta}: 0 is white noise, 1 is pink.")
    if beta == 0:
        return np.eye(int(horizon), dtype=np.float32)
    return _colouring(int(horizon), float(beta))
