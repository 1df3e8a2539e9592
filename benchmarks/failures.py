"""What the episodes that fail in a maze have in common: their paths, their ends, the horizon."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.collectors import init_carry, tick

FREE_STEPS = 100  # at the end of an episode, in which a body that goes nowhere is stuck
STUCK = 0.5  # longest way along one axis of a body that is stuck
BINS = (0, 5, 10, 15, 20, 1000)


def path_lengths(layout: Any) -> dict[tuple[int, int], dict[tuple[int, int], int]]:
    """Shortest paths between free cells (column, row), in steps from cell to cell."""
    free = {(x, y) for y, row in enumerate(layout) for x, wall in enumerate(row) if not wall}
    lengths = {}
    for start in free:
        found, queue = {start: 0}, deque([start])
        while queue:
            x, y = queue.popleft()
            for cell in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
                if cell in free and cell not in found:
                    found[cell] = found[x, y] + 1
                    queue.append(cell)
        lengths[start] = found
    return lengths


def follow_episodes(
    hierarchy: Any, state: Any, n: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Positions [T + 1, n, 2] in one whole episode of each of n instances, and goals [n, 2]."""
    run = hierarchy.eval().jitted(_follow, n)
    return jax.device_get(run(state, jax.random.key(seed)))


def _follow(hierarchy, n, state, key):
    state_key, carry_key = jax.random.split(key)
    test_state = hierarchy.for_testing(state, state_key, n)
    carry = init_carry(hierarchy, carry_key, n, test_state)

    def step(carry, _):
        carry, transitions, _ = tick(hierarchy, carry)
        return carry, transitions.obs_next[:, :2]

    _, positions = jax.lax.scan(step, carry, length=hierarchy.env.max_steps)
    return jnp.concatenate([carry.obs[None, :, :2], positions]), carry.obs[:, 2:4]


def describe(env: Any, positions: np.ndarray, goals: np.ndarray) -> dict[str, Any]:
    """Success by the length of the shortest path, and how the other episodes end."""
    near = np.linalg.norm(positions[1:] - goals, axis=-1) < 0.3
    success = near.any(0)
    cells = [np.floor(x).astype(int) for x in (positions[0], positions[-1], goals)]
    lengths = path_lengths(env.layout)
    first, last = (
        np.array([lengths[tuple(a)][tuple(b)] for a, b in zip(x, cells[2], strict=True)])
        for x in cells[:2]
    )
    table = []
    for low, high in itertools.pairwise(BINS):
        mine = (first >= low) & (first < high)
        if mine.any():
            steps = near.argmax(0)[mine & success] + 1
            table.append({
                "shortest_path_from": low,
                "shortest_path_below": high,
                "episodes": int(mine.sum()),
                "success": float(success[mine].mean()),
                "steps_to_goal": float(np.median(steps)) if len(steps) else None,
            })  # fmt: skip
    failed = ~success
    moved = np.ptp(positions[-FREE_STEPS:], axis=0).max(-1)
    straight = np.linalg.norm(positions[-1] - goals, axis=-1)
    return {
        "episodes": len(success),
        "success": float(success.mean()),
        "by_shortest_path": table,
        "failures": {
            "episodes": int(failed.sum()),
            "stuck_at_the_end": int((failed & (moved < STUCK)).sum()),
            # Near as the crow flies, far on foot: the reward is highest behind a wall.
            "behind_a_wall": int((failed & (last >= 2 * straight + 1)).sum()),
            "straight_distance_at_the_end": _mean(straight[failed]),
            "shortest_path_at_the_end": _mean(last[failed]),
            "shortest_path_at_the_start": _mean(first[failed]),
        },
    }


def _mean(x: np.ndarray) -> float | None:
    return float(x.mean()) if len(x) else None
