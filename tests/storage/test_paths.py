"""Remote and local paths: which are which, that both behave alike, and which schemes are refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipjax import files, json_files, storage
from clipjax.storage.lease import lease
from tests.storage.servers import BUCKETS, objects


@pytest.fixture(params=sorted(BUCKETS))
def bucket(request):
    with BUCKETS[request.param]() as name:
        yield name


@pytest.mark.parametrize("text", ["/tmp/run", "run", "../run", "a:b", "a:/b", "gs", "~/x", "."])
def test_a_local_path_stays_pathlibs(text):
    assert storage.as_path(text) == Path(text) and isinstance(storage.as_path(text), type(Path()))
    assert not storage.is_remote(text)


def test_paths_that_are_paths_come_back_unchanged():
    local, remote = Path("/tmp/run"), storage.as_path("gs://bucket/run")
    assert storage.as_path(local) is local and storage.as_path(remote) is remote


@pytest.mark.parametrize(
    "text, says",
    [
        ("gs:/bucket/run", "write gs://bucket/run"),
        (Path("gs://bucket/run"), "write gs://bucket/run"),
        ("S3://bucket/run", "write s3://bucket/run"),
        ("gcs://bucket/run", "write gs://bucket/run"),
        ("gs:///run", "names no bucket"),
        ("gs://", "names no bucket"),
        ("gs://a b/run", "not a valid bucket name"),
        ("s3://bucket/../run", "no '..'"),
        ("hdfs://name/run", "hdfs:// is not supported"),
        ("az://name/run", "az:// is not supported"),
        ("https://host/run", "https:// is not supported"),
        ("file:///run", "/run"),
    ],
)
def test_other_schemes_are_refused_by_name_in_one_line(text, says):
    with pytest.raises(storage.StorageError) as caught:
        storage.as_path(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_no_library_of_storage_is_imported_for_local_paths():
    program = (
        "import sys; from clipjax import files, json_files, storage; storage.as_path('/tmp/x').exists();"
        "print([n for n in ('fsspec', 'gcsfs', 's3fs', 'aiohttp', 'botocore', 'etils') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("scheme, extra", [("gs", "gcs"), ("s3", "s3")])
def test_a_missing_extra_is_named_with_its_command(scheme, extra, monkeypatch):
    library = storage.connection.SCHEMES[scheme].library
    monkeypatch.delitem(sys.modules, library, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(storage.StorageError, match=rf"pip install 'clipjax\[{extra}\]'"):
        storage.as_path(f"{scheme}://bucket/run")


def test_a_remote_path_answers_as_a_local_one(bucket, tmp_path):
    for root in (tmp_path / "run", storage.as_path(f"{bucket}/run")):
        assert not root.exists() and not root.is_dir()
        root.mkdir(parents=True, exist_ok=True)
        (root / "a").mkdir(exist_ok=True)
        (root / "a" / "one.txt").write_text("é\n", encoding="utf-8")
        (root / "a" / "two~").write_bytes(b"12")
        with (root / "b.json").open("w") as file:
            file.write("{}")
        assert sorted(path.name for path in root.iterdir()) == ["a", "b.json"]
        assert sorted(path.name for path in (root / "a").iterdir()) == ["one.txt", "two~"]
        assert [str(path.relative_to(root)) for path in sorted(root.glob("*/*.txt"))] == ["a/one.txt"]
        assert root.is_dir() and (root / "a").is_dir() and not (root / "a").is_file()
        assert (root / "b.json").is_file() and (root / "b.json").exists() and not (root / "c").exists()
        assert (root / "a/one.txt").read_text(encoding="utf-8") == "é\n"
        assert (root / "a/two~").read_bytes() == b"12" and (root / "a/two~").stat().st_size == 2
        with (root / "a/two~").open("rb") as file:
            file.seek(1)
            assert file.read() == b"2"
        with pytest.raises(FileNotFoundError) as missing:
            (root / "none").read_bytes()
        assert str(root / "none") in str(missing.value)
        with pytest.raises(NotADirectoryError):
            list((root / "b.json").iterdir())
        with pytest.raises(FileNotFoundError):
            list((root / "none").iterdir())
        (root / "b.json").unlink()
        (root / "b.json").unlink(missing_ok=True)
        assert [path.name for path in root.iterdir()] == ["a"]


def test_a_text_is_written_whole_and_read_back_through_files(bucket):
    path = f"{bucket}/run/note.txt"
    files.write_text(path, "one\n")
    files.write_text(storage.as_path(path), "zwei\n")
    assert files.read_text(path) == files.read_text(storage.as_path(path)) == "zwei\n"
    assert objects(bucket) == {"run/note.txt": b"zwei\n"}
    with pytest.raises(files.TextFileError, match="more than 3 bytes"):
        files.read_text(path, limit=3)
    storage.write_bytes(f"{bucket}/empty", b"")
    assert files.read_text(f"{bucket}/empty", limit=3) == ""
    assert files.not_a_file(f"{bucket}/run") == "a folder" and files.not_a_file(path) == ""


def test_json_is_read_from_a_bucket(bucket):
    storage.write_bytes(f"{bucket}/a.json", b'{"x": 1}')
    storage.write_bytes(f"{bucket}/a.jsonl", b'{"x": 1}\n{"x": 2}\n')
    assert json_files.read_json_object(f"{bucket}/a.json") == json_files.read_json(f"{bucket}/a.json") == {"x": 1}
    assert json_files.read_json_object(f"{bucket}/none.json") == {}
    assert json_files.read_json_lines(f"{bucket}/a.jsonl") == [{"x": 1}, {"x": 2}]


def test_what_fails_while_it_is_written_leaves_the_old_object(bucket):
    path = storage.as_path(f"{bucket}/note.txt")
    files.write_text(path, "old")
    for writing in (files.replacing, lambda path: path.open("w")):
        with pytest.raises(KeyError), writing(path) as file:
            file.write_text("half") if isinstance(file, Path) else file.write("half")
            raise KeyError
    assert objects(bucket) == {"note.txt": b"old"}


def test_a_folder_is_published_whole_or_refused(bucket, monkeypatch):
    folder = f"{bucket}/out"

    def fill(temporary: Path) -> None:
        (temporary / "sub").mkdir()
        (temporary / "config.json").write_text("{}")
        (temporary / "sub" / "weights").write_bytes(b"0" * 1000)

    real, sent = storage.objects.upload_file, []

    def breaks(source, path):
        sent.append(path)
        if len(sent) == 2:
            raise KeyError("killed")
        real(source, path)

    monkeypatch.setattr(storage.objects, "upload_file", breaks)
    with pytest.raises(KeyError), files.making_folder(folder) as temporary:
        fill(temporary)
    with pytest.raises(storage.StorageError, match="is not complete.*run that command again"):
        storage.check_whole(folder)
    assert not storage.is_there(folder)
    monkeypatch.undo()
    with files.making_folder(folder) as temporary:
        fill(temporary)
    storage.check_whole(folder)
    assert objects(bucket) == {"out/config.json": b"{}", "out/sub/weights": b"0" * 1000}
    assert storage.is_there(folder) and not storage.is_there(f"{bucket}/other")
    with pytest.raises(FileExistsError), files.making_folder(folder) as temporary:
        fill(temporary)


def test_an_upload_that_goes_on_is_not_disturbed(bucket, tmp_path):
    (tmp_path / "new").write_text("new")
    with lease(f"{bucket}/out/{storage.UPLOADING}"):
        storage.write_bytes(f"{bucket}/out/half", b"1")
        with pytest.raises(storage.StorageError, match=f'"pid": {os.getpid()}.* is uploading this folder'):
            storage.upload_folder(tmp_path, f"{bucket}/out")
    storage.upload_folder(tmp_path, f"{bucket}/out")
    assert objects(bucket) == {"out/new": b"new"}


def test_shell_patterns_find_objects_without_hidden_ones(bucket):
    for name in ("a.tar", "b.tar", ".hidden.tar", "sub/c.tar"):
        storage.write_bytes(f"{bucket}/data/{name}", b"x")
    assert files.glob_visible(f"{bucket}/data/*.tar") == [f"{bucket}/data/a.tar", f"{bucket}/data/b.tar"]
    assert files.glob_visible(f"{bucket}/data/**/*.tar", recursive=True) == [
        f"{bucket}/data/{name}" for name in ("a.tar", "b.tar", "sub/c.tar")
    ]


def test_a_bucket_that_can_be_written_keeps_nothing_of_the_check(bucket):
    storage.check_writable(f"{bucket}/run")
    assert objects(bucket) == {}


def test_a_missing_bucket_is_named(bucket):
    wrong = f"{bucket}-not/run"
    with pytest.raises(storage.StorageError, match=f"there is no bucket {bucket}-not. Correct the name"):
        storage.check_writable(wrong)
    with pytest.raises(storage.StorageError, match="there is no bucket"):
        files.write_text(f"{wrong}/x", "x")
