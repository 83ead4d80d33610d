"""The measures of embeddings equal NumPy in float64, on any mesh."""

import numpy as np
import pytest

from clipjax.config import ConfigError
from clipjax.eval import EVALUATORS, EmbeddingHealthConfig, embedding_health
from tests.eval.probe_splits import batches_of, clusters, every_mesh, mesh_of, place, source

IMAGE, _ = clusters(90, seed=1)
TEXT = IMAGE + 0.3 * clusters(90, seed=2)[0] + 0.2
TEXT = (TEXT / np.linalg.norm(TEXT, axis=1, keepdims=True)).astype(np.float32)
PAIRS = np.where(np.arange(90) < 30, np.arange(90) // 3, -1).astype(np.int32)
CONFIG = EmbeddingHealthConfig(source=source("test"))


def health(image=IMAGE, text=TEXT, pair_id=PAIRS, mesh=None, config=CONFIG, **options):
    mesh = mesh or mesh_of()
    columns = {"text": text, "pair_id": pair_id}
    return EVALUATORS["embedding_health"](
        config,
        batches=batches_of(mesh, image, np.zeros(len(image)), columns=columns, **options),
        embed_images=lambda batch: batch["image"],
        embed_texts=lambda tokens: tokens,
        where=place,
        mesh=mesh,
    )


def entropy_rank(x):
    share = np.linalg.svd(x, compute_uv=False)
    share = share[share > 1e-12] / share.sum()
    return np.exp(-np.sum(share * np.log(share)))


@every_mesh
def test_the_measures_equal_numpy(mesh):
    found = health(mesh=mesh_of(mesh))
    x, y = IMAGE.astype(np.float64), TEXT.astype(np.float64)
    assert found["alignment"] == pytest.approx(np.mean(np.sum((x - y) ** 2, 1)), rel=1e-12)
    ids = np.where(PAIRS < 0, -2 - np.arange(90), PAIRS)
    match, cosine = ids[:, None] == ids[None], x @ y.T
    assert found["matching_cosine"] == pytest.approx(np.mean(np.diag(cosine)), rel=1e-12)
    assert found["non_matching_cosine"] == pytest.approx(np.mean(cosine[~match]), rel=1e-9)
    gap = x.mean(0) - y.mean(0)
    assert found["modality_gap"] == pytest.approx(np.linalg.norm(gap), rel=1e-12)
    nearer = lambda z: np.linalg.norm(z - x.mean(0), axis=1) < np.linalg.norm(z - y.mean(0), axis=1)  # noqa: E731
    assert found["modality_accuracy"] == pytest.approx((np.mean(nearer(x)) + np.mean(~nearer(y))) / 2)
    above = np.triu_indices(90, 1)
    for side, z in (("image", x), ("text", y)):
        squares = np.sum((z[:, None] - z[None]) ** 2, -1)[above]
        assert found[f"{side}_uniformity"] == pytest.approx(np.log(np.mean(np.exp(-2 * squares))), rel=1e-12)
        assert found[f"{side}_effective_rank"] == pytest.approx(entropy_rank(z), rel=1e-9)
        assert found[f"{side}_centred_effective_rank"] == pytest.approx(entropy_rank(z - z.mean(0)), rel=1e-9)
        assert found[f"{side}_dead_dimensions"] == 0
    assert found["examples"] == 90 and found["details"]["warnings"] == []
    assert set(CONFIG.metrics) | {"details"} == set(found)


def test_blocks_tiles_and_batches_change_nothing(monkeypatch):
    whole = health()
    monkeypatch.setattr(embedding_health, "BLOCK", 7)
    monkeypatch.setattr(embedding_health, "TILE", 11)
    for metric, value in health(batch=8).items():
        assert metric == "details" or value == pytest.approx(whole[metric], rel=1e-12)


def test_uniformity_compares_a_seeded_choice_of_many_records():
    found = health(config=EmbeddingHealthConfig(source=source("test"), uniformity_records=20))
    assert found["details"]["uniformity_records"] == 20
    assert found["image_uniformity"] != health()["image_uniformity"]
    assert found["image_uniformity"] == pytest.approx(health()["image_uniformity"], rel=0.2)


def test_fewer_records_than_dimensions_have_at_most_as_many_ranks():
    found = health(IMAGE[:5], TEXT[:5], PAIRS[:5])
    assert found["image_effective_rank"] == pytest.approx(entropy_rank(IMAGE[:5].astype(np.float64)), rel=1e-9)
    assert found["image_effective_rank"] <= 5 and found["image_centred_effective_rank"] <= 4


def test_collapse_is_told(caplog):
    point = np.tile(IMAGE[:1], (90, 1))
    found = health(point, point)
    assert found["image_uniformity"] == pytest.approx(0, abs=1e-12) and found["alignment"] == 0
    assert found["image_dead_dimensions"] == 1.0 and found["modality_accuracy"] == 0.5
    assert found["image_effective_rank"] == pytest.approx(1) and found["image_centred_effective_rank"] < 1
    assert "the image embeddings have collapsed" in caplog.text
    assert "all images and captions have almost the same embedding" in found["details"]["warnings"]
    assert any("100.0% of the dimensions" in warning for warning in found["details"]["warnings"])
    shuffled = health(IMAGE, TEXT[::-1])
    assert any("matching pairs are no nearer than others" in warning for warning in shuffled["details"]["warnings"])


def test_embeddings_that_are_not_finite_and_single_records_are_refused():
    broken = TEXT.copy()
    broken[41] = np.inf
    with pytest.raises(ConfigError, match="the text embeddings of 1 of 90 records are not finite; .* record 41"):
        health(text=broken)
    with pytest.raises(ConfigError, match="at least two"):
        health(IMAGE[:1], TEXT[:1], PAIRS[:1])
    assert health(unreadable=[3, 4])["unreadable"] == 2
