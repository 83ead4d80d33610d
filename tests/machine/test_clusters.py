"""Each system that starts processes, by the environment that it makes: who is told what, and what is refused."""

import socket
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clipjax.config import ConfigError
from clipjax.machine import host as host_module
from clipjax.machine.clusters import CLUSTERS, JOINED, first_node
from clipjax.machine.host import Host, StartError, has_tpu, join_address, metadata_of, split_address
from clipjax.machine.placement import Placement, find_placement, share_of_gpus

NOTHING = Host(
    environ={},
    metadata=lambda key: None,
    has_tpu=lambda: False,
    full_name=lambda: "here",
    device_files=Path("/nowhere"),
    joined=lambda: None,
)
# As srun -n2 and sbatch set them (Slurm 22.05), mpirun (Open MPI 4.1.4), mpiexec.hydra (MPICH 4.0.2) and torchrun 2.x.
SRUN = dict(
    SLURM_JOB_ID="7001", SLURM_NTASKS="4", SLURM_NPROCS="4", SLURM_PROCID="3", SLURM_LOCALID="1", SLURM_NODEID="1",
    SLURM_STEP_ID="0", SLURM_STEP_NODELIST="node[007-008]", SLURM_STEP_TASKS_PER_NODE="2(x2)",
    SLURM_JOB_NODELIST="node[007-008]", SLURM_TASKS_PER_NODE="2(x2)",
)  # fmt: skip
SBATCH = dict(SLURM_JOB_ID="7001", SLURM_NTASKS="4", SLURM_PROCID="0", SLURM_LOCALID="0",
              SLURM_JOB_NODELIST="node[007-008]", SLURM_TASKS_PER_NODE="2(x2)")  # fmt: skip
