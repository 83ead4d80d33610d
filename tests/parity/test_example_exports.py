"""The example experiments' models leave clipjax and come back: bit-equal, and as the original library computes them."""

import dataclasses
import importlib
import json

import jax
import numpy as np
import pytest

from clipjax.commands import export, import_weights
from clipjax.config import MeshConfig, from_config_dict
from clipjax.data.tokenizers import make_tokenizer
from clipjax.interop.foreign import open_foreign
from clipjax.interop.names import flatten
from clipjax.mesh import make_mesh
from clipjax.runs.checkpoint import save_weights
from clipjax.runs.fingerprint import fingerprint
from clipjax.training.init_from import adapt
from clipjax.training.state import abstract_state, eval_variables
from data_pipelines import train_tokenizer
from tests.torch_reference import import_torch

WORDS = ("red", "blue", "small", "large", "circle", "square", "cat", "house", "three", "of", "a", "drawing")
LIBRARY = {"hf": "transformers", "open_clip": "open_clip"}
EXAMPLES = {"quickstart": ("open_clip", "bpe"), "emoji": ("hf", "unigram"), "openclipart": ("hf", "unigram")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_exported_with_its_trained_tokenizer_and_read_back_bit_equal(name, tmp_path):
    format, kind = EXAMPLES[name]
    config = from_config_dict(importlib.import_module(f"experiments.{name}").get_config())
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 5)) for _ in range(200)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    size = config.model.text.vocab_size
    train_tokenizer.build(tmp_path / "own.model", text=tmp_path / "texts.txt", vocab_size=size, model_type=kind)
    tokenizer = dataclasses.replace(config.tokenizer, path=str(tmp_path / "own.model"))
    config = dataclasses.replace(config, tokenizer=tokenizer)
    made = make_tokenizer(tokenizer, config.model.text.context_length)
    shapes = eval_variables(abstract_state(config, make_mesh(MeshConfig())))
    draw = lambda leaf: rng.uniform(0.01, 0.1, leaf.shape).astype(leaf.dtype)  # noqa: E731
    variables = jax.tree.map(draw, shapes)
    save_weights(tmp_path / "run", variables, config=config, fingerprint=fingerprint(config, made))

    export.run(tmp_path / "run", tmp_path / "out", format=format)
    foreign = open_foreign(str(tmp_path / "out"))
    read = adapt(foreign.variables(make_mesh(MeshConfig())), source=foreign.config.model, target=config.model)
    read = flatten(read)
    assert read.keys() == flatten(variables).keys()
    for leaf, array in flatten(variables).items():
        np.testing.assert_array_equal(np.asarray(read[leaf]), array, err_msg=leaf)
    again = make_tokenizer(foreign.config.tokenizer, config.model.text.context_length)
    captions = [*texts[:20], "A PHOTO of something else, entirely!", ""]
    np.testing.assert_array_equal(again(captions), made(captions))

    try:
        import_torch(LIBRARY[format])
    except pytest.skip.Exception:
        return
    import_weights.run(str(tmp_path / "out"), tmp_path / "back", parity=True)
    report = json.loads((tmp_path / "back" / "parity.json").read_text())
    assert report["compared"] and not report["differences"], report
