"""What must not fool an evaluation: scores that are not numbers, names that read the same, wrong labels."""

import jax
import numpy as np
import pytest

from clipjax.config import ConfigError, MeshConfig, SourceConfig
from clipjax.eval import RetrievalConfig, ZeroShotConfig, class_prompts, retrieval, zero_shot
from clipjax.mesh import batch_sharding, make_mesh

ROWS = 16
EYE = np.eye(ROWS, dtype=np.float32)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(4, 2, 1))


def classify(mesh, image, label, names=None, templates=("{}",), class_names_file="", embed_texts=None, **options):
    """Zero-shot where every prompt of class c has the unit vector c as its embedding."""
    columns = {"image": image, "label": np.asarray(label, np.int32), "valid": np.ones(ROWS, bool)}
    source = SourceConfig(path="toy")
    config = ZeroShotConfig(source=source, templates=templates, class_names=class_names_file, **options)
    return zero_shot.evaluate(
        config,
        batches=lambda: iter([jax.device_put(columns, batch_sharding(mesh))]),
        embed_images=lambda batch: batch["image"],
        embed_texts=embed_texts or (lambda tokens: EYE[tokens[:, 0]]),
        tokenizer=lambda texts: np.array([[int(text.split()[-1])] for text in texts], np.int32),
        class_names=[str(c) for c in range(ROWS)] if names is None else names,
        mesh=mesh,
    )


def retrieve(mesh, image, text=None, embed_texts=None, batches=1, **options):
    columns = {
        "image": image,
        "text": np.arange(ROWS, dtype=np.int32)[:, None],
        "pair_id": np.full(ROWS, -1, np.int32),
        "valid": np.ones(ROWS, bool),
    }
    return retrieval.evaluate(
        RetrievalConfig(source=SourceConfig(path="toy"), **options),
        batches=lambda: iter([jax.device_put(columns, batch_sharding(mesh))] * batches),
        embed_images=lambda batch: batch["image"],
        embed_texts=embed_texts or (lambda tokens: text[tokens[:, 0]]),
        mesh=mesh,
    )


def test_a_model_that_gives_no_numbers_is_never_right(mesh):
    broken = np.full_like(EYE, np.nan)
    for names in (None, ["0", "1", "2", "3", "4"]):  # of five classes, any would be among the first five
        found = classify(mesh, broken, np.arange(ROWS) % 3, names, not_finite="against")
        assert found["top1"] == found.get("top5", 0.0) == found["mean_per_class_recall"] == 0.0
    for image, text in ((broken, EYE), (EYE, broken), (broken, broken)):
        found = retrieve(mesh, image, text, not_finite="against")
        assert found["image_to_text_r10"] == found["text_to_image_r10"] == 0.0


def test_one_image_without_numbers_misses_alone_and_blocks_the_first_place(mesh):
    image = EYE.copy()
    image[3] = np.nan
    found = classify(mesh, image, np.arange(ROWS), not_finite="against")
    assert found["top1"] == found["top5"] == (ROWS - 1) / ROWS
    found = retrieve(mesh, image, EYE, not_finite="against")
    assert found["image_to_text_r1"] == (ROWS - 1) / ROWS
    assert found["text_to_image_r1"] == 0.0, "a candidate that cannot be compared stands before every match"
    assert found["text_to_image_r5"] == (ROWS - 1) / ROWS


def test_a_perfect_model_is_always_right(mesh):
    assert classify(mesh, EYE, np.arange(ROWS))["top1"] == 1.0
    found = retrieve(mesh, EYE, EYE)
    assert found["image_to_text_r1"] == found["text_to_image_r1"] == found["text_to_image_median_rank"] == 1.0


def test_classes_that_read_the_same_are_counted_logged_and_never_right(mesh, caplog):
    names = [str(c) for c in range(ROWS)]
    names[5] = "4"
    found = classify(mesh, EYE, np.full(ROWS, 4), names)
    assert found["indistinguishable"] == 2
    assert "2 of 16 classes" in caplog.text
    assert found["top1"] == 0.0
    assert classify(mesh, EYE, np.arange(ROWS))["indistinguishable"] == 0


class Padded:
    """Embeds text c as the unit vector c, and a bit of the last one that depends on what stands beside the text."""

    def __init__(self):
        self.seen = 0

    def __call__(self, tokens):
        rows = EYE[tokens[:, 0]]
        rows[:, -1] += 1e-6 * np.arange(self.seen, self.seen + len(rows))
        self.seen += len(rows)
        return rows


def test_equal_texts_tie_although_a_tower_computes_them_a_bit_differently(mesh):
    images = EYE + EYE[-1]  # which see that bit
    names = [str(c) for c in range(ROWS)]
    names[5] = "4"
    found = classify(mesh, images[np.full(ROWS, 4)], np.full(ROWS, 5), names, embed_texts=Padded())
    assert (found["indistinguishable"], found["top1"]) == (2, 0.0)
    found = retrieve(mesh, images, embed_texts=Padded(), batches=2)
    assert found["repeated_captions"] == 2 * ROWS
    assert found["image_to_text_r1"] == found["text_to_image_r1"] == 0.0


def test_labels_beyond_the_names_are_refused(mesh):
    with pytest.raises(ConfigError, match=r"toy, split 'train': 2 record\(s\) have a label of 14 or more"):
        classify(mesh, EYE, np.arange(ROWS), [str(c) for c in range(14)])


def test_class_names_come_from_a_file_when_one_is_given(mesh, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("".join(f"{c}\n" for c in reversed(range(ROWS))), encoding="utf-8")
    assert classify(mesh, EYE, np.arange(ROWS)[::-1], (), class_names_file=str(path))["top1"] == 1.0
    path.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        classify(mesh, EYE, np.arange(ROWS), class_names_file=str(path))


def test_prompts_embedded_in_blocks_equal_all_at_once(mesh, monkeypatch):
    rng = np.random.default_rng(0)
    image = rng.normal(size=EYE.shape).astype(np.float32)
    whole = classify(mesh, image, np.arange(ROWS), templates=("{}", "a {}", "the {}"))
    monkeypatch.setattr(class_prompts, "PROMPTS_AT_A_TIME", 7)  # two classes at a time
    assert classify(mesh, image, np.arange(ROWS), templates=("{}", "a {}", "the {}")) == whole


@pytest.mark.parametrize("max_scores", [1, 100, 300, 10**6])
def test_ranks_do_not_depend_on_the_tile(mesh, max_scores):
    rng = np.random.default_rng(1)
    query, candidate = rng.normal(size=(2, 37, 8)).astype(np.float32)
    pair_id = (np.arange(37) // 2).astype(np.int32)
    scores = query.astype(np.float64) @ candidate.astype(np.float64).T
    match = pair_id[:, None] == pair_id[None, :]
    best = np.where(match, scores, -np.inf).max(1, keepdims=True)
    expected = 1 + ((scores >= best) & ~match).sum(1)
    np.testing.assert_array_equal(retrieval.ranks(query, candidate, pair_id, mesh, max_scores), expected)