MPIRUN = dict(
    OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_LOCAL_RANK="1", OMPI_COMM_WORLD_LOCAL_SIZE="2",
    OMPI_MCA_orte_hnp_uri="1009713152.0;tcp://192.0.2.2,10.0.0.4:49251;tcp6://[fd00::2]:46941",
)  # fmt: skip
HYDRA = dict(PMI_SIZE="4", PMI_RANK="2", MPI_LOCALRANKID="0", MPI_LOCALNRANKS="2", PMI_FD="6")
TORCHRUN = dict(
    WORLD_SIZE="4", RANK="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2", MASTER_ADDR="node007", MASTER_PORT="29500",
    TORCHELASTIC_RUN_ID="none", TORCHELASTIC_USE_AGENT_STORE="True",
)  # fmt: skip
GKE = dict(TPU_WORKER_HOSTNAMES="s-0-0.s,s-0-1.s", TPU_WORKER_ID="1")
SLICES = dict(MEGASCALE_COORDINATOR_ADDRESS="s-0-0.s", MEGASCALE_NUM_SLICES="2", MEGASCALE_SLICE_ID="1")
POD = dict(JOB_COMPLETION_INDEX="1", KUBERNETES_SERVICE_HOST="10.0.0.1")
JOBSET = dict(POD, JOBSET_NAME="set", REPLICATED_JOB_NAME="workers", JAX_PROCESS_COUNT="4")
TRAINJOB = dict(JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1", JAX_COORDINATOR_ADDRESS="j:1")
JAXJOB = dict(COORDINATOR_ADDRESS="w-0", COORDINATOR_PORT="6666", NUM_PROCESSES="3", PROCESS_ID="2")
SKY = dict(SKYPILOT_NUM_NODES="2", SKYPILOT_NODE_RANK="1", SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2\n")


def place(environ=None, *flags, **host):
    return find_placement(replace(NOTHING, environ=environ or {}, **host), *flags)


@pytest.mark.parametrize(
    ("environ", "system", "count", "index", "coordinator"),
    [
        (SRUN, "Slurm", 4, 3, "node007:64345"),
        (SRUN | {"JAX_COORDINATOR_PORT": "8476"}, "Slurm", 4, 3, "node007:8476"),
        (SRUN | {"JAX_COORDINATOR_ADDRESS": "10.0.0.9:1"}, "Slurm", 4, 3, "10.0.0.9:1"),
        (SRUN | {"JAX_COORDINATOR_ADDRESS": "10.0.0.9"}, "Slurm", 4, 3, "10.0.0.9:8482"),
        (MPIRUN, "Open MPI", 4, 1, "192.0.2.2:62192"),
        (MPIRUN | SBATCH, "Open MPI", 4, 1, "192.0.2.2:62192"),
        (MPIRUN | {"OMPI_MCA_orte_hnp_uri": "8192.0;tcp6://[fd::2,fd::3]:46"}, "Open MPI", 4, 1, "[fd::2]:61442"),
        (HYDRA | {"MPI_LOCALNRANKS": "4"}, "MPICH (PMI)", 4, 2, "127.0.0.1:8482"),
        (HYDRA | {"JAX_COORDINATOR_ADDRESS": "a:9"}, "MPICH (PMI)", 4, 2, "a:9"),
        (HYDRA | SRUN | {"SLURM_PROCID": "0"}, "MPICH (PMI)", 4, 2, "node007:64345"),
        (HYDRA | SRUN | {"PMI_RANK": "3"}, "MPICH (PMI)", 4, 3, "node007:64345"),
        (TORCHRUN, "torchrun", 4, 2, "node007:29501"),
        (TORCHRUN | SRUN | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, "torchrun", 4, 2, "node007:29501"),
        (dict(WORLD_SIZE="2", RANK="1", MASTER_ADDR="a", MASTER_PORT="5"), "PyTorch's variables", 2, 1, "a:5"),
        (GKE, "TPUs on GKE", 2, 1, "s-0-0.s:8482"),
        (GKE | SLICES, "TPUs on GKE", 4, 3, "s-0-0.s:8482"),
        (GKE | POD, "TPUs on GKE", 2, 1, "s-0-0.s:8482"),
        (GKE | SLICES | JOBSET | {"JOB_INDEX": "1", "PROCESSES_IN_JOB": "2"}, "TPUs on GKE", 4, 3, "s-0-0.s:8482"),
        ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476", "TPU_WORKER_ID": "0"}, "TPUs on GKE", 2, 0, "a:8482"),
        (JOBSET, "Kubernetes", 4, 1, "set-workers-0-0.set:8482"),
        (JOBSET | {"JOB_INDEX": "1", "PROCESSES_IN_JOB": "2"}, "Kubernetes", 4, 3, "set-workers-0-0.set:8482"),
        (POD | {"JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "j-0.p:6002"}, "Kubernetes", 2, 1, "j-0.p:6002"),
        (POD | TRAINJOB, "JAX's variables", 2, 1, "j:1"),
        (JAXJOB, "Kubeflow", 3, 2, "w-0:6666"),
        (SKY, "SkyPilot", 2, 1, "10.0.0.1:8482"),
        (SKY | TORCHRUN, "torchrun", 4, 2, "node007:29501"),
    ],
)  # fmt: skip
def test_each_system_tells_number_count_and_coordinator(environ, system, count, index, coordinator):
    found = place(environ)
    assert (found.system, found.count, found.index, found.coordinator) == (system, count, index, coordinator)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7"},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"RANK": "3", "MASTER_ADDR": "a"},
        {"NUM_PROCESSES": "4"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        GKE | {"TPU_PROCESS_BOUNDS": "1,1,1"},
        {"JOB_COMPLETION_INDEX": "3"},
        TORCHRUN | SBATCH | {"WORLD_SIZE": "1", "RANK": "0"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_where_no_system_speaks_of_several_processes_there_is_one(environ):
    assert place(environ) == Placement()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (SBATCH, "SLURM_STEP_ID, SLURM_STEP_NODELIST are missing. Start it with srun"),
        ({"SLURM_NTASKS": "4"}, "Start it with srun"),
        ({"SLURM_NTASKS": "two"}, "SLURM_NTASKS='two' is not a whole number"),
        (SRUN | {"SLURM_PROCID": "4"}, "process 4 of 4"),
        ({"WORLD_SIZE": "8"}, "If WORLD_SIZE is left over, unset it. --num_processes=1 starts one process"),
        (TORCHRUN | {"RANK": "4"}, "process 4 of 4 .*left over from another run"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_NUM_PROCESSES, JAX_PROCESS_ID are missing"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS is missing"),
        (HYDRA, "JAX_COORDINATOR_ADDRESS is missing. MPI does not tell where process 0 is"),
        (TORCHRUN | {"MASTER_PORT": "0"}, "MASTER_PORT is missing"),
        (TORCHRUN | {"MASTER_PORT": "65535"}, "node007:65536 has no port between 1 and 65535"),
        (SRUN | {"JAX_COORDINATOR_PORT": "99999"}, "node007:99999 has no port"),
        (SRUN | {"WORLD_SIZE": "8"}, "According to Slurm, .* according to PyTorch's variables, it is not"),
        (SRUN | {"JAX_NUM_PROCESSES": "2"}, "according to JAX's variables, it is not"),
        (SRUN | SKY, "according to SkyPilot, it is not"),
        (GKE | {"TPU_WORKER_ID": "2"}, "TPU_WORKER_ID=2 is beyond the 2 hosts"),
        (GKE | SLICES | {"MEGASCALE_SLICE_ID": "2"}, "MEGASCALE_SLICE_ID=2 is beyond .*before a preemption"),
        (GKE | {"MEGASCALE_SLICE_ID": "1"}, "MEGASCALE_SLICE_ID=1 is beyond MEGASCALE_NUM_SLICES=unset"),
        (GKE | {"MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_COORDINATOR_ADDRESS, MEGASCALE_SLICE_ID are missing"),
        (SLICES, "TPU_WORKER_HOSTNAMES, TPU_WORKER_ID are missing. If the MEGASCALE variables are left over"),
        (JOBSET | {"JOB_INDEX": "1"}, "PROCESSES_IN_JOB is missing"),
        (POD | {"JAX_NUM_PROCESSES": "4"}, "JOBSET_NAME with REPLICATED_JOB_NAME"),
        (SKY | {"SKYPILOT_NODE_RANK": ""}, "SKYPILOT_NODE_RANK is missing"),
    ],
)
def test_a_half_set_or_contradictory_environment_is_refused_in_one_line(environ, message):
    with pytest.raises(StartError, match=message) as error:
        place(environ)
    assert "\n" not in str(error.value)
    assert place(environ, None, 1) == Placement("the command line"), "--num_processes=1 starts whatever is set"
    assert place(environ, "a:1", 2, 1).describe() == "process 1 of 2, found by the command line; process 0 is at a:1"


def test_an_indexed_job_that_does_not_tell_its_size_starts_each_pod_alone_and_says_so():
    found = place(POD)
    assert found.count == 1 and "JOB_COMPLETION_INDEX=1" in found.notes[0] and "JAX_NUM_PROCESSES" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "extra", "coordinator"),
    [
        ("train-1.pods.default.svc.cluster.local", {}, "train-0.pods.default.svc.cluster.local:8482"),
        ("s-workers-1-1.s.d.svc", {"JOB_INDEX": "1", "PROCESSES_IN_JOB": "2"}, "s-workers-0-0.s.d.svc:8482"),
    ],
)
def test_a_pod_finds_process_0_by_its_own_name(name, extra, coordinator):
    found = place(POD | {"JAX_NUM_PROCESSES": "4"} | extra, full_name=lambda: name)
    assert found.coordinator == coordinator


def cloud_tpu(**told):
    attributes = {
        "agent-worker-number": "1",
        "worker-network-endpoints": "x:7:10.0.0.1,x:8:10.0.0.2",
        "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-8'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
        "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.9:8080'\n",
    } | told
    return dict(metadata=attributes.get, has_tpu=lambda: True)


def test_a_cloud_tpu_vm_learns_of_the_others_from_its_metadata():
    found = place({}, **cloud_tpu())
    assert (found.system, found.count, found.index, found.coordinator) == ("Cloud TPU", 4, 3, "10.0.0.9:8482")
    single = place({}, **cloud_tpu(**{"tpu-env": "", "worker-network-endpoints": "h1,h2,h3"}))
    assert (single.count, single.index, single.coordinator) == (3, 1, "h1:8482")
    assert (
        place({}, **cloud_tpu(**{"tpu-env": "", "worker-network-endpoints": "h1", "agent-worker-number": "0"}))
        == Placement()
    )
    for environ in ({"TPU_SKIP_MDS_QUERY": "1"}, {"JAX_PLATFORMS": "cpu"}):
        assert place(environ, **cloud_tpu()) == Placement()


def test_the_metadata_are_read_from_the_vms_own_server_and_never_waited_for(monkeypatch):
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Metadata-Flavor"]))
            known = self.path.endswith("/agent-worker-number")
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(b"3" if known else b"")

        def log_message(self, *args):
            pass

    monkeypatch.setattr(host_module, "METADATA_SECONDS", 60.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environ = {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}", "http_proxy": "http://127.0.0.1:9"}
        assert metadata_of("agent-worker-number", environ) == "3"
        assert metadata_of("none", environ) is None
        server.shutdown()
    assert asked[0] == ("/computeMetadata/v1/instance/attributes/agent-worker-number", "Google")
    monkeypatch.setattr(host_module, "METADATA_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert metadata_of("x", {"GCE_METADATA_IP": f"127.0.0.1:{silent.getsockname()[1]}"}) is None


def test_a_tpu_is_told_from_googles_disks_and_network_cards(tmp_path):
    kinds = {"0": ("0x1ae0", "0x020000"), "1": ("0x1ae0", "0x010802"), "2": ("0x10de", "0x030200")}
    for name, (vendor, kind) in kinds.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    assert not has_tpu(tmp_path)
    (tmp_path / "2" / "vendor").write_text("0x1ae0\n")
    (tmp_path / "2" / "class").write_text("0x120000\n")
    assert has_tpu(tmp_path)


@pytest.mark.parametrize("told", ["", "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"])
def test_multislice_variables_of_before_a_preemption_are_told_by_the_vms_metadata(told):
    stale = {"MEGASCALE_NUM_SLICES": "3"}
    with pytest.raises(StartError, match=r"MEGASCALE_NUM_SLICES=3 .*metadata say (nothing|2).*preemption. Unset"):
        place(stale, **cloud_tpu(**{"tpu-env": told}))


def test_what_has_joined_already_stays_as_it_is():
    found = place(SRUN | {"JAX_COORDINATOR_ADDRESS": "a:1"}, joined=lambda: (8, 5))
    assert (found.count, found.index, found.coordinator) == (8, 5, JOINED)


def test_flags_replace_single_values_of_the_environment():
    assert place(SRUN, "a:1").coordinator == "a:1" and place(SRUN, "a:1").index == 3
    assert place(SRUN, None, 8, 7).count == 8
    for flags, message in [
        (("a", 2, 0), "--coordinator_address=a must be host:port"),
        (("http://a:1", 2, 0), "must be host:port"),
        (("a:1", 2, 2), "--process_id=2 is beyond --num_processes=2"),
        (("a:1", 2, -1), "--process_id=-1"),
        (("a:1", 0, 0), "--num_processes=0 must be at least 1"),
        (("a:1", 2, None), "go together"),
    ]:
        with pytest.raises(ConfigError, match=message):
            place({}, *flags)


@pytest.mark.parametrize(
    ("visible", "local", "devices", "note"),
    [
        ("0,1,2,3,4,5,6,7", (0, 1), None, ""),  # one process of a node takes all of its GPUs
        ("0,1,2,3,4,5,6,7", (3, 8), (3,), ""),
        ("0,1,2,3,4,5,6,7", (1, 2), (4, 5, 6, 7), ""),
        ("3", (3, 8), None, ""),  # the scheduler shows each process its own
        ("", (1, 2), None, ""),
        ("0,1,2", (1, 2), (1,), "1 of this host's 3 GPUs stay idle"),
        ("0,1", (1, 4), None, "4 processes of this host share 2 GPUs"),
    ],
)
def test_processes_of_a_host_share_its_gpus(visible, local, devices, note):
    found, said = share_of_gpus(replace(NOTHING, environ={"CUDA_VISIBLE_DEVICES": visible}), local)
    assert found == devices and note in said


def test_gpus_are_counted_by_their_device_files(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    host = replace(NOTHING, device_files=tmp_path)
    assert share_of_gpus(host, (1, 2)) == ((1,), "")
    assert share_of_gpus(replace(host, environ={"JAX_PLATFORMS": "cpu"}), (1, 2)) == (None, "")
    assert place(SRUN, device_files=tmp_path).local_devices == (1,)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("vm", "vm"), ("a1,a2", "a1"), ("n[001-015],m", "n001"), ("n[1,7-9]", "n1"), ("r[1-2]-x,m", "r1-x")],
)
def test_the_first_node_of_slurms_list(nodes, first):
    assert first_node(nodes) == first


def test_addresses_of_both_kinds_keep_their_port():
    for address in ("a.b:1", "10.0.0.1:65535", "[::1]:8482"):
        assert join_address(*split_address(address)) == address
    assert split_address("fd00::2") == ("fd00::2", None)


def test_the_page_about_clusters_has_every_system_and_its_variables():
    page = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text()
    for cluster in CLUSTERS:
        if cluster.name != "TPU slices":  # which only ever refuses
            assert f"| {cluster.name} |" in page
        for name in cluster.reads:
            assert f"`{name}`" in page, f"{cluster.name}: {name}"
