"""On the same embeddings, CLIP_benchmark's own code and scikit-learn give the same numbers."""

import jax
import numpy as np
import pytest

from clipjax.config import MeshConfig
from clipjax.eval import MultilabelConfig, RetrievalConfig, ZeroShotConfig, multilabel, retrieval, zero_shot
from clipjax.eval.multilabel import average_precision
from clipjax.mesh import make_mesh
from tests.eval.toy import Texts, run, unit
from tests.torch_reference import import_torch

NAMES = tuple(f"class {n}" for n in range(9))
TEMPLATES = ("a photo of a {}.", "a drawing of a {}.", "{}")
THEIR_TEMPLATES = [template.replace("{}", "{c}") for template in TEMPLATES]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


@pytest.fixture(scope="module")
def texts():
    return Texts()


@pytest.fixture(scope="module")
def classified(texts):
    """(images, labels), of classes that differ in size, one of which never occurs."""
    rng = np.random.default_rng(1)
    label = rng.choice(8, size=333, p=np.arange(1, 9) / 36)
    prototype = unit([texts.of(*(t.replace("{}", name) for t in TEMPLATES)).mean(0) for name in NAMES])
    return unit(prototype[label] + 0.35 * rng.normal(size=(333, prototype.shape[1]))), label


class TheirModel:
    """Looks embeddings up, as CLIP_benchmark calls a model. Images are row numbers."""

    def __init__(self, texts, image):
        self.torch, self.texts, self.image = import_torch(), texts, image

    def encode_text(self, tokens):
        return self.torch.from_numpy(self.texts.embed(tokens.numpy()))

    def encode_image(self, rows):
        return self.torch.from_numpy(self.image[rows.numpy()])

    def tokenizer(self, strings):
        return self.torch.from_numpy(self.texts.tokenizer(strings))

    def loader(self, answers, classes=NAMES):
        """Batches of 50 (rows, answers), with the attribute that CLIP_benchmark reads."""
        torch, count = self.torch, len(self.image)
        as_answer = (lambda a: a) if isinstance(answers, list) else torch.from_numpy

        class Loader(list):
            dataset = type("Classes", (), {"classes": classes})

        rows = [range(start, min(start + 50, count)) for start in range(0, count, 50)]
        return Loader((torch.tensor(list(r)), as_answer(answers[r.start : r.stop])) for r in rows)


def theirs(name, model, loader, *arguments, **options):
    module = import_torch(f"clip_benchmark.metrics.{name}")
    # It calls float() on arrays of one number, which NumPy no longer allows.
    vars(module)["float"] = lambda value: float(value if isinstance(value, str) else np.asarray(value).item())
    return module.evaluate(model, loader, model.tokenizer, *arguments, device="cpu", amp=False, **options)


@pytest.mark.parametrize("count", [9, 4])
def test_accuracies_and_recall_equal_clip_benchmark_and_scikit_learn(mesh, texts, classified, count):
    image, label = classified
    kept = label < count
    image, label, names = image[kept], label[kept], NAMES[:count]
    config = ZeroShotConfig(templates=TEMPLATES)
    found = run(zero_shot.evaluate, config, mesh, texts, image, label=label, class_names=names)
    metrics = pytest.importorskip("sklearn.metrics")
    classes = unit([texts.of(*(t.replace("{}", name) for t in TEMPLATES)).mean(0) for name in names])
    scores = image @ classes.T
    assert 0.3 < found["top1"] < 0.95
    predicted = scores.argmax(1)
    assert found["mean_per_class_recall"] == pytest.approx(metrics.balanced_accuracy_score(label, predicted), abs=1e-12)
    for k in (1, 5) if count > 5 else (1,):
        expected = metrics.top_k_accuracy_score(label, scores, k=k, labels=np.arange(count))
        assert found[f"top{k}"] == pytest.approx(expected, abs=1e-12)
    matrix = metrics.confusion_matrix(label, predicted, labels=np.arange(count))
    np.testing.assert_array_equal(found["details"]["confusion_matrix"], matrix)
    model = TheirModel(texts, image)
    wanted = theirs("zeroshot_classification", model, model.loader(label, names), names, THEIR_TEMPLATES)
    assert found["top1"] == pytest.approx(wanted["acc1"], abs=1e-12)
    assert found["mean_per_class_recall"] == pytest.approx(wanted["mean_per_class_recall"], abs=1e-12)
    if count < 5:
        assert "top5" not in found and np.isnan(wanted["acc5"])
    else:
        assert found["top5"] == pytest.approx(wanted["acc5"], abs=1e-12)


