"""Devices by name."""

from __future__ import annotations

from typing import Any

import jax


def resolve_device(device: Any) -> Any:
    """A device or sharding; a string such as "cpu" or "gpu:1" names one."""
    if not isinstance(device, str):
        return device
    platform, _, index = device.partition(":")
    platform = {"gpu": "cuda"}.get(platform, platform)
    return jax.devices(platform)[int(index or 0)]
