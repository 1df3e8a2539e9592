"""Pictures of JAX environments: gymnax's classics, boards, and whatever has a renderer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from gymnax.environments import (
    Acrobot,
    CartPole,
    ContinuousMountainCar,
    MountainCar,
    Pendulum,
)

from lrl_jax.envs.maze2d import Maze2D
from lrl_jax.envs.rendering import (
    BODY_COLOUR,
    FLOOR_COLOUR,
    GOAL_COLOUR,
    PATH_COLOURS,
    WALL_COLOUR,
    draw_disc,
    draw_line,
    render_maze,
)

_SIZE = 240


def picture(env: Any, env_state: Any, planned: Any = None) -> np.ndarray:
    """Draw a JAX environment.

    Args:
        env: environment.
        env_state: its state, of one instance.
        planned: path [H + 1, 2] to draw into a maze, or None.

    Returns:
        uint8 [height, width, 3].

    Raises:
        TypeError: for what has no picture, by name, with the way out.
    """
    if isinstance(env, Maze2D):
        return render_maze(env, env_state, planned=None if planned is None else [planned])
    env_state = jax.device_get(env_state)
    for kind, draw in _CLASSICS.items():
        if isinstance(env, kind):
            return draw(env_state, env.default_params)
    if callable(getattr(env, "render", None)):
        return as_image(env.render(*_arguments(env, env_state)), type(env).__name__)
    if _is_board(env):
        obs = env.observe(jax.random.key(0), env_state, None, env.default_params)
        return _board(np.asarray(obs, np.float32))
    raise TypeError(_no_picture(env, "has no method render(state)"))


def check_drawable(env: Any) -> None:
    """Refuse JAX environments that have no picture, before a step is taken.

    Raises:
        TypeError: by name, with the way out.
    """
    if isinstance(env, (Maze2D, *_CLASSICS)):
        return
    if callable(getattr(env, "render", None)):
        _arguments(env, None)
    elif not _is_board(env):
        raise TypeError(_no_picture(env, "has no method render(state)"))


def as_image(drawn: Any, name: str) -> np.ndarray:
    """What a renderer returned as uint8 [height, width, 3]; Matplotlib's figures are closed.

    Raises:
        ValueError: for anything that is not a picture.
    """
    figure = _figure(drawn)
    if figure is not None:
        from matplotlib import pyplot
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pyplot.close(figure)
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
    image = np.asarray(drawn)
    if image.dtype == object or image.ndim != 3 or image.shape[-1] not in (3, 4):
        raise ValueError(
            f"{name}.render returned {type(drawn).__name__}, not an array [height, width, 3]."
        )
    if np.issubdtype(image.dtype, np.floating):  # from 0 to 1
        image = np.rint(255 * np.clip(image, 0, 1))
    return image[..., :3].astype(np.uint8)


def _figure(drawn: Any) -> Any:
    """The Matplotlib figure of what was drawn - a figure, axes, an artist, a tuple - or None."""
    if isinstance(drawn, tuple) and drawn and not np.isscalar(drawn[0]):
        drawn = drawn[0]
    figure = getattr(drawn, "figure", None)
    return getattr(figure, "figure", figure)


def _arguments(env: Any, env_state: Any) -> tuple[Any, ...]:
    """What the environment's `render` takes: the state, or the state and the parameters."""
    signature = inspect.signature(env.render)
    error: TypeError | None = None
    for arguments in ((env_state,), (env_state, getattr(env, "default_params", None))):
        try:
            signature.bind(*arguments)
        except TypeError as missing:
            error = error or missing
        else:
            return arguments
    raise TypeError(_no_picture(env, f"has a render that does not take the state alone ({error})"))


def _no_picture(env: Any, why: str) -> str:
    name = type(env).__name__
    return f"{name} {why}, so it cannot be shown: give VideoLogger a render_fn of (env, state)."


# ------------------------------------------------------------------------- boards


def _is_board(env: Any) -> bool:
    """Whether gymnax's environment is observed as a board: cells, of one or more channels."""
    if not callable(getattr(env, "observe", None)):
        return False
    shape = env.observation_space(env.default_params).shape
    return len(shape) in (2, 3) and min(shape[:2]) > 1


