"""What begins with a dot, and what systems leave in folders, is neither a class nor a record, whoever lists it."""

import pytest

from clipjax.data.records import ManifestError
from clipjax.data.sources import FolderConfig, WebDatasetConfig, open_source
from clipjax.data.sources.image_files import Sidecars
from clipjax.files import glob_visible, hidden
from data_pipelines.command import Skips
from data_pipelines.image_folder import build, list_images
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers import READERS
from data_pipelines.prepare.readers.paths import input_files
from tests.data.samples import encoded, picture
from tests.data.test_webdataset import samples, write_tar

LEFTOVERS = (".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir", ".Trashes")


def write_images(folder):
    """Two classes of one image each, among what notebooks, macOS, Windows and network disks leave there."""
    image = encoded(picture(0))
    for inside in ("", "cat", "dog"):
        for name in (*(f"{leftover}/a.jpg" for leftover in LEFTOVERS), "._a.jpg", ".a.png", ".DS_Store", "Thumbs.db"):
            path = folder / inside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
            path.with_suffix(".txt").write_text("hidden")
    for name in ("cat/a.jpg", "dog/b.JPG"):
        (folder / name).write_bytes(image)
        (folder / name).with_suffix(".txt").write_text(f"caption of {name}")
    return folder


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b.jpg", False), ("./a.jpg", False), ("../a.jpg", False), ("a..b/c.jpg", False), ("_a.jpg", False),
        ("__a__/b.jpg", False), ("a.DS_Store", False), ("", False), ("Thumbs.db.jpg", False),
        (".a.jpg", True), ("a/.b/c.jpg", True), ("./._a.jpg", True), ("__MACOSX/a.jpg", True), ("a/thumbs.DB", True),
        ("...jpg", True), ("a/Desktop.ini", True), ("lost+found", True),
    ],
)  # fmt: skip
def test_what_is_hidden(path, expected):
    assert hidden(path) == expected


def test_a_folder_has_no_hidden_records(tmp_path):
    source = open_source(FolderConfig(path=str(write_images(tmp_path / ".data" / "photos"))))
    assert [source[i]["key"] for i in range(len(source))] == ["cat/a.jpg", "dog/b.JPG"]
    (tmp_path / "none" / ".ipynb_checkpoints").mkdir(parents=True)
    (tmp_path / "none" / ".ipynb_checkpoints" / "a.jpg").write_bytes(b"x")
    with pytest.raises(ManifestError, match="has no records"):
        open_source(FolderConfig(path=str(tmp_path / "none")))


def test_the_pipelines_have_no_hidden_classes_records_or_skips(tmp_path):
    folder, skips = write_images(tmp_path / "photos"), Skips()
    assert [path.name for path in list_images(folder, skips, Sidecars())] == ["a.jpg", "b.JPG"]
    assert not skips.counts
    manifest = build(tmp_path / "out", images=folder, captions="folders", splits="all=1")
    assert manifest["class_names"] == ["cat", "dog"]
    for leftover in (".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / "split" / leftover / "cat").mkdir(parents=True)
        (tmp_path / "split" / leftover / "cat" / "a.jpg").write_bytes(encoded(picture(0)))
    (tmp_path / "split" / "train").mkdir()
    (folder / "cat").rename(tmp_path / "split" / "train" / "cat")
    manifest = build(tmp_path / "out2", images=tmp_path / "split", captions="folders", splits="folders")
    assert list(manifest["splits"]) == ["train"] and manifest["class_names"] == ["cat"]


def test_folders_and_patterns_name_no_hidden_tars(tmp_path):
    for name in ("a.tar", "x/b.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / name, samples([0]))
    for name in ("._a.tar", ".old.tar", "__MACOSX/a.tar", "__MACOSX/._a.tar", ".cache/a.tar", "x/._b.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"Mac OS X" * 100)
    tars = lambda path: open_source(WebDatasetConfig(path=str(path))).files  # noqa: E731
    assert tars(tmp_path) == tars(tmp_path / "*.tar") == [str(tmp_path / "a.tar")]
    assert tars(tmp_path / "*" / "*.tar") == [str(tmp_path / "x/b.tar")]
    both = [str(tmp_path / "a.tar"), str(tmp_path / "x/b.tar")]
    assert tars(tmp_path / "**" / "*.tar") == both
    for name in (tmp_path, tmp_path / "**" / "*.tar"):
        assert input_files(Options(reader="webdataset", input=(str(name),)), (".tar",)) == both
    (unit, _) = READERS["webdataset"].units(Options(reader="webdataset", input=(str(tmp_path),))).units
    assert unit.name == both[0]


def test_what_a_path_names_itself_is_read_though_hidden(tmp_path):
    for name in (".data/.a.tar", ".data/.b.tar", ".data/x/c.tar", ".data/.x/d.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_tar(tmp_path / name, samples([0]))
    here = str(tmp_path / ".data")
    for pattern, names in (
        (f"{here}/.a.tar", [".a.tar"]),
        (f"{here}/.*.tar", [".a.tar", ".b.tar"]),
        (f"{here}/*/*.tar", ["x/c.tar"]),
        (f"{here}/.x/*.tar", [".x/d.tar"]),
    ):
        assert open_source(WebDatasetConfig(path=pattern)).files == [f"{here}/{name}" for name in names]
    assert glob_visible(f"{here}/*") == [f"{here}/x"]
