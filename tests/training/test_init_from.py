"""Runs that start from the towers of others: which tower comes from where, what is checked, and what is refused."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from clipjax.commands import import_weights
from clipjax.config import ConfigError, ExperimentConfig, LoraConfig, MeshConfig, ModelConfig
from clipjax.mesh import make_mesh
from clipjax.models.towers.absent import NoImageConfig, NoTextConfig
from clipjax.models.towers.text import TextTransformerConfig
from clipjax.models.towers.vit import ViTConfig
from clipjax.optim.adamw import AdamWConfig
from clipjax.runs.checkpoint import save_weights
from clipjax.runs.fingerprint import FingerprintError
from clipjax.runs.integrity import CheckpointError
from clipjax.runs.weights import check_init_from, first_state, random_and_frozen
from clipjax.training.check import check
from clipjax.training.state import abstract_state, create_state

SMALL = dict(depth=1, num_heads=2, mlp_dim=16)
IMAGE = ViTConfig(width=16, image_size=16, patch_size=8, **SMALL)
TEXT = TextTransformerConfig(width=16, vocab_size=40, context_length=6, **SMALL)
# Another text tower and another image tower than those above.
OTHER_TEXT = TextTransformerConfig(width=8, vocab_size=50, context_length=4, pool="last", causal=False, **SMALL)
OTHER_IMAGE = dataclasses.replace(IMAGE, patch_size=4, pool="gap")
BARE_IMAGE = dataclasses.replace(IMAGE, projection=False)
MODELS = {
    "both": ModelConfig(image=IMAGE, text=TEXT, embed_dim=12, logit_scale_init=3.0),
    "image": ModelConfig(image=IMAGE, text=NoTextConfig(), embed_dim=12),
    "bare image": ModelConfig(image=BARE_IMAGE, text=NoTextConfig(), embed_dim=16),
    "text": ModelConfig(image=NoImageConfig(), text=TEXT, embed_dim=12),
    "lit": ModelConfig(image=IMAGE, text=OTHER_TEXT, embed_dim=12),
}
MESH = make_mesh(MeshConfig())


def config(model, **changes):
    model = MODELS.get(model, model)
    return ExperimentConfig(model=model, total_steps=10, **{"optimizer": AdamWConfig()} | changes)


def prints(config):
    return import_weights.weights_fingerprint(config)


@pytest.fixture(scope="module")
def given():
    """{model: its weights in a run}."""
    rng = np.random.default_rng(0)
    shapes = {name: abstract_state(config(name), MESH).params for name in MODELS if name != "lit"}
    return jax.tree.map(lambda leaf: np.asarray(rng.normal(size=leaf.shape), np.float32), shapes)


@pytest.fixture(scope="module")
def runs(given, tmp_path_factory):
    """A directory of each model's weights, as clipjax import writes them."""
    folder = tmp_path_factory.mktemp("runs")
    for name, params in given.items():
        own = config(name)
        save_weights(folder / name, {"params": params}, config=own, fingerprint=prints(own))
    return folder


@functools.cache
def fresh_state(model, optimizer):
    return create_state(config(model, optimizer=optimizer), MESH)


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
    """create_state compiles each time it is called; here once for each model."""
    monkeypatch.setattr("clipjax.training.init_from.create_state", lambda c, mesh: fresh_state(c.model, c.optimizer))


def equal(one, other):
    return all(map(np.array_equal, *(jax.tree.leaves(tree) for tree in (one, other))))


def start(capsys, model, **changes):
    """(parameters of a run's first state, parameters that it would have by its seed, the line that it prints)."""
    own = config(model, **changes)
    state = first_state(own, MESH, prints(own))
    return state.params, fresh_state(own.model, own.optimizer).params, capsys.readouterr().out.strip()


def test_an_image_tower_of_a_whole_model_starts_a_run_with_a_new_text_tower(runs, given, capsys):
    """LiT: nothing of the text tower is compared, and nothing but the image tower is taken."""
    frozen = AdamWConfig(image_lr_multiplier=0.0)
    params, fresh, line = start(capsys, "lit", init_image_from=str(runs / "both"), optimizer=frozen)
    assert equal(params["image"], given["both"]["image"])
    for name in ("text", "logit_scale"):
        assert equal(params[name], fresh[name])
    assert line == f"Weights: image tower from {runs}/both, step 0; text tower and temperature new"