def _board(obs: np.ndarray) -> np.ndarray:
    """Cells [rows, columns], or with an axis of channels, the last one set on top."""
    cells = obs[..., None] if obs.ndim == 2 else obs
    image = np.full((*cells.shape[:2], 3), FLOOR_COLOUR, np.uint8)
    for i in range(cells.shape[-1]):
        image[cells[..., i] != 0] = PATH_COLOURS[i % len(PATH_COLOURS)]
    scale = max(1, _SIZE // max(cells.shape[:2]))
    return image.repeat(scale, 0).repeat(scale, 1)


# ----------------------------------------------------------------------- classics


class _Canvas:
    """A picture in an environment's own coordinates, y up, `width` of them along each side."""

    def __init__(self, width: float, centre: tuple[float, float] = (0.0, 0.0)):
        self._scale = _SIZE / width
        self._corner = np.array([centre[0] - width / 2, centre[1] + width / 2])
        self._image = np.empty((_SIZE, _SIZE, 3), np.float32)
        self._image[:] = FLOOR_COLOUR

    def _pixels(self, points: Any) -> np.ndarray:
        return (np.asarray(points, np.float64) - self._corner) * [self._scale, -self._scale]

    def line(self, points: Any, colour: Any = WALL_COLOUR, width: float = 0.0) -> None:
        """A line through points [T, 2], of a width in the environment's coordinates."""
        pixels = self._pixels(points)
        if width <= 0:
            draw_line(self._image, pixels, colour, 1.0)
            return
        steps = np.linspace(0, len(pixels) - 1, 8 * _SIZE // 10)
        x, y = (np.interp(steps, np.arange(len(pixels)), pixels[:, k]) for k in (0, 1))
        for point in zip(x, y, strict=True):
            draw_disc(self._image, np.array(point), width / 2 * self._scale, colour, 1.0)

    def disc(self, centre: Any, radius: float, colour: Any = BODY_COLOUR) -> None:
        """A disc."""
        draw_disc(self._image, self._pixels(centre), radius * self._scale, colour, 1.0)

    def image(self) -> np.ndarray:
        """What was drawn, uint8."""
        return np.rint(np.clip(self._image, 0, 255)).astype(np.uint8)


def _cart_pole(state: Any, params: Any) -> np.ndarray:
    canvas = _Canvas(2.4 * params.x_threshold, (0.0, 0.5))
    x, theta = float(state.x), float(state.theta)
    canvas.line([(-params.x_threshold, 0), (params.x_threshold, 0)])
    canvas.line([(x - 0.3, 0.0), (x + 0.3, 0.0)], width=0.4)
    length = 2 * params.length
    tip = (x + length * np.sin(theta), length * np.cos(theta))
    canvas.line([(x, 0.0), tip], BODY_COLOUR, 0.12)
    return canvas.image()


def _pendulum(state: Any, params: Any) -> np.ndarray:
    canvas, theta = _Canvas(2.6 * params.l), float(state.theta)
    tip = (-params.l * np.sin(theta), params.l * np.cos(theta))
    canvas.line([(0.0, 0.0), tip], BODY_COLOUR, 0.2 * params.l)
    canvas.disc((0.0, 0.0), 0.06 * params.l, WALL_COLOUR)
    return canvas.image()


def _mountain_car(state: Any, params: Any) -> np.ndarray:
    low, high = params.min_position, params.max_position
    canvas = _Canvas(1.1 * (high - low), ((low + high) / 2, 0.5))
    x = np.linspace(low, high, 100)
    canvas.line(np.stack([x, _height(x)], 1))
    goal = params.goal_position
    canvas.line([(goal, _height(goal)), (goal, _height(goal) + 0.25)], GOAL_COLOUR, 0.04)
    position = float(state.position)
    canvas.disc((position, _height(position) + 0.06), 0.06)
    return canvas.image()


def _height(x: Any) -> Any:
    """Of the hill, as Gymnasium draws it."""
    return 0.45 * np.sin(3 * x) + 0.55


def _acrobot(state: Any, params: Any) -> np.ndarray:
    first, second = params.link_length_1, params.link_length_2
    canvas = _Canvas(2.4 * (first + second))
    a, b = float(state.joint_angle1), float(state.joint_angle1 + state.joint_angle2)
    middle = np.array([first * np.sin(a), -first * np.cos(a)])
    tip = middle + np.array([second * np.sin(b), -second * np.cos(b)])
    reach = first + second
    canvas.line([(-reach, 1.0), (reach, 1.0)], GOAL_COLOUR)
    canvas.line([(0.0, 0.0), middle, tip], BODY_COLOUR, 0.15)
    canvas.disc(middle, 0.1, WALL_COLOUR)
    return canvas.image()


_CLASSICS: dict[type, Callable[[Any, Any], np.ndarray]] = {
    CartPole: _cart_pole,
    Pendulum: _pendulum,
    MountainCar: _mountain_car,
    ContinuousMountainCar: _mountain_car,
    Acrobot: _acrobot,
}
