"""Settings that all tests share."""

import hypothesis

# Derandomized, so that a run fails or passes for good; compilation makes first examples slow.
hypothesis.settings.register_profile(
    "fixed",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fixed")
