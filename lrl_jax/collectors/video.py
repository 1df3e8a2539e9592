"""Frames of an environment to a file."""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.envs.gymnasium_adapter import is_gymnasium
from lrl_jax.envs.pictures import as_image, check_drawable, picture
from lrl_jax.hierarchies import Hierarchy


class VideoLogger:
    """Gathers frames and writes them as an animation.

    Args:
        path: file to write: `.gif`, or `.mp4` with the extra "video".
        render_fn: (env, state of one instance) -> uint8 [H, W, 3], where the default is not wanted:
            a maze is drawn with the present plan, a Gymnasium environment by its `render` (made
            with render_mode="rgb_array"; of a vector environment the first), and of gymnax's the
            classics and boards; any other by `env.render(state)` or `env.render(state, params)`.
            For Gymnasium environments the state is None.
        fps: frames per second.
        every: take one frame in `every`.
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
        """Write the frames and start again; returns the file.

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
    if not is_gymnasium(env):
        return picture(env, env_state, plan)
    frame = env.render()
    frame = frame[0] if isinstance(frame, tuple | list) and len(frame) else frame
    if not isinstance(frame, np.ndarray):
        raise ValueError(
            f"{type(env).__name__}.render() returned {type(frame).__name__}, not an array: make "
            f"the environment with render_mode='rgb_array'."
        )
    return as_image(frame, type(env).__name__)


class Frames:
    """Shows and keeps the frames of instance 0, with its plans where it plans in a maze.

    Each episode's first frame comes before its first step, and one more after each step; the last
    is of the state in which the episode ends, before the reset.

    Args:
        hierarchy: acts.
        engine: of the environments.
        video: keeps the frames, or None.
        render: seconds between frames that are shown; None for none.
        plans: whether the highest level decides at all.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        engine: Any,
        video: VideoLogger | None,
        render: float | None,
        plans: bool = True,
    ):
        self._hierarchy, self._engine, self._env = hierarchy, engine, engine.env
        self._video, self._render = video, render
        self._draws = video is not None or render is not None
        is_drawn = render is not None or not getattr(video, "draws", True)
        if is_drawn and not is_gymnasium(self._env):  # Gymnasium's first frame tells
            check_drawable(self._env)
        planned = hierarchy.levels[0].planned_states
        in_maze = planned is not None and hasattr(self._env, "layout")
        self._plans = plans and in_maze and video is not None
        self._plan: Any = None
        self._decides, self._obs = False, None
        self._steps, self._is_drawn = True, False
        # The first frame is from before the first step, unless the film continues.
        self._is_new = not getattr(video, "frames", None)
        source = getattr(engine, "source", None)
        self._source = source if self._draws else None
        if self._source is not None:
            if self._source.hides_last_frame:
                warnings.warn(
                    "an AsyncVectorEnv in mode SAME_STEP does not show the last frame of an "
                    "episode: use autoreset_mode=AutoresetMode.NEXT_STEP.",
                    stacklevel=5,
                )
            self._source.before_reset = self._at_end

    def before(self, owed: Any) -> None:
        """Before a tick, in which those step that are owed something."""
        if not self._draws:
            return
        self._steps, self._is_drawn = bool(owed.active[0]), False
        if not self._steps:
            return
        if self._is_new or self._engine.first_begins:
            self._draw(self._engine.frame())
        self._is_new = False
        if self._plans:
            self._decides = int(self._engine.state().active_level[0]) == 0
            self._obs = self._hierarchy.see(0, jnp.asarray(self._engine.obs)[:1])[0]

    def _at_end(self) -> None:
        """After the last step of an episode, before the environment's reset."""
        if self._steps:
            self._draw(None)
            self._is_drawn = True

    def after(self, record: Any) -> None:
        """After a tick and its record."""
        if not self._draws or not self._steps:
            return
        ended = bool(record.episodes.finished[-1, 0])
        if self._decides and not ended:
            level = self._engine.state().levels[0]
            memory = jax.tree.map(lambda x: x[0], level.memory)
            plan = self._hierarchy.jitted(_planned)(level.learner, memory, self._obs)
            self._plan, self._decides = np.asarray(plan), False
        if record.frame is not None:
            self._draw(record.frame)
        elif not (ended or self._is_drawn):
            self._draw(self._engine.frame())
        if ended:  # what would be drawn now is the next episode, which has no plan yet
            self._plan = None

    def _draw(self, env_state: Any) -> None:
        if self._video is not None:
            plan = () if self._plan is None else (self._plan,)
            self._video.record(self._env, env_state, *plan)
        if self._render is not None:
            _show(self._env, env_state)
            time.sleep(self._render)

    def end(self) -> None:
        """After the last tick."""
        if self._source is not None:
            self._source.before_reset = None


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
