"""Hierarchical reinforcement learning in JAX."""

import jax as _jax

__version__ = "0.2.0"

# An instance's random stream must not depend on the number of its neighbours.
_jax.config.update("jax_threefry_partitionable", True)

from lrl_jax import (  # noqa: E402
    algorithms,
    buffers,
    checkpoints,
    collectors,
    devices,
    envs,
    hierarchies,
    levels,
    loggers,
    models,
    obs_maps,
    planners,
    predictors,
    spaces,
    testing,
    training,
)
from lrl_jax.collectors import (  # noqa: E402
    AsyncCollector,
    Collector,
    CollectStats,
    Transitions,
    evaluate,
    init_carry,
    rollout,
)
from lrl_jax.devices import make_mesh  # noqa: E402
from lrl_jax.envs import make  # noqa: E402
from lrl_jax.export import export_policy  # noqa: E402
from lrl_jax.hierarchies import Hierarchy, HierarchyState, RandomHierarchy  # noqa: E402
from lrl_jax.policy_loader import load_policy  # noqa: E402
from lrl_jax.training import (  # noqa: E402
    TrainConfig,
    compare,
    load_run,
    register,
    take_seed,
    train,
)

__all__ = [
    "AsyncCollector",
    "CollectStats",
    "Collector",
    "Hierarchy",
    "HierarchyState",
    "RandomHierarchy",
    "TrainConfig",
    "Transitions",
    "__version__",
    "algorithms",
    "buffers",
    "checkpoints",
    "collectors",
    "compare",
    "devices",
    "envs",
    "evaluate",
    "export_policy",
    "hierarchies",
    "init_carry",
    "levels",
    "load_policy",
    "load_run",
    "loggers",
    "make",
    "make_mesh",
    "models",
    "obs_maps",
    "planners",
    "predictors",
    "register",
    "rollout",
    "spaces",
    "take_seed",
    "testing",
    "train",
    "training",
]
