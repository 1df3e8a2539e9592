"""Frames of an environment to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class VideoLogger:
    """Gathers frames and writes them as an animation.

    Args:
        path: file to write; its ending tells the format imageio writes, such as `.gif`.
        render_fn: (env, state of one instance) -> uint8 [H, W, 3]; `env.render(state)` if None.
        fps: frames per second.
        every: take one frame out of so many.
        max_frames: further frames are left out, None for no limit.
    """

    def __init__(
        self,
        path: str | Path,
        render_fn: Callable[[Any, Any], np.ndarray] | None = None,
        fps: int = 30,
        every: int = 1,
        max_frames: int | None = 1000,
    ):
        if fps < 1 or every < 1:
            raise ValueError(f"fps and every must be at least 1, got {fps} and {every}.")
        self.path, self.fps, self.every, self.max_frames = Path(path), fps, every, max_frames
        self._render = render_fn if render_fn is not None else lambda env, state: env.render(state)
        self._seen = 0
        self.frames: list[np.ndarray] = []

    def record(self, env: Any, env_state: Any) -> None:
        """Render one instance's state if its turn has come."""
        full = self.max_frames is not None and len(self.frames) >= self.max_frames
        if self._seen % self.every == 0 and not full:
            self.frames.append(np.asarray(self._render(env, env_state), np.uint8))
        self._seen += 1

    def save(self) -> Path:
        """Write what was gathered and start anew; returns the file.

        Raises:
            ValueError: if there is no frame.
        """
        import imageio.v3 as imageio

        if not self.frames:
            raise ValueError("no frame was recorded: pass the logger to collect or test first.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        imageio.imwrite(self.path, np.stack(self.frames), duration=1000 / self.fps, loop=0)
        self.frames, self._seen = [], 0
        return self.path
