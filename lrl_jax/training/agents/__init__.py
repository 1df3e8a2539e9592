"""Agents of the presets: plain settings that build the levels of a hierarchy."""

from lrl_jax.training.agents.learners import DQNAgent, SACAgent, TDMPC2Agent
from lrl_jax.training.agents.planner import PlannerAgent
from lrl_jax.training.agents.skills import SkillAgent

#: All kinds that a config can name.
Agent = PlannerAgent | SACAgent | DQNAgent | TDMPC2Agent | SkillAgent

__all__ = ["Agent", "DQNAgent", "PlannerAgent", "SACAgent", "SkillAgent", "TDMPC2Agent"]
