"""Gathering experience: rollouts, the Collector, statistics."""

from lrl_jax.collectors.async_collector import AsyncCollector
from lrl_jax.collectors.c_worker import CollectionSettings, CWorker, decompress, weights_of
from lrl_jax.collectors.c_worker_set import CWorkerSet, WorkerError
from lrl_jax.collectors.collector import Collector
from lrl_jax.collectors.evaluate import Episodes, evaluate
from lrl_jax.collectors.rollout import (
    RolloutCarry,
    RolloutOutput,
    Transitions,
    init_carry,
    rollout,
    shard,
    tick,
)
from lrl_jax.collectors.stats import CollectStats, CollectStatsBase, SequenceSummaryStats
from lrl_jax.collectors.video import VideoLogger

__all__ = [
    "AsyncCollector",
    "CWorker",
    "CWorkerSet",
    "CollectStats",
    "CollectStatsBase",
    "CollectionSettings",
    "Collector",
    "Episodes",
    "RolloutCarry",
    "RolloutOutput",
    "SequenceSummaryStats",
    "Transitions",
    "VideoLogger",
    "WorkerError",
    "decompress",
    "evaluate",
    "init_carry",
    "rollout",
    "shard",
    "tick",
    "weights_of",
]
