"""The most memory that processes have used: of their own, of devices where they tell, over all hosts."""

from types import SimpleNamespace

import jax
import pytest

from clipjax.machine import memory


def test_a_processor_tells_its_processs_peak_alone():
    found = memory.peak_memory()
    assert set(found) == {"host"} and found["host"] > 50e6


def test_the_fullest_device_is_told_with_its_limit(monkeypatch):
    stats = [{"peak_bytes_in_use": 5, "bytes_limit": 9}, {"peak_bytes_in_use": 7, "bytes_limit": 8}, None, {}]
    devices = [SimpleNamespace(platform="tpu", memory_stats=lambda own=own: own) for own in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    found = memory.peak_memory()
    assert (found["device"], found["device_limit"]) == (7, 8)


@pytest.mark.parametrize("told", [[{"host": 3, "device": 4, "device_limit": 9}, {"host": 8, "device": 2}, {"host": 1}]])
def test_the_largest_of_all_hosts_counts(told):
    assert memory.largest_of(told) == {"host": 8, "device": 4, "device_limit": 9}
