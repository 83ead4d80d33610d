"""Which folders write_records replaces, which it leaves, and what it says."""

import pytest

from clipjax.data.records import encode_record, read_manifest
from clipjax.data.write import write_records


def write(folder, source=None, **options) -> dict:
    records = [encode_record(b"image", ["a caption"], key="0")]
    return write_records(folder, {"train": records}, name="x", source=source or {}, **options)


@pytest.mark.parametrize("there", [True, False], ids=["folder", "nothing"])
def test_a_link_as_the_output_stays_a_link_and_nothing_is_left_beside_it(tmp_path, there):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "set"
    link.symlink_to("disk/real")
    if there:
        write(tmp_path / "disk/real")
    manifest = write(link, {"seed": 1}, overwrite=True)
    assert link.is_symlink() and read_manifest(tmp_path / "disk/real") == read_manifest(link) == manifest
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == ["disk", "real", "set"]
