"""Training from stored embeddings gives the curve of the run that computes them, or is refused."""

import dataclasses
import json
import math
import re
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from clipjax.commands import embed, train
from clipjax.config import (
    AugmentConfig,
    ConfigError,
    DataConfig,
    PixelConfig,
    SourceConfig,
    default_config,
    from_config_dict,
)
from clipjax.data import embeddings
from clipjax.data.cut import TextCut
from clipjax.data.embeddings import Embeddings, Row, shares, write_embeddings
from clipjax.data.records import ManifestError, RecordError
from clipjax.inference.embed import blocks_of
from clipjax.mesh import make_mesh
from clipjax.models.towers.naflex import naflex_of
from clipjax.runs.fingerprint import fingerprint
from clipjax.training.check import check_embeddings
from clipjax.training.gradients import make_loss_and_gradients
from clipjax.training.precomputed import (
    check_image_embeddings,
    compare_made_by,
    image_made_by,
    image_settings,
    teacher_settings,
)
from clipjax.training.state import abstract_state, create_state, eval_variables
from clipjax.training.step import lower_step
from clipjax.training.teacher import EmbeddedTeacher, Teacher, embedded
from tests.data.samples import FaultySource, example, write_folder
from tests.data.test_pipeline import assert_equal, stream, take
from tests.runs import build_data, losses, run_config
from tests.tiny import tiny_batches, tiny_config

PLAIN = AugmentConfig(name="none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed")
    build_data(folder)
    return folder


def lit(folder, **data):
    """Six steps of LiT on eight devices: the image tower of seed 0, frozen, and a text tower that learns."""
    config = run_config(folder)
    config.total_steps = 6
    config.mesh.update(data=4, fsdp=2)
    config.optimizer.image_lr_multiplier = 0.0
    config.data.augment.name = "none"
    config.eval.evaluators = {}
    config.eval.every_steps = 0
    config.data.update(data)
    return config


def run(config, workdir):
    train.run(from_config_dict(config), workdir)
    return losses(workdir)


@pytest.fixture(scope="module")
def plain(folder):
    """(losses, workdir) of the run that computes its image embeddings at every step."""
    return run(lit(folder), folder / "plain"), folder / "plain"


@pytest.fixture(scope="module")
def images(folder):
    embed.run(from_config_dict(lit(folder)), "image", folder / "images")
    return str(folder / "images")


def close(found, expected):
    assert found.keys() == expected.keys() and len(found)
    np.testing.assert_allclose([found[s] for s in found], [expected[s] for s in found], rtol=2e-6)


@pytest.mark.slow
def test_lit_from_embeddings_has_the_curve_of_lit_and_resumes(folder, plain, images):
    config = lit(folder, image_embeddings=images)
    found = run(config, folder / "from_images")
    close(found, plain[0])
    assert len(set(found.values())) == 6
    shutil.rmtree(folder / "from_images" / "checkpoints" / "6")
    close(run(config, folder / "from_images"), plain[0])
    config.accumulation_steps = 2
    config.total_steps = 2
    config.optimizer.schedule.name = "constant"
    plain_config = lit(folder)
    plain_config.update(total_steps=2)
    plain_config.optimizer.schedule.name = "constant"
    close(run(config, folder / "accumulated"), run(plain_config, folder / "plain_constant"))


@pytest.mark.slow
def test_a_student_of_stored_embeddings_has_the_curve_of_a_student_of_its_teacher(folder, plain):
    config = lit(folder)
    config.update(seed=5, total_steps=3)
    config.optimizer.image_lr_multiplier = 1.0
    config.loss.update(name="distill", teacher=str(plain[1]))
    expected = run(config, folder / "student")
    config.loss.teacher = str(shutil.copytree(plain[1], folder / "elsewhere" / "moved"))
    embed.run(from_config_dict(config), "teacher", folder / "teacher")
    config.data.teacher_embeddings = str(folder / "teacher")
    close(run(config, folder / "student_of_embeddings"), expected)

    config.data.train.split = "validation"
    with pytest.raises(ConfigError, match="26"):
        run(config, folder / "other_data")
    config.data.train.split = "train"
    shutil.copytree(plain[1], folder / "earlier")
    shutil.rmtree(folder / "earlier" / "checkpoints" / "6")
    config.loss.teacher = str(folder / "earlier")
    with pytest.raises(ConfigError, match=r"weights: embedded with '\w{64}', this experiment has '\w{64}'"):
        run(config, folder / "other_teacher")


def image_tower(seed=0):
    """The parts of a TrainState that check_image_embeddings reads."""
    rng = np.random.default_rng(seed)
    return SimpleNamespace(params={"image": {"kernel": rng.normal(size=(3, 4))}, "text": {}}, batch_stats={})