@pytest.mark.parametrize("ties", ["against", "first"])
def test_mean_average_precision_equals_clip_benchmark_and_scikit_learn(mesh, texts, classified, ties):
    image, label = classified
    rng = np.random.default_rng(2)
    targets = (rng.random((len(image), len(NAMES))) < 0.15).astype(np.uint8)
    targets[np.arange(len(image)), label] = 1
    targets[:, 3] = 0  # no image shows this class
    config = MultilabelConfig(templates=TEMPLATES, ties=ties)
    found = run(multilabel.evaluate, config, mesh, texts, image, targets=targets, class_names=NAMES)
    model = TheirModel(texts, image)
    loader = model.loader(targets.astype(np.int64))
    wanted = theirs("zeroshot_classification", model, loader, NAMES, THEIR_TEMPLATES)
    assert found["mean_average_precision"] == pytest.approx(wanted["mean_average_precision"], abs=2e-7)
    assert found["without_positives"] == 1
    metrics = pytest.importorskip("sklearn.metrics")
    classes = unit([texts.of(*(t.replace("{}", name) for t in TEMPLATES)).mean(0) for name in NAMES])
    for column, row in enumerate(found["details"]["per_class"]):
        if row["positives"]:
            expected = metrics.average_precision_score(targets[:, column], image @ classes[column])
            assert row["average_precision"] == pytest.approx(expected, abs=1e-9)
        else:
            assert row["average_precision"] == 0.0


@pytest.mark.parametrize("ties", ["against", "first"])
def test_retrieval_recalls_equal_clip_benchmark(mesh, ties):
    texts, rng = Texts(seed=3), np.random.default_rng(4)
    captions = [[f"caption {n} {c}" for c in range(rng.integers(1, 6))] for n in range(120)]
    means = np.stack([texts.of(*own).mean(0) for own in captions])
    image = unit(unit(means) + 0.35 * rng.normal(size=means.shape))
    config = RetrievalConfig(all_captions=True, ties=ties)
    found = run(retrieval.evaluate, config, mesh, texts, image, captions=captions)
    model = TheirModel(texts, image)
    wanted = theirs("zeroshot_retrieval", model, model.loader(captions), recall_k_list=[1, 5, 10])
    assert 0.1 < found["image_to_text_r1"] < 0.9
    for k in (1, 5, 10):
        assert found[f"text_to_image_r{k}"] == pytest.approx(wanted[f"image_retrieval_recall@{k}"], abs=1e-7)
        assert found[f"image_to_text_r{k}"] == pytest.approx(wanted[f"text_retrieval_recall@{k}"], abs=1e-7)
    assert found["mean_recall@1"] == pytest.approx(
        (wanted["image_retrieval_recall@1"] + wanted["text_retrieval_recall@1"]) / 2, abs=1e-7
    )


def test_average_precision_with_equal_scores_lies_below_scikit_learns_and_first_takes_the_order():
    targets = np.array([[0], [1], [1], [0]], bool)
    scores = np.array([[0.5], [0.5], [0.1], [0.1]])
    assert average_precision(scores, targets, "against")[0] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert average_precision(scores, targets, "first")[0] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert average_precision(scores[::-1], targets[::-1], "first")[0] == pytest.approx((1 + 2 / 4) / 2)
