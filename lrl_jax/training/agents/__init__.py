"""Agents of the presets: plain settings that build the levels of a hierarchy."""

from lrl_jax.training.agents.learners import DQNAgent, SACAgent, TDMPC2Agent
from lrl_jax.training.agents.planner import PlannerAgent

#: All kinds that a config can name.
Agent = PlannerAgent | SACAgent | DQNAgent | TDMPC2Agent

__all__ = ["Agent", "DQNAgent", "PlannerAgent", "SACAgent", "TDMPC2Agent"]
