"""Which folders write_records replaces, which it leaves, and what it says."""

import pytest

from clipjax.data.records import ManifestError, encode_record, read_manifest
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


def test_other_settings_are_told_by_the_fields_that_differ_one_a_line(tmp_path):
    write(tmp_path / "set", {"seed": 0, "shape": (1, 2), "options": {"splits": "all=1", "side": 0}})
    with pytest.raises(ManifestError) as refused:
        write(tmp_path / "set", {"seed": 1, "shape": (1, 2), "options": {"splits": "all=1", "side": 64}, "new": "x"})
    assert str(refused.value).splitlines() == [
        f"{tmp_path}/set holds records made with other settings or from other input:",
        "    new: None there, 'x' now",
        "    options.side: 0 there, 64 now",
        "    seed: 0 there, 1 now",
        "Choose another --out, or pass --overwrite.",
    ]
