"""A loaded model behind MTEB's encoder interface; where mteb is installed, one of its tasks on local pictures."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clipjax.inference.mteb import MtebEncoder
from tests.torch_reference import import_torch

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def unit(rows):
    return np.asarray(rows, np.float32) / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def encoder():
    """Of a model that sees the colour of a picture, and reads its name in a text."""
    text = SimpleNamespace(context_length=8)
    model = SimpleNamespace(
        config=SimpleNamespace(model=SimpleNamespace(embed_dim=3, text=text)),
        params={"tower": np.zeros((5, 7))},
        embed_images=lambda images: unit([np.asarray(image, np.float32).mean((0, 1)) + 1 for image in images]),
        embed_texts=lambda texts: unit([np.add(COLOURS[text.split()[-1]], 1.0) for text in texts]),
    )
    return MtebEncoder(model, name="clipjax/colours")


def pictures(*names):
    return [Image.new("RGB", (4, 4), COLOURS[name]) for name in names]


def test_images_texts_and_both_are_embedded_batch_by_batch_in_order(encoder):
    names = ["red", "blue", "green"]
    found = encoder.encode([{"image": pictures("red", "blue")}, {"image": pictures("green"), "label": [1]}])
    np.testing.assert_allclose(found, unit([np.add(COLOURS[name], 1.0) for name in names]), atol=1e-6)
    np.testing.assert_allclose(encoder.encode([{"text": names}], prompt_type="query", batch_size=2), found, atol=1e-6)
    both = encoder.encode([{"image": pictures("red"), "text": ["blue"]}])
    np.testing.assert_allclose(both[0], unit([found[0] + found[1]])[0], atol=1e-6)
    assert encoder.encode([]).shape == (0, 3)
    with pytest.raises(ValueError, match="the columns 'audio'; clipjax embeds 'image' and 'text'"):
        encoder.encode([{"audio": [1]}])


def test_similarities_are_cosines_as_torch_tensors(encoder):
    torch = import_torch()
    left, right = np.array([[3.0, 0, 0], [0, 2, 0]]), torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    expected = [[1, 0.5**0.5], [0, 0.5**0.5]]
    torch.testing.assert_close(encoder.similarity(left, right), torch.tensor(expected, dtype=torch.float32))
    pairs = torch.tensor([1, 0.5**0.5], dtype=torch.float32)
    torch.testing.assert_close(encoder.similarity_pairwise(left, right), pairs)


def test_the_wrapper_imports_neither_mteb_nor_torch():
    code = "import sys, clipjax.inference.mteb; sys.exit('torch' in sys.modules or 'mteb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_mteb_runs_a_task_of_its_own_kind_on_local_pictures(encoder, tmp_path):
    import_torch()
    mteb = pytest.importorskip("mteb")
    datasets = pytest.importorskip("datasets")
    from mteb.abstasks import AbsTaskZeroShotClassification
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.cache import ResultCache
    from mteb.models import EncoderProtocol

    names = list(COLOURS)

    class Colours(AbsTaskZeroShotClassification):
        metadata = TaskMetadata(
            name="Colours",
            description="Pictures of one colour, made here.",
            reference="https://example.org",
            dataset={"path": "NA", "revision": "NA"},
            type="ZeroShotClassification",
            category="i2t",
            modalities=["image", "text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="accuracy",
            date=("2024-01-01", "2024-01-01"),
            domains=[],
            task_subtypes=[],
            license="cc-by-4.0",
            annotations_creators="derived",
            dialect=["Written"],
            sample_creation="created",
            bibtex_citation="",
        )

        def load_data(self, **_):
            labels = [0, 1, 2, 2, 1]
            labels_as_told = [0, 1, 2, 2, 0]  # the last one is wrong
            rows = {"image": pictures(*(names[label] for label in labels)), "label": labels_as_told}
            self.dataset = datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows)})
            self.data_loaded = True

        def get_candidate_labels(self):
            return [f"a photo of {name}" for name in names]

    assert isinstance(encoder, EncoderProtocol)
    assert encoder.mteb_model_meta.n_parameters == 35
    found = mteb.evaluate(encoder, Colours(), cache=ResultCache(tmp_path))
    scores = found.task_results[0].scores["test"][0]
    assert scores["accuracy"] == pytest.approx(4 / 5)
    assert len(list(tmp_path.rglob("Colours.json"))) == 1, "the result is filed under the model's name"
