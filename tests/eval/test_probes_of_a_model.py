"""Probes of a tiny model on prepared data: read from a config, opened, checked and evaluated as in a run."""

import dataclasses

import jax
import numpy as np
import pytest

from clipjax.config import ConfigError, SourceConfig, default_config, from_config_dict, to_config_dict
from clipjax.eval import EmbeddingHealthConfig, KNNConfig, LinearProbeConfig
from clipjax.inference.embed import make_embed, make_image_features
from clipjax.inference.evaluate import make_evaluate, open_evaluators
from clipjax.mesh import make_mesh
from clipjax.models.presets import get_preset
from clipjax.training.state import abstract_state, create_state, eval_variables
from tests.data.samples import LengthTokenizer, record, write_folder
from tests.tiny import tiny_batches, tiny_config


@pytest.fixture(scope="module")
def model():
    """(config, mesh, variables) of a tower that projects to half its width."""
    config = tiny_config()
    towers = {
        side: dataclasses.replace(getattr(config.model, side), **own)
        for side, own in {"image": {"projection": True}, "text": {}}.items()
    }
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, embed_dim=16, **towers))
    mesh = make_mesh(config.mesh)
    return config, mesh, eval_variables(create_state(config, mesh))


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("splits")
    train = write_folder(folder / "train", [record(i) for i in range(24)])
    test = write_folder(folder / "test", [record(i) for i in range(24, 37)])
    return {"train": SourceConfig(path=str(train)), "source": SourceConfig(path=str(test))}


def with_evaluators(config, **evaluators):
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=16, evaluators=evaluators))


def test_probes_of_a_model_run_on_both_kinds_of_features(model, splits):
    config, mesh, variables = model
    config = with_evaluators(
        config,
        probe=LinearProbeConfig(**splits, C=1.0, features="before_projection"),
        knn=KNNConfig(**splits, neighbours=(3,)),
        health=EmbeddingHealthConfig(source=splits["source"]),
    )
    found = make_evaluate(config, mesh, LengthTokenizer())(variables)
    for name in ("probe", "knn"):
        assert (found[name]["examples"], found[name]["train_examples"], found[name]["classes"]) == (13, 24, 2)
        assert found[name]["details"]["classes"][1]["class"] == "odd"
    assert found["health"]["examples"] == 13
    assert found["probe"]["details"]["features"] == "before_projection"


def test_the_features_before_the_projection_are_what_it_multiplies(model):
    config, mesh, variables = model
    image = tiny_batches(1)[0]["image"]
    features = np.asarray(make_image_features(config, mesh)(variables, image))
    projected = features @ np.asarray(variables["params"]["image"]["projection"]["kernel"])
    if "bias" in variables["params"]["image"]["projection"]:
        projected += np.asarray(variables["params"]["image"]["projection"]["bias"])
    embedded = np.asarray(make_embed(config, mesh)[0](variables, image))
    assert features.shape == (16, 32) and embedded.shape == (16, 16)
    unit = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, embedded, atol=2e-2 if config.model.dtype == "bfloat16" else 1e-5)


def test_a_tower_set_to_have_no_projection_gives_its_pooled_output_and_a_resnet_nothing():
    config = tiny_config()
    mesh = make_mesh(config.mesh)
    variables, image = abstract_state(config, mesh), tiny_batches(1)[0]["image"]
    found = jax.eval_shape(make_image_features(config, mesh), eval_variables(variables), image)
    assert found.shape == (16, 32)
    resnet = dataclasses.replace(get_preset("clip_rn50"), dtype="float32")
    config = with_evaluators(dataclasses.replace(config, model=resnet), probe=LinearProbeConfig(
        train=SourceConfig(path="a"), source=SourceConfig(path="b"), features="before_projection"))  # fmt: skip
    with pytest.raises(ConfigError, match="evaluators.probe needs what enters the image tower's projection"):
        make_evaluate(config, mesh, None, sources={})


def test_a_probes_splits_are_read_from_a_config_and_refused_together(splits):
    config = default_config()
    config.eval.evaluators = {"probe": to_config_dict(LinearProbeConfig(**splits, C=1.0))}
    read = from_config_dict(config)
    assert read.eval.evaluators["probe"] == LinearProbeConfig(**splits, C=1.0)
    assert set(open_evaluators(read)) == {"probe", "probe.train"}
    config.eval.evaluators.probe.train.path = splits["source"].path
    with pytest.raises(ConfigError, match="config.eval.evaluators.probe: source and train|train and source"):
        open_evaluators(from_config_dict(config))
