"""Zero-shot classification's tables, calibration, tie rules and prompts, on embeddings whose answers are known."""

import dataclasses
import hashlib
import json

import jax
import numpy as np
import pytest

from clipjax.config import ConfigError, MeshConfig, SourceConfig
from clipjax.data.sources import WebDatasetConfig
from clipjax.eval import MultilabelConfig, ZeroShotConfig, multilabel, zero_shot
from clipjax.eval.classification import Predictions, calibration, shares, tables
from clipjax.eval.embeddings import EmbeddingError
from clipjax.inference.evaluate import make_evaluate
from clipjax.mesh import batch_sharding, make_mesh
from tests.eval.toy import DIM, Texts, run, unit
from tests.eval.wds_sets import TEMPLATES, write_classification, write_multilabel
from tests.tiny import tiny_config

SOURCE = SourceConfig(path="set", split="test")
NAMES = ("cat", "dog", "eel", "fox", "gnu", "hen")


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


@pytest.fixture(scope="module")
def texts():
    return Texts()


def classify(mesh, texts, image, label, *, templates=(), logit_scale=None, class_names=NAMES, **options):
    config = ZeroShotConfig(source=SOURCE, **options)
    given = dict(class_names=class_names, templates=templates, logit_scale=logit_scale)
    return run(zero_shot.evaluate, config, mesh, texts, np.asarray(image, np.float32), label=label, **given)


