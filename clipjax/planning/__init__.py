"""What an experiment costs before it runs: memory, collectives, FLOPs and time, from the compiled training step.

    topology = open_topology("v5e:16x16")     # needs the libtpu package and no TPU
    print(plan_table(plan_step(config, topology)))

`clipjax plan` is the command. See docs/plan.md.
"""

from clipjax.planning.chips import CHIPS, Chip
from clipjax.planning.compile import OutOfMemory, plan_step
from clipjax.planning.flops import step_flops
from clipjax.planning.table import compare_table, plan_table
from clipjax.planning.topology import Topology, host_devices_flag, open_topology

__all__ = [
    "CHIPS",
    "Chip",
    "OutOfMemory",
    "Topology",
    "compare_table",
    "host_devices_flag",
    "open_topology",
    "plan_step",
    "plan_table",
    "step_flops",
]
