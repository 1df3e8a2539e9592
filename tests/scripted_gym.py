"""The twin of `scripted.Scripted` in Gymnasium; without JAX, for processes of its own."""

from __future__ import annotations

import time

import gymnasium
import numpy as np


class ScriptedGym(gymnasium.Env):
    """One instance; every reset begins its next episode."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, index, lengths, delay=0.0, fail_at=None, render_mode=None):
        self.index, self.lengths, self.delay, self.fail_at = index, lengths, delay, fail_at
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(-1e6, 1e6, (4,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.episode, self.time, self.position, self.steps = -1, 0, np.float32(0), 0
        self.options = []

    def _obs(self):
        return np.array([self.index, self.episode, self.time, self.position], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.options.append(options)
        self.episode, self.time, self.position = self.episode + 1, 0, np.float32(0)
        return self._obs(), {}

    def step(self, action):
        if self.delay:
            time.sleep(self.delay)
        self.steps += 1
        if self.fail_at is not None and self.steps >= self.fail_at:
            raise RuntimeError("the environment broke")
        self.position = np.float32(0.5) * self.position + np.float32(np.asarray(action)[0])
        self.time += 1
        ended = self.time >= self.lengths[self.episode % len(self.lengths)]
        odd = self.episode % 2 == 1
        obs = self._obs()
        reward = np.float32(1.0) + np.float32(self.index) + np.float32(0.1) * obs[3]
        success = {"is_success": bool(obs[3] > 1.0)}
        return obs, float(reward), bool(ended and odd), bool(ended and not odd), success

    def render(self):
        frame = np.zeros((21, 31, 3), np.uint8)
        frame[:, : self.time + 1] = 255
        return frame
