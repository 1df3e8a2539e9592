"""Maze2D: a disc with velocity control in a maze of square cells."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from lrl_jax.envs.layouts import check_points, free_centres, parse_layout, wall_distance
from lrl_jax.envs.reaching import GOAL_RADIUS, Reaching
from lrl_jax.envs.walls import CONTACT_TOLERANCE, Walls
from lrl_jax.settings import check_flag, check_float

BODY_RADIUS = 0.15
STEP_SIZE = 0.1  # unless asked otherwise
ACCELERATION, DRAG, FASTEST = 0.3, 0.2, 1.9  # of a body with inertia, per step
LARGEST_STEP = 0.5  # with the radius less than a cell: only neighbouring walls can be met

# Limits of `_uniform_index`: above the first its products overflow, above the second a draw shared
# by goal and start would make some pairs likelier than others by more than 0.03%.
_MAX_POINTS = 2**16
_ONE_DRAW_PAIRS = 2**20


@struct.dataclass
class Maze2DState(environment.EnvState):
    """State of one instance.

    Attributes:
        time: steps since the reset, int32 `[]`.
        position: centre of the body (x, y), float32 `[2]`.
        goal: (x, y), float32 `[2]`.
        velocity: (x, y) with inertia, float32 `[2]`; else None.
    """

    time: jax.Array  # pyright: ignore[reportIncompatibleVariableOverride]  # gymnax: int
    position: jax.Array
    goal: jax.Array
    velocity: jax.Array | None = None


@struct.dataclass
class Maze2DParams(environment.EnvParams):
    """What may change without a new trace.

    Attributes:
        max_steps_in_episode: an episode is truncated after as many steps.
    """

    max_steps_in_episode: int = 400


class Maze2D(Reaching):
    """A disc with velocity control that has to reach a goal in a maze.

    The world is as wide and high as the layout has columns and rows; the cell in row y and column x
    spans [x, x + 1] x [y, y + 1], row 0 being the first line. The body is a disc of radius 0.15. An
    action v in [-1, 1]^2 (clipped) asks for the move p' = p + step_size v, clipped to the world
    minus the radius. A move that would bring the centre closer to a wall cell than the radius is
    tried along x alone, then along y alone; if both fail the body stays.

    With `inertia` an action accelerates: v' = v + 0.3 a - 0.2 v, each entry at most 1.9, and the
    body moves by step_size v' in two halves; a component that a wall blocks is lost. Its terminal
    speed is 1.5.

    Observation: float32 `[6]`, achieved_goal (x, y), desired_goal (x, y), observation (x, y); the
    first and the last are the position. With inertia `[8]`, the observation being position and
    velocity. Reward: minus the distance to the goal over the world's
    diagonal, or, sparse, 1 within 0.3 of the goal and else 0. `info["is_success"]`: whether the new
    position is within 0.3 of the goal. Episodes do not terminate unless `terminate_at_goal`; they
    are truncated after `max_steps`. A reset draws the goal uniformly, then the start uniformly
    among the starts that are farther from it than 0.3.

    Args:
        layout: lines of '#' (wall) and '.' (free), as one text or a list, or a 2-D array of 0
            (free) and 1 (wall). The border must be walls.
        starts: (x, y) of possible starts, `[N, 2]`; None means the centres of all free cells.
        goals: the same for goals.
        dense_reward: whether the reward is the negative distance, or sparse.
        max_steps: steps after which an episode is truncated.
        terminate_at_goal: whether an episode terminates where it succeeds, as in OGBench. Success
            at the last step is success at any step then: do not report one for the other.
        step_size: distance that an action of 1 moves the body by, at most 0.5; with inertia a
            velocity of 1, at most 0.25.
        inertia: whether actions accelerate the body.

    Raises:
        ValueError: for a layout that is ragged, open at its border or without free cells, points
            in a wall, outside, not finite or closer to a wall than the body's radius, a goal that
            leaves no start, or numbers out of range.
        TypeError: for a layout that is neither text nor an array, or other settings of a wrong
            kind.
    """

    _supports_transition_gradients = True

    cell_size = 1.0
    """Side of a cell of the layout."""

    body_radius = BODY_RADIUS
    """Of the disc."""

    def __init__(
        self,
        layout: Any,
        starts: Any = None,
        goals: Any = None,
        dense_reward: bool = True,
        max_steps: int = 400,
        terminate_at_goal: bool = False,
        step_size: float = STEP_SIZE,
        inertia: bool = False,
    ):
        self.layout = parse_layout(layout)
        self.height, self.width = len(self.layout), len(self.layout[0])
        self.diameter = math.hypot(self.height, self.width)
        self.starts = self._points(starts, "start")
        self.goals = self._points(goals, "goal")
        self.inertia = check_flag("inertia", inertia)
        most = LARGEST_STEP / 2 if inertia else LARGEST_STEP
        self.step_size = check_float("step_size", step_size, 1e-6, most)
        super().__init__(
            (self.layout, self.starts, self.goals, self.step_size, self.inertia),
            self.diameter,
            dense_reward,
            max_steps,
            terminate_at_goal,
        )
        self._start_array = np.array(self.starts, np.float32)
        self._goal_array = np.array(self.goals, np.float32)
        self._walls = Walls(self.layout, BODY_RADIUS)
        self._n_eligible, self._skips = _eligible_starts(self.starts, self.goals)

    def _points(self, points: Any, what: str):
        if points is None:
            points = free_centres(self.layout)
        else:
            points = check_points(self.layout, points, what, BODY_RADIUS, CONTACT_TOLERANCE)
        if len(points) > _MAX_POINTS:
            raise ValueError(
                f"there are {len(points)} {what}s, more than {_MAX_POINTS}: give fewer in {what}s=."
            )
        return points

    def __repr__(self) -> str:
        return (
            f"Maze2D({self.height}x{self.width} cells, {len(self.starts)} starts, "
            f"{len(self.goals)} goals, dense_reward={self.dense_reward}, "
            f"max_steps={self.max_steps}, terminate_at_goal={self.terminate_at_goal}, "
            f"step_size={self.step_size:g}, inertia={self.inertia})"
        )

    @property
    def name(self) -> str:
        """Name of the environment."""
        return "Maze2D"

    @property
    def goal_indices(self) -> dict[str, tuple[int, int]]:
        """Where the parts of the observation are, [start, stop) each."""
        return {
            "achieved_goal": (0, 2),
            "desired_goal": (2, 4),
            "observation": (4, 8 if self.inertia else 6),
        }

    @property
    def state_parts(self) -> tuple[str, ...]:
        """Parts that hold the state: without a velocity the observation is the position again."""
        return ("observation",) if self.inertia else ("achieved_goal",)

    @property
    def default_params(self) -> Maze2DParams:
        """Parameters with the `max_steps` of the constructor."""
        return Maze2DParams(max_steps_in_episode=self.max_steps)

    def observation_space(self, params: Maze2DParams | None = None) -> spaces.Box:
        """Three positions in the world, `[6]`, and with inertia the velocity, `[8]`."""
        del params
        # gymnax's types ask for arrays of JAX
        low: Any = np.zeros(6, np.float32)
        high: Any = np.tile(np.array([self.width, self.height], np.float32), 3)
        if self.inertia:
            fastest = np.full(2, FASTEST, np.float32)
            low, high = np.concatenate([low, -fastest]), np.concatenate([high, fastest])
        return spaces.Box(low, high, low.shape, jnp.float32)

    def state_space(self, params: Maze2DParams | None = None) -> spaces.Dict:
        """Spaces of the state's fields."""
        limit = (params or self.default_params).max_steps_in_episode
        low: Any = np.zeros(2, np.float32)
        high: Any = np.array([self.width, self.height], np.float32)
        box = spaces.Box(low, high, (2,), jnp.float32)
        fields: dict[str, Any] = {"position": box, "goal": box, "time": spaces.Discrete(limit + 1)}
        if self.inertia:
            fields["velocity"] = spaces.Box(-FASTEST, FASTEST, (2,), jnp.float32)
        return spaces.Dict(fields)

    def step_env(
        self, key: jax.Array, state: Maze2DState, action: float | jax.Array, params: Maze2DParams
    ) -> tuple[jax.Array, Maze2DState, jax.Array, jax.Array, dict[str, jax.Array]]:
        """Step without a reset; `key` is not used.

        Returns:
            obs `[6]` or `[8]`, state, reward float32 `[]`, terminated bool `[]`, and info with
            is_success.
        """
        velocity = state.velocity
        if velocity is None:
            position = self._move(state.position, action)
        else:
            position, velocity = self._accelerate(state.position, velocity, action)
        state = Maze2DState(
            position=position, goal=state.goal, time=state.time + 1, velocity=velocity
        )
        reward, terminated, info = self.outcome(state)
        obs = self.observe(key, state, action, params)
        obs, state = self._apply_transition_gradient_policy(obs, state)
        return obs, state, reward, terminated, info

    def reset_env(self, key: jax.Array, params: Maze2DParams) -> tuple[jax.Array, Maze2DState]:
        """Draw a goal, then a start farther from it than the goal's radius; consumes `key`."""
        # One draw of 32 bits serves both where that is fine enough: it is most of a step's cost.
        if len(self.goals) * len(self.starts) <= _ONE_DRAW_PAIRS:
            bits = jax.random.bits(key, (), jnp.uint32)
            goal, start_bits = _uniform_index(bits, len(self.goals))
        else:
            bits, start_bits = jax.random.bits(key, (2,), jnp.uint32)
            goal, _ = _uniform_index(bits, len(self.goals))
        start, _ = _uniform_index(start_bits, jnp.asarray(self._n_eligible)[goal])
        if self._skips.shape[1]:
            start += (start[None] >= jnp.asarray(self._skips)[goal]).sum(dtype=jnp.uint32)
        state = Maze2DState(
            position=jnp.asarray(self._start_array)[start],
            goal=jnp.asarray(self._goal_array)[goal],
            time=jnp.zeros((), jnp.int32),
            velocity=jnp.zeros(2, jnp.float32) if self.inertia else None,
        )
        return self.observe(key, state, None, params), state

    def observe(
        self,
        key: jax.Array | None,
        state: Maze2DState,
        action: float | jax.Array | None,
        params: Maze2DParams | None = None,
    ) -> jax.Array:
        """Observation of a state: achieved goal, desired goal, position and any velocity."""
        del key, action, params
        parts = [state.position, state.goal, state.position]
        return jnp.concatenate(parts if state.velocity is None else [*parts, state.velocity])

    def free_positions(self, key: jax.Array, n: int, margin: float = 0.0) -> np.ndarray:
        """Positions [n, 2] of the body, uniform over where it fits; consumes `key` (host only).

        Args:
            key: typed key.
            n: number of positions.
            margin: further distance to the walls.

        Raises:
            ValueError: if no place is that far from all walls.
        """
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        least, found = BODY_RADIUS + margin, np.zeros((0, 2))
        for _ in range(1000):
            points = rng.uniform((0.0, 0.0), (self.width, self.height), (max(n, 1024), 2))
            free = wall_distance(self.layout, points[:, 0], points[:, 1]) >= least
            found = np.concatenate([found, points[free]])
            if len(found) >= n:
                return found[:n].astype(np.float32)
        raise ValueError(
            f"hardly a place is {least:g} from all walls of this maze: {len(found)} found of {n}. "
            f"Use a smaller margin than {margin:g}."
        )

    def _move(self, position: jax.Array, action: float | jax.Array) -> jax.Array:
        """Position `[2]` after a step with the velocity `action` `[2]`."""
        action = jnp.clip(jnp.asarray(action, jnp.float32), -1.0, 1.0)
        return self._walls.move(position, self.step_size * action)

    def _accelerate(
        self, position: jax.Array, velocity: jax.Array, action: float | jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Position and velocity `[2]` after a step with the force `action` `[2]`."""
        action = jnp.clip(jnp.asarray(action, jnp.float32), -1.0, 1.0)
        velocity = velocity + ACCELERATION * action - DRAG * velocity
        velocity = jnp.clip(velocity, -FASTEST, FASTEST)
        for _ in range(2):
            half = 0.5 * self.step_size * velocity
            moved = self._walls.move(position, half)
            blocked = jnp.abs(moved - (position + half)) > CONTACT_TOLERANCE
            position, velocity = moved, jnp.where(blocked, 0.0, velocity)
        return position, velocity


def _eligible_starts(starts: Any, goals: Any) -> tuple[np.ndarray, np.ndarray]:
    """Which starts are farther from each goal than its radius.

    The few that are not are stored, since a table of those that are grows with the square of the
    number of cells. With e_0 < e_1 < ... the starts to leave out, the u-th eligible start is
    u + #{k: u >= e_k - k}.

    Returns:
        The number of eligible starts, uint32 `[G]`, and the e_k - k, uint32 `[G, K]`, padded with
        a number that no u reaches.
    """
    start_array, left_out = np.asarray(starts), []
    for i, goal in enumerate(goals):
        distance = np.hypot(*(start_array - np.asarray(goal)).T)
        near = np.flatnonzero(distance <= GOAL_RADIUS + CONTACT_TOLERANCE)
        if len(near) == len(starts):
            raise ValueError(
                f"goal {i} at (x, y) = ({goal[0]:g}, {goal[1]:g}) leaves no start: all "
                f"{len(starts)} starts are within the goal radius {GOAL_RADIUS:g} of it "
                f"(the farthest at {distance.max():.3g}): add a start or move the goal."
            )
        left_out.append(near - np.arange(len(near)))
    skips = np.full((len(goals), max(map(len, left_out))), 2**32 - 1, np.uint32)
    for row, near in zip(skips, left_out, strict=True):
        row[: len(near)] = near
    return np.array([len(starts) - len(near) for near in left_out], np.uint32), skips


def _uniform_index(bits: jax.Array, n: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """An index below n from 32 random bits, and bits for the next draw.

    The product bits * n has 64 bits: its upper half is the index, its lower half the position
    within the index's share of the range, uniform again up to a granularity of n / 2**32, so that
    one draw can serve goal and start. `n` is at most 2**16.
    """
    n = jnp.asarray(n, jnp.uint32)
    low = (bits & 0xFFFF) * n
    return ((bits >> 16) * n + (low >> 16)) >> 16, bits * n