def test_random_weights_that_nothing_trains_are_told(runs, capsys):
    """LiT whose weights were forgotten, in a run and in clipjax check."""
    frozen = AdamWConfig(image_lr_multiplier=0.0, text_unlocked_blocks=0)
    expected = [
        f"WARNING: the {side} tower starts with random weights, and config.optimizer.{field}=0 leaves {share} of it "
        f"untrained. Name weights to start from with config.init_from or config.init_{side}_from."
        for side, field, share in (("image", "image_lr_multiplier", "all"), ("text", "text_unlocked_blocks", "part"))
    ]
    own = config("lit", optimizer=frozen)
    assert check_init_from(own, MESH, prints(own)).splitlines() == expected
    *_, line = start(capsys, "lit", init_image_from=str(runs / "both"), optimizer=frozen)
    assert line.splitlines()[:-1] == expected[1:]
    adapters = dataclasses.replace(config("lit"), lora=LoraConfig(rank=2, text=False))
    assert "config.lora leaves all of it untrained" in random_and_frozen(adapters)[0]
    assert not random_and_frozen(config("lit"))
    assert not random_and_frozen(dataclasses.replace(own, init_from=str(runs / "both")))


@pytest.mark.parametrize("field", ["init_from", "init_image_from"])
def test_a_directory_of_one_tower_gives_that_tower(field, runs, given, capsys):
    params, fresh, line = start(capsys, "both", **{field: str(runs / "image")})
    assert equal(params["image"], given["image"]["image"]) and equal(params["text"], fresh["text"])
    assert line == f"Weights: image tower from {runs}/image, step 0; text tower and temperature new"


def test_each_tower_may_come_from_another_directory(runs, given, capsys):
    named = dict(init_image_from=str(runs / "image"), init_text_from=str(runs / "text"))
    params, fresh, line = start(capsys, "both", **named)
    for side in ("image", "text"):
        assert equal(params[side], given[side][side])
    assert equal(params["logit_scale"], fresh["logit_scale"])
    assert line == (
        f"Weights: image tower from {runs}/image, step 0; text tower from {runs}/text, step 0; temperature new"
    )


def test_init_from_gives_what_the_fields_of_one_tower_do_not(runs, given, capsys):
    params, _, line = start(capsys, "both", init_from=str(runs / "both"), init_image_from=str(runs / "image"))
    assert equal(params["image"], given["image"]["image"])
    for name in ("text", "logit_scale"):
        assert equal(params[name], given["both"][name])
    both, image = runs / "both", runs / "image"
    assert line == f"Weights: image tower from {image}, step 0; text tower and temperature from {both}, step 0"


def test_a_tower_without_a_projection_gets_a_new_one_unless_it_is_frozen(runs, given, capsys):
    named = dict(init_image_from=str(runs / "bare image"))
    params, fresh, line = start(capsys, "both", **named)
    expected = given["bare image"]["image"] | {"projection": fresh["image"]["projection"]}
    assert equal(params["image"], expected)
    assert line.startswith(f"Weights: image tower from {runs}/bare image, step 0 with a new projection; text tower")
    frozen = config("both", optimizer=AdamWConfig(image_lr_multiplier=0.0), **named)
    message = r"bare image has no projection.*frozen.*Set config\.model\.image\.projection=False and .*embed_dim=16"
    with pytest.raises(CheckpointError, match=message):
        check_init_from(frozen, MESH, prints(frozen))


def refused(runs, error, message, model, **changes):
    own = config(model, **{name: str(runs / value) for name, value in changes.items()})
    with pytest.raises(error, match=message) as caught:
        check_init_from(own, MESH, prints(own))
    return str(caught.value)


def test_only_the_given_towers_shapes_and_meaning_are_compared(runs):
    other = dataclasses.replace(MODELS["both"], image=dataclasses.replace(IMAGE, mlp_dim=24), text=OTHER_TEXT)
    text = refused(runs, CheckpointError, "init_image_from=.*does not fit", other, init_image_from="both")
    assert "image/blocks/mlp/up/kernel" in text and "text/" not in text and "logit" not in text
    other = dataclasses.replace(MODELS["both"], image=dataclasses.replace(IMAGE, activation="quick_gelu"))
    other = dataclasses.replace(other, text=OTHER_TEXT)
    text = refused(runs, FingerprintError, "config.model.image.activation", other, init_image_from="image")
    assert "config.model.text" not in text


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            {"init_text_from": "image"},
            "init_text_from=.*image holds only an image tower, which config.init_image_from takes",
        ),
        (
            {"init_from": "text", "init_text_from": "both"},
            "init_from=.*text holds only a text tower, and config.init_text_from gives another one. Unset one",
        ),
        ({"init_text_from": "nowhere"}, "config.init_text_from=.*nowhere does not exist"),
    ],
)
def test_a_directory_that_cannot_give_a_tower_is_refused(named, message, runs):
    refused(runs, CheckpointError, message, "both", **named)


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_model_of_one_tower_has_no_temperature_and_is_not_trained(side, given):
    assert set(given[side]) == {side}
    missing = {"image": "text", "text": "image"}[side]
    with pytest.raises(ConfigError, match=rf"config\.model\.{missing}\.name='absent'.*both towers.*init_{side}_from"):
        check(config(side, global_batch_size=8), num_devices=8)
