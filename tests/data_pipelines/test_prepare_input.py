"""How data_pipelines.prepare looks at its input: whether it has changed, and whether it is whole."""

import json
import os
import tarfile

import pytest

pytest.importorskip("apache_beam", reason="pip install 'clipjax[pipelines]'")

from clipjax.data.records import ManifestError, read_manifest
from data_pipelines import input_content
from data_pipelines.prepare import run
from tests.data.samples import encoded, picture
from tests.data_pipelines.debs import tar_bytes

COUNT = 3


@pytest.fixture
def tar(tmp_path):
    """A tar of COUNT samples, alone in its folder."""
    members = {}
    for i in range(COUNT):
        members |= {f"{i}.png": encoded(picture(i)), f"{i}.txt": f"picture number {i}".encode()}
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.tar").write_bytes(tar_bytes(members))
    return tmp_path / "in/0.tar"


def build(folder, out) -> dict:
    return run.build(out, reader="webdataset", input=(str(folder),), splits="all=1")


def test_moved_and_touched_input_is_the_same_and_an_edited_caption_of_equal_length_is_not(
    tar, tmp_path, monkeypatch, capsys
):
    first = build(tar.parent, tmp_path / "set")
    assert "left as it is" not in capsys.readouterr().out
    monkeypatch.setattr(run, "_run", lambda *_: pytest.fail("ran again"))
    tar.parent.rename(tmp_path / "moved")
    with monkeypatch.context() as patch:
        patch.setattr(input_content, "_sha256", lambda path: pytest.fail("was read"))
        assert build(tmp_path / "moved", tmp_path / "set") == first
    assert "set was already made from this input and these arguments: left as it is." in capsys.readouterr().out
    moved = tmp_path / "moved/0.tar"
    os.utime(moved)
    assert build(tmp_path / "moved", tmp_path / "set") == first
    moved.write_bytes(moved.read_bytes().replace(b"picture number 2", b"picture number 7"))
    with pytest.raises(ManifestError, match="other settings"):
        build(tmp_path / "moved", tmp_path / "set")


def test_a_tar_cut_between_two_samples_is_counted_in_the_report_and_told(tar, tmp_path, capsys):
    with tarfile.open(tar) as opened:
        end = opened.getmember("2.png").offset
    os.truncate(tar, end)
    manifest = build(tar.parent, tmp_path / "set")
    cause = "no end mark: the archive may have been cut between two files"
    assert manifest["splits"]["all"]["records"] == 2
    assert manifest["skipped"] == {f"read: {cause}": 1}
    assert f"skipped 1: read: {cause}" in capsys.readouterr().out
    (step,) = (step for step in json.loads((tmp_path / "set/report.json").read_text())["steps"] if step["noted"])
    assert step["noted"] == {cause: {"count": 1, "samples": [{"key": "0.tar", "text": str(tar)}]}}


def test_a_link_as_the_output_stays_a_link(tar, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "set").symlink_to("disk/real")
    for splits in ("all=1", "train=1"):
        run.build(tmp_path / "set", reader="webdataset", input=(str(tar),), splits=splits, overwrite=True)
        assert list(read_manifest(tmp_path / "disk/real")["splits"]) == [splits.removesuffix("=1")]
    assert (tmp_path / "set").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "in", "set"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]
