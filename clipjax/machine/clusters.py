"""How a process learns from its environment that it is one of several: a row for each system that starts processes.

Each row reads its system's variables and says what they claim: how many processes there are, which one this is, and
where process 0 is. `clipjax.machine.placement` chooses among the claims. No row imports JAX, whose own detection is
switched off: it takes one GPU of a Slurm node with one task, asks the Kubernetes API for what a pod may not read, and
counts the pods of one job only. docs/clusters.md has the table for users.
"""

from __future__ import annotations

import re
import zlib

from clipjax.machine.host import PORT, Claim, Cluster, Host, absent, join_address, local_place, split_address
from clipjax.machine.tpu_pods import MEGASCALE, cloud_tpu, gke_tpu, megascale


def _joined(host: Host) -> Claim | None:
    """What called jax.distributed.initialize before clipjax: Ray Train's JaxTrainer, or a program of the user's."""
    found = host.joined()
    return None if found is None else Claim(*found, address=JOINED)


def _jax(host: Host) -> Claim | None:
    address, count = host.get("JAX_COORDINATOR_ADDRESS"), host.number(*JAX_COUNT)
    index = host.number(*JAX_INDEX)
    if not address and count is None and index is None:
        return None
    needed = {"JAX_COORDINATOR_ADDRESS": address, JAX_COUNT[0]: count, JAX_INDEX[0]: index}
    if address:
        name, port = split_address(address)
        address = join_address(name, port) if port else host.address(name)
    return Claim(count, index, address, missing=absent(needed))


def _kubeflow(host: Host) -> Claim | None:
    name, count, index = host.get("COORDINATOR_ADDRESS"), host.number("NUM_PROCESSES"), host.number("PROCESS_ID")
    if not name or count is None:  # names that others use as well
        return None
    port = host.number("COORDINATOR_PORT") or split_address(name)[1]
    return Claim(
        count, index, host.address(split_address(name)[0], port or PORT), missing=absent({"PROCESS_ID": index})
    )


def _torch(host: Host) -> Claim | None:
    count, index, name = host.number("WORLD_SIZE"), host.number("RANK"), host.get("MASTER_ADDR")
    if count is None:  # RANK and MASTER_ADDR alone are often left over
        return None
    port = host.number("MASTER_PORT") or None
    address = ""
    if name and port:
        # torchrun itself listens at MASTER_PORT.
        address = host.address(name, port + (host.get("TORCHELASTIC_USE_AGENT_STORE") == "True"))
    local = local_place(host.number("LOCAL_RANK"), host.number("LOCAL_WORLD_SIZE"))
    missing = absent({"RANK": index, "MASTER_ADDR": name, "MASTER_PORT": port})
    return Claim(count, index, address, local, missing, cure="If WORLD_SIZE is left over, unset it.")


def _torchrun(host: Host) -> Claim | None:
    return _torch(host) if host.get("TORCHELASTIC_RUN_ID") else None


def _torch_by_hand(host: Host) -> Claim | None:
    return None if host.get("TORCHELASTIC_RUN_ID") else _torch(host)


