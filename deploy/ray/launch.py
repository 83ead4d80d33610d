"""Runs one clipjax command on several hosts of a Ray cluster, one process on each.

    ray job submit --address=http://HEAD:8265 --working-dir=. -- \\
      python deploy/ray/launch.py --hosts=2 --resource=GPU=8 -- \\
      clipjax train --config=experiments/siglip_b16.py --workdir=gs://BUCKET/runs/siglip-b16 \\
      --config.data.train.path=gs://BUCKET/shards --config.tokenizer.path=gs://BUCKET/tokenizer.model \\
      --config.global_batch_size=16384

clipjax is installed on all hosts of the cluster. Each process gets all GPUs (--resource=GPU=8) or all TPU chips
(--resource=TPU=4) of its host; the first one's address is given to all as --coordinator_address. When one process
fails, the job fails; submit it again, and the run continues from its last checkpoint. `ray job stop` sends SIGTERM to
all, and the run saves its step, if Ray gives it time: RAY_JOB_STOP_WAIT_TIME_S=120 where the cluster's head starts.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import subprocess
import sys

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


class Host:
    """One host: an actor that runs one process of the command."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def address(self) -> str:
        """This host's address with a port that is free now."""
        with contextlib.closing(socket.socket()) as probe:
            probe.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def run(self, command: list[str]) -> int:
        """Runs the command to its end. Returns its exit code."""
        self.process = subprocess.Popen(command)
        return self.process.wait()

    def stop(self) -> None:
        """Lets the command save and end."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)


def launch(command: list[str], hosts: int, resource: str, count: float) -> int:
    """Runs the command on all hosts. Returns the first exit code that is not 0, or 0."""
    bundle = {"CPU": 1.0} | ({resource: count} if count else {})
    group = placement_group([bundle] * hosts, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    # Two at a time, so that `stop` is called beside `run`.
    options = {"num_cpus": 1, "max_concurrency": 2}
    options |= {"num_gpus": count} if resource == "GPU" else {"resources": {resource: count}} if count else {}
    remote = ray.remote(Host)
    actors = [
        remote.options(
            **options,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        ).remote()
        for index in range(hosts)
    ]
    try:
        coordinator = ray.get(actors[0].address.remote())
        signal.signal(signal.SIGTERM, lambda *_: [actor.stop.remote() for actor in actors])
        running = [
            actor.run.remote(
                [*command, f"--coordinator_address={coordinator}", f"--num_processes={hosts}", f"--process_id={index}"]
            )
            for index, actor in enumerate(actors)
        ]
        return next((code for code in ray.get(running) if code), 0)
    finally:
        remove_placement_group(group)


def main(argv: list[str]) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, required=True, help="How many hosts, each with one process.")
    parser.add_argument("--resource", default="GPU=0", help="What Ray reserves on each host: GPU=8, TPU=4.")
    parser.add_argument("command", nargs="+", help="The clipjax command, after --.")
    arguments = parser.parse_args(argv)
    name, _, count = arguments.resource.partition("=")
    ray.init()
    return launch(arguments.command, arguments.hosts, name, float(count or 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
