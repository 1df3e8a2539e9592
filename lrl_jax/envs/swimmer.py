"""Purcell's swimmer: a body that moves by gaits alone, in the open or in a maze."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from lrl_jax.envs.layouts import free_centres, parse_layout
from lrl_jax.envs.reaching import GOAL_RADIUS, Reaching
from lrl_jax.envs.walls import Walls
from lrl_jax.settings import check_float

GOAL_DISTANCE = (2.0, 4.0)  # of goals from the start
JOINT_SPEED = 1.2  # rad in a step, at an action of 1
JOINT_LIMIT = 1.8  # rad
DRAG_ALONG, DRAG_ACROSS = 1.0, 2.0  # of a link, per unit of length
SUBSTEPS = 2
HULL_RADIUS = 1.5  # of the disc about the centroid that no pose reaches out of
SMALLEST_CELL = 3.5  # that the disc can pass


@struct.dataclass
class SwimmerState(environment.EnvState):
    """State of one instance.

    Attributes:
        time: steps since the reset, int32 `[]`.
        position: centroid of the links (x, y), float32 `[2]`.
        heading: mean orientation of the links, rad, float32 `[]`.
        joints: angles from the first link to the second and from there to the third, rad,
            float32 `[2]`.
        goal: (x, y), float32 `[2]`.
    """

    time: jax.Array  # pyright: ignore[reportIncompatibleVariableOverride]  # gymnax: int
    position: jax.Array
    heading: jax.Array
    joints: jax.Array
    goal: jax.Array


class Swimmer(Reaching):
    """Three links at low Reynolds number that swim to a goal (Purcell 1977).

    Resistive force theory: a link of length 1 with velocity v, direction t and normal n feels the
    force -(t t' + 2 n n') v and, turning at w, the torque -(2 / 12) w. Forces and torques add up
    to zero, so the body moves with its joints and only while they move; a stroke and its reverse
    lead back to where it was (the scallop theorem), so that a held action leads nowhere and a
    cycle through four of them does.

    Actions: speeds of the two joints in [-1, 1] (clipped), times 1.2 rad a step; joints stop at
    +-1.8 rad. Observation: float32 `[8]`, achieved_goal (x, y of the centroid), desired_goal (x,
    y), and the rest: cosine and sine of the heading, and the joints. Reward: minus the distance to
    the goal over 4, or, sparse, 1 within 0.3 of the goal and else 0. `info["is_success"]`: whether
    it is within 0.3. Episodes start in a random pose and are truncated after `max_steps`. In the
    open they start at the origin, with a goal 2 to 4 away.

    With a layout, walls keep the centroid 1.5 away, so that no link touches them in any pose: what
    of a move they block is tried along x alone, then along y alone. Start and goal are drawn from
    the centres of the free cells, not the same one. The reward is divided by the world's diagonal.

    Args:
        layout: lines of '#' (wall) and '.' (free), see `Maze2D`; None for the open.
        cell_size: side of a cell of the layout, at least 3.5.
        dense_reward: whether the reward is the negative distance, or sparse.
        max_steps: steps after which an episode is truncated.
        terminate_at_goal: whether an episode terminates where it succeeds.

    Raises:
        ValueError, TypeError: for settings out of range or of another kind.
    """

    goal_indices = {"achieved_goal": (0, 2), "desired_goal": (2, 4), "observation": (4, 8)}
    """Where the parts of the observation are, [start, stop) each."""

    body_radius = GOAL_RADIUS
    """Of the disc that stands for the body in pictures of a maze."""

    def __init__(
        self,
        layout: Any = None,
        cell_size: float = 4.0,
        dense_reward: bool = True,
        max_steps: int = 200,
        terminate_at_goal: bool = False,
    ):
        self.layout = None if layout is None else parse_layout(layout)
        self.cell_size = check_float("cell_size", cell_size, SMALLEST_CELL)
        scale = GOAL_DISTANCE[1]
        if self.layout is not None:
            self.width = len(self.layout[0]) * self.cell_size
            self.height = len(self.layout) * self.cell_size
            self.centres = free_centres(self.layout)
            if len(self.centres) < 2:
                raise ValueError("the layout has one free cell: start and goal need two.")
            self._walls = Walls(self.layout, HULL_RADIUS / self.cell_size)
            scale = math.hypot(self.width, self.height)
        settings = (self.layout, self.cell_size)
        super().__init__(settings, scale, dense_reward, max_steps, terminate_at_goal)

    def __repr__(self) -> str:
        place = "the open"
        if self.layout is not None:
            place = f"{len(self.layout)}x{len(self.layout[0])} cells of {self.cell_size:g}"
        return (
            f"Swimmer({place}, dense_reward={self.dense_reward}, max_steps={self.max_steps}, "
            f"terminate_at_goal={self.terminate_at_goal})"
        )

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Observations `[8]`; the plane in the open has no bounds."""
        del params
        entries = (math.inf, GOAL_DISTANCE[1], 1.0, JOINT_LIMIT)
        high: Any = np.repeat(np.array(entries, np.float32), 2)  # gymnax's types ask for JAX's
        low: Any = -high
        if self.layout is not None:
            low[:4], high[:4] = 0.0, (self.width, self.height, self.width, self.height)
        return spaces.Box(low, high, (8,), jnp.float32)

    def step_env(
        self, key: jax.Array, state: SwimmerState, action: float | jax.Array, params: Any
    ) -> tuple[jax.Array, SwimmerState, jax.Array, jax.Array, dict[str, jax.Array]]:
        """Step without a reset; `key` is not used.

        Returns:
            obs `[8]`, state, reward float32 `[]`, terminated bool `[]`, and info with is_success.
        """
        position, heading, joints = swim(state.position, state.heading, state.joints, action)
        if self.layout is not None:
            before, size = state.position, self.cell_size
            position = self._walls.move(before / size, (position - before) / size) * size
        state = SwimmerState(
            time=state.time + 1,
            position=position,
            heading=heading,
            joints=joints,
            goal=state.goal,
        )
        reward, terminated, info = self.outcome(state)
        return self.observe(key, state, action, params), state, reward, terminated, info

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, SwimmerState]:
        """Draw a pose and a goal, in the open uniform over the ring around it; consumes `key`."""
        keys = jax.random.split(key, 4)
        angle, heading = jax.random.uniform(keys[1], (2,), jnp.float32, -math.pi, math.pi)
        joints = jax.random.uniform(keys[2], (2,), jnp.float32, -JOINT_LIMIT / 2, JOINT_LIMIT / 2)
        if self.layout is None:
            low, high = GOAL_DISTANCE
            radius = jnp.sqrt(jax.random.uniform(keys[0], (), jnp.float32, low**2, high**2))
            position = jnp.zeros(2, jnp.float32)
            goal = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        else:
            centres = jnp.asarray(self.centres, jnp.float32) * self.cell_size
            pair = jax.random.choice(keys[0], len(self.centres), (2,), replace=False)
            position, goal = centres[pair[0]], centres[pair[1]]
        state = SwimmerState(
            time=jnp.zeros((), jnp.int32),
            position=position,
            heading=heading,
            joints=joints,
            goal=goal,
        )
        return self.observe(key, state, None, params), state

    def observe(
        self,
        key: jax.Array | None,
        state: SwimmerState,
        action: float | jax.Array | None,
        params: Any = None,
    ) -> jax.Array:
        """Observation `[8]` of a state: achieved goal, desired goal, heading, joints."""
        del key, action, params
        heading = jnp.stack([jnp.cos(state.heading), jnp.sin(state.heading)])
        return jnp.concatenate([state.position, state.goal, heading, state.joints])


