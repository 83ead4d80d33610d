"""Whether a repeated command over a table notices that its images have changed."""

import json
import os

import pytest

from clipjax.data.records import ManifestError
from data_pipelines import csv, input_content
from tests.data_pipelines.test_files import ALL, encoded


@pytest.fixture
def two_roots(tmp_path):
    """A table of two images, a folder that has one of them, and one that has both."""
    (tmp_path / "t.csv").write_text("image,caption\na.png,one\nb.png,two\n")
    for root, names in (("half", "a"), ("whole", "ab")):
        (tmp_path / root).mkdir()
        for seed, name in enumerate(names):
            (tmp_path / root / f"{name}.png").write_bytes(encoded(seed))
    return tmp_path


def build_table(folder, root: str, **options) -> dict:
    return csv.build(folder / "out", table=folder / "t.csv", image_root=folder / root, splits=ALL, **options)


def test_a_table_repeated_with_other_images_is_not_taken_for_the_old_one(two_roots):
    assert build_table(two_roots, "half")["splits"]["all"]["records"] == 1
    with pytest.raises(ManifestError, match="other settings"):
        build_table(two_roots, "whole")
    assert build_table(two_roots, "whole", overwrite=True)["splits"]["all"]["records"] == 2
    (two_roots / "whole/a.png").write_bytes(encoded(7))
    with pytest.raises(ManifestError, match="other settings"):
        build_table(two_roots, "whole")


def test_a_repeat_says_that_the_folder_is_left_and_reads_no_image_that_kept_its_time(two_roots, capsys, monkeypatch):
    first = build_table(two_roots, "whole")
    assert "left as it is" not in capsys.readouterr().out
    (two_roots / "whole").rename(two_roots / "moved")
    with monkeypatch.context() as patch:
        patch.setattr(input_content, "_sha256", lambda path: pytest.fail("was read"))
        assert build_table(two_roots, "moved") == first
    assert "out was already made from this input and these arguments: left as it is." in capsys.readouterr().out
    os.utime(two_roots / "moved/a.png")
    assert build_table(two_roots, "moved") == first


def test_records_of_a_version_without_digests_of_the_images_stay_finished_unless_there_are_none(two_roots):
    build_table(two_roots, "whole")
    path = two_roots / "out/manifest.json"
    manifest = json.loads(path.read_text())
    for name in (input_content.CONTENT, input_content.TIMES):
        del manifest["source"][name]
    path.write_text(json.dumps(manifest))
    assert build_table(two_roots, "whole") == manifest
    path.write_text(json.dumps(manifest | {"splits": {"all": {"records": 0, "shards": []}}}))
    with pytest.raises(ManifestError, match="other settings"):
        build_table(two_roots, "whole")


def test_of_large_input_only_names_sizes_and_times_are_compared(two_roots, monkeypatch):
    monkeypatch.setattr(input_content, "LARGEST_READ", 100)
    monkeypatch.setattr(input_content, "_sha256", lambda path: pytest.fail("was read"))
    first = build_table(two_roots, "whole")
    assert input_content.CONTENT not in first["source"] and build_table(two_roots, "whole") == first
    os.utime(two_roots / "whole/a.png", ns=(0, 0))
    with pytest.raises(ManifestError, match="file_times_sha256"):
        build_table(two_roots, "whole")
