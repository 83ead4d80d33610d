"""What the commands write with --out, DST and a sweep's --workdir, in buckets of real servers on this machine."""

import contextlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from clipjax.commands import bucket_paths, check, compare, export, import_weights, launch, plan, report, sweep
from clipjax.commands import eval as eval_command
from clipjax.config import ConfigError, to_json_dict
from clipjax.data import bucket_records
from clipjax.data.embeddings import Embeddings, Row, check_destination, write_embeddings
from clipjax.data.records import ManifestError, encode_record, read_manifest
from clipjax.data.write import write_records
from clipjax.inference import evaluate
from clipjax.interop.names import InteropError
from clipjax.runs import open_run
from clipjax.runs.sweep import Cell, Sweep, read_sweep, write_sweep
from clipjax.storage import StorageError, as_path
from data_pipelines import scenes, train_tokenizer
from tests.commands.test_sweep import EXPERIMENT
from tests.data.test_records import write_together
from tests.eval_runs import fake_embed, run_of, save_steps, start_of
from tests.report.test_compare import TOP1, write_run
from tests.runs import build_data, write_experiment
from tests.storage.servers import BUCKETS, objects
from tests.tiny import tiny_config


@pytest.fixture(params=BUCKETS)
def bucket(request, tmp_path, monkeypatch):
    """An empty bucket of each kind, and a current folder in which nothing may be made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with BUCKETS[request.param]() as url:
        yield url
    assert not list((tmp_path / "here").iterdir())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_data(folder)
    return folder


@pytest.fixture(scope="module")
def workdir(data, tmp_path_factory):
    """A run of a tiny model with one checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = run_of(data)
    save_steps(folder, config, start_of(config), [6])
    (folder / "config.json").write_text(json.dumps(to_json_dict(config)))
    return folder


