"""Collectives between slices are counted in the compiled program of a slice, at the data-centre network's rate."""

import pytest

from clipjax.planning.chips import CHIPS
from clipjax.planning.compile import _between_slices
from clipjax.planning.hlo import parse
from clipjax.planning.slices import transfers

# As libtpu compiles losses for v5e:2x2*2, shortened: a gather of rows, a sum, and a ring's hop in a loop of three.
PROGRAM = """
HloModule jit_loss, is_scheduled=true

%body (p: (s32[], f32[128,512])) -> (s32[], f32[128,512]) {
  %p = (s32[], f32[128,512]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[128,512]{1,0} get-tuple-element(%p), index=1
  %t = token[] after-all()
  %send.9 = (f32[128,512]{1,0:T(8,128)}, u32[], token[]) send(%x, %t), channel_id=9, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ONE_TO_ONE"}
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[128,512]{1,0}) tuple(%next, %x)
}

%condition (p: (s32[], f32[128,512])) -> pred[] {
  %p = (s32[], f32[128,512]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %three), direction=LT
}

ENTRY %main (a: f32[128,512]) -> f32[128,512] {
  %a = f32[128,512]{1,0} parameter(0)
  %row = f32[1,8,128]{2,1,0} fusion(%a), metadata={op_name="jit(step)/loss/psum"}
  %token = token[] after-all()
  %send = (f32[128,512]{1,0:T(8,128)}, u32[], token[]) send(%a, %token), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_GATHER"}
  %recv = (f32[256,512]{1,0:T(8,128)}, u32[], token[]) recv(%token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_GATHER"}
  %send.2 = (f32[1,8,128]{2,1,0}, u32[], token[]) send(%row, %token), channel_id=8, is_host_transfer=true, frontend_attributes={_xla_megascale_reduce_operation="SUM",_xla_megascale_transfer_type="ALL_REDUCE"}
  %zero = s32[] constant(0)
  %start = (s32[], f32[128,512]{1,0}) tuple(%zero, %a)
  %while = (s32[], f32[128,512]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %end = f32[128,512]{1,0} get-tuple-element(%while), index=1
}
"""  # noqa: E501


def test_what_slices_exchange_is_counted_once_and_as_often_as_it_runs():
    found = {c.kind: c for c in transfers(parse(PROGRAM), 2)}
    assert set(found) == {"all-gather", "all-reduce", "collective-permute"}
    size = 128 * 512 * 4
    assert (found["all-gather"].bytes_in, found["all-gather"].bytes_received) == (size, size)
    assert found["all-reduce"].bytes_received == 4096
    assert (found["collective-permute"].times, found["collective-permute"].bytes_received) == (3.0, size)
    assert found["all-reduce"].op_name == "jit(step)/loss/psum"


@pytest.mark.parametrize(("name", "gigabits"), [("v5e", 25), ("v5p", 50), ("v6e", 100)])
def test_it_takes_the_time_of_a_chips_share_of_the_data_centre_network(name, gigabits):
    gather = next(c for c in transfers(parse(PROGRAM), 4) if c.kind == "all-gather")
    row = _between_slices(gather, CHIPS[name])
    assert row["kind"] == "all-gather between slices" and row["bytes_received"] == 3 * 128 * 512 * 4
    assert row["seconds_at_least"] == pytest.approx(row["bytes_received"] * 8 / (gigabits * 1e9))
