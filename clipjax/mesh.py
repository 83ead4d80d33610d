"""The mesh (data, fsdp, tensor) of devices, the sharding of each array, and moving arrays to the mesh and back."""

from __future__ import annotations

import collections
import itertools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from clipjax.config import MeshConfig, require
from clipjax.machine.joining import join
from clipjax.machine.placement import Placement
from clipjax.processes import HEARTBEAT_SECONDS, meet

__all__ = [
    "AXES",
    "BATCH_AXES",
    "PARTITION_RULES",
    "batch_sharding",
    "batch_shards",
    "initialize_distributed",
    "make_mesh",
    "mesh_shape",
    "named_leaves",
    "own_rows",
    "param_shardings",
    "partition_spec",
    "reading_part",
    "replicated",
    "state_shardings",
    "to_host",
    "to_mesh",
]

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
AXIS_TYPES = (AxisType.Auto,) * len(AXES)

# (regular expression that matches the end of a parameter's path, spec of its LAST dimensions). Leading dimensions (the
# layer axis of scanned blocks) are not sharded. The first match counts; parameters that match nothing (norms, biases of
# outputs, scalars) are replicated. An axis of size one has no effect, so this list serves data, FSDP and tensor
# parallelism alike.
PARTITION_RULES: tuple[tuple[str, P], ...] = (
    (r"attention/qkv/kernel", P("fsdp", None, "tensor")),
    (r"attention/qkv/bias", P(None, "tensor")),
    (r"attention/(query|key|value)/kernel", P("fsdp", "tensor")),
    (r"attention/(query|key|value)/bias", P("tensor")),
    (r"attention/out/kernel", P("tensor", "fsdp")),
    (r"mlp/(up|gate)/kernel", P("fsdp", "tensor")),
    (r"mlp/(up|gate)/bias", P("tensor")),
    (r"mlp/down/kernel", P("tensor", "fsdp")),
    # An adapter's A and B are split as the rows and columns of its matrix; the rank is not.
    (r"lora/.*(query|key|value|up|gate)/a", P("fsdp", None)),
    (r"lora/.*(query|key|value|up|gate)/b", P(None, "tensor")),
    (r"lora/.*(out|down)/a", P("tensor", None)),
    (r"lora/.*(out|down)/b", P(None, "fsdp")),
    (r"token_embedding/embedding", P(None, "fsdp")),
    (r"patch_embed/kernel", P(None, "fsdp")),
    (r"(projection|projection_hidden|pooler|text_projection)/kernel", P("fsdp", None)),
    (r"decoder/vocabulary", P("fsdp", "tensor")),
    # Convolutions are split by output channel. Depthwise ones are not: they are small, and the compiler would split the
    # activations by channel to match.
    (r"(conv_\d|shortcut_conv|stem|downsample_\d|expand|squeeze|excite|project)/kernel", P(None, "fsdp")),
    (r"(attention_pool/(query|key|value|out)|head_up)/kernel", P("fsdp", None)),
)


def mesh_shape(mesh: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor) with data=-1 filled in. Raises ConfigError when it does not fit num_devices."""
    rest = mesh.fsdp * mesh.tensor
    for axis in ("fsdp", "tensor"):
        require(getattr(mesh, axis) >= 1, f"config.mesh.{axis}={getattr(mesh, axis)} must be at least 1.")
    data = num_devices // rest if mesh.data == -1 else mesh.data
    require(
        data >= 1 and data * rest == num_devices,
        f"config.mesh (data={mesh.data}, fsdp={mesh.fsdp}, tensor={mesh.tensor}) does not fit {num_devices} "
        f"device(s): data x fsdp x tensor must be {num_devices}. Use data=-1 to take "
        "the devices that fsdp and tensor leave.",
    )
    return data, mesh.fsdp, mesh.tensor


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh with axes ("data", "fsdp", "tensor") over all devices, laid out for the network's topology.

    Several TPU slices split the data axis, whose outermost part then runs over the slices, so that only gradients and
    the loss's embeddings cross the data-centre network, which is far slower than the links inside a slice. Raises
    ConfigError where the number of slices does not divide the data axis.
    """
    everything = devices is None
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if slices > 1:
        require(
            shape[0] % slices == 0,
            f"config.mesh.data={shape[0]} does not divide over {slices} slices: fsdp={config.fsdp} and "
            f"tensor={config.tensor} must fit one slice of {len(devices) // slices} devices.",
        )
    mesh = Mesh(_grid(shape, slices, devices), AXES, axis_types=AXIS_TYPES)
    _parts(mesh)
    if everything and jax.process_count() > 1 and devices[0].platform == "cpu":
        _connect(mesh)
    return mesh


def _grid(shape: tuple[int, int, int], slices: int, devices: list[jax.Device]) -> np.ndarray:
    """The devices as an array of `shape`, each axis along the links of a torus if possible, else along parts of one."""
    for split in (False, True):
        try:
            if slices > 1:
                inside = (shape[0] // slices, *shape[1:])
                options = dict(allow_split_physical_axes=split)
                return mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices, **options)
            if not split:
                return jax.make_mesh(shape, AXES, axis_types=AXIS_TYPES, devices=devices).devices
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        except NotImplementedError:  # such as fsdp=4 on an 8x8 torus: one axis of it would be split in two
            if split:
                raise


