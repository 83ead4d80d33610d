"""clipjax embed on two processes writes the same bytes as on one."""

import jax
import numpy as np
import pytest

from clipjax.commands import embed
from clipjax.config import from_config_dict
from clipjax.data import embeddings
from clipjax.data.bad_records import DataError
from clipjax.data.embeddings import Embeddings
from clipjax.data.records import RecordError, encode_record
from clipjax.data.tokenizers import make_tokenizer
from clipjax.mesh import make_mesh
from clipjax.runs.checkpoint import save_weights
from clipjax.runs.fingerprint import fingerprint
from clipjax.training.state import create_state, eval_variables
from tests import runs
from tests.data.samples import example, write_folder
from tests.ports import free_port

RECORDS, BAD, PER_SHARD = 37, (3, 29), 8


def embed_config(folder, tower):
    """LiT, or a student of folder/teacher, on records with one to three captions; two records are bad.

    With shards of PER_SHARD records, process 0 has 16 in two batches and process 1 has 21 in three, the last partial.
    """
    embeddings.RECORDS_PER_SHARD = PER_SHARD
    if (folder / "fault").exists():
        embed.counted = fail_in_process_1
    config = runs.run_config(folder)
    config.eval.evaluators = {}
    config.eval.update(batch_size=16, every_steps=0)
    config.data.train.path = str(folder / "records")
    config.data.augment.name = "none"
    if tower == "image":
        config.optimizer.image_lr_multiplier = 0.0
    else:
        config.seed = 5
        config.loss.update(name="distill", teacher=str(folder / "teacher"))
    return config


def fail_in_process_1(rows, seen):
    for number, row in enumerate(rows):
        if number == 10 and jax.process_index() == 1:
            raise DataError("the disk is gone")
        yield row


def captions(i):
    """One to three different captions, of letters that the scenes' tokenizer has."""
    letters = "redcilab"
    return [f"{letters[i // 8]} {letters[i % 8]} {letters[c]}" for c in range(1 + i % 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed")
    runs.build_data(folder)

    def record(i):
        fields = example(i) | {"texts": captions(i)} | ({"image": b"no image"} if i in BAD else {})
        return encode_record(fields.pop("image"), fields.pop("texts"), **fields)

    write_folder(folder / "records", [record(i) for i in range(RECORDS)])
    (folder / "experiment.py").write_text(
        "from pathlib import Path\nfrom tests.distributed.test_embed_processes import embed_config\n\n\n"
        f"def get_config(tower):\n    return embed_config(Path({str(folder)!r}), tower)\n"
    )
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """folder/image_alone and folder/teacher_alone, written by this one process."""
    per_shard = embeddings.RECORDS_PER_SHARD
    try:
        config = from_config_dict(embed_config(folder, "image"))
        variables = eval_variables(create_state(config, make_mesh(config.mesh)))
        prints = fingerprint(config, make_tokenizer(config.tokenizer, config.model.text.context_length))
        save_weights(folder / "teacher", variables, config=config, fingerprint=prints)
        for tower in ("image", "teacher"):
            embed.run(from_config_dict(embed_config(folder, tower)), tower, folder / f"{tower}_alone")
    finally:
        embeddings.RECORDS_PER_SHARD = per_shard
    return folder


def run_two(folder, tower):
    """[(exit status, output)] of two processes that write folder/TOWER_two."""
    port = free_port()
    processes = [
        runs.start("embed", f"--config={folder}/experiment.py:{tower}", f"--tower={tower}",
                   f"--out={folder}/{tower}_two",
                   f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}", devices=4)
        for i in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["image", "teacher"])
def test_two_processes_write_the_folder_of_one_to_the_byte(alone, tower):
    if tower == "image":
        check_failure(alone)
    found = run_two(alone, tower)
    assert [status for status, _ in found] == [0, 0], found
    assert f"{RECORDS} records, 32 numbers each" in found[0][1] and "2 of them could not be used" in found[0][1]
    assert "records, 32" not in found[1][1], "one process speaks for all"
    two, one = contents(alone / f"{tower}_two"), contents(alone / f"{tower}_alone")
    shards = -(-RECORDS // PER_SHARD)
    assert sorted(two) == sorted(one) and len(one) == shards + 1
    for name in one:
        assert two[name] == one[name], name
    check_records(alone / f"{tower}_two", tower)
    assert not list(alone.glob(".*_two.*"))


def check_failure(folder):
    """A process that fails ends both, and no folder is left under the name."""
    (folder / "fault").touch()
    (status, output), (failed, why) = run_two(folder, "image")
    (folder / "fault").unlink()
    assert (status, failed) == (1, 1), output + why
    assert "error: the disk is gone" in why and "error: process 1 on" in output
    assert not (folder / "image_two").exists()
    assert len(list(folder.glob(".image_two.unfinished-*"))) == 1


def check_records(folder, tower):
    """Every record has its key, and one embedding per caption, of length 1 and all different."""
    found = Embeddings(folder)
    assert len(found) == RECORDS
    rows = []
    for i in range(RECORDS):
        if i in BAD:
            with pytest.raises(RecordError, match=f"record {i} could not be used"):
                found.image(i, f"key{i}")
            continue
        rows.append(found.image(i, f"key{i}"))
        if tower == "teacher":
            rows += [found.text(i, f"key{i}", captions(i), number) for number in range(len(captions(i)))]
        with pytest.raises(RecordError, match="had other captions"):
            found.text(i, f"key{i}", ["another"], 0)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    assert len(np.unique(np.stack(rows), axis=0)) == len(rows)
