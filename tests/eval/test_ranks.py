"""Ranks in a gallery cut into blocks equal the dense ones, with ties, duplicates and scores that are not numbers."""

import jax
import numpy as np
import pytest

from clipjax.config import ConfigError, MeshConfig, SourceConfig
from clipjax.eval import RetrievalConfig, retrieval
from clipjax.eval import ranks as gallery
from clipjax.eval.embeddings import EmbeddingError
from clipjax.eval.ranks import ranks
from clipjax.mesh import make_mesh
from tests.eval.toy import Texts, run, unit

SOURCE = SourceConfig(path="set", split="test")


@pytest.fixture(scope="module", params=[1, 8])
def mesh(request):
    return make_mesh(MeshConfig(request.param, 1, 1), jax.devices()[: request.param])


def dense(query, candidate, query_id, candidate_id, ties):
    """The definition, one query at a time: sort by score, the losers of ties first, and look for the first match."""
    found = []
    for row, own in zip(query, query_id, strict=True):
        scores = (row[None] * candidate).sum(1)
        match = candidate_id == own
        scores = np.where(np.isnan(scores), np.where(match, -np.inf, np.inf), scores)
        order = np.lexsort((np.arange(len(scores)) if ties == "first" else match, -scores))
        place = np.flatnonzero(match[order])
        before = np.sum(~match[order][: place[0]]) if len(place) else len(scores)
        found.append(1 + before)
    return np.array(found)


def data():
    """Small whole numbers, whose products are exact, with many ties and duplicates over all blocks."""
    rng = np.random.default_rng(0)
    query = rng.integers(-2, 3, size=(41, 4)).astype(np.float32)
    candidate = rng.integers(-2, 3, size=(67, 4)).astype(np.float32)
    query_id, candidate_id = rng.integers(0, 30, 41), rng.integers(0, 30, 67)
    candidate[50:] = candidate[:17]
    return query, candidate, query_id, candidate_id


@pytest.mark.parametrize("ties", ["against", "first"])
def test_a_gallery_in_many_blocks_equals_the_dense_one(mesh, ties, monkeypatch):
    query, candidate, query_id, candidate_id = data()
    candidate[[5, 33]] = np.nan
    query[7] = np.nan
    expected = dense(query, candidate, query_id, candidate_id, ties)
    assert len(set(expected)) > 10
    cuts = [dict(), dict(gallery_block=7), dict(gallery_block=7, max_scores=100)]
    for resident in (2**28, 0):  # on the devices all the time, or sent for each tile of queries
        monkeypatch.setattr(gallery, "RESIDENT", resident)
        for cut in cuts:
            found = ranks(query, candidate, query_id, mesh, candidate_id=candidate_id, ties=ties, **cut)
            np.testing.assert_array_equal(found, expected, err_msg=str(cut))


def test_a_query_without_a_match_is_behind_all_and_ids_may_be_any_numbers(mesh):
    query, candidate, query_id, candidate_id = data()
    far = ranks(query, candidate, query_id * 0 - 1, mesh, candidate_id=candidate_id)
    assert set(far) == {len(candidate) + 1}
    ids = query_id.astype(np.int64) * 10**12 - 10**13, candidate_id.astype(np.int64) * 10**12 - 10**13
    np.testing.assert_array_equal(
        ranks(query, candidate, ids[0], mesh, candidate_id=ids[1]),
        ranks(query, candidate, query_id, mesh, candidate_id=candidate_id),
    )


def test_an_empty_gallery_and_broken_embeddings_are_refused(mesh):
    texts, image = Texts(), unit(np.random.default_rng(0).normal(size=(40, 16)))
    with pytest.raises(ValueError, match="gallery is empty"):
        ranks(image, image[:0], np.arange(40), mesh, candidate_id=np.arange(0))

    def retrieve(image, captions, **options):
        config = RetrievalConfig(source=SOURCE, **options)
        return run(retrieval.evaluate, config, mesh, texts, image, captions=captions)

    captions = [[f"{n}", f"{n} again"] for n in range(40)]
    texts.of(*(text for own in captions for text in own))
    with pytest.raises(ConfigError, match="set, split 'test': no record could be read"):
        retrieve(image[:0], captions)
    broken = image.copy()
    broken[35] = np.nan
    with pytest.raises(EmbeddingError, match=r"the image of set, toy.tar record 35 is not finite: it holds NaN"):
        retrieve(broken, captions)
    texts.rows[texts.number["36 again"]] = np.full(16, np.nan, np.float32)
    with pytest.raises(EmbeddingError, match="the caption of set, toy.tar record 36 is not finite"):
        retrieve(image, captions, all_captions=True)
    found = retrieve(image, captions, all_captions=True, not_finite="against")
    assert found["text_to_image_r1"] < 1 and found["captions"] == 80


def test_retrieval_reports_both_ranks_and_intervals_of_everything(mesh):
    texts, rng = Texts(seed=1), np.random.default_rng(2)
    captions = [[f"caption {n}"] for n in range(60)]
    image = unit(texts.of(*(own[0] for own in captions)) + 0.25 * rng.normal(size=(60, 16)))
    config = RetrievalConfig(source=SOURCE)
    found = run(retrieval.evaluate, config, mesh, texts, image, captions=captions)
    scores = image @ texts.of(*(own[0] for own in captions)).T
    rank = 1 + (scores >= np.diag(scores)[:, None]).sum(1) - 1
    back = 1 + (scores.T >= np.diag(scores)[:, None]).sum(1) - 1
    assert found["image_to_text_mean_rank"] == pytest.approx(rank.mean())
    assert found["text_to_image_mean_rank"] == pytest.approx(back.mean())
    assert found["mean_recall@1"] == pytest.approx(((rank == 1).mean() + (back == 1).mean()) / 2)
    counts = ("examples", "captions", "unreadable", "repeated_captions", "distinct_pairs")
    named = [name for name in config.metrics if name not in counts and not name.endswith(("low", "high"))]
    assert set(config.metrics) == {name for name in found if name != "details"}
    for name in named:
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"], name
        assert found[f"{name}_low"] < found[f"{name}_high"] or name.endswith("median_rank"), name
