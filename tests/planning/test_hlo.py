"""Reading compiled programs: trip counts, collectives and shapes, from text whose answer is known."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clipjax.config import MeshConfig
from clipjax.mesh import BATCH_AXES, make_mesh
from clipjax.planning.compile import out_of_memory
from clipjax.planning.hlo import collectives, parse, shapes_in
from clipjax.planning.parts import part_of, purpose_of

# A TPU's program in miniature: a loop of 12 in a loop of 3, a fusion with an inside, an all-gather in two pieces.
TPU = (Path(__file__).parent / "tpu_program.hlo").read_text()


def test_loops_in_loops_are_multiplied_and_the_inside_of_a_fusion_is_not_counted_twice():
    program = parse(TPU)
    cycles = {part_of(i.op_name): i.cycles * i.times for i in program.executed() if i.cycles}
    assert cycles == {"image tower": 100 * 36, "text attention": 7 * 3}
    assert program.unknown_loops == []


def test_a_collective_in_pieces_counts_once_and_groups_have_their_size():
    gather, reduce = sorted(collectives(parse(TPU), 8), key=lambda c: c.kind)
    assert (gather.kind, gather.times, gather.bytes_out, gather.bytes_in, gather.group_size) == (
        "all-gather",
        1,
        256,
        32,
        8,
    )
    assert gather.bytes_received == 256 * 7 / 8
    assert (reduce.bytes_in, reduce.group_size, reduce.bytes_received) == (16 + 32, 4, 2 * 48 * 3 / 4)


@pytest.mark.parametrize("kind", ["all-gather", "all-reduce", "collective-permute"])
def test_this_backends_collectives_are_counted_with_their_loop(kind):
    mesh = make_mesh(MeshConfig())
    move = {
        "all-gather": lambda a: jax.lax.all_gather(a, BATCH_AXES, tiled=True)[: len(a)],
        "all-reduce": lambda a: jax.lax.psum(a, BATCH_AXES),
        "collective-permute": lambda a: jax.lax.ppermute(a, BATCH_AXES, [(i, (i + 1) % 8) for i in range(8)]),
    }[kind]

    def device(x):
        return jax.lax.fori_loop(0, 5, lambda _, a: jnp.sin(move(a)), x)

    rows = P(BATCH_AXES)
    run = jax.jit(jax.shard_map(device, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False))
    x = jax.ShapeDtypeStruct((64, 16), np.float32, sharding=NamedSharding(mesh, rows))
    text = run.lower(x).compile().as_text()
    (found,) = collectives(parse(text), 8)
    assert (found.kind, found.times, found.group_size) == (kind, 5, 8)
    own = 8 * 16 * 4
    expected = {"all-gather": 7 * own, "all-reduce": 2 * own * 7 / 8, "collective-permute": own}[kind]
    assert found.bytes_received == expected
    assert (8, 16) in shapes_in(text)


def test_parts_and_purposes():
    names = {
        "jit(train_step)/jvp(DualEncoder)/image/block_3/attention/qkv/dot_general": "image tower",
        "jit(train_step)/jvp(DualEncoder)/image/block_3/attention/bhlm,bmhd->blhd/dot_general": "image attention",
        "jit(train_step)/transpose(jvp(loss))/mul": "loss",
        "jit(train_step)/optimizer/mul": "optimizer",
        "": "other",
    }
    assert {name: part_of(name) for name in names} == names
    assert purpose_of("jit(train_step)/transpose(jvp(DualEncoder))/text/attention/mul") == "text tower, backward"


def test_the_compilers_complaint_becomes_numbers():
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (34.18G) exceeds available HBM (15.75G). HLO module: jit_train_step."
    )
    found = out_of_memory(message)
    assert (found.needed / 2**30, found.available / 2**30) == pytest.approx((34.18, 15.75))
    assert out_of_memory("INTERNAL: something else") is None
