"""Which instances step when a number of steps or of episodes is to be collected exactly.

The rule is the same for environments on the device and on the host: functions here take arrays of
either kind.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lrl_jax import struct
from lrl_jax.exact import module_of

#: n_steps counts ticks, n_total_steps steps summed over instances, n_steps_or_more those that
#: arrive from environments that step on their own, the others episodes.
MODES = ("n_steps", "n_total_steps", "n_steps_or_more", "n_episodes", "n_episodes_quota")


class Owed(struct.Node):
    """What is still to be collected.

    Attributes:
        active: which instances take the next step, bool [n].
        left: ticks, steps or starts of episodes left, int32 []; with quotas the episodes that each
            instance has yet to finish, int32 [n].
    """

    active: Any
    left: Any

    @classmethod
    def begin(cls, mode: str, amount: int, n: int) -> Owed:
        """Before the first step, in NumPy.

        Args:
            mode: one of MODES.
            amount: number of ticks, steps or episodes.
            n: number of instances.
        """
        most = np.iinfo(np.int32).max
        if amount > most:
            raise ValueError(
                f"{mode}={amount} is more than one call counts ({most}): collect in several calls."
            )
        index = np.arange(n)
        if mode in ("n_steps", "n_steps_or_more"):
            return cls(np.ones(n, bool), np.int32(amount))
        if mode == "n_total_steps":
            return cls(index < amount, np.int32(amount))
        if mode == "n_episodes":
            # Those that start at once continue the episode they are in.
            return cls(index < amount, np.int32(max(0, amount - n)))
        quota = (amount // n + (index < amount % n)).astype(np.int32)
        return cls(quota > 0, quota)

    def after(self, mode: str, done: Any, stepped: Any = None) -> Owed:
        """After a step in which `done` [n] ended an episode.

        Args:
            mode: one of MODES.
            done: bool [n].
            stepped: bool [n], whose steps arrived, for n_steps_or_more; the active ones if None.
        """
        xp = module_of(done)
        if mode == "n_steps":
            return self.after_ticks(1)
        if mode in ("n_total_steps", "n_steps_or_more"):
            taken = self.active if stepped is None else stepped
            left = self.left - taken.sum(dtype=xp.int32)
            if mode == "n_steps_or_more":
                return self.replace(active=self.active & (left > 0), left=left)
            return self.replace(active=xp.arange(len(done)) < left, left=left)
        done = done & self.active
        if mode == "n_episodes":
            # Of those that finished the highest-numbered get the starts that are left.
            from_top = xp.cumsum(done[::-1])[::-1]
            goes_on = done & (from_top <= self.left)
            left = self.left - goes_on.sum(dtype=xp.int32)
            return self.replace(active=(self.active & ~done) | goes_on, left=left)
        left = self.left - done.astype(xp.int32)
        return self.replace(active=left > 0, left=left)

    def after_ticks(self, n_ticks: int) -> Owed:
        """After `n_ticks` more ticks of all instances, where ticks are counted."""
        left = self.left - n_ticks
        return self.replace(active=self.active & (left > 0), left=left)
