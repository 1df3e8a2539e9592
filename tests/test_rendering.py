"""Pictures of mazes: the right colours in the right places."""

import time

import jax
import numpy as np
import pytest

from lrl_jax.envs import Maze2D, make, render_maze
from lrl_jax.envs.rendering import (
    BODY_COLOUR,
    FLOOR_COLOUR,
    GOAL_COLOUR,
    PATH_COLOURS,
    PLANNED_COLOUR,
    WALL_COLOUR,
)


def at(image, env, x, y):
    scale = max(image.shape[:2]) / max(env.height, env.width)
    return image[int(y * scale), int(x * scale)].astype(int)


def is_near(pixel, colour, tolerance=40):
    return np.abs(pixel - np.array(colour)).max() <= tolerance


@pytest.mark.parametrize("size", [97, 300])
@pytest.mark.parametrize("env_id", ["Maze2D-Medium-v0", "Maze2D-Corridor-v0", "Maze2D-Large-v0"])
def test_walls_and_floor_are_where_the_layout_says(env_id, size):
    env, _ = make(env_id)
    image = render_maze(env, size=size)
    longest = max(env.height, env.width)
    assert image.dtype == np.uint8 and max(image.shape) == size
    assert image.shape == (round(size * env.height / longest), round(size * env.width / longest), 3)
    for y, row in enumerate(env.layout):
        for x, wall in enumerate(row):
            colour = WALL_COLOUR if wall else FLOOR_COLOUR
            np.testing.assert_array_equal(at(image, env, x + 0.5, y + 0.5), colour)


def test_body_and_goal_of_a_state():
    env, params = make("Maze2D-Simple-v0")
    _, state = env.reset(jax.random.key(0), params)
    image = render_maze(env, state)
    np.testing.assert_array_equal(at(image, env, 1.5, 1.5), BODY_COLOUR)
    assert is_near(at(image, env, 8.5, 8.5), GOAL_COLOUR, 60)
    assert is_near(at(image, env, 8.72, 8.5), GOAL_COLOUR, 60)  # as large as the goal's radius
    np.testing.assert_array_equal(at(image, env, 1.72, 1.5), FLOOR_COLOUR)  # and the body's
    np.testing.assert_array_equal(at(image, env, 8.5, 1.5), FLOOR_COLOUR)
    moved = render_maze(env, np.array([[1.5, 8.5], [8.5, 1.5]]), goal=(4.5, 4.5))
    np.testing.assert_array_equal(at(moved, env, 1.5, 8.5), BODY_COLOUR)
    np.testing.assert_array_equal(at(moved, env, 8.5, 1.5), BODY_COLOUR)
    assert is_near(at(moved, env, 4.5, 4.5), GOAL_COLOUR, 60)
    np.testing.assert_array_equal(at(moved, env, 1.5, 1.5), FLOOR_COLOUR)


def test_states_of_several_instances():
    env, params = make("Maze2D-Medium-v0")
    _, state = jax.vmap(env.reset, (0, None))(jax.random.split(jax.random.key(0), 5), params)
    image = render_maze(env, state)
    for x, y in np.asarray(state.position):
        np.testing.assert_array_equal(at(image, env, x, y), BODY_COLOUR)


def test_paths_and_plans():
    env, _ = make("Maze2D-Corridor-v0")
    path = np.array([[2.0, 1.5], [10.0, 1.5], [np.nan, np.nan]])
    other = np.array([[2.0, 2.5], [10.0, 2.5]])
    plan = np.array([[2.0, 3.5], [10.0, 3.5]])
    image = render_maze(env, paths=[path, other], planned=[plan])
    for x in (2.5, 6.01, 9.5):
        assert is_near(at(image, env, x, 1.5), PATH_COLOURS[0])
        assert is_near(at(image, env, x, 2.5), PATH_COLOURS[1])
        assert is_near(at(image, env, x, 3.5), PLANNED_COLOUR, 60)
        np.testing.assert_array_equal(at(image, env, x, 2.0), FLOOR_COLOUR)
    np.testing.assert_array_equal(at(image, env, 11.0, 1.5), FLOOR_COLOUR)
    np.testing.assert_array_equal(image, render_maze(env, paths=[path, other], planned=plan))


def test_pictures_do_not_leak_into_each_other():
    env, _ = make("Maze2D-Medium-v0")
    empty = render_maze(env)
    render_maze(env, (1.5, 1.5), paths=[np.array([[1.0, 1.0], [7.0, 7.0]])])
    np.testing.assert_array_equal(render_maze(env), empty)
    assert empty.flags.writeable


def test_what_lies_outside_is_cut_off():
    env, _ = make("Maze2D-Medium-v0")
    image = render_maze(
        env, [(-5.0, 2.0), (8.0, 8.0)], goal=(100, 3), paths=[np.array([[-50.0, 4], [60, 4.0]])]
    )
    assert image.shape == (400, 400, 3)
    assert render_maze(env, paths=[np.zeros((0, 2)), np.array([[1.5, 1.5]])]).shape == image.shape


def test_a_frame_takes_milliseconds():
    env, _ = make("Maze2D-Large-v0")
    path = np.cumsum(np.random.default_rng(0).uniform(-0.1, 0.1, (400, 2)), axis=0) + 5
    plans = [path[:16], path[16:32]]
    times = []
    for _ in range(5):
        start = time.thread_time()
        render_maze(env, (1.5, 1.5), goal=(5.5, 1.5), paths=[path], planned=plans, size=300)
        times.append(time.thread_time() - start)
    assert min(times) < 0.02


def test_errors():
    env = Maze2D(["#####", "#...#", "#####"])
    with pytest.raises(ValueError, match="at least 5"):
        render_maze(env, size=4)
    with pytest.raises(ValueError, match=r"positions has shape \(3,\)"):
        render_maze(env, np.zeros(3))
    with pytest.raises(ValueError, match=r"paths\[0\] has shape"):
        render_maze(env, paths=[np.zeros((4, 3))])
    with pytest.raises(TypeError, match="no maze layout"):
        render_maze(make("CartPole-v1")[0])