def test_embeddings_made_before_there_was_an_option_are_used_while_it_has_its_default(tmp_path):
    write_folder(tmp_path / "data", 12)
    data = DataConfig(
        train=SourceConfig(path=str(tmp_path / "data")), augment=PLAIN, image_embeddings=str(tmp_path / "old")
    )
    config = dataclasses.replace(tiny_config(), data=data)
    tokenizer = SimpleNamespace(config=config.tokenizer, sha256="", vocab_size=9, pad_id=0, eos_id=1)
    made_by = image_made_by(config, image_tower(), fingerprint(config, tokenizer)) | {"dtype": "float16"}
    later = ("pixels.center", "pixels.fill")  # as if these had not existed
    old = {name: value for name, value in made_by.items() if name not in later}
    assert len(old) == len(made_by) - len(later)
    write_embeddings(tmp_path / "old", iter([Row("key", np.ones(32))] * 12), old)
    check_image_embeddings(config, image_tower(), fingerprint(config, tokenizer))
    other = dataclasses.replace(config, data=dataclasses.replace(data, pixels=PixelConfig(center="floor")))
    with pytest.raises(ConfigError, match="pixels.center: embedded with 'not recorded', this experiment has 'floor'"):
        check_image_embeddings(other, image_tower(), fingerprint(other, tokenizer))

    bare = {name: value for name, value in made_by.items() if name != "dtype"}
    manifest = tmp_path / "old" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"source": {"embeddings": bare}}))
    with pytest.raises(ConfigError, match="old: its manifest.json does not say as what the embeddings are stored"):
        check_image_embeddings(config, image_tower(), fingerprint(config, tokenizer))
    with pytest.raises(ConfigError, match="no embed_dim or no logit_scale.*--tower=teacher"):
        embedded(made_by)


def test_embeddings_of_other_weights_pixels_or_data_are_refused_field_by_field(tmp_path):
    write_folder(tmp_path / "data", 12)
    write_folder(tmp_path / "other", 11)
    train, pixels = SourceConfig(path=str(tmp_path / "data")), PixelConfig()
    stored = str(tmp_path / "stored")
    data = DataConfig(train=train, augment=PLAIN, image_embeddings=stored)
    config = dataclasses.replace(tiny_config(), data=data)
    tokenizer = SimpleNamespace(config=config.tokenizer, sha256="", vocab_size=9, pad_id=0, eos_id=1)

    def check(state, **changes):
        changed = dataclasses.replace(config, data=dataclasses.replace(data, **changes))
        check_image_embeddings(changed, state, fingerprint(changed, tokenizer))

    made_by = image_made_by(config, image_tower(), fingerprint(config, tokenizer)) | {"dtype": "float16"}
    rows = [Row("key", np.ones(32))] * 12
    write_embeddings(stored, iter(rows), made_by)
    check(image_tower())
    other = dataclasses.replace(pixels, interpolation="bilinear", mean=(0.4, 0.5, 0.5))
    with pytest.raises(ConfigError) as caught:
        check(image_tower(seed=1), pixels=other, train=SourceConfig(path=str(tmp_path / "other")))
    message = str(caught.value)
    assert re.findall(r"^  ([\w.]+):", message, re.MULTILINE) == [
        *("data.sha256", "pixels.interpolation", "pixels.mean", "weights")
    ]
    assert "embedded with 'bicubic', this experiment has 'bilinear'" in message and stored in message
    with pytest.raises(ConfigError, match="records but no embeddings"):
        check(image_tower(), image_embeddings=str(tmp_path / "data"))

    # Embedding again with the same settings does nothing; other settings do not replace what is there.
    write_embeddings(stored, iter(()), made_by)
    with pytest.raises(ManifestError, match="other settings"):
        write_embeddings(stored, iter(rows), made_by | {"weights": "0"})


def test_the_step_has_nothing_of_the_image_tower():
    config = tiny_config((1, 1, 1), image_lr_multiplier=0.0)
    config = dataclasses.replace(config, data=DataConfig(augment=PLAIN))
    stored = dataclasses.replace(config, data=DataConfig(augment=PLAIN, image_embeddings="stored"))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    plain, found = (lower_step(c, mesh, abstract_state(c, mesh), None) for c in (config, stored))
    towers = [set(re.findall(r"DualEncoder\)*/(image|text)/", low.as_text(debug_info=True))) for low in (plain, found)]
    assert towers == [{"image", "text"}, {"text"}]
    products = [low.as_text().count("dot_general") for low in (plain, found)]
    assert products[1] < 0.8 * products[0]


