"""Frames of an environment to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lrl_jax.envs import Maze2D, render_maze
from lrl_jax.envs.gymnasium_adapter import is_gymnasium


class VideoLogger:
    """Gathers frames and writes them as an animation.

    Args:
        path: file to write: `.gif`, or `.mp4` with the extra "video".
        render_fn: (env, state of one instance) -> uint8 [H, W, 3], where the default is not wanted:
            a maze is drawn with the present plan, a Gymnasium environment by its `render` (made
            with render_mode="rgb_array"; of a vector environment the first), any other by
            `env.render(state)`. For Gymnasium environments the state is None.
        fps: frames per second.
        every: take one frame out of so many.
        max_frames: further frames are left out, None for no limit.
        draw_plans: whether plans are drawn in mazes.

    Attributes:
        frames: gathered so far.
    """

    def __init__(
        self,
        path: str | Path,
        render_fn: Callable[[Any, Any], np.ndarray] | None = None,
        fps: int = 30,
        every: int = 1,
        max_frames: int | None = 1000,
        draw_plans: bool = True,
    ):
        if fps < 1 or every < 1:
            raise ValueError(f"fps and every must be at least 1, got {fps} and {every}.")
        self.path, self.fps, self.every, self.max_frames = Path(path), fps, every, max_frames
        if self.path.suffix.lower() not in (".gif", ".mp4"):
            raise ValueError(f"{self.path.name}: videos are written as .gif or .mp4.")
        if self.path.suffix.lower() == ".mp4":
            _need_av()
        self.draw_plans = bool(draw_plans)
        self._render = render_fn
        self._seen = 0
        self.frames: list[np.ndarray] = []

    def record(self, env: Any, env_state: Any = None, plan: Any = None) -> None:
        """Render one instance if its turn has come.

        Args:
            env: gymnax or Gymnasium environment.
            env_state: state of one instance of a gymnax environment.
            plan: latent states [H + 1, 2] that it plans to pass, drawn in mazes.
        """
        full = self.max_frames is not None and len(self.frames) >= self.max_frames
        if self._seen % self.every == 0 and not full:
            self.frames.append(self._frame(env, env_state, plan if self.draw_plans else None))
        self._seen += 1

    def _frame(self, env: Any, env_state: Any, plan: Any) -> np.ndarray:
        if self._render is not None:
            frame = self._render(env, env_state)
        elif isinstance(env, Maze2D):
            frame = render_maze(env, env_state, planned=None if plan is None else [plan])
        elif is_gymnasium(env):
            frame = env.render()
            frame = frame[0] if isinstance(frame, tuple | list) and len(frame) else frame
            if not isinstance(frame, np.ndarray):
                raise ValueError(
                    f"{type(env).__name__}.render() returned {type(frame).__name__}, not an "
                    f"array: make the environment with render_mode='rgb_array'."
                )
        elif callable(getattr(env, "render", None)):
            try:
                frame = env.render(env_state)
            except TypeError as error:
                raise TypeError(
                    f"{type(env).__name__}.render does not take the state alone ({error}): give "
                    f"VideoLogger a render_fn of (env, state)."
                ) from error
        else:
            raise TypeError(
                f"{type(env).__name__} has no method render(state): give VideoLogger a render_fn."
            )
        return np.array(frame, np.uint8)

    def save(self) -> Path:
        """Write what was gathered and start anew; returns the file.

        Raises:
            ValueError: if there is no frame.
        """
        import imageio.v3 as imageio

        if not self.frames:
            raise ValueError("no frame was recorded: pass the logger to collect or test first.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        frames = np.stack(self.frames)
        if self.path.suffix.lower() == ".gif":
            imageio.imwrite(self.path, frames, duration=1000 / self.fps, loop=0)
        else:
            # Players want an even number of pixels along each side.
            frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
            imageio.imwrite(self.path, frames, plugin="pyav", fps=self.fps, codec="libx264")
        self.frames, self._seen = [], 0
        return self.path


def _need_av() -> None:
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "MP4 files need PyAV: pip install 'lrl_jax[video]', or write a .gif."
        ) from error
