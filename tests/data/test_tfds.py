"""A dataset prepared by tfds is read without TensorFlow, its images as the bytes that were stored."""

import json

import pytest

from tests.data.samples import run_script

BUILDER = """
import numpy as np
import tensorflow_datasets as tfds
from tests.data.samples import encoded, picture
import io


class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        captions = tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()})
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "text": tfds.features.Text(),
            "captions": captions,
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["x", "y"])),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(5):
            captions = [{"id": 0, "text": f"first {i}"}, {"id": 1, "text": f"second {i}"}]
            image = io.BytesIO(encoded(picture(i), "JPEG"))
            yield i, {"image": image, "text": f"dög {i}", "captions": captions, "label": i % 3 - 1, "tags": [0]}
"""

SCRIPT = """
import dataclasses, json, pickle, sys
sys.path.insert(0, sys.argv[1])
from pictures import pictures_dataset_builder
from clipjax.config import DataConfig
from clipjax.data.pipeline import make_train_iterator
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import TfdsConfig, open_source
from tests.data.samples import LengthTokenizer, encoded, picture

data = sys.argv[1] + "/prepared"
builder = pictures_dataset_builder.Builder(data_dir=data, file_format="array_record")
builder.download_and_prepare()
named = TfdsConfig(path="pictures", data_dir=data)


def read(**changes):
    source = open_source(dataclasses.replace(named, **changes))
    examples = []
    for i in range(len(source)):
        try:
            examples.append(source[i])
        except RecordError as error:
            examples.append(error.cause)
    return source, examples


def refusal(**changes):
    try:
        open_source(dataclasses.replace(named, **changes))
    except ManifestError as error:
        return str(error)


source, examples = read()
images = {encoded(picture(i), "JPEG"): i for i in range(5)}
iterator = make_train_iterator(
    DataConfig(), source=pickle.loads(pickle.dumps(source)), tokenizer=LengthTokenizer(), image_size=8,
    global_batch_size=5, seed=0,
)
print(json.dumps({
    "class_names": source.class_names,
    "examples": [{**e, "image": images[e["image"]]} for e in examples],
    "where": source.where(3),
    "batch": next(iterator)[0]["text"].tolist(),
    "nested": [e["texts"] for e in read(text_key="captions/text")[1]],
    "from_labels": [e if isinstance(e, str) else e["texts"] for e in read(text_key="label")[1]],
    "many_labels": refusal(label_key="tags"),
    "text_label": refusal(label_key="text"),
    "missing_label": refusal(label_key="lable"),
    "no_label": [e["label"] for e in read(label_key="")[1]],
    "folder": [e["texts"] for e in read(path=str(builder.data_dir), data_dir="")[1]],
    "unknown": refusal(path="pictuers"),
    "unprepared": refusal(data_dir=data + "/elsewhere"),
    "split": refusal(split="test"),
    "keys": refusal(image_key="img"),
    "no_text": [refusal(text_key=key) for key in ("none", "captions/txt", "captions/text/x")],
    "tensorflow": "tensorflow" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "__init__.py").touch()
    (folder / "pictures" / "pictures_dataset_builder.py").write_text(BUILDER)
    (folder / "read.py").write_text(SCRIPT)
    done = run_script(folder / "read.py", folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_tensorflow_is_never_imported(found):
    assert found["tensorflow"] is False


def test_images_come_as_stored_with_their_captions_and_labels(found):
    assert found["class_names"] == ["cat", "dog"]
    assert sorted(e["image"] for e in found["examples"]) == list(range(5))
    for e in found["examples"]:
        i = e["image"]
        assert (e["texts"], e["label"], e["pair_id"]) == ([f"dög {i}"], i % 3 - 1, -1)
    assert found["where"] == ["tfds pictures train", 3]


def test_a_text_that_is_not_there_is_refused_and_not_read_from_the_label(found):
    for message in found["no_text"]:
        assert "has the features captions, image, label, tags, text" in message


def test_a_pickled_source_feeds_training(found):
    assert sorted(text[0] for text in found["batch"]) == list(range(5))


def test_captions_inside_a_sequence_are_all_read(found):
    assert sorted(found["nested"]) == [[f"first {i}", f"second {i}"] for i in range(5)]


def test_without_a_text_the_class_name_is_the_caption_and_unlabelled_records_are_bad(found):
    # Labels -1, 0, 1, -1, 0.
    assert sorted(map(str, found["from_labels"])) == ["['cat']", "['cat']", "['dog']", "no caption", "no caption"]


def test_a_label_feature_that_is_not_one_class_is_refused_and_none_can_be_asked_for(found):
    assert "'tags' is Sequence" in found["many_labels"] and "label_key to a ClassLabel" in found["many_labels"]
    assert "'text' is Text" in found["text_label"]
    assert "has no column 'lable'" in found["missing_label"] and "Did you mean 'label'" in found["missing_label"]
    assert found["no_label"] == [-1] * 5


def test_a_folder_is_read_without_the_builders_code(found):
    assert sorted(found["folder"]) == [[f"dög {i}"] for i in range(5)]


def test_what_is_missing_is_named(found):
    assert "'pictuers'" in found["unknown"] and "not found" in found["unknown"]
    assert "/elsewhere', cannot be read" in found["unprepared"] and 'file_format="array_record"' in found["unprepared"]
    assert "Unknown split 'test'" in found["split"]
    assert "has the features captions, image, label, tags, text" in found["keys"] and "image_key='img'" in found["keys"]