@pytest.mark.slow
def test_an_embedded_teacher_gives_the_loss_and_gradient_of_the_teacher():
    config = dataclasses.replace(tiny_config((1, 1, 1), loss="distill"), seed=1)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    variables = eval_variables(create_state(config, mesh))
    teacher, (batch,) = Teacher(config, variables), tiny_batches(1)
    known = jax.jit(teacher.embed)(variables, batch)
    scale = float(known.pop("teacher_logit_scale"))
    student = jax.tree.map(lambda leaf: leaf * 1.1, variables["params"])
    found = [
        jax.jit(make_loss_and_gradients(config, mesh, t))(student, {}, columns, jax.random.key(0), t.variables)
        for t, columns in ((teacher, batch), (EmbeddedTeacher(32, scale), batch | known))
    ]
    assert float(found[1][1]["distill_loss"]) == pytest.approx(float(found[0][1]["distill_loss"]), rel=1e-6)
    for a, b in zip(jax.tree.leaves(found[0][2]), jax.tree.leaves(found[1][2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.augment.name": "random_resized_crop"}, "config.data.augment.name='random_resized_crop'.*'none'"),
        ({"data.augment.flip": 0.5}, "flip=0.5"),
        ({"optimizer.image_lr_multiplier": 1.0}, r"image_lr_multiplier=0 \(found 1.0\)"),
        ({"model.image.drop_path": 0.1}, "'drop_path': 0.1"),
        ({"loss.name": "distill", "loss.teacher": "runs/teacher"}, "leaves no images for config.loss.teacher"),
        ({"data.teacher_embeddings": "x"}, "needs loss 'distill'"),
    ],
)
def test_what_embeddings_cannot_stand_for_is_refused(changes, message):
    config = default_config()
    config.data.augment.name = "none"
    config.data.image_embeddings = "data/images"
    config.optimizer.image_lr_multiplier = 0.0
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        embed.check(from_config_dict(config), num_devices=1)


def test_shares_are_whole_shards_as_equal_as_can_be(monkeypatch):
    monkeypatch.setattr(embeddings, "RECORDS_PER_SHARD", 10)
    assert shares(37, 1) == [range(37)]
    assert shares(37, 2) == [range(20), range(20, 37)]
    assert [len(share) for share in shares(37, 8)] == [0, 10, 0, 10, 0, 10, 0, 7]
    for records, count in ((1, 3), (10, 2), (999, 7), (1000, 16)):
        found = shares(records, count)
        assert [i for share in found for i in share] == list(range(records))
        assert all(share.start % 10 == 0 for share in found if share)
        assert max(map(len, found)) <= 10 * math.ceil(math.ceil(records / 10) / count)


def stored(folder, size, bad=(), dtype="float32"):
    """Embeddings [3] of example(i): images (i, 0, 1), caption c (i, c, 2)."""

    def rows():
        for i in range(size):
            captions = example(i)["texts"]
            texts = np.array([[i, c, 2] for c in range(len(captions))], np.float32)
            yield None if i in bad else Row(f"key{i}", np.array([i, 0, 1], np.float32), texts, captions)

    write_embeddings(folder, rows(), {"tower": "teacher", "dtype": dtype, "embed_dim": 3})
    return str(folder)


def test_a_row_has_the_embeddings_of_its_image_and_its_caption_and_the_caption_of_a_run_on_images(tmp_path):
    folder, source = stored(tmp_path / "e", 30), FaultySource(30, set())
    data = DataConfig(augment=PLAIN, image_embeddings=folder, teacher_embeddings=folder)
    plain = take(stream(source, data=DataConfig(augment=PLAIN)), 4)
    for batch, on_images in zip(take(stream(source, data=data), 4), plain, strict=True):
        ids, captions = on_images["pair_id"], on_images["text"][:, 0]
        assert (batch["pair_id"] == ids).all() and (batch["text"] == on_images["text"]).all()
        assert batch.keys() == {
            *("text", "pair_id", "image_embedding", "teacher_image_embedding", "teacher_text_embedding")
        }
        assert batch["image_embedding"].dtype == np.float32
        assert (batch["image_embedding"] == np.stack([ids, 0 * ids, 0 * ids + 1], 1)).all()
        assert (batch["teacher_image_embedding"] == batch["image_embedding"]).all()
        assert (batch["teacher_text_embedding"] == np.stack([ids, captions, 0 * ids + 2], 1)).all()


def test_records_that_were_bad_when_embedded_are_replaced_as_in_a_run_on_images(tmp_path):
    bad = {3, 11, 12, 25}
    data = dict(augment=PLAIN, max_bad_share=0.5)
    plain = take(stream(FaultySource(30, bad), data=DataConfig(**data)), 4)
    folder = stored(tmp_path / "e", 30, bad)
    iterator = stream(FaultySource(30, set()), data=DataConfig(**data, image_embeddings=folder))
    batches = take(iterator, 4)
    names = ("text", "pair_id")
    assert_equal([{n: b[n] for n in names} for b in batches], [{n: b[n] for n in names} for b in plain])
    assert set(iterator.get_state()["bad"]) == {"not embedded"}


def test_an_embedding_of_other_captions_is_a_bad_record(tmp_path):
    """Keys stay when prompts, or the column of the captions, change."""
    folder, captions = stored(tmp_path / "e", 30), example(8)["texts"]
    found = Embeddings(folder)
    np.testing.assert_array_equal(found.text(8, "key8", captions, 0), [8, 0, 2])
    for other in (captions[::-1], [*captions, "one more"], ["something else"] * len(captions)):
        with pytest.raises(RecordError, match="record 8, 'key8', had other captions when .*e was made"):
            found.text(8, "key8", other, 0)
    earlier = {name: value for name, value in found._record(8, "key8").items() if name != "captions"}
    found._record = lambda *_: earlier  # as earlier versions wrote it
    np.testing.assert_array_equal(found.text(8, "key8", captions, 0), [8, 0, 2])
    with pytest.raises(RecordError, match=f"has only {len(captions)} captions in .*, so none with number 8"):
        found.text(8, "key8", ["a"] * 9, 8)


def test_embeddings_of_other_numbers_of_patches_are_refused():
    def config(**image):
        tiny = tiny_config((1, 1, 1), image_lr_multiplier=0.0)
        image = naflex_of(tiny.model.image, **image)
        data = DataConfig(augment=PLAIN, image_embeddings="stored")
        return dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, image=image), data=data)

    few, many = (image_settings(config(max_patches=n), {}) for n in (8, 16))
    teacher = [teacher_settings(config(max_patches=n), tiny_config(), {}, {}) for n in (8, 16)]
    for made_by, expected in ((few, many), teacher):
        with pytest.raises(ConfigError, match="max_patches: embedded with 8, this experiment has 16"):
            compare_made_by(made_by, expected, where="stored")
    check_embeddings(config(max_patches=16))
    with pytest.raises(ConfigError, match=r"patch_budgets=\(8, 16\): an embedding is of one view"):
        check_embeddings(config(max_patches=16, patch_budgets=(8, 16)))


