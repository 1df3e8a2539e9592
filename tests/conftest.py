"""Settings that all tests share."""

import gc
import os
from pathlib import Path

from xla_flags import PATIENT, QUICK

# Most of the time is compilation. What one test, process or run has compiled, others need not, and
# flags make it quicker. Subprocesses do likewise.
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("XLA_FLAGS", f"{QUICK} {PATIENT}")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

pytest_plugins = ("outcome",)

# Tracing makes millions of objects that live long: the collector would look at them too often.
gc.set_threshold(100_000, 50, 100)

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
