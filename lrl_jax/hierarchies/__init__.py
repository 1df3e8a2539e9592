"""Hierarchies: levels stacked into one agent."""

from lrl_jax.exact import Counter
from lrl_jax.hierarchies.hierarchy import Hierarchy, RandomHierarchy
from lrl_jax.hierarchies.state import HierarchyState, LevelState

__all__ = ["Counter", "Hierarchy", "HierarchyState", "LevelState", "RandomHierarchy"]
