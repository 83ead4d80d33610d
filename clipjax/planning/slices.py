"""What moves between the slices of a multislice TPU program, over the data-centre network.

The compiler makes one program for a slice. A collective between slices is in it as a pair of `send` and `recv` to the
host, whose attributes name what the hosts do with the parts of all slices.
"""

from __future__ import annotations

import re

from clipjax.planning.hlo import Collective, Program, origin, shape_bytes

_TYPE = re.compile(r'_xla_megascale_transfer_type="([A-Z_]+)"')
KINDS = {
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}


def transfers(program: Program, slices: int) -> list[Collective]:
    """The collectives between slices, of one device each; its group are the slices."""
    found = []
    for instructions in program.computations.values():
        around = {one.name: one for one in instructions}
        for one in instructions:
            named = _TYPE.search(one.text) if one.opcode == "send" and one.times else None
            if named is None or not one.shapes:
                continue
            kind = KINDS.get(named.group(1), named.group(1).lower().replace("_", "-"))
            sent = shape_bytes(*one.shapes[0])
            out = {"all-gather": sent * slices, "reduce-scatter": sent // slices}.get(kind, sent)
            found.append(Collective(kind, origin(one, around), sent, out, tuple(range(slices)), one.times))
    return found
