"""The choice between true and false captions, computed here in float64 NumPy and by CLIP_benchmark's own code."""

import types

import jax
import numpy as np
import pytest

from clipjax.config import ConfigError, MeshConfig, PixelConfig, SourceConfig
from clipjax.data.pipeline import eval_batches
from clipjax.data.sources import HardNegativesConfig, open_source
from clipjax.eval import CompositionalConfig, RetrievalConfig, compositional, retrieval
from clipjax.eval.intervals import mean_of_shares_interval, wilson_interval
from clipjax.inference.evaluate import captions_of, check_with_data
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.report.table import rows
from tests.data import hard_negative_sets as sets
from tests.eval.test_evaluators import unit

DIM, RECORDS = 12, 61
CONFIG = CompositionalConfig(source=SourceConfig(path="toy", split=""))
FIRST = CompositionalConfig(source=SourceConfig(path="toy", split=""), ties="first")


@pytest.fixture(scope="module", params=[(1, 1, 1), (8, 1, 1), (2, 2, 2)], ids=str)
def mesh(request):
    return make_mesh(MeshConfig(*request.param), jax.devices()[: int(np.prod(request.param))])


@pytest.fixture(scope="module")
def one():
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


class Data:
    """Images and the rows of `text` that are their captions, the true one first; some records cannot be read."""

    def __init__(self, image, text, captions, label=None, pair_id=None, bad=()):
        self.image, self.text, self.captions = image.astype(np.float32), text.astype(np.float32), captions
        none = np.full(len(image), -1, np.int32)
        self.label = none if label is None else np.asarray(label, np.int32)
        self.pair_id = none if pair_id is None else np.asarray(pair_id, np.int32)
        self.valid = ~np.isin(np.arange(len(image)), bad)
        self.embedded = 0

    def batches(self, mesh, size):
        for start in range(0, len(self.image), size):
            index = np.arange(start, start + size)
            at = np.minimum(index, len(self.image) - 1)
            yield jax.device_put(
                {
                    "image": self.image[at],
                    "label": self.label[at],
                    "pair_id": self.pair_id[at],
                    "index": np.where(index < len(self.image), index, -1).astype(np.int32),
                    "valid": self.valid[at] & (index < len(self.image)),
                },
                batch_sharding(mesh),
            )

    def embed_texts(self, tokens):
        self.embedded += len(tokens)
        return self.text[tokens[:, 0]]

    def evaluate(self, mesh, config=CONFIG, size=8, names=()):
        return compositional.evaluate(
            config,
            batches=lambda: self.batches(mesh, size),
            embed_images=lambda batch: batch["image"],
            embed_texts=self.embed_texts,
            tokenizer=lambda texts: np.array([[int(text)] for text in texts], np.int32),
            captions=lambda i: [str(c) for c in self.captions[i]],
            class_names=names,
            where=lambda i: ("toy.json", i),
            mesh=mesh,
        )

    def scores(self, i):
        return self.text[self.captions[i]].astype(np.float64) @ self.image[i].astype(np.float64)


