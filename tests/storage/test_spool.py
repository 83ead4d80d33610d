"""Files that grow, of a run in a bucket: kept on the machine, uploaded whole, and never those of another run."""

import json

import jax
import pytest

from clipjax.runs import RunLockError
from clipjax.runs.spool import Spool, local_folder, spooled
from clipjax.storage import StorageError, as_path, write_bytes
from tests.storage.servers import BUCKETS, objects


@pytest.fixture(params=sorted(BUCKETS), scope="module")
def server(request):
    with BUCKETS[request.param]() as url:
        yield url


@pytest.fixture
def workdir(server, request):
    return f"{server}/{abs(hash(request.node.name))}/run"


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def lines(count):
    return "".join(json.dumps({"step": step}) + "\n" for step in range(count))


def in_bucket(workdir):
    root = str(as_path(workdir)).split("/", 3)[3]
    return {name.removeprefix(f"{root}/"): data for name, data in objects(workdir).items()}


def test_a_folder_is_its_own_spool(tmp_path):
    with spooled(tmp_path / "run", lambda: None) as spool:
        assert spool.folder == tmp_path / "run"
        spool.upload()
    assert not (tmp_path / "run").exists()


def test_files_are_uploaded_when_they_have_changed_with_whole_lines_and_the_folder_goes_at_the_end(workdir, machine):
    with spooled(workdir, lambda: None) as spool:
        assert spool.folder.name == "run" and not list(spool.folder.iterdir())
        (spool.folder / "metrics.jsonl").write_text(lines(2) + '{"step": 2, "lo')
        (spool.folder / "tensorboard").mkdir()
        (spool.folder / "tensorboard/events.1").write_bytes(b"1")
        spool.upload()
        assert in_bucket(workdir) == {"metrics.jsonl": lines(2).encode(), "tensorboard/events.1": b"1"}
        write_bytes(f"{workdir}/tensorboard/events.1", b"not uploaded again")
        (spool.folder / "metrics.jsonl").write_text(lines(3))
    assert in_bucket(workdir) == {"metrics.jsonl": lines(3).encode(), "tensorboard/events.1": b"not uploaded again"}
    assert not list((machine / "clipjax/spool").iterdir())


def test_another_machine_has_the_buckets_files_and_this_one_what_it_wrote_on(workdir, machine, monkeypatch):
    killed = Spool(workdir)
    (killed.folder / "metrics.jsonl").write_text(lines(2))
    (killed.folder / "sinks").mkdir()
    (killed.folder / "sinks/wandb.json").write_text('{"id": "a1"}')
    (killed.folder / "tensorboard").mkdir()
    (killed.folder / "tensorboard/events.1").write_bytes(b"1")
    killed.upload()
    (killed.folder / "metrics.jsonl").write_text(lines(4))
    (killed.folder / "tensorboard/events.1").write_bytes(b"12")

    monkeypatch.setenv("XDG_CACHE_HOME", str(machine / "other"))
    found = Spool(workdir).folder
    assert (found / "metrics.jsonl").read_text() == lines(2) and json.loads((found / "sinks/wandb.json").read_text())
    assert not (found / "tensorboard").exists()  # nothing reads it

    monkeypatch.setenv("XDG_CACHE_HOME", str(machine))
    again = Spool(workdir)
    assert (again.folder / "metrics.jsonl").read_text() == lines(4)
    again.upload()
    assert in_bucket(workdir)["metrics.jsonl"] == lines(4).encode()
    assert in_bucket(workdir)["tensorboard/events.1"] == b"12"


def test_what_is_left_of_an_earlier_run_in_the_same_place_is_not_taken_for_this_ones(workdir):
    earlier = Spool(workdir)
    (earlier.folder / "metrics.jsonl").write_text(lines(9))
    (earlier.folder / "profile").mkdir()
    (earlier.folder / "profile/trace").write_bytes(b"1")
    write_bytes(f"{workdir}/metrics.jsonl", b'{"step": 1}\n')  # of a run that began there since
    spool = Spool(workdir)
    assert (spool.folder / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert not (spool.folder / "profile/trace").exists()
    as_path(f"{workdir}/metrics.jsonl").unlink()
    assert not [path for path in Spool(workdir).folder.rglob("*") if path.is_file()]


def test_each_process_uploads_its_own_list_of_bad_records_and_reads_the_others(workdir, monkeypatch):
    write_bytes(f"{workdir}/bad_records.jsonl", b"{}\n")
    write_bytes(f"{workdir}/metrics.jsonl", b"{}\n")
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    second = Spool(workdir)
    assert [path.name for path in second.folder.iterdir()] == ["bad_records.jsonl"]
    (second.folder / "bad_records.jsonl").write_text("{}\n{}\n")
    (second.folder / "bad_records-1.jsonl").write_text("{}\n")
    saved = []
    second.before_save(lambda step: saved.append((step, sorted(in_bucket(workdir)))))(3)
    assert saved == [(3, ["bad_records-1.jsonl", "bad_records.jsonl", "metrics.jsonl"])]
    assert in_bucket(workdir)["bad_records.jsonl"] == b"{}\n"


def test_an_error_uploads_what_there_is_unless_the_workdir_is_anothers(workdir):
    with pytest.raises(KeyError), spooled(workdir, lambda: None) as spool:
        (spool.folder / "metrics.jsonl").write_text(lines(1))
        raise KeyError
    assert in_bucket(workdir) == {"metrics.jsonl": lines(1).encode()}

    def lost():
        raise RunLockError("lost")

    for error in (KeyError, RunLockError):
        with pytest.raises(error), spooled(workdir, lost) as spool:
            (spool.folder / "metrics.jsonl").write_text(lines(2))
            raise error
        assert in_bucket(workdir) == {"metrics.jsonl": lines(1).encode()}


def test_a_failed_upload_at_the_end_names_the_folder_that_has_the_lines(workdir, monkeypatch):
    with pytest.raises(StorageError, match="(?s)no answer.*last lines are in .*spool.*uploads them"):  # noqa: SIM117
        with spooled(workdir, lambda: None) as spool:
            (spool.folder / "metrics.jsonl").write_text(lines(2))

            def fail():
                raise StorageError("no answer")

            monkeypatch.setattr(spool, "upload", fail)
    assert (spool.folder / "metrics.jsonl").read_text() == lines(2)
    monkeypatch.undo()


def test_files_for_a_folder_in_a_bucket_are_written_here_and_uploaded(server, tmp_path):
    with local_folder(tmp_path) as folder:
        assert folder == tmp_path
    with local_folder(as_path(f"{server}/new/events")) as folder:
        (folder / "a").write_bytes(b"1")
    assert objects(f"{server}/new") == {"new/events/a": b"1"}
