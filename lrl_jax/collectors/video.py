"""Frames of an environment to a file."""

from __future__ import annotations

import importlib.util
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.envs import Maze2D, render_maze
from lrl_jax.envs.gymnasium_adapter import is_gymnasium
from lrl_jax.hierarchies import Hierarchy


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
        if self.path.suffix.lower() == ".mp4" and importlib.util.find_spec("av") is None:
            raise ImportError("MP4 files need PyAV: pip install 'lrl_jax[video]', or write a .gif.")
        self.draw_plans = bool(draw_plans)
        self._render = render_fn
        self._seen = 0
        self.frames: list[np.ndarray] = []

    @property
    def draws(self) -> bool:
        """Whether it was given a `render_fn`."""
        return self._render is not None

    def record(self, env: Any, env_state: Any = None, plan: Any = None) -> None:
        """Render one instance if its turn has come.

        Args:
            env: gymnax or Gymnasium environment.
            env_state: state of one instance of a gymnax environment.
            plan: latent states [H + 1, 2] that it plans to pass, drawn in mazes.
        """
        full = self.max_frames is not None and len(self.frames) >= self.max_frames
        if self._seen % self.every == 0 and not full:
            plan = plan if self.draw_plans else None
            draw = self._render
            frame = _frame(env, env_state, plan) if draw is None else draw(env, env_state)
            self.frames.append(np.array(frame, np.uint8))
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
        frames = np.stack(self.frames)
        if self.path.suffix.lower() == ".gif":
            imageio.imwrite(self.path, frames, duration=1000 / self.fps, loop=0)
        else:
            # Players want an even number of pixels along each side.
            frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
            imageio.imwrite(self.path, frames, plugin="pyav", fps=self.fps, codec="libx264")
        self.frames, self._seen = [], 0
        return self.path


def _frame(env: Any, env_state: Any, plan: Any = None) -> np.ndarray:
    """The default picture of an environment."""
    if isinstance(env, Maze2D):
        return render_maze(env, env_state, planned=None if plan is None else [plan])
    if is_gymnasium(env):
        frame = env.render()
        frame = frame[0] if isinstance(frame, tuple | list) and len(frame) else frame
        if not isinstance(frame, np.ndarray):
            raise ValueError(
                f"{type(env).__name__}.render() returned {type(frame).__name__}, not an "
                f"array: make the environment with render_mode='rgb_array'."
            )
        return frame
    check_drawable(env)
    return np.asarray(env.render(env_state))


def check_drawable(env: Any) -> None:
    """Refuse environments that have no default picture, before a step is taken.

    Raises:
        TypeError: by name, with the way out.
    """
    if isinstance(env, Maze2D) or is_gymnasium(env):
        return
    name, render = type(env).__name__, getattr(env, "render", None)
    if not callable(render):
        raise TypeError(
            f"{name} has no method render(state), so it cannot be shown: give VideoLogger a "
            f"render_fn of (env, state)."
        )
    try:
        inspect.signature(render).bind(None)
    except TypeError as error:
        raise TypeError(
            f"{name}.render does not take the state alone ({error}): give VideoLogger a render_fn "
            f"of (env, state)."
        ) from error


class Frames:
    """Shows and keeps the frames of instance 0, with its plans where it plans in a maze.

    Args:
        hierarchy: acts.
        env: that it acts in.
        video: keeps the frames, or None.
        render: seconds between frames that are shown; None for none.
        plans: whether the highest level decides at all.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        env: Any,
        video: VideoLogger | None,
        render: float | None,
        plans: bool = True,
    ):
        self._hierarchy, self._env, self._video, self._render = hierarchy, env, video, render
        if render is not None or not getattr(video, "draws", True):
            check_drawable(env)
        planned = hierarchy.levels[0].planned_states
        in_maze = planned is not None and hasattr(env, "layout")
        self._plans = plans and in_maze and video is not None
        self._plan: Any = None
        self._decides, self._obs = False, None
        self._steps = True

    def before(self, engine: Any, owed: Any) -> None:
        """Before a tick, in which those step that are owed something."""
        if self._video is None and self._render is None:
            return
        self._steps = bool(owed.active[0])
        if self._steps and self._plans:
            self._decides = int(engine.state().active_level[0]) == 0
            self._obs = self._hierarchy.see(0, jnp.asarray(engine.obs)[:1])[0]

    def after(self, engine: Any, ended: bool) -> None:
        """After a tick; `ended`: whether it ended instance 0's episode."""
        if not self._steps:
            return
        if ended:  # the next episode is shown, which has no plan yet
            self._plan, self._decides = None, False
        if self._decides:
            level = engine.state().levels[0]
            memory = jax.tree.map(lambda x: x[0], level.memory)
            plan = self._hierarchy.jitted(_planned)(level.learner, memory, self._obs)
            self._plan, self._decides = np.asarray(plan), False
        if self._video is not None:
            plan = () if self._plan is None else (self._plan,)
            self._video.record(self._env, engine.frame(), *plan)
        if self._render is not None:
            _show(self._env, engine.frame())
            time.sleep(self._render)


def _planned(hierarchy, learner, memory, obs):
    # A maze's latent states begin with the position.
    return hierarchy.levels[0].planned_states(learner, memory, obs)[..., :2]


def _show(env: Any, env_state: Any) -> None:
    """Show a frame: Gymnasium environments do so themselves, others in a matplotlib window."""
    if is_gymnasium(env):
        env.render()
        return
    import matplotlib.pyplot as plt

    plt.imshow(_frame(env, env_state))
    plt.axis("off")
    plt.pause(0.001)
    plt.clf()
