"""Retrieval with all captions is the five-caption protocol of COCO and Flickr30k, computed here in float64 NumPy."""

import dataclasses

import jax
import numpy as np
import pytest

from clipjax.config import ConfigError, EvaluatorConfig, MeshConfig, SourceConfig, default_config, from_config_dict
from clipjax.eval import RetrievalConfig, retrieval
from clipjax.inference.evaluate import make_evaluate
from clipjax.mesh import batch_sharding, make_mesh
from tests.data.samples import LengthTokenizer, write_folder
from tests.eval.test_evaluators import unit
from tests.tiny import tiny_config

RECORDS, BATCH, DIM = 37, 8, 12
CONFIG = RetrievalConfig(all_captions=True)


@pytest.fixture(params=[(1, 1, 1), (8, 1, 1), (2, 2, 2)], ids=str)
def mesh(request):
    return make_mesh(MeshConfig(*request.param), jax.devices()[: int(np.prod(request.param))])


class Data:
    """37 images of up to seven captions, two of them bad records, some with a pair_id in common."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.counts = rng.integers(1, 8, RECORDS)
        self.image = unit(rng.normal(size=(RECORDS, DIM)))
        first = np.cumsum([0, *self.counts[:-1]])
        self.captions = [list(range(start, start + n)) for start, n in zip(first, self.counts, strict=True)]
        owner = np.repeat(np.arange(RECORDS), self.counts)
        self.text = unit(self.image[owner] + 0.75 * rng.normal(size=(len(owner), DIM)))
        self.pair_id = np.full(RECORDS, -1, np.int32)
        self.pair_id[[3, 4, 20]] = 7
        self.valid = ~np.isin(np.arange(RECORDS), [5, 36])

    def batches(self, mesh):
        for start in range(0, RECORDS, BATCH):
            index = np.arange(start, start + BATCH)
            rows = np.minimum(index, RECORDS - 1)
            yield jax.device_put(
                {
                    "image": self.image[rows],
                    "text": np.array([[self.captions[row][0]] for row in rows], np.int32),
                    "pair_id": self.pair_id[rows],
                    "index": np.where(index < RECORDS, index, -1).astype(np.int32),
                    "valid": self.valid[rows] & (index < RECORDS),
                },
                batch_sharding(mesh),
            )

    def evaluate(self, mesh, config=CONFIG):
        return retrieval.evaluate(
            config,
            batches=lambda: self.batches(mesh),
            embed_images=lambda batch: batch["image"],
            embed_texts=lambda tokens: self.text[tokens[:, 0]],
            tokenizer=lambda texts: np.array([[int(text)] for text in texts], np.int32).reshape(-1, 1),
            captions=lambda i: [str(c) for c in self.captions[i]],
            mesh=mesh,
        )


def recalls(scores, positive):
    """Share of rows with at least one positive among the k highest; each row by sorting."""
    order = np.argsort(-scores, axis=1)
    hits = np.take_along_axis(positive, order, axis=1)
    return {k: hits[:, :k].any(1).mean() for k in (1, 5, 10)}, np.median(hits.argmax(1) + 1)


def test_every_caption_is_a_query_and_an_image_is_found_by_any_of_its_own(mesh):
    data = Data()
    found = data.evaluate(mesh)
    kept = np.flatnonzero(data.valid)
    texts = np.concatenate([data.captions[i] for i in kept])
    owner = np.repeat(kept, data.counts[kept])
    ids = np.where(data.pair_id < 0, -2 - np.arange(RECORDS), data.pair_id)
    scores = data.image[kept].astype(np.float64) @ data.text[texts].astype(np.float64).T
    positive = ids[kept][:, None] == ids[owner][None, :]
    assert found["examples"] == len(kept) and found["captions"] == len(texts)
    for name, s, p in (("image_to_text", scores, positive), ("text_to_image", scores.T, positive.T)):
        expected, _ = recalls(s, p)
        assert {k: found[f"{name}_r{k}"] for k in (1, 5, 10)} == pytest.approx(expected, abs=1e-12)
        assert 0.2 < expected[1] < 1 and expected[1] < expected[5]
        best = np.where(p, s, -np.inf).max(1, keepdims=True)
        assert found[f"{name}_median_rank"] == np.median(1 + ((s >= best) & ~p).sum(1))


def test_the_results_are_the_same_on_every_mesh(mesh):
    alone = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    assert Data(1).evaluate(mesh) == Data(1).evaluate(alone)


def test_one_caption_each_gives_what_first_captions_give(mesh):
    data = Data()
    first = data.evaluate(mesh, RetrievalConfig())
    data.captions = [own[:1] for own in data.captions]
    assert data.evaluate(mesh) == {**first, "captions": first["examples"]}


def test_an_experiment_asks_for_all_captions_and_they_are_read_from_the_source(tmp_path, monkeypatch):
    source = SourceConfig(path=str(write_folder(tmp_path / "set", 13)))
    config = tiny_config()
    evaluators = {"all": dataclasses.replace(CONFIG, source=source), "first": RetrievalConfig(source=source)}
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=8, evaluators=evaluators))
    mesh, eye = make_mesh(config.mesh), np.eye(8, dtype=np.float32)

    def embed_images(variables, image):
        return jax.device_put(eye, batch_sharding(mesh))

    def embed_texts(variables, tokens):
        return eye[tokens[:, 1] % 8]

    monkeypatch.setattr("clipjax.inference.evaluate.make_embed", lambda *_: (embed_images, embed_texts))
    found = make_evaluate(config, mesh, LengthTokenizer())({})
    assert found["all"]["captions"] == sum(1 + i % 3 for i in range(13)) and found["all"]["examples"] == 13
    assert "captions" not in found["first"]
    wrong = {"zero": EvaluatorConfig("zero_shot", source)}
    with pytest.raises(ConfigError, match="zero is a EvaluatorConfig; 'zero_shot' takes a ZeroShotConfig"):
        make_evaluate(dataclasses.replace(config, eval=dataclasses.replace(config.eval, evaluators=wrong)), None, None)


def test_an_option_of_another_evaluator_is_refused_naming_both():
    config = default_config()
    config.eval.evaluators = {"zero": {"name": "zero_shot", "all_captions": True}}
    with pytest.raises(
        ConfigError, match="evaluators.zero.all_captions: 'zero_shot' has no such field, 'retrieval' has"
    ):
        from_config_dict(config)
