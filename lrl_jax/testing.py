"""Properties that every level should have, for tests of your own levels."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax import buffers
from lrl_jax.collectors import init_carry, rollout
from lrl_jax.hierarchies import Hierarchy, HierarchyState
from lrl_jax.levels.basic import RandomLevel
from lrl_jax.settings import check_int


def check_level(
    level: Any,
    env: Any,
    env_params: Any = None,
    *,
    above: Sequence[Any] = (),
    below: Sequence[Any] = (),
    env_obs_maps: Sequence[Any] | None = None,
    signals: Sequence[str] = (),
    n_env_instances: int = 4,
    n_steps: int = 24,
) -> Hierarchy:
    """Run the table of properties that the library's own levels pass; returns the hierarchy.

    The level acts in a gymnax environment, alone or between others. Checked are: jitted and eager
    steps agree; the state keeps its structure, shapes and types, so that a loop compiles once;
    instances outside a mask keep every bit, and draw what they would draw among fewer neighbours;
    evaluation stores, counts and changes nothing shared; a vmap over seeds equals a loop; what is
    saved and loaded acts the same; and, where the level learns, an update is made.

    Args:
        level: an instance, small and cheap settings are enough.
        env, env_params: gymnax environment and its parameters, its defaults if None.
        above, below: other levels, the highest first. A level that needs an input gets a
            RandomLevel above it if none is given.
        env_obs_maps, signals: of the hierarchy.
        n_env_instances: number of instances, at least 2.
        n_steps: ticks of each rollout: enough for the level to close rows, and to learn.

    Raises:
        AssertionError: with the property that does not hold, and where.
    """
    n = check_int("n_env_instances", n_env_instances, 2)
    if not above and callable(getattr(level, "input_space", None)) and level.input_space():
        above = [RandomLevel()]
    levels = [*above, level, *below]
    hierarchy = Hierarchy(levels, env, env_params, env_obs_maps, signals=signals)
    place = len(above)
    name = f"level {place} ({type(level).__name__})"
    check = _Checks(hierarchy, place, name, n, check_int("n_steps", n_steps, 1))
    for prove in (
        check.loops_compile_once,
        check.jit_equals_eager,
        check.masks_spare_the_others,
        check.neighbours_do_not_matter,
        check.evaluation_changes_nothing,
        check.seeds_are_independent,
        check.saved_and_loaded_acts_alike,
        check.learns,
    ):
        prove()
    return hierarchy


class _Checks:
    """The properties; each a method that raises an AssertionError where it does not hold."""

    def __init__(self, hierarchy: Hierarchy, place: int, name: str, n: int, n_steps: int):
        self.hierarchy, self.place, self.name = hierarchy, place, name
        self.n, self.n_steps = n, n_steps
        self.carry = init_carry(hierarchy, jax.random.key(0), n)
        self.state = hierarchy.unaligned(self.carry.hierarchy)
        rng = np.random.default_rng(0)
        space = hierarchy.env_spec.obs_space
        self.obs = [jnp.asarray(self.carry.obs)]
        noise = rng.uniform(-0.1, 0.1, (3, n, *space.shape))
        for x in noise:
            whole = jnp.issubdtype(self.carry.obs.dtype, jnp.floating)
            self.obs.append(self.carry.obs + jnp.asarray(x, self.carry.obs.dtype) * whole)
        self.rew = jnp.asarray(rng.uniform(-1, 1, (3, n)), jnp.float32)
        self.ends = jnp.asarray(rng.random((3, n)) < 0.3)

    def step(
        self, state: HierarchyState, t: int, mask: Any = None, n: int | None = None
    ) -> tuple[HierarchyState, jax.Array]:
        """One tick of made-up data, of the first n instances."""
        own = slice(None, n)
        state, action = self.hierarchy.get_action(state, self.obs[t][own], mask)
        signals = {name: self.rew[t][own] for name in self.hierarchy.signals}
        never = jnp.zeros_like(self.ends[t][own])
        return self.hierarchy.process_transition(
            state, self.obs[t + 1][own], self.rew[t][own], self.ends[t][own], never, mask, signals
        ), action

    def loops_compile_once(self) -> None:
        """The state keeps its structure, shapes and types."""
        count, before = 0, self.state

        def counted(state, obs, *step):
            nonlocal count
            count += 1
            state, _ = self.hierarchy.get_action(state, obs)
            return self.hierarchy.process_transition(state, *step)

        run = jax.jit(counted)
        signals = {name: self.rew[0] for name in self.hierarchy.signals}
        for t in range(3):
            step = (self.obs[t + 1], self.rew[t], self.ends[t], self.ends[t] & False)
            state = run(before, self.obs[t], *step, None, signals)
            for (path, old), new in zip(
                jax.tree.leaves_with_path(before), jax.tree.leaves(state), strict=True
            ):
                was, became = (str(jax.typeof(x)) for x in (old, new))
                assert was == became, (
                    f"{self.name}: {jax.tree_util.keystr(path)} was {was}, and became {became}: a "
                    f"loop would compile again."
                )
            before = state
        assert count == 1, f"{self.name}: three equal steps were traced {count} times."

    def jit_equals_eager(self) -> None:
        """The first tick without jit gives what it gives with it."""
        fast, action = self.step(self.state, 0)
        with jax.disable_jit():
            slow, eager = self.step(self.state, 0)
        parts = ((_with_rows(fast), action), (_with_rows(slow), eager))
        self.same("a jitted step differs from an eager one", *parts, 1e-4)

    def masks_spare_the_others(self) -> None:
        """Instances outside the mask keep every bit."""
        mask = jnp.arange(self.n) % 2 == 0
        state, _ = self.step(self.state, 0)
        after, _ = self.step(state, 1, mask)
        for i in range(1, self.n, 2):
            before, now = (_of_instance(s, i) for s in (state, after))
            self.same(f"instance {i} was changed outside the mask", before, now)

    def neighbours_do_not_matter(self) -> None:
        """The first instances act as they would without the others."""
        few = init_carry(self.hierarchy, jax.random.key(0), self.n - 1)
        state = self.hierarchy.unaligned(few.hierarchy)
        learners = [level.learner for level in self.state.levels]
        state = self.hierarchy.with_learners(state, learners, with_settings=True)
        state = state.replace(stream=self.state.stream)
        _, alone = self.step(state, 0, n=self.n - 1)
        _, among = self.step(self.state, 0)
        self.same("actions depend on the number of instances", alone, among[:-1], 1e-4)

    def evaluation_changes_nothing(self) -> None:
        """Learners, rows and counters do not change in eval mode."""
        carry, _ = rollout(self.hierarchy.eval(), self.carry, n_steps=3)
        for old, new in zip(self.carry.hierarchy.levels, carry.hierarchy.levels, strict=True):
            self.same("evaluation changed a learner", old.learner, new.learner)
            if old.buffer is not None:
                self.same("evaluation stored a row", old.buffer.count, new.buffer.count)
        counts = (int(x.hierarchy.n_total_env_steps) for x in (self.carry, carry))
        assert len(set(counts)) == 1, f"{self.name}: evaluation counted steps."

    def seeds_are_independent(self) -> None:
        """A vmap over seeds gives what a loop over them gives."""

        def run(key):
            carry = init_carry(self.hierarchy, key, self.n)
            carry, out = rollout(self.hierarchy, carry, n_steps=self.n_steps, learn=True)
            return carry.hierarchy.active_level, carry.obs, out.metrics

        keys = jax.random.split(jax.random.key(0), 2)
        many = jax.jit(jax.vmap(run))(keys)
        for i in range(2):
            one = jax.jit(run)(keys[i])
            mine = jax.tree.map(lambda x, i=i: x[i], many)
            self.same(f"seed {i} differs under vmap", mine, one, 1e-2)

    def saved_and_loaded_acts_alike(self) -> None:
        """A checkpoint gives the same next action."""
        state, _ = self.step(self.state, 0)
        with tempfile.TemporaryDirectory() as folder:
            self.hierarchy.save(state, Path(folder) / "level")
            loaded = self.hierarchy.load(Path(folder) / "level")
        kept, again = (self.step(s, 1)[1] for s in (state, loaded))
        self.same("a loaded state acts otherwise", kept, again)

    def learns(self) -> None:
        """Where the level makes updates, one is made, with finite metrics."""
        level = self.hierarchy.levels[self.place]
        if not level.n_updates or level.learn_from > self.n * self.n_steps:
            return
        _, out = rollout(self.hierarchy, self.carry, n_steps=self.n_steps, learn=True)
        prefix = f"level{self.place}/"
        own = {k: np.asarray(x) for k, x in out.metrics.items() if k.startswith(prefix)}
        assert own[f"{prefix}n_updates"] > 0, (
            f"{self.name} made no update in {self.n_steps} ticks of {self.n} instances: raise "
            f"n_steps, or lower its update_interval or learn_from."
        )
        odd = sorted(k for k, x in own.items() if not np.isfinite(x).all())
        assert not odd, f"{self.name}: metrics {odd} are not finite."

    def same(self, what: str, a: Any, b: Any, tolerance: float = 0.0) -> None:
        """Leaves are equal, or close where they are floats."""
        for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
            if jnp.issubdtype(x.dtype, jax.dtypes.extended):
                x, y = jax.random.key_data(x), jax.random.key_data(y)
            x, y = np.asarray(x), np.asarray(y)
            if tolerance and x.dtype.kind not in "iub":
                equal = np.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)
            else:
                equal = x.tobytes() == y.tobytes()
            where = jax.tree_util.keystr(path)
            first = tuple(i[0] for i in np.nonzero(np.atleast_1d(x != y))) if not equal else ()
            assert equal, (
                f"{self.name}: {what}{f' ({where})' if where else ''}: "
                f"{np.atleast_1d(x)[first]} and {np.atleast_1d(y)[first]} at {first}."
            )


def _with_rows(state: HierarchyState) -> Any:
    """A state with stored rows as arrays in their dtypes."""
    rows = [None if s.buffer is None else buffers.stored(s.buffer) for s in state.levels]
    levels = tuple(s.replace(buffer=None) for s in state.levels)
    return state.replace(levels=levels), rows


def _of_instance(state: HierarchyState, i: int) -> list[Any]:
    """What belongs to one instance."""
    parts: list[Any] = [state.active_level[i]]
    for level in state.levels:
        own = level.replace(learner=None, buffer=None, owed=None, learn_from=None, learn_until=None)
        parts.append(jax.tree.map(lambda x: x[i], own))
        if level.buffer is not None:
            buffer = level.buffer
            parts += [buffer.words[:, i], buffer.cursor[i], buffer.count[i]]
    return parts