def swim(
    position: jax.Array, heading: jax.Array, joints: jax.Array, action: float | jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Position `[2]`, heading `[]` and joints `[2]` after a step with the action `[2]`."""
    speed = JOINT_SPEED * jnp.clip(jnp.asarray(action, jnp.float32), -1.0, 1.0)
    for _ in range(SUBSTEPS):
        moved = jnp.clip(joints + speed / SUBSTEPS, -JOINT_LIMIT, JOINT_LIMIT) - joints
        # At the shape midway, so that errors are of second order.
        x, y, turned = _drift(joints + moved / 2, moved)
        middle = heading + turned / 2
        cos, sin = jnp.cos(middle), jnp.sin(middle)
        position = position + jnp.stack([cos * x - sin * y, sin * x + cos * y])
        heading, joints = heading + turned, joints + moved
    # The same direction, where cosine and sine of float32 are exact.
    heading = jnp.mod(heading + math.pi, 2 * math.pi) - math.pi
    return position, heading, joints


def _drift(joints: jax.Array, moved: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Displacement (x, y) in the body's frame, and turn, that a small move of the joints makes."""
    # Link i has the direction `angles[i]` from the heading, their mean.
    angles = (
        -(2 * joints[0] + joints[1]) / 3,
        (joints[0] - joints[1]) / 3,
        (joints[0] + 2 * joints[1]) / 3,
    )
    turns = (
        -(2 * moved[0] + moved[1]) / 3,
        (moved[0] - moved[1]) / 3,
        (moved[0] + 2 * moved[1]) / 3,
    )
    t = [(jnp.cos(a), jnp.sin(a)) for a in angles]
    # Centres from the centroid, as sums of link directions.
    weights = ((-1 / 3, -1 / 2, -1 / 6), (1 / 6, 0.0, -1 / 6), (1 / 6, 1 / 2, 1 / 3))
    # A (X, Y, H) = b: no force, no torque. A is symmetric.
    xx = xy = yy = xh = yh = bx = by = bh = jnp.zeros((), jnp.float32)
    hh = jnp.full((), 3 * DRAG_ACROSS / 12, jnp.float32)
    for (tx, ty), row in zip(t, weights, strict=True):
        rx = sum(w * link[0] for w, link in zip(row, t, strict=True))
        ry = sum(w * link[1] for w, link in zip(row, t, strict=True))
        # What the joints alone move the centre by: a link's direction turns along its normal.
        ux = sum(-w * d * link[1] for w, d, link in zip(row, turns, t, strict=True))
        uy = sum(w * d * link[0] for w, d, link in zip(row, turns, t, strict=True))
        more = DRAG_ACROSS - DRAG_ALONG
        dxx, dxy, dyy = DRAG_ALONG + more * ty * ty, -more * tx * ty, DRAG_ALONG + more * tx * tx
        fx, fy = dxy * rx - dxx * ry, dyy * rx - dxy * ry  # drag of turning about the centroid
        xx, xy, yy = xx + dxx, xy + dxy, yy + dyy
        xh, yh, hh = xh + fx, yh + fy, hh + rx * fy - ry * fx
        gx, gy = dxx * ux + dxy * uy, dxy * ux + dyy * uy
        bx, by, bh = bx - gx, by - gy, bh - (rx * gy - ry * gx)
    # Cramer's rule.
    c1, c2, c3 = yy * hh - yh * yh, xh * yh - xy * hh, xy * yh - xh * yy
    determinant = xx * c1 + xy * c2 + xh * c3
    c4, c5, c6 = xx * hh - xh * xh, xy * xh - xx * yh, xx * yy - xy * xy
    x = (c1 * bx + c2 * by + c3 * bh) / determinant
    y = (c2 * bx + c4 * by + c5 * bh) / determinant
    turn = (c3 * bx + c5 * by + c6 * bh) / determinant
    return x, y, turn
