"""All tests see eight host devices; set before JAX is first imported."""

import os

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
os.environ.setdefault("JAX_PLATFORMS", "cpu")