def reading_part(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """(i, n): a process reads the i-th of n equal parts of each batch. process: jax.process_index() if None.

    Processes between which the tensor axis runs hold the same rows, and read the same part.
    """
    held = _parts(mesh)
    parts = sorted(set(held.values()))
    return parts.index(held[jax.process_index() if process is None else process]), len(parts)


def _parts(mesh: Mesh) -> dict[int, tuple[int, ...]]:
    """The parts of a batch that each process's devices hold; two processes hold the same or have none in common.

    Raises ConfigError where that cannot be, as with hosts of different numbers of devices.
    """
    held: dict[int, set[int]] = {}
    for part, alike in enumerate(mesh.devices.reshape(-1, mesh.shape["tensor"])):
        for device in alike:
            held.setdefault(device.process_index, set()).add(part)
    parts = {process: tuple(sorted(own)) for process, own in held.items()}
    devices = collections.Counter(device.process_index for device in mesh.devices.flat)
    counts = collections.Counter(devices.values())
    require(
        len(counts) == 1,
        "The processes have different numbers of devices: "
        f"{', '.join(f'{count} process(es) with {n}' for n, count in sorted(counts.items()))}. Each must read an equal "
        "part of a batch. Give every process the same number of devices, or start fewer processes: a run continues "
        "from its last checkpoint on any number of them.",
    )
    sizes = [len(own) for own in set(parts.values())]
    require(
        sum(sizes) == batch_shards(mesh) and len(set(sizes)) == 1,
        f"config.mesh.tensor={mesh.shape['tensor']} lets processes share some rows of a batch and not others. Use a "
        f"tensor axis that divides the {next(iter(counts))} device(s) of a process, or a multiple of them.",
    )
    return parts


def _connect(mesh: Mesh) -> None:
    """Makes the processes' connections over every choice of the mesh's axes, when all processes are there.

    Gloo makes them at the first collective, and gives up after 30 seconds; once they are there, it waits longer.
    """
    meet("the first collective")
    axes = [axis for axis in AXES if mesh.shape[axis] > 1]
    for count in range(1, len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            sharding = NamedSharding(mesh, P(chosen))
            ones = to_mesh(np.ones(math.prod(mesh.shape[axis] for axis in chosen), np.float32), sharding)
            jax.block_until_ready(jax.jit(jnp.sum, out_shardings=replicated(mesh))(ones))


def batch_shards(mesh: Mesh) -> int:
    """How many parts a batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension over data and fsdp; everything else replicated."""
    return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def param_shardings(shapes: Any, mesh: Mesh) -> Any:
    """The tree of NamedSharding for a tree of parameters (or their jax.ShapeDtypeStruct)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, partition_spec(path_name(path), leaf.shape, mesh)), shapes
    )


def state_shardings(shapes: Any, params: Any, mesh: Mesh) -> Any:
    """Shardings of any tree that holds copies of parameters (optimizer moments, EMA) among other leaves.

    A leaf whose path ends with a parameter's whole path is sharded like the parameter if it has the parameter's shape,
    or fewer rows (of scanned blocks, whose first axis is never split); leaves of other shapes (factored moments,
    counters) are replicated.
    """
    known = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def sharding(path, leaf) -> NamedSharding:
        parts = path_name(path).split("/")
        for name in ("/".join(parts[start:]) for start in range(len(parts))):
            if (shape := known.get(name)) is not None:
                alike = len(shape) == len(leaf.shape) and shape[1:] == leaf.shape[1:]
                return NamedSharding(mesh, partition_spec(name, leaf.shape, mesh) if alike else P())
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def partition_spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The PartitionSpec that PARTITION_RULES give the parameter `name` ("image/blocks/mlp/up/kernel").

    A dimension that its mesh axis does not divide is not split.
    """
    for pattern, spec in PARTITION_RULES:
        if re.search(rf"(^|/){pattern}$", name):
            axes = (None,) * (len(shape) - len(spec)) + tuple(spec)
            return P(*(a if a and size % mesh.shape[a] == 0 else None for a, size in zip(axes, shape, strict=True)))
    return P()


def path_name(path: tuple) -> str:
    """A path of jax.tree_util, ("image", "blocks", ...), as "image/blocks/..."."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def named_leaves(tree: Any) -> dict[str, Any]:
    """{"image/blocks/mlp/up/kernel": leaf, ...}: a tree's leaves by path."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def initialize_distributed(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    start_timeout: float | None = None,
) -> Placement:
    """Joins the processes of one run; does nothing for a run of one process. Called before JAX looks for devices.

    What is None is found in the environment: see docs/clusters.md for the systems, and clipjax/machine/clusters.py.
    num_processes=1 starts one process whatever the environment says. start_timeout: seconds that processes wait for
    each other (300). Raises ConfigError and StartError; see clipjax.machine.joining.join.
    """
    return join(
        coordinator_address, num_processes, process_id, seconds=start_timeout, heartbeat_seconds=HEARTBEAT_SECONDS
    )


def to_mesh(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """A host array, the same on every process, as a global array. Each device receives its part only."""
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def to_host(tree: Any) -> Any:
    """Global arrays as NumPy arrays on every process; all processes call it together."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def own_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array with batch_sharding, in the order in which it gave them; no communication."""
    blocks = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(blocks[start]) for start in sorted(blocks)])