def _open_mpi(host: Host) -> Claim | None:
    count, index = host.number("OMPI_COMM_WORLD_SIZE"), host.number("OMPI_COMM_WORLD_RANK")
    if count is None:
        return None
    local = local_place(host.number("OMPI_COMM_WORLD_LOCAL_RANK"), host.number("OMPI_COMM_WORLD_LOCAL_SIZE"))
    # 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911 or 1314521088.0;tcp6://[fe80::b9b,2620::2]:43370, until Open MPI 4
    uri = host.get("OMPI_MCA_orte_hnp_uri")
    found = re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", uri)
    launcher = next(filter(None, found.groups())) if found else _slurm_first(host)
    job = uri.split(".")[0]  # a multiple of 4096
    port = _job_port(str(int(job) // 4096) if job.isdigit() else host.get("PMIX_NAMESPACE"))
    return _mpi_claim(host, count, index, local, launcher, port, "OMPI_COMM_WORLD_RANK")


def _pmi(host: Host) -> Claim | None:
    count, index = host.number("PMI_SIZE"), host.number("PMI_RANK")
    if count is None:
        return None
    local = local_place(host.number("MPI_LOCALRANKID"), host.number("MPI_LOCALNRANKS"))
    job = host.get("SLURM_JOB_ID")
    return _mpi_claim(host, count, index, local, _slurm_first(host), _job_port(job) if job else PORT, "PMI_RANK")


def _mpi_claim(
    host: Host, count: int, index: int | None, local: tuple[int, int] | None, launcher: str, port: int, index_name: str
) -> Claim:
    """launcher: the host where process 0 most likely is; "": not known."""
    if local and local[1] == count:
        launcher = "127.0.0.1"
    needed = {index_name: index, "JAX_COORDINATOR_ADDRESS": launcher}
    cure = "" if launcher else "MPI does not tell where process 0 is; set JAX_COORDINATOR_ADDRESS=host:port."
    return Claim(count, index, host.address(launcher, port) if launcher else "", local, absent(needed), cure)


def _slurm(host: Host) -> Claim | None:
    count, index = host.number("SLURM_NTASKS", "SLURM_NPROCS"), host.number("SLURM_PROCID")
    if count is None:
        return None
    step, nodes = host.number("SLURM_STEP_ID", "SLURM_STEPID"), host.get("SLURM_STEP_NODELIST")
    if step is None or index is None or not nodes:
        # sbatch and salloc set the number of tasks and start none of them.
        needed = {"SLURM_STEP_ID": step, "SLURM_PROCID": index, "SLURM_STEP_NODELIST": nodes}
        return Claim(count, missing=absent(needed), cure="Start it with srun, which starts all tasks.")
    tasks, node = _per_node(host.get("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")), host.number("SLURM_NODEID")
    local = local_place(host.number("SLURM_LOCALID"), tasks[node] if node is not None and node < len(tasks) else None)
    port = _job_port(host.get("SLURM_JOB_ID", "SLURM_JOBID"), step)
    return Claim(count, index, host.address(first_node(nodes), port), local)


def first_node(nodes: str) -> str:
    """The first of Slurm's list: "node001" of "node[001-015],host2" and of "node001,host2"."""
    found = re.match(r"([^,\[]*)(?:\[([^,\-\]]*)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes


def _slurm_first(host: Host) -> str:
    return first_node(host.get("SLURM_JOB_NODELIST", "SLURM_NODELIST"))


def _per_node(text: str) -> list[int]:
    """[2, 2, 1] of Slurm's "2(x2),1"."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in found for _ in range(min(int(times or 1), 1 << 16))]


def _job_port(job: str, step: int = 0) -> int:
    """A port above the ephemeral ones, the same for all processes of a job, and most likely another for another job."""
    number = int(job) if job.isdigit() else zlib.crc32(job.encode())
    return (number + 613 * step) % 4096 + 61440


def _kubernetes(host: Host) -> Claim | None:
    pod = host.number("JOB_COMPLETION_INDEX")
    if pod is None:
        return None
    count, job, in_job = host.number(*K8S_COUNT), host.number("JOB_INDEX") or 0, host.number("PROCESSES_IN_JOB")
    if count is None:
        note = (
            f"JOB_COMPLETION_INDEX={pod}: this pod of an indexed Job works alone, because nothing says how many pods "
            f"there are. For one run over all of them, set {K8S_COUNT[0]} to their number."
        )
        return Claim(note=note if host.get("KUBERNETES_SERVICE_HOST") else "")
    needed: dict[str, object] = {"PROCESSES_IN_JOB": in_job} if job else {}
    index = None if job and in_job is None else job * (in_job or 0) + pod
    jobset, replicated = host.get("JOBSET_NAME"), host.get("REPLICATED_JOB_NAME")
    first = ""
    if jobset and replicated:
        first = f"{jobset}-{replicated}-0-0.{jobset}"
    else:
        name, _, domain = host.full_name().partition(".")
        own = re.fullmatch(rf"(.+)-{pod}", name)
        stem = own[1] if own else ""
        if job and stem:
            stem = stem.removesuffix(f"-{job}") + "-0" if stem.endswith(f"-{job}") else ""
        first = f"{stem}-0.{domain}" if stem and domain else ""
        needed["JOBSET_NAME with REPLICATED_JOB_NAME, or JAX_COORDINATOR_ADDRESS"] = first
    cure = "" if first else "Pods see each other's names where the Job's pods have a subdomain, a headless Service."
    return Claim(count, index, host.address(first) if first else "", missing=absent(needed), cure=cure)


def _skypilot(host: Host) -> Claim | None:
    count, index = host.number("SKYPILOT_NUM_NODES"), host.number("SKYPILOT_NODE_RANK")
    if count is None:
        return None
    addresses = host.get("SKYPILOT_NODE_IPS").split()
    needed = {"SKYPILOT_NODE_RANK": index, "SKYPILOT_NODE_IPS": addresses}
    return Claim(count, index, host.address(addresses[0]) if addresses else "", missing=absent(needed))


JAX_COUNT, JAX_INDEX = ("JAX_NUM_PROCESSES", "JAX_PROCESS_COUNT"), ("JAX_PROCESS_ID", "JAX_PROCESS_INDEX")
K8S_COUNT = (*JAX_COUNT, "NNODES")
OUTER = ("Open MPI", "MPICH (PMI)", "Slurm", "Kubernetes", "SkyPilot")
SLURM_READS = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST", "SLURM_LOCALID", "SLURM_JOB_ID")
TORCH_READS = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
K8S_READS = ("JOB_COMPLETION_INDEX", *K8S_COUNT, "JOBSET_NAME", "REPLICATED_JOB_NAME", "JOB_INDEX", "PROCESSES_IN_JOB")
OMPI_READS = tuple(f"OMPI_COMM_WORLD_{name}" for name in ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE"))
JOINED = "joined"  # instead of an address: there is nothing left to do
ALL = (
    "JAX's variables",
    "Kubeflow",
    "torchrun",
    "PyTorch's variables",
    *OUTER,
    "TPUs on GKE",
    "Cloud TPU",
    "TPU slices",
)
# The innermost first: mpirun may run inside of Slurm, and never the other way round.
CLUSTERS: tuple[Cluster, ...] = (
    Cluster("Ray Train", (), _joined, ALL),
    Cluster("JAX's variables", ("JAX_COORDINATOR_ADDRESS", *JAX_COUNT, *JAX_INDEX), _jax),
    Cluster("Kubeflow", ("COORDINATOR_ADDRESS", "COORDINATOR_PORT", "NUM_PROCESSES", "PROCESS_ID"), _kubeflow),
    Cluster("torchrun", TORCH_READS, _torchrun, OUTER),
    Cluster("PyTorch's variables", TORCH_READS, _torch_by_hand),
    Cluster("Open MPI", (*OMPI_READS, "OMPI_MCA_orte_hnp_uri"), _open_mpi, OUTER[1:]),
    Cluster("MPICH (PMI)", ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"), _pmi, OUTER[2:]),
    Cluster("Slurm", SLURM_READS, _slurm),
    Cluster("TPUs on GKE", ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID", *MEGASCALE), gke_tpu, ("Kubernetes", "SkyPilot")),
    Cluster("Cloud TPU", MEGASCALE, cloud_tpu, ("SkyPilot",)),
    Cluster("TPU slices", MEGASCALE, megascale),
    Cluster("Kubernetes", K8S_READS, _kubernetes),
    Cluster("SkyPilot", ("SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS"), _skypilot),
)