def test_the_tables_name_what_was_taken_for_what():
    found = Predictions(
        target=np.array([0, 0, 0, 1, 1, 2]),
        predicted=np.array([0, 1, 1, 1, 0, 1]),
        rank=np.array([1, 2, 2, 1, 2, 3]),
        confidence=np.full(6, 0.5, np.float32),
    )
    details = tables(found, ("cat", "dog", "eel", "fox"))
    assert details["confusion_matrix"] == [[1, 2, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert details["confusions"] == [["cat", "dog", 2], ["dog", "cat", 1], ["eel", "dog", 1]]
    assert details["per_class"][0] == {"class": "cat", "examples": 3, "predicted": 2, "recall": 1 / 3}
    assert details["per_class"][3] == {"class": "fox", "examples": 0, "predicted": 0}
    numbers = shares(found, 4)
    assert numbers["top1"] == 2 / 6 and "top5" not in numbers
    assert numbers["mean_per_class_recall"] == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)
    assert numbers["mean_per_class_recall_low"] < numbers["mean_per_class_recall"]
    assert shares(found, 5)["top5"] == 1.0
    assert "confusion_matrix" not in tables(found, [str(n) for n in range(201)])


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy():
    rank = np.array([1, 1, 1, 2] + [2] * 4)
    confidence = np.array([0.75] * 4 + [0.2] * 4, np.float32)
    found = Predictions(np.zeros(8, int), np.zeros(8, int), rank, confidence)
    error, bins = calibration(found)
    assert error == pytest.approx(0.5 * 0.0 + 0.5 * 0.2)
    assert [one["examples"] for one in bins] == [4, 4]
    edges = np.linspace(0, 1, 16)  # Guo et al. count the upper edge to the bin below it
    assert len(calibration(found._replace(confidence=np.linspace(0.01, 1, 8)))[1]) == len(
        {int(np.searchsorted(edges, c) - 1) for c in np.linspace(0.01, 1, 8)}
    )
    assert calibration(found._replace(confidence=np.full(8, np.nan), rank=np.full(8, 9)))[0] == 1.0


def test_confidences_are_the_softmax_of_the_scaled_cosines(mesh, texts):
    rng = np.random.default_rng(0)
    label = rng.integers(len(NAMES), size=70)
    image = unit(texts.of(*NAMES)[label] + 0.5 * rng.normal(size=(70, DIM)))
    found = classify(mesh, texts, image, label, logit_scale=20.0)
    logits = 20.0 * image.astype(np.float64) @ texts.of(*NAMES).T
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    right = logits.argmax(1) == label
    confidence = probability.max(1)
    number = np.ceil(confidence * 15)
    gaps = [(number == n).sum() * abs(right[number == n].mean() - confidence[number == n].mean()) for n in set(number)]
    assert found["calibration_error"] == pytest.approx(sum(gaps) / 70, abs=1e-6)
    assert found["details"]["calibration"]["logit_scale"] == 20.0
    assert "calibration_error" not in classify(mesh, texts, image, label)


def test_equal_classes_count_against_the_model_or_the_first_of_them_is_right(mesh, texts):
    twice = ("cat", "dog", "cat", "eel", "fox")
    image = texts.of("cat", "cat", "dog")
    for ties, expected in (("against", [1 / 3, 1.0]), ("first", [2 / 3, 1.0])):
        found = classify(mesh, texts, image, [0, 2, 1], class_names=twice, ties=ties)
        assert [found["top1"], found["top5"]] == pytest.approx(expected)
        assert found["details"]["ties"] == ties and found["indistinguishable"] == 2
    same = np.repeat(texts.of("cat"), 6, 0)
    for ties, top1 in (("against", 0.0), ("first", 1 / 6)):  # every class has the same prompt embedding
        alike = Texts()
        alike.tokenizer(NAMES)
        alike.rows = [alike.rows[0]] * 6
        found = classify(mesh, alike, same, np.arange(6), ties=ties)
        assert found["top1"] == pytest.approx(top1)
        assert found["top5"] == pytest.approx(0.0 if ties == "against" else 5 / 6)


def test_prompts_are_the_options_the_sources_or_the_bare_names_and_results_say_which(mesh, texts):
    image, label = texts.of(*NAMES), np.arange(6)

    def prompts(**options):
        return classify(mesh, texts, image, label, **options)["details"]["prompts"]

    assert prompts()["templates"] == ["{}"]
    assert prompts()["sha256"] == hashlib.sha256("\n".join(NAMES).encode()).hexdigest()
    config = ZeroShotConfig(source=SOURCE)
    assert config.prompts(NAMES[:2]) == ["cat", "dog"]
    assert config.prompts(NAMES[:1], ("a {}", "the {}")) == ["a cat", "the cat"]
    given = run(
        zero_shot.evaluate, ZeroShotConfig(source=SOURCE, templates=("my {}",)), mesh, texts, image, label=label,
        class_names=NAMES, templates=("a {}", "the {}"),
    )  # fmt: skip
    assert given["details"]["prompts"]["templates"] == ["my {}"] and given["details"]["prompts"]["number"] == 6
    own = prompts(templates=("a {}", "the {}"))
    assert own["templates"] == ["a {}", "the {}"] and own["number"] == 12


def test_an_embedding_that_is_not_a_number_is_refused_with_its_record(mesh, texts):
    image = np.repeat(texts.of("cat"), 40, 0)
    image[37] = np.nan
    image[39, 0] = np.inf
    with pytest.raises(EmbeddingError, match=r"the image of set, toy.tar record 37 is not finite \(2 of the 8 "):
        classify(mesh, texts, image, np.zeros(40))
    assert classify(mesh, texts, image, np.zeros(40), not_finite="against")["top1"] == 38 / 40
    with pytest.raises(EmbeddingError, match="the image of set, toy.tar record 37 is not finite"):
        config = MultilabelConfig(source=SOURCE)
        run(multilabel.evaluate, config, mesh, texts, image, targets=np.ones((40, 6)), class_names=NAMES)
    broken = Texts()
    broken.tokenizer(NAMES)
    broken.rows[4] = np.full(DIM, np.nan, np.float32)
    with pytest.raises(EmbeddingError, match="the prompt 'gnu' is not finite"):
        classify(mesh, broken, image[:3], np.zeros(3))


def label_images(mesh, texts, targets, names=NAMES[:3], **options):
    config = MultilabelConfig(source=SOURCE, **options)
    image = np.repeat(texts.of("cat"), len(targets), 0)
    return run(multilabel.evaluate, config, mesh, texts, image, targets=targets, class_names=names)


def test_targets_that_are_missing_too_short_or_not_0_and_1_are_refused_with_their_record(mesh, texts):
    with pytest.raises(ConfigError, match=r"set, toy.tar record 1: the record has 2 targets, but there are 3 class"):
        label_images(mesh, texts, [np.ones(3), np.ones(2)])
    with pytest.raises(ConfigError, match=r"record 0: targets must be 0 or 1, but one is \[2"):
        label_images(mesh, texts, [np.array([0, 1, 2])])
    with pytest.raises(ConfigError, match="record 0: the record has no targets"):
        label_images(mesh, texts, [None])
    with pytest.raises(ConfigError, match="no image shows any class"):
        label_images(mesh, texts, np.zeros((4, 3)))


def test_a_multilabel_model_that_says_the_same_of_everything_is_no_better_than_the_worst_order(mesh, texts):
    targets = np.zeros((40, 3), np.uint8)
    targets[:4, :2] = 1
    found = label_images(mesh, texts, targets)
    # Four positives in the last of forty places, in each of two classes; the third class has none.
    worst = np.mean([1 / 37, 2 / 38, 3 / 39, 4 / 40])
    assert found["mean_average_precision"] == pytest.approx(2 / 3 * worst)
    assert found["mean_average_precision_low"] < found["mean_average_precision"] < found["mean_average_precision_high"]
    assert found["chance"] == pytest.approx(8 / 120) and found["without_positives"] == 1
    assert label_images(mesh, texts, targets, ties="first")["mean_average_precision"] == pytest.approx(2 / 3)


def test_names_templates_and_prompts_come_from_the_files_in_which_sets_have_them(mesh, texts, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps({"en": {"set": NAMES}, "it": {"set": ["gatto", *NAMES[1:]]}}))
    (tmp_path / "templates.txt").write_text("a photo of a {c}.\nart of the {c}.\n")
    own = {name: [f"a {name}", f"the {name}, an animal"][: 1 + n % 2] for n, name in enumerate(NAMES)}
    (tmp_path / "cupl.json").write_text(json.dumps({"set": own}))
    image, label = texts.of(*(own[name][0] for name in NAMES)), np.arange(6)

    def details(**options):
        key = "set" if "class_prompts" in options else ""
        options = {name: str(tmp_path / value) for name, value in options.items()}
        return classify(mesh, texts, image, label, dataset=key, **options)["details"]

    assert details(templates_file="templates.txt")["prompts"]["templates"] == ["a photo of a {c}.", "art of the {c}."]
    found = details(class_prompts="cupl.json")
    assert found["prompts"] == {
        "templates": [],
        "number": 9,
        "sha256": hashlib.sha256("\n".join(prompt for name in NAMES for prompt in own[name]).encode()).hexdigest(),
    }
    assert [row["recall"] for row in found["per_class"][::2]] == [1.0] * 3, "a class with one prompt is that prompt"
    italian = ZeroShotConfig(class_names=str(tmp_path / "names.json"), dataset="set", language="it", rename=True)
    assert italian.prompts(NAMES)[0] == "gatto"
    with pytest.raises(ConfigError, match="language='it' select from JSON files or folders, but none of"):
        classify(mesh, texts, image, label, language="it")
    with pytest.raises(ConfigError, match="are both set; use one of them"):
        details(templates_file="templates.txt", class_prompts="cupl.json")
    (tmp_path / "cupl.json").write_text(json.dumps({"set": {"cat": ["a cat"]}}))
    with pytest.raises(ConfigError, match="5 of 6 classes have no prompts"):
        details(class_prompts="cupl.json")


def test_a_published_set_is_evaluated_with_its_own_templates_and_targets(tmp_path, monkeypatch):
    several, one = write_multilabel(tmp_path), write_classification(tmp_path, "vtab/cifar10")
    sources = [WebDatasetConfig(path=str(path), split="test") for path in (several, one)]
    evaluators = {"several": MultilabelConfig(source=sources[0]), "one": ZeroShotConfig(source=sources[1])}
    config = tiny_config()
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=8, evaluators=evaluators))
    mesh, words = make_mesh(config.mesh), Texts()
    image = np.random.default_rng(0).normal(size=(8, DIM)).astype(np.float32)
    embed = (lambda _, pixels: jax.device_put(image, batch_sharding(mesh)), lambda _, tokens: words.embed(tokens))
    monkeypatch.setattr("clipjax.inference.evaluate.make_embed", lambda *_: embed)
    found = make_evaluate(config, mesh, words.tokenizer)({"params": {"logit_scale": np.float32(np.log(50))}})
    for result in found.values():
        assert result["details"]["prompts"]["templates"] == list(TEMPLATES)
        json.dumps(result, allow_nan=False)
    assert found["one"]["details"]["calibration"]["logit_scale"] == pytest.approx(50)
    assert 0 < found["several"]["mean_average_precision"] <= 1 and found["several"]["positives"] > 0
    assert set(found["several"]) == {*evaluators["several"].metrics, "details"}
    assert set(found["one"]) == {*(m for m in evaluators["one"].metrics if not m.startswith("top5")), "details"}
