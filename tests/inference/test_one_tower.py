"""A run with one tower is evaluated where one tower is enough, and refused in one line elsewhere."""

import dataclasses

import numpy as np
import pytest

from clipjax.commands.import_weights import weights_fingerprint
from clipjax.config import ConfigError, EvalConfig, EvaluationConfig, SourceConfig, TokenizerConfig, from_config_dict
from clipjax.eval import KNNConfig, RetrievalConfig
from clipjax.inference.session import evaluate_run
from clipjax.mesh import make_mesh
from clipjax.models.towers.absent import NoImageConfig, NoTextConfig
from clipjax.runs import open_run
from clipjax.runs.checkpoint import save_weights
from clipjax.runs.weights import load_teacher
from tests.eval_runs import start_of
from tests.runs import build_data, run_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes, and weights of an image tower and of a text tower."""
    folder = tmp_path_factory.mktemp("one")
    build_data(folder)
    config = from_config_dict(run_config(folder))
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, evaluators={}))
    for side, absent in (("image", {"text": NoTextConfig()}), ("text", {"image": NoImageConfig()})):
        own = dataclasses.replace(config, model=dataclasses.replace(config.model, **absent))
        if side == "image":
            own = dataclasses.replace(own, tokenizer=TokenizerConfig())
        params = start_of(own).params
        assert set(params) == {side}
        save_weights(folder / side, {"params": params}, config=own, fingerprint=weights_fingerprint(own))
    return folder


def evaluated(folder, side, **evaluators):
    with open_run(folder / side) as run:
        return evaluate_run(run, EvaluationConfig(eval=EvalConfig(batch_size=16, evaluators=evaluators))).results


def source(folder, split="validation"):
    return SourceConfig(path=str(folder / "scenes"), split=split)


def test_neighbours_of_an_image_tower_need_neither_texts_nor_a_tokenizer(folder):
    knn = KNNConfig(source=source(folder), train=source(folder, "train"), neighbours=(1, 5))
    result = evaluated(folder, "image", knn=knn)["knn"]
    assert 0 <= result["top1"] <= 1 and np.isfinite(result["top1_k5"])


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (
            "image",
            r"retrieval \('retrieval'\) embeds texts, and .*image has only an image tower\. .* that fit it: .*knn",
        ),
        ("text", r"retrieval \('retrieval'\) embeds images, and .*text has only a text tower\. .* that fit it: none\."),
    ],
)
def test_an_evaluator_that_needs_the_other_tower_is_refused(side, message, folder):
    with pytest.raises(ConfigError, match=message) as caught:
        evaluated(folder, side, retrieval=RetrievalConfig(source=source(folder)))
    assert "\n" not in str(caught.value)


def test_one_tower_does_not_teach(folder):
    config = run_config(folder)
    config.loss = {"name": "distill", "teacher": str(folder / "image")}
    config = from_config_dict(config)
    with pytest.raises(ConfigError, match=r"loss\.teacher=.*image holds only an image tower; a teacher needs both"):
        load_teacher(config, make_mesh(config.mesh), None, shapes_only=True)