def test_an_embedding_of_another_record_is_a_bad_record_and_of_other_data_an_error(tmp_path):
    found = Embeddings(stored(tmp_path / "e", 30))
    with pytest.raises(RecordError, match="record 4 is 'key5', in .* 'key4'"):
        found.image(4, "key5")
    data = DataConfig(augment=PLAIN, image_embeddings=str(tmp_path / "e"))
    with pytest.raises(ConfigError, match="embeddings of 30 records, config.data.train has 31"):
        stream(FaultySource(31, set()), data=data)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_two_bytes_a_number_are_rounded_to_nearest(tmp_path, dtype, error):
    values = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    rows = (Row(f"{i}", row, row[None], ["a caption"]) for i, row in enumerate(values))
    write_embeddings(tmp_path / "e", rows, {"dtype": dtype, "embed_dim": 64})
    found = Embeddings(tmp_path / "e")
    for i, row in enumerate(values):
        np.testing.assert_allclose(found.image(i, f"{i}"), row, rtol=error, atol=1e-6)
        assert (found.text(i, f"{i}", ["a caption"], 0) == found.image(i, f"{i}")).all()


def test_texts_of_like_lengths_are_embedded_together_and_every_text_once():
    lengths = np.random.default_rng(0).permutation([3] * 9 + [20] * 4 + [60])
    tokens = (np.arange(64) < lengths[:, None]).astype(np.int32)
    cut = TextCut((16, 32, 64), lambda ids: ids.sum(axis=-1))
    blocks = list(blocks_of(tokens, cut, 4))
    assert [length for _, length in blocks] == [16, 16, 32, 64]
    assert sorted(row for rows, _ in blocks for row in rows) == list(range(14))
    assert all(lengths[rows].max() <= length for rows, length in blocks)
    whole = list(blocks_of(tokens, None, 4))
    assert [(rows.tolist(), length) for rows, length in whole][0] == ([0, 1, 2, 3], 64)
    assert [length for _, length in blocks_of(tokens[:, :10], cut, 14)] == [10], "ids shorter than every length"
    assert list(blocks_of(tokens[:0], cut, 4)) == []
