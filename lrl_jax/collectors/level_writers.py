"""Scalars that the host loop writes to the levels' own writers."""

from __future__ import annotations

from typing import Any

from lrl_jax.collectors.stats import Collected
from lrl_jax.hierarchies import Hierarchy
from lrl_jax.loggers import write_scalars


class LevelWriters:
    """Writes the metrics of updates to the writers that levels bring along (`Level.own_writer`).

    Args:
        hierarchy: whose levels learn.
        n_calls: updates that each level has made so far; changed in place.
        n_env_steps: environment steps before the call that is logged.
    """

    def __init__(self, hierarchy: Hierarchy, n_calls: dict[int, int], n_env_steps: int):
        pairs = zip(hierarchy.levels, hierarchy.specs, strict=True)
        found = {i: level.own_writer(spec) for i, (level, spec) in enumerate(pairs)}
        self._writers = {i: writer for i, writer in found.items() if writer is not None}
        self._n_calls, self._n_env_steps = n_calls, n_env_steps

    def write(self, collected: Collected) -> None:
        """Write what is due of the current chunk of ticks, once."""
        for record in collected.latest if self._writers else ():
            for tick, n_steps in enumerate(record.steps.tolist()):
                self._n_env_steps += n_steps
                if record.metrics:
                    self._write(record.metrics, tick)

    def _write(self, metrics: dict[str, Any], tick: int) -> None:
        for i, (writer, interval) in self._writers.items():
            updates = metrics[f"level{i}/n_updates"]
            if tick >= len(updates):
                continue
            before = self._n_calls.get(i, 0)
            self._n_calls[i] = before + int(updates[tick])
            if self._n_calls[i] // interval == before // interval:
                continue
            own = f"level{i}/"
            scalars = {
                f"predictor/{name.removeprefix(own)}": float(values[tick])
                for name, values in metrics.items()
                if name.startswith(own) and name != f"{own}n_updates"
            }
            write_scalars(writer, self._n_env_steps, scalars)