def of_groups(seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 6, RECORDS)
    first = np.cumsum([0, *counts[:-1]])
    image, text = unit(rng.normal(size=(RECORDS, DIM))), unit(rng.normal(size=(counts.sum(), DIM)))
    text[first] = unit(text[first] + 0.6 * image)
    captions = [list(range(start, start + n)) for start, n in zip(first, counts, strict=True)]
    captions[3][1] = captions[3][0]  # the same tokens
    text[captions[9][1]] = text[captions[9][0]]  # other tokens, the same embedding
    image[20], text[captions[30][2]], text[captions[31][0]] = np.nan, np.nan, np.inf
    label = rng.choice(5, RECORDS, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    return Data(image, text, captions, label, bad=(5, 36, 60))


def test_text_score_and_its_mean_over_groups_equal_numpy_with_any_mesh_and_batch(mesh):
    data = of_groups()
    names = ["a", "b", "c", "d", "e"]
    with np.errstate(all="ignore"):
        all_scores = [data.scores(i) for i in range(RECORDS)]
        own = np.array([s[0] for s in all_scores])
        right = {  # NaN is above nothing, and nothing is above it
            "against": np.array([np.isfinite(s[0]) and all(s[0] > x for x in s[1:]) for s in all_scores]),
            "first": np.array([np.isfinite(s[0]) and all(s[0] >= x for x in s[1:]) for s in all_scores]),
        }
    assert not right["against"][[3, 9, 20, 30, 31]].any() and right["first"][[3, 9]].any()
    assert np.isnan(own[20])
    for ties, hits in right.items():
        found = data.evaluate(mesh, CompositionalConfig(ties=ties), size=16 if ties == "first" else 8, names=names)
        hit, label = hits[data.valid], data.label[data.valid]
        assert found["text_score"] == hit.mean() and 0.3 < hit.mean() < 0.9
        assert (found["text_score_low"], found["text_score_high"]) == wilson_interval(hit.sum(), len(hit))
        of_group = [hit[label == group] for group in range(5)]
        assert found["macro_text_score"] == pytest.approx(np.mean([g.mean() for g in of_group]), abs=1e-12)
        assert found["macro_text_score_low"] < found["macro_text_score"] < found["macro_text_score_high"]
        table = found["details"]["groups"]
        assert [(row["name"], row["examples"], row["text_score"]) for row in table] == [
            (name, len(g), g.mean()) for name, g in zip(names, of_group, strict=True)
        ]
        chance = np.mean([1 / len(data.captions[i]) for i in np.flatnonzero(data.valid)])
        assert found["text_score_chance"] == pytest.approx(chance, abs=1e-12)
        assert (found["examples"], found["left_out"], found["groups"], found["indistinguishable"]) == (58, 3, 5, 1)
        assert "image_score" not in found
        assert not {*found} - {*CONFIG.metrics, "details"}


def test_small_groups_and_skipped_ones_take_no_part_in_the_mean(one, tmp_path):
    data, names = of_groups(), ["a", "b", "c", "d", "e"]
    skip = tmp_path / "symmetric.txt"
    skip.write_text("b\nabsent\n")
    whole = data.evaluate(one, names=names)["details"]["groups"]
    config = CompositionalConfig(source=SourceConfig(path="toy"), min_group=5, skip_groups=str(skip))
    found = data.evaluate(one, config, names=names)
    kept = [row for row in whole if row["name"] != "b" and row["examples"] >= 5]
    assert found["groups"] == len(kept) < 4
    assert found["macro_text_score"] == pytest.approx(np.mean([row["text_score"] for row in kept]))
    assert [row["name"] for row in found["details"]["groups"] if row["in_mean"]] == [row["name"] for row in kept]
    with pytest.raises(ConfigError, match="no group takes part in the mean.* all 5, the largest of which has 2"):
        data.evaluate(one, CompositionalConfig(min_group=500), names=names)
    compositional.check(config, class_names=names)
    with pytest.raises(
        ConfigError, match="None of the 2 names in skip_groups=.* is a group of toy.*, whose groups are x"
    ):
        compositional.check(config, class_names=["x"])
    for text, message in (("", "is empty"), ("a\n\nb", "line 2 is empty")):
        skip.write_text(text)
        with pytest.raises(ConfigError, match=message):
            compositional.check(config)


def test_the_interval_of_a_mean_of_shares_is_wilsons_for_one_group_and_covers_for_many():
    assert mean_of_shares_interval([7], [9]) == pytest.approx(wilson_interval(7, 9), abs=1e-12)
    low, high = mean_of_shares_interval([4, 30], [4, 30])
    assert low < 0.9 and high == 1.0, "groups that are all right still leave doubt"
    rng = np.random.default_rng(0)
    share, totals = np.array([0.2, 0.5, 0.7, 0.95, 0.6]), np.array([8, 15, 40, 30, 100])
    drawn = [mean_of_shares_interval(rng.binomial(totals, share), totals) for _ in range(400)]
    covered = np.mean([low <= share.mean() <= high for low, high in drawn])
    assert 0.93 <= covered <= 0.98


def of_pairs(count=40, bad=(), seed=1):
    """Pairs of which the first has equal captions' embeddings, the second equal images, the third NaN."""
    rng = np.random.default_rng(seed)
    text = unit(rng.normal(size=(2 * count, DIM)))
    image = unit(rng.normal(size=(2 * count, DIM)) + 2.0 * text)
    text[1], image[3], image[4] = text[0], image[2], np.nan
    captions = [[i, i ^ 1] for i in range(2 * count)]
    return Data(image, text, captions, np.arange(2 * count) // 2 % 3, np.arange(2 * count) // 2 + 7, bad)


def winoground(data, first):
    """Of each pair: (text, image, group), by the definition in the paper; first: of equal ones, the first wins."""
    found = []
    for n in range(len(data.image) // 2):
        image, text = (each[2 * n : 2 * n + 2].astype(np.float64) for each in (data.image, data.text))
        s = image @ text.T  # [image, caption]
        if first:
            right_text = s[0, 0] >= s[0, 1] and s[1, 1] > s[1, 0]
            right_image = s[0, 0] >= s[1, 0] and s[1, 1] > s[0, 1]
        else:
            right_text = s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]
            right_image = s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1]
        found.append((right_text, right_image, right_text and right_image))
    return np.array(found)


@pytest.mark.parametrize("config", [CONFIG, FIRST], ids=lambda config: config.ties)
def test_text_image_and_group_score_of_pairs_equal_numpy(mesh, config):
    data = of_pairs(bad=(11, 30, 31))
    found = data.evaluate(mesh, config, names=["x", "y", "z"])
    right = winoground(data, config.ties == "first")[np.delete(np.arange(40), [5, 15])]
    for name, hits, chance in zip(
        ("text_score", "image_score", "group_score"), right.T, (1 / 4, 1 / 4, 1 / 6), strict=True
    ):
        assert found[name] == hits.mean() and 0.1 < hits.mean() < 0.9
        assert (found[f"{name}_low"], found[f"{name}_high"]) == wilson_interval(hits.sum(), 38)
        assert found[f"{name}_chance"] == chance
    assert (found["examples"], found["left_out"]) == (38, 2), "a pair of which one image is bad says nothing"
    assert [row["name"] for row in found["details"]["groups"]] == ["x", "y", "z"]
    assert sum(row["examples"] * row["group_score"] for row in found["details"]["groups"]) == pytest.approx(
        right[:, 2].sum()
    )
    assert not {*found} - {*CONFIG.metrics, "details"}


def test_pairs_give_the_same_whatever_the_batch_is_and_wherever_their_records_are(one):
    data = of_pairs(bad=(11,))
    expected = data.evaluate(one)
    assert data.evaluate(one, size=3) == data.evaluate(one, size=80) == expected
    order = np.random.default_rng(0).permutation(80)
    order = order[np.argsort(order % 2, kind="stable")]  # image 0 of a pair before image 1
    moved = Data(
        data.image[order], data.text, [data.captions[i] for i in order], data.label[order], data.pair_id[order],
        [int(np.flatnonzero(order == 11)[0])],
    )  # fmt: skip
    assert moved.evaluate(one) == expected


def test_a_model_that_says_the_same_of_everything_scores_nothing(one):
    for data in (of_groups(), of_pairs()):
        data.image[:], data.text[:] = data.image[0], data.text[0]
        found = data.evaluate(one)
        assert found["text_score"] == found.get("image_score", 0) == 0.0


def test_the_report_shows_the_chance_of_each_score(one):
    chances = {row.metric: row.chance for row in rows(of_pairs().evaluate(one))}
    assert (chances["text_score"], chances["group_score"], chances["examples"]) == (1 / 4, 1 / 6, None)


def test_equal_captions_of_a_batch_are_embedded_once(one):
    data = of_pairs()
    data.evaluate(one, size=80)
    assert data.embedded == 80


def test_records_that_make_no_choice_and_pairs_that_are_none_are_refused(one):
    data = of_groups()
    data.captions[17] = data.captions[17][:1]
    with pytest.raises(
        ConfigError, match="toy: toy.json record 17 has 1 caption, expected the true one and then at leas"
    ):
        data.evaluate(one, names=["a"])
    data = of_pairs()
    data.pair_id[12] = -1
    with pytest.raises(ConfigError, match="1 records are of no pair, such as toy.json record 12, and 79 are"):
        data.evaluate(one)
    data = of_pairs()
    data.pair_id[:4] = 7
    with pytest.raises(ConfigError, match="pair_id 7 are no pair: toy.json record 0 and toy.json record 1 and"):
        data.evaluate(one)
    data = of_pairs()
    data.captions[8] = [8, 10]
    with pytest.raises(
        ConfigError, match=r"pair_id 11 are no pair: .*record 8 and .*record 9, with the captions .'8', '10"
    ):
        data.evaluate(one)
    nothing = of_pairs(bad=range(80))
    with pytest.raises(ConfigError, match="toy: no record could be read"):
        nothing.evaluate(one)
    with pytest.raises(ConfigError, match="of no pair could both images be read"):
        of_pairs(bad=range(0, 80, 2)).evaluate(one)


@pytest.mark.parametrize("pairs", [False, True])
def test_ties_first_gives_clip_benchmarks_numbers(one, pairs):
    torch = pytest.importorskip("torch")
    selection = pytest.importorskip("clip_benchmark.metrics.image_caption_selection")
    if pairs:
        data, size = of_pairs(), 2
        data.image[4] = data.image[6]  # torch takes NaN for the largest
    else:
        data, size = of_groups(), 1
        data.image[20], data.text[~np.isfinite(data.text)] = data.image[21], 0.1
        data.captions, data.valid = [own[:2] for own in data.captions], np.ones(RECORDS, bool)
    model = types.SimpleNamespace(
        encode_image=lambda x: torch.from_numpy(data.image)[x[:, 0, 0, 0].long()],
        encode_text=lambda tokens: torch.from_numpy(data.text)[tokens],
    )
    index = torch.arange(len(data.image)).reshape(-1, size, 1, 1, 1)
    loader = [(row[None] if pairs else row, [[str(c) for c in data.captions[int(row.flatten()[0])]]]) for row in index]
    theirs = selection.evaluate(
        model, loader, lambda texts: torch.tensor([int(text) for text in texts]), "cpu", amp=False
    )
    found = data.evaluate(one, FIRST)
    assert found["text_score"] == pytest.approx(theirs["text_acc"], abs=1e-7)
    if pairs:
        assert found["image_score"] == pytest.approx(theirs["image_acc"], abs=1e-7)
        assert found["group_score"] == pytest.approx(theirs["acc"], abs=1e-7)
    else:  # of a pair, one of the two images or captions loses by a tie under either rule
        assert data.evaluate(one)["text_score"] < found["text_score"], "a tie made the difference"


SETS = {
    "SugarCrepe": (sets.sugarcrepe, 6),
    "SugarCrepe in Parquet": (sets.sugarcrepe_parquet, 6),
    "ARO relations": (sets.aro, 6),
    "ARO attributes": (lambda folder: sets.aro(folder, True), 6),
    "ARO order": (sets.aro_order, 6),
    "Winoground": (sets.winoground, 5),
    "Winoground in Parquet": (sets.winoground_parquet, 5),
}
EYE = np.eye(24, dtype=np.float32)


def through_the_path(one, config, evaluate, knows=True, **options):
    """A model that sees a picture's number and reads it in a caption, or one that takes each caption for another."""
    source = open_source(config.source)
    check_with_data(config, source)

    def batches():
        batch_of = dict(pixels=PixelConfig(), image_size=8, batch_size=4, num_threads=1)
        for columns in eval_batches(source, tokenizer=tokenizer, **batch_of):
            yield jax.device_put(columns, batch_sharding(one))

    def tokenizer(texts):
        words = [text.split() or ["picture", "0"] for text in texts]  # a row beyond the last record has no text
        return np.array([[int(w[1]) + 12 * ((w[0] == "picture") != knows)] for w in words], np.int32)

    return evaluate(
        config,
        batches=batches,
        embed_images=lambda batch: EYE[np.round(np.asarray(batch["image"])[:, 4, 4, 0] / 10).astype(int)],
        embed_texts=lambda tokens: EYE[tokens[:, 0]],
        tokenizer=tokenizer,
        captions=captions_of(source),
        class_names=source.class_names,
        where=source.where,
        mesh=one,
        **options,
    )


@pytest.mark.parametrize("name", SETS)
def test_a_model_that_always_knows_scores_everything_however_the_set_is_kept(one, name, tmp_path):
    write, examples = SETS[name]
    config = CompositionalConfig(source=HardNegativesConfig(path=str(write(tmp_path))))
    for knows in (True, False):
        found = through_the_path(one, config, compositional.evaluate, knows)
        scores = {key: value for key, value in found.items() if key.endswith("_score")}
        assert scores and set(scores.values()) == {float(knows)}
        assert (found["examples"], found["left_out"], found["indistinguishable"]) == (examples, 0, 0)
    assert ("image_score" in found) == name.startswith("Winoground")
    assert ("macro_text_score" in found) == (name in ("SugarCrepe", "ARO relations", "ARO attributes"))
    if "order" in name:
        assert found["text_score_chance"] == pytest.approx((5 / 5 + 1 / 4) / 6)


def test_a_damaged_image_leaves_its_pair_out(one, tmp_path):
    config = CompositionalConfig(source=HardNegativesConfig(path=str(sets.winoground(tmp_path))))
    (tmp_path / "images" / "ex_2_img_1.png").write_bytes(sets.picture(6)[:40])
    found = through_the_path(one, config, compositional.evaluate)
    assert (found["examples"], found["left_out"], found["group_score"]) == (4, 1, 1.0)


def test_retrieval_does_not_take_false_captions_for_true_ones(one, tmp_path):
    source = HardNegativesConfig(path=str(sets.sugarcrepe(tmp_path)))
    with pytest.raises(ConfigError, match="all_captions=True would count the false ones as right"):
        through_the_path(one, RetrievalConfig(source=source, all_captions=True), retrieval.evaluate)
    found = through_the_path(one, RetrievalConfig(source=source), retrieval.evaluate)
    assert found["image_to_text_r1"] == 1.0


@pytest.mark.parametrize("language", ["de", "fil"])
def test_a_model_that_knows_the_language_retrieves_everything(one, tmp_path, language):
    from clipjax.eval import multilingual

    evaluators = multilingual(sets.crossmodal(tmp_path), name="xm")
    found = through_the_path(one, evaluators[f"xm_{language}"], retrieval.evaluate)
    assert found["image_to_text_r1"] == found["text_to_image_r1"] == 1.0
    assert found["captions"] == (6 if language == "de" else 12)
