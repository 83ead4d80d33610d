"""All tests see eight host devices; set before JAX is first imported."""

import os

import hypothesis
import pytest

from tests import deprecations

# Tests compile much and run little: without LLVM's optimisations the compiler takes half the time.
# With fewer cores than devices, a schedule made for concurrency can start different collectives on different devices,
# which then wait for one another until XLA aborts.
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
)
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([given, *(flag for flag in FLAGS if flag.split("=")[0] not in given)]).strip()
# XLA's threads, of which every waiting collective of every device takes one: with no more than devices, two collectives
# at a time can starve each other.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The user's own folder of compiled programs is not for tests.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
# As clipjax.machine.compilation_cache does for a run.
os.environ.setdefault("JAX_REMOVE_CUSTOM_PARTITIONING_PTR_FROM_CACHE_KEY", "true")

# The same examples in every run, on a busy machine as well.
hypothesis.settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("same")


@pytest.fixture(autouse=True)
def nothing_deprecated():
    """Fails a test in which Orbax announces that something it was asked for is deprecated."""
    with deprecations.heard() as found:
        yield
    assert not found, "deprecated: " + "; ".join(found)