def upload(folder: Path, url: str) -> None:
    """The files of a folder, in a bucket."""
    for path in folder.rglob("*"):
        if path.is_file():
            as_path(f"{url}/{path.relative_to(folder).as_posix()}").write_bytes(path.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("bucket", ["gs"], indirect=True)  # S3 has the lighter tests
def test_a_run_is_exported_imported_and_evaluated_in_a_bucket(bucket, data, workdir, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "make_embed", fake_embed)
    export.run(workdir, f"{bucket}/hf", format="hf", nearest_pixels=True, tokenizer=False)
    export.run(workdir, tmp_path / "hf", format="hf", nearest_pixels=True, tokenizer=False)
    local = {f"hf/{path.name}": path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    assert objects(bucket) == local
    with pytest.raises(InteropError, match="exists already"):
        export.run(workdir, f"{bucket}/hf", format="hf", nearest_pixels=True, tokenizer=False)
    import_weights.run(f"{bucket}/hf", f"{bucket}/imported", parity=False)
    with pytest.raises(InteropError, match="exists already"):
        import_weights.run(f"{bucket}/hf", f"{bucket}/imported", parity=False)
    config = run_of(data)
    found = eval_command.run(workdir, config=config, out=f"{bucket}/results")
    assert json.loads(objects(bucket)["results/results.json"])["results"] == found["results"]
    assert b"<html" in objects(bucket)["results/report.html"]
    assert not [name for name in objects(bucket) if ".uploading" in name]
    with open_run(f"{bucket}/imported") as imported:  # a whole checkpoint, as Orbax's marker says
        assert imported.config.model.embed_dim == config.model.embed_dim


def test_weights_of_one_file_come_with_the_small_files_beside_it(bucket, tmp_path):
    as_path(f"{bucket}/models/clip/weights.npz").write_bytes(b"1" * 10)
    as_path(f"{bucket}/models/clip/config.json").write_bytes(b"{}")
    as_path(f"{bucket}/models/clip/below/other.json").write_bytes(b"{}")
    with bucket_paths.fetched(f"{bucket}/models/clip/weights.npz") as local:
        assert sorted(path.name for path in local.parent.iterdir()) == ["config.json", "weights.npz"]
    assert not local.exists()
    with bucket_paths.fetched(f"{bucket}/models/clip") as local:
        assert local.name == "clip" and (local / "below" / "other.json").read_bytes() == b"{}"
    with pytest.raises(FileNotFoundError, match="models/none"), bucket_paths.fetched(f"{bucket}/models/none"):
        pass


@pytest.mark.parametrize("bucket", ["gs"], indirect=True)
def test_runs_in_a_bucket_are_compared_and_reported_there(bucket, tmp_path):
    cells = [
        Cell(f"loss={loss}", seed, {"loss.name": loss}, {"loss.name": loss}, "finished", 30.0)
        for loss in TOP1
        for seed in range(2)
    ]
    for cell in cells:
        loss = cell.values["loss.name"]
        write_run(tmp_path / "sweep" / cell.path, TOP1[loss][cell.seed], seed=cell.seed, loss=loss)
    upload(tmp_path / "sweep", f"{bucket}/sweep")
    write_sweep(f"{bucket}/sweep", Sweep("experiment.py", [], ["loss.name"], cells))
    write_sweep(tmp_path / "sweep", Sweep("experiment.py", [], ["loss.name"], cells))
    compare.run([f"{bucket}/sweep"], out=f"{bucket}/table.csv")
    compare.run([tmp_path / "sweep"], out=tmp_path / "table.csv")
    assert objects(bucket)["table.csv"] == (tmp_path / "table.csv").read_bytes()
    first = f"{bucket}/sweep/{cells[0].path}"
    assert str(report.run([first], compute=False)) == f"{first}/report.html"
    report.run([f"{bucket}/sweep"], out=f"{bucket}/pages/all.html", compute=False)
    assert b"<html" in objects(bucket)["pages/all.html"]
    assert b"<html" in objects(bucket)[f"sweep/{cells[0].path}/report.html"]


def test_a_plan_is_written_to_a_bucket(bucket, monkeypatch):
    monkeypatch.setattr(plan, "plan_or_nearest", lambda *_, **__: {"fits": True})
    monkeypatch.setattr(plan, "plan_table", lambda *_: "")
    plan.run(tiny_config(), "cpu:8", out=f"{bucket}/plans/plan.json")
    assert json.loads(objects(bucket)["plans/plan.json"]) == [{"overrides": "", "fits": True}]


def test_nothing_is_computed_for_a_bucket_that_is_not_there(bucket, workdir, monkeypatch):
    missing = f"{bucket.split('://')[0]}://clipjax-none-of-this-name/x"
    monkeypatch.setattr(plan, "plan_or_nearest", None)
    for command in (
        lambda: plan.run(tiny_config(), "cpu:8", out=missing),
        lambda: compare.run([workdir], out=missing),
        lambda: export.run(workdir, missing, format="hf"),
        lambda: import_weights.run("nothing", missing),
        lambda: report.run([workdir], out=missing),
        lambda: scenes.build(missing, train=1, validation=1, compositional=1, relations=1),
    ):
        with pytest.raises(StorageError, match="there is no bucket .*clipjax-none-of-this-name"):
            command()


def rows(count: int):
    rng = np.random.default_rng(0)
    for index in range(count):
        image = rng.normal(size=4).astype(np.float32)
        yield None if index == 1 else Row(f"key{index}", image, np.stack([image, -image]), ["a", "b"])


def test_embeddings_are_written_to_a_bucket_and_left_when_they_are_finished(bucket, tmp_path):
    made_by = {"dtype": "float32", "weights": "a"}
    for folder in (f"{bucket}/data/lit", tmp_path / "lit"):
        write_embeddings(folder, rows(5), made_by)
    before = objects(bucket)
    local = {f"data/lit/{path.name}": path.read_bytes() for path in (tmp_path / "lit").iterdir()}
    assert before.keys() == local.keys()
    assert json.loads(before["data/lit/manifest.json"]) == json.loads(local["data/lit/manifest.json"])
    write_embeddings(f"{bucket}/data/lit", iter(()), made_by)  # finished: nothing to do
    assert objects(bucket) == before
    check_destination(f"{bucket}/data/lit", made_by)
    with pytest.raises(ManifestError, match="weights: 'a' there, 'b' now"):
        check_destination(f"{bucket}/data/lit", made_by | {"weights": "b"})
    upload_back(bucket, "data/lit", tmp_path / "back")
    assert Embeddings(tmp_path / "back").image(0, "key0").shape == (4,)


def upload_back(bucket: str, below: str, folder: Path) -> None:
    folder.mkdir()
    for name, data in objects(bucket).items():
        if name.startswith(f"{below}/"):
            (folder / name.rpartition("/")[2]).write_bytes(data)


def records(count: int, start: int = 0):
    return [encode_record(b"image", ["a caption"], key=f"k{start + index}") for index in range(count)]


def test_records_in_a_bucket_equal_those_on_disk_and_are_replaced_when_asked(bucket, tmp_path):
    options = {"name": "x", "records_per_shard": 2}
    write_records(f"{bucket}/set", {"train": records(5)}, source={"seed": 0}, **options)
    write_records(tmp_path / "set", {"train": records(5)}, source={"seed": 0}, **options)
    assert read_manifest(f"{bucket}/set") == read_manifest(tmp_path / "set")
    assert sorted(objects(bucket)) == sorted(f"set/{path.name}" for path in (tmp_path / "set").iterdir())
    with pytest.raises(ManifestError, match="made with other settings"):
        write_records(f"{bucket}/set", {"train": records(3)}, source={"seed": 1}, **options)
    write_records(f"{bucket}/set", {"train": records(3)}, source={"seed": 1}, overwrite=True, **options)
    names = ["train-00000-of-00002.arrayrecord", "train-00001-of-00002.arrayrecord"]
    assert sorted(objects(bucket)) == ["set/manifest.json", *(f"set/{name}" for name in names)]
    as_path(f"{bucket}/mine/letter.txt").write_bytes(b"dear")
    with pytest.raises(ManifestError, match="mine holds other files than records: it has no manifest.json"):
        write_records(f"{bucket}/mine", {"train": records(1)}, source={}, overwrite=True, **options)
    assert objects(bucket)["mine/letter.txt"] == b"dear"


@pytest.fixture
def broken_network(monkeypatch):
    """The second upload inside it fails."""

    @contextlib.contextmanager
    def breaking_off():
        uploads, upload_file = [], bucket_records.storage.upload_file

        def upload(source, path):
            uploads.append(path)
            if len(uploads) == 2:
                raise StorageError("the network is gone", "server")
            return upload_file(source, path)

        with monkeypatch.context() as broken, pytest.raises(StorageError, match="the network is gone"):
            broken.setattr(bucket_records.storage, "upload_file", upload)
            yield

    return breaking_off


def test_records_whose_replacement_broke_off_are_as_they_were(bucket, broken_network):
    options = {"name": "x", "records_per_shard": 2}
    write_records(f"{bucket}/set", {"train": records(5)}, source={"seed": 0}, **options)
    old = objects(bucket)
    with broken_network():
        write_records(f"{bucket}/set", {"train": records(6, 9)}, source={"seed": 1}, overwrite=True, **options)
    found = objects(bucket)
    assert {name: found[name] for name in old} == old and len(found) == len(old) + 1
    write_records(f"{bucket}/set", {"train": records(6, 9)}, source={"seed": 1}, overwrite=True, **options)
    shards = read_manifest(f"{bucket}/set")["splits"]["train"]["shards"]
    assert sorted(objects(bucket)) == sorted(["set/manifest.json", *(f"set/{shard['file']}" for shard in shards)])


def test_a_folder_whose_upload_broke_off_is_unfinished_and_written_again(bucket, broken_network):
    options = {"name": "x", "records_per_shard": 2, "source": {}}
    with broken_network():
        write_records(f"{bucket}/set", {"train": records(5)}, **options)
    assert any(".uploading" in name for name in objects(bucket))
    with pytest.raises(ManifestError, match="not a finished folder"):
        read_manifest(f"{bucket}/set")
    write_records(f"{bucket}/set", {"train": records(5)}, **options)
    assert len(read_manifest(f"{bucket}/set")["splits"]["train"]["shards"]) == 3
    assert len(objects(bucket)) == 4


def test_processes_write_one_folder_of_a_bucket_without_seeing_each_others_disks(bucket):
    write_together([records(4), records(3, 4)], folder=f"{bucket}/set", records_per_shard=2, source={})
    shards = read_manifest(f"{bucket}/set")["splits"]["train"]["shards"]
    assert [shard["records"] for shard in shards] == [2, 2, 2, 1]
    assert sorted(objects(bucket)) == sorted(["set/manifest.json", *(f"set/{shard['file']}" for shard in shards)])


def test_pipelines_write_records_and_a_tokenizer_to_a_bucket(bucket, data, capsys):
    scenes.build(f"{bucket}/scenes", train=4, validation=2, compositional=1, relations=1)
    assert read_manifest(f"{bucket}/scenes")["splits"]["train"]["records"] == 4
    options = {"records": data / "scenes", "vocab_size": 128, "model_type": "bpe"}
    train_tokenizer.build(f"{bucket}/words/scenes.model", **options)
    assert objects(bucket)["words/scenes.model"] == (data / "scenes.model").read_bytes()
    train_tokenizer.build(f"{bucket}/words/scenes.model", **options)
    assert "was already made from this text: left as it is" in capsys.readouterr().out


def test_small_files_that_an_experiment_names_in_a_bucket_are_fetched(bucket, data):
    as_path(f"{bucket}/words/scenes.model").write_bytes((data / "scenes.model").read_bytes())
    as_path(f"{bucket}/names/names.txt").write_bytes(b"cat\ndog\n")
    config = run_of(
        data,
        tokenizer__path=f"{bucket}/words/scenes.model",
        eval__evaluators__zero_shot__class_names=f"{bucket}/names/names.txt",
    )
    found = bucket_paths.with_local_files(config)
    assert Path(found.tokenizer.path).name == "scenes.model"
    assert Path(found.tokenizer.path).read_bytes() == (data / "scenes.model").read_bytes()
    names = found.eval.evaluators["zero_shot"].class_names
    assert Path(names).read_text() == "cat\ndog\n"
    assert bucket_paths.with_local_files(config) == found
    as_path(f"{bucket}/names/names.txt").write_bytes(b"dog\ncat\n")  # another content is another copy
    other = bucket_paths.with_local_files(config).eval.evaluators["zero_shot"].class_names
    assert other != names and Path(other).read_text() == "dog\ncat\n" and Path(names).read_text() == "cat\ndog\n"
    missing = run_of(data, tokenizer__path=f"{bucket}/words/none.model")
    assert bucket_paths.with_local_files(missing).tokenizer.path == f"{bucket}/words/none.model"


# A stand-in for clipjax train that writes to the bucket, and fails at batch 64 until it is mended.
REMOTE_TRAINER = """
import json, sys
from pathlib import Path

from clipjax.storage import as_path

given = dict(arg.split("=", 1) for arg in sys.argv[2:])
workdir, batch_size = as_path(given["--workdir"]), int(given["--config.global_batch_size"])
config = json.loads(Path(__file__).with_name("config.json").read_text())
config |= {"global_batch_size": batch_size, "seed": int(given["--config.seed"])}
(workdir / "config.json").write_text(json.dumps(config))
print("hello from", batch_size, flush=True)
if batch_size == 64 and not (workdir.parent / "mended").exists():
    sys.exit("error: the disk of batch 64 is full")
step = workdir / "checkpoints" / str(config["total_steps"])
(step / "params").write_text("weights")
(step / "commit_success.txt").write_text("")
"""


@pytest.mark.slow
@pytest.mark.parametrize("bucket", ["gs"], indirect=True)
def test_a_sweep_in_a_bucket_is_trained_told_mended_and_extended(bucket, tmp_path, monkeypatch, capfd):
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    program = tmp_path / "trainer.py"
    program.write_text(REMOTE_TRAINER)
    (tmp_path / "config.json").write_text(json.dumps(to_json_dict(tiny_config())))
    monkeypatch.setattr(launch, "PROGRAM", (sys.executable, str(program)))
    monkeypatch.setattr(sweep, "errors_here", lambda cells: {})
    monkeypatch.setenv("PYTHONPATH", str(Path(launch.__file__).parents[2]))

    def run(*values):
        arguments = [f"--config={tmp_path / 'experiment.py'}"]
        return sweep.run(arguments, [f"global_batch_size={','.join(values)}"], f"{bucket}/sweeps/batch", jobs=2)

    assert run("32", "64") == 1
    statuses = {cell.name: cell.status for cell in read_sweep(f"{bucket}/sweeps/batch").cells}
    assert statuses == {"global_batch_size=32": "finished", "global_batch_size=64": "failed"}
    shown = capfd.readouterr().out
    assert "FAILED" in shown and "the disk of batch 64 is full" in shown
    log = "sweeps/batch/global_batch_size=64/seed0/train.log"
    assert objects(bucket)[log].count(b"hello from 64") == 1
    as_path(f"{bucket}/sweeps/batch/global_batch_size=64/mended").write_bytes(b"yes")
    assert run("32", "64", "16") == 0
    assert "1 finished, 2 to train" in capfd.readouterr().out
    assert objects(bucket)[log].count(b"hello from 64") == 2  # both tries are in one log
    assert not list((tmp_path / "cache").rglob("train.log"))
    assert run("32", "64", "16") == 0
    assert "3 finished, 0 to train" in capfd.readouterr().out
    with pytest.raises(ConfigError, match="varies global_batch_size"):
        sweep.run([f"--config={tmp_path / 'experiment.py'}"], ["accumulation_steps=1,2"], f"{bucket}/sweeps/batch")


def test_a_flag_that_names_a_bucket_makes_no_folder_of_its_name(tmp_path, monkeypatch, data):
    """--workdir=gs://... once made a folder called gs: here."""
    monkeypatch.chdir(tmp_path)
    experiment = write_experiment(data)
    with BUCKETS["gs"]() as bucket, pytest.raises(SystemExit), contextlib.redirect_stderr(open(os.devnull, "w")):
        check.main(["check", f"--config={experiment}", f"--workdir={bucket}/run", "--config.seed=-5"])
    assert not list(tmp_path.iterdir())
