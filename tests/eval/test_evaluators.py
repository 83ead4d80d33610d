"""Zero-shot and retrieval equal float64 NumPy, sharded or not, with partial batches, repeats and ties."""

import jax
import numpy as np
import pytest

from clipjax.config import ConfigError, MeshConfig, SourceConfig
from clipjax.eval import RetrievalConfig, ZeroShotConfig, retrieval, zero_shot
from clipjax.mesh import batch_sharding, make_mesh

CLASSES, DIM, EXAMPLES, BATCH = 12, 16, 53, 16


def unit(a):
    return (a / np.linalg.norm(a, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(params=[(1, 1, 1), (8, 1, 1), (2, 2, 2)], ids=str)
def mesh(request):
    return make_mesh(MeshConfig(*request.param), jax.devices()[: int(np.prod(request.param))])


def global_batches(mesh, columns):
    """53 rows in batches of 16: the last has 5 valid rows, the others are padding that must not count."""

    def batches():
        for start in range(0, len(columns["label"]), BATCH):
            rows = {k: v[start : start + BATCH] for k, v in columns.items()}
            valid = np.arange(BATCH) < len(rows["label"])
            pad = BATCH - valid.sum()
            padded = {k: np.concatenate([v, np.repeat(v[:1], pad, 0)]) for k, v in rows.items()}
            yield jax.device_put({**padded, "valid": valid}, batch_sharding(mesh))

    return batches


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    word = rng.normal(size=(100, DIM))  # a prompt's embedding is the sum of its tokens' rows
    label = rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)
    label[7] = -1
    image = unit(word[label + 1] + 0.9 * rng.normal(size=(EXAMPLES, DIM)))
    text = np.stack([label + 1, np.arange(EXAMPLES) % 5], 1).astype(np.int32)
    pair_id = np.where(np.arange(EXAMPLES) < 20, np.arange(EXAMPLES) // 2, -1).astype(np.int32)
    return word, {"image": image, "label": label, "text": text, "pair_id": pair_id}


def call(evaluate, config, mesh, word, columns, class_names=()):
    return evaluate(
        config,
        batches=global_batches(mesh, columns),
        embed_images=lambda batch: batch["image"],
        embed_texts=lambda tokens: unit(word[tokens].sum(1)),
        tokenizer=lambda texts: np.array([[int(w) for w in t.split()] for t in texts], np.int32),
        class_names=class_names,
        mesh=mesh,
    )


def test_zero_shot_equals_numpy(mesh, data):
    word, columns = data
    names = [str(c + 1) for c in range(CLASSES)]
    config = ZeroShotConfig(source=SourceConfig(path="toy"), templates=("{} 0", "{} 3"))
    found = call(zero_shot.evaluate, config, mesh, word, columns, names)

    prompts = np.stack([unit(word[np.arange(CLASSES) + 1] + word[t]).astype(np.float64) for t in (0, 3)])
    scores = columns["image"].astype(np.float64) @ unit(prompts.mean(0)).T
    counted = columns["label"] >= 0
    order = np.argsort(-scores, axis=1)
    hit = order[:, 0] == columns["label"]
    assert found["top1"] == pytest.approx(hit[counted].mean(), abs=1e-9)
    assert found["top5"] == pytest.approx((order[:, :5] == columns["label"][:, None]).any(1)[counted].mean(), abs=1e-9)
    seen = np.unique(columns["label"][counted])
    assert found["mean_per_class_recall"] == pytest.approx(np.mean([hit[columns["label"] == c].mean() for c in seen]))
    assert (found["examples"], found["unlabelled"], found["classes"]) == (52, 1, CLASSES)
    assert found["top1_low"] < found["top1"] < found["top1_high"]
    assert 0.2 < found["top1"] < 1, "neither chance nor perfect, or the comparison says little"


def test_retrieval_equals_numpy(mesh, data):
    word, columns = data
    found = call(retrieval.evaluate, RetrievalConfig(), mesh, word, columns)
    image = columns["image"].astype(np.float64)
    text = unit(word[columns["text"]].sum(1)).astype(np.float64)
    ids = np.where(columns["pair_id"] < 0, -2 - np.arange(EXAMPLES), columns["pair_id"])
    match = ids[:, None] == ids[None, :]
    # float32, as the evaluator: equal captions outside a pair tie exactly, and ties count against the model.
    for name, scores in (("image_to_text", image @ text.T), ("text_to_image", text @ image.T)):
        scores = scores.round(6)
        best = np.where(match, scores, -np.inf).max(1, keepdims=True)
        rank = 1 + ((scores >= best) & ~match).sum(1)
        for k in (1, 5, 10):
            assert found[f"{name}_r{k}"] == pytest.approx((rank <= k).mean(), abs=1e-9)
        assert found[f"{name}_median_rank"] == np.median(rank)
    assert found["examples"] == EXAMPLES


def test_captions_of_several_images_are_counted_and_warned_of(mesh, data, caplog):
    word, columns = data
    pairs = np.arange(EXAMPLES, dtype=np.int32)
    ids = np.where(pairs < 2, 0, -1).astype(np.int32)
    text = np.stack([pairs, pairs * 0], 1)
    text[1] = text[0]  # of one pair_id
    for repeated in (4, 6):
        text[4 : 4 + repeated] = text[4]
        found = call(retrieval.evaluate, RetrievalConfig(), mesh, word, {**columns, "text": text, "pair_id": ids})
        assert found["repeated_captions"] == repeated
        assert ("6 of 53 captions also belong to other images" in caplog.text) == (repeated == 6)


def test_pairs_of_which_none_can_be_wrong_are_counted_and_warned_of(mesh, data, caplog):
    word, columns = data
    ids = np.where(np.arange(EXAMPLES) < EXAMPLES - 1, 4, 5).astype(np.int32)
    found = call(retrieval.evaluate, RetrievalConfig(), mesh, word, {**columns, "pair_id": ids})
    assert found["distinct_pairs"] == 2 and "no caption is wrong" not in caplog.text
    found = call(retrieval.evaluate, RetrievalConfig(), mesh, word, {**columns, "pair_id": ids * 0 + 4})
    assert found["distinct_pairs"] == 1 and found["mean_recall@1"] == 1.0
    assert "all 53 images share one pair_id, so no caption is wrong for any image" in caplog.text
    one = {name: column[:1] for name, column in columns.items()}
    found = call(retrieval.evaluate, RetrievalConfig(), mesh, word, one)
    assert found["distinct_pairs"] == 1 and "there is one image, so no caption is wrong" in caplog.text


def test_a_model_that_says_the_same_of_everything_scores_nothing(mesh, data):
    word, columns = data
    same = {**columns, "image": np.repeat(columns["image"][:1], EXAMPLES, 0), "pair_id": columns["pair_id"] * 0 - 1}
    found = call(retrieval.evaluate, RetrievalConfig(), mesh, np.ones_like(word), same)
    assert found["image_to_text_r10"] == found["text_to_image_r10"] == 0.0
    names = [str(c + 1) for c in range(CLASSES)]
    found = call(zero_shot.evaluate, ZeroShotConfig(templates=("{}",)), mesh, np.ones_like(word), same, names)
    assert found["top1"] == found["top5"] == 0.0


def test_missing_names_templates_and_labels_are_refused(mesh, data, tmp_path):
    word, columns = data
    with pytest.raises(ConfigError, match="names no classes"):
        call(zero_shot.evaluate, ZeroShotConfig(), mesh, word, columns)
    with pytest.raises(ConfigError, match="Template 'a photo' has no {}"):
        call(zero_shot.evaluate, ZeroShotConfig(templates=("a photo",)), mesh, word, columns, ["1"])
    with pytest.raises(ConfigError, match="no record has a label"):
        unlabelled = {**columns, "label": np.full(EXAMPLES, -1, np.int32)}
        call(zero_shot.evaluate, ZeroShotConfig(), mesh, word, unlabelled, ["1"])
    with pytest.raises(ConfigError, match="is not a file"):
        call(zero_shot.evaluate, ZeroShotConfig(class_names=str(tmp_path / "none.txt")), mesh, word, columns)
