"""Scores are the cosines of a model's embeddings, whatever batches they were made in."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

import clipjax
from data_pipelines.command import PipelineError
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers import READERS
from data_pipelines.prepare.staging import stage
from data_pipelines.prepare.steps.scores import score
from data_pipelines.prepare.types import Example
from tests.data.samples import encoded, picture
from tests.interop.test_commands import publish, tiny
from tests.interop.test_tokenizer_files import words_json


@pytest.mark.slow
def test_scores_are_the_models_cosines(tmp_path):
    (tmp_path / "vocabulary").mkdir()
    size, model = words_json(tmp_path / "vocabulary"), tiny("clip_vit_b32")
    model = replace(model, text=replace(model.text, vocab_size=size, eos_id=1))
    folder = publish(tmp_path / "model", "hf_clip", model=model)
    options = Options(reader="folder", input=("x",), clip_model=str(folder), min_score=0.1)
    examples = [
        Example(f"k{i}", encoded(picture(i)), tuple(["a dog", "cat", "a cat dog", "dog dog"][: 1 + i % 4]))
        for i in range(70)  # more than a batch
    ]
    with pytest.raises(PipelineError, match="has no tokenizer"):
        score(examples, options)
    for file in (tmp_path / "vocabulary").iterdir():
        shutil.copy(file, folder)
    scored = score(examples, options)
    loaded = clipjax.load(folder, batch_size=64)
    images = loaded.embed_images([example.image for example in examples])
    assert [replace(one, scores=()) for one in scored] == examples
    for one, image in zip(scored, images, strict=True):
        # Rounded to a ten-thousandth.
        np.testing.assert_allclose(one.scores, loaded.embed_texts(list(one.texts)) @ image, atol=5.1e-5)
    assert len({value for one in scored for value in one.scores}) > 100
    assert [one.scores for one in score(examples[3:9], options)] == [one.scores for one in scored[3:9]]
    # As a unit is read.
    for example in examples[:5]:
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{example.key}.png").write_bytes(example.image)
        (tmp_path / "photos" / f"{example.key}.txt").write_text("\n".join(example.texts))
    options = replace(options, input=(str(tmp_path / "photos"),))
    (unit,) = READERS["folder"].units(options).units
    (tmp_path / "units").mkdir()
    rows = stage(unit, options, tmp_path / "units").rows
    assert [(row.key, row.texts, row.scores) for row in rows] == [
        (f"{one.key}.png", one.texts, one.scores) for one in scored[:5]
    ]
