"""How a TPU worker learns of the others: on GKE, on Cloud TPU VMs, in one slice or in several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clipjax.machine.host import Claim, Host, StartError, absent, split_address

MEGASCALE = ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID")


def _tpu_names(host: Host) -> list[str]:
    """The slice's hosts, by worker id: what GKE sets."""
    text = host.get("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    if path := host.get("TPU_PROCESS_ADDRESSES_PATH"):
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise StartError(f"TPU_PROCESS_ADDRESSES_PATH={path}: {error.strerror}.") from error
    return [split_address(name)[0] for name in text.split(",") if name.strip()]


def gke_tpu(host: Host) -> Claim | None:
    names = _tpu_names(host)
    if not names:
        return None
    return _tpu_claim(host, names, host.number("TPU_WORKER_ID", "CLOUD_TPU_TASK_ID"), host.get)


def cloud_tpu(host: Host) -> Claim | None:
    platforms = host.get("JAX_PLATFORMS").lower()
    if _tpu_names(host) or host.get("TPU_SKIP_MDS_QUERY") or (platforms and "tpu" not in platforms):
        return None
    if not host.has_tpu():
        return None
    worker, endpoints = host.metadata("agent-worker-number"), host.metadata("worker-network-endpoints")
    if worker is None or not worker.strip().isdigit() or not endpoints:
        return None
    # name:id:address each, or the address alone
    names = [entry.split(":")[2] if entry.count(":") == 2 else entry for entry in endpoints.strip().split(",")]
    pairs = (line.split(":", 1) for line in (host.metadata("tpu-env") or "").splitlines() if ":" in line)
    told = {name.strip(): value.strip().strip("'") for name, value in pairs}
    for name in MEGASCALE:
        own, current = host.get(name), told.get(name, "")
        if own and own != current:
            raise StartError(
                f"{name}={own} in the environment, but this VM's metadata say {current or 'nothing'}: it is most "
                f"likely left over from before a preemption. Unset {', '.join(MEGASCALE)} and start again."
            )
    return _tpu_claim(host, names, int(worker), lambda name: host.get(name) or told.get(name, ""))


def _tpu_claim(host: Host, names: list[str], worker: int | None, get: Callable[[str], str]) -> Claim | None:
    """names: of one slice's hosts; get: a MEGASCALE variable's value."""
    if host.get("TPU_PROCESS_BOUNDS", "TPU_HOST_BOUNDS") == "1,1,1":
        return Claim(1, 0)  # this host alone, as the user has chosen
    address, slices, own = (get(name) for name in MEGASCALE)
    for name, value in zip(MEGASCALE[1:], (slices, own), strict=True):
        if value and not value.isdigit():
            raise StartError(f"{name}={value[:80]!r} is not a whole number of 0 or more.")
    count = int(slices or 1)
    if own and int(own) >= count:
        raise StartError(
            f"MEGASCALE_SLICE_ID={own} is beyond MEGASCALE_NUM_SLICES={slices or 'unset'}, whose slices are numbered "
            "from 0: one of them is most likely left over from before a preemption. Recreate the job, or unset both."
        )
    needed = {"TPU_WORKER_ID": worker}
    if worker is not None and worker >= len(names):
        raise StartError(f"TPU_WORKER_ID={worker} is beyond the {len(names)} hosts of its slice: {','.join(names)}.")
    cure = ""
    if count > 1:
        needed |= {MEGASCALE[0]: address, MEGASCALE[2]: own}
        cure = "Recreate the job; if MEGASCALE_NUM_SLICES is left over from before a preemption, unset it."
    first = split_address(address)[0] if count > 1 else names[0]
    index = None if worker is None or count > 1 and not own else worker + int(own or 0) * len(names)
    return Claim(count * len(names), index, host.address(first) if first else "", None, absent(needed), cure)


def megascale(host: Host) -> Claim | None:
    """Several slices by their variables, on a machine that is otherwise no TPU worker."""
    slices = host.number("MEGASCALE_NUM_SLICES")
    if (slices or 1) < 2 or _tpu_names(host) or host.has_tpu():
        return None
    return Claim(
        None,
        missing="TPU_WORKER_HOSTNAMES, TPU_WORKER_ID",
        cure="If the MEGASCALE variables are left over from before a preemption, unset them.",
    )
