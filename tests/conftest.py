"""Settings that all tests share."""

import gc

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # for tests of meshes; others use the first

# Derandomized, so that a run fails or passes for good; compilation makes first examples slow.
hypothesis.settings.register_profile(
    "fixed",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True, scope="module")
def _forget_what_was_compiled():
    """A process can map only so much memory: thousands of compiled functions use it up."""
    yield
    jax.clear_caches()
    gc.collect()
