"""Environments that do nothing, without JAX, for processes of their own."""

from __future__ import annotations

import os
import signal

import gymnasium
import numpy as np

SPACE = gymnasium.spaces.Box(-1, 1, (1,), np.float32)


class Steady(gymnasium.Env):
    """Episodes of a fixed length; `told` is each step's info."""

    observation_space, action_space = SPACE, gymnasium.spaces.Discrete(2)

    def __init__(self, length=3, told=None):
        self.length, self.told, self.resets = length, told or (lambda t: {}), []

    def reset(self, *, seed=None, options=None, **more):
        super().reset(seed=seed)
        self.resets.append((options, more))
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), 1.0, False, self.t == self.length, self.told(self.t)


class NeedsNone(Steady):
    def reset(self, *, seed=None, options=None):
        assert options is None, options
        return super().reset(seed=seed)


class Failing(Steady):
    """Of the index 1 fails in its fifth step."""

    def __init__(self, index, how):
        super().__init__()
        self.index, self.how, self.n = index, how, 0

    def step(self, action):
        self.n += 1
        if self.index == 1 and self.n == 5:
            if self.how == "die":
                os._exit(7)
            if self.how == "interrupt":
                signal.raise_signal(signal.SIGINT)
            raise ValueError("lost its way")
        return super().step(action)
