"""Environments: Maze2D, a swimmer, making environments by id, goals in observations, pictures.

Importing this package registers the library's own environments with gymnax.
"""

from lrl_jax.env_spec import goal_indices
from lrl_jax.envs.adapted import AdaptedEnvironment
from lrl_jax.envs.adapters import BraxEnvironment
from lrl_jax.envs.layouts import BUILTIN, parse_layout
from lrl_jax.envs.maze2d import Maze2D, Maze2DParams, Maze2DState
from lrl_jax.envs.registration import GYMNASIUM, make, register_own
from lrl_jax.envs.rendering import render_maze
from lrl_jax.envs.swimmer import Swimmer, SwimmerState

register_own()

__all__ = [
    "BUILTIN",
    "GYMNASIUM",
    "AdaptedEnvironment",
    "BraxEnvironment",
    "Maze2D",
    "Maze2DParams",
    "Maze2DState",
    "Swimmer",
    "SwimmerState",
    "goal_indices",
    "make",
    "parse_layout",
    "register_own",
    "render_maze",
]
