"""Gathering experience: rollouts, the Collector, statistics."""

from lrl_jax.collectors.async_collector import AsyncCollector
from lrl_jax.collectors.c_worker import CollectionSettings, CWorker
from lrl_jax.collectors.c_worker_set import CWorkerSet
from lrl_jax.collectors.collector import Collector
from lrl_jax.collectors.ray_pool import WorkerError
from lrl_jax.collectors.records import Episodes, LevelTransitions, Transitions
from lrl_jax.collectors.rollout import RolloutOutput, evaluate, rollout
from lrl_jax.collectors.stats import (
    CollectStats,
    CollectStatsBase,
    SequenceSummaryStats,
    check_finite,
)
from lrl_jax.collectors.tick import RolloutCarry, init_carry, shard, tick
from lrl_jax.collectors.video import VideoLogger
from lrl_jax.collectors.worker_data import decompress, weights_of
from lrl_jax.envs.vector_processes import EnvError

__all__ = [
    "AsyncCollector",
    "CWorker",
    "CWorkerSet",
    "CollectStats",
    "CollectStatsBase",
    "CollectionSettings",
    "Collector",
    "EnvError",
    "Episodes",
    "LevelTransitions",
    "RolloutCarry",
    "RolloutOutput",
    "SequenceSummaryStats",
    "Transitions",
    "VideoLogger",
    "WorkerError",
    "check_finite",
    "decompress",
    "evaluate",
    "init_carry",
    "rollout",
    "shard",
    "tick",
    "weights_of",
]
