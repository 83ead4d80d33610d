"""Model FLOPs of a step follow the shapes of its batch, and peaks are published ones or none."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from clipjax.config import DecoderConfig
from clipjax.data.cut import REST, WHOLE
from clipjax.mesh import make_mesh
from clipjax.models.presets import get_preset
from clipjax.planning.chips import CHIPS
from clipjax.planning.flops import BatchFlops, step_flops, traced_flops
from clipjax.planning.peaks import SAME_UNITS, peak_of_device, peak_of_mesh
from clipjax.training.state import abstract_state
from clipjax.training.step import batch_shapes, make_train_step
from clipjax.training.teacher import EmbeddedTeacher, Teacher
from tests.tiny import BATCH, tiny_config


def batch_of(config, **columns):
    shapes = {name: shape for name, (shape, _) in batch_shapes(config).items()} | columns
    return {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}


def total(config):
    return sum(step_flops(config).values())


def test_the_longest_batch_has_the_flops_of_the_plan():
    config = tiny_config()
    assert BatchFlops(config)(batch_of(config)) == total(config)


def test_the_count_is_near_the_products_of_the_programs_own_step():
    config = tiny_config((1, 1, 1), comm="dense") if jax.device_count() == 1 else tiny_config()
    mesh = make_mesh(config.mesh)
    state = abstract_state(config, mesh)
    batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in batch_shapes(config).items()}
    program = traced_flops(make_train_step(config, mesh, state), state, batch)
    # The program's loss is traced as one device's; projections of frozen inputs need no backward pass.
    assert total(config) - step_flops(config)["loss"] == pytest.approx(program, rel=0.1)


def test_texts_cut_to_shorter_lengths_count_less():
    config = tiny_config()
    short = BatchFlops(config)(batch_of(config, text=(BATCH, 4)))
    both = BatchFlops(config)(batch_of(config, text=(BATCH // 2, 4), **{REST: (BATCH // 2, 8)}))
    assert short < both < total(config)
    assert both == pytest.approx((short + total(config)) / 2)


def test_a_captioner_counts_the_columns_of_the_batch():
    config = tiny_config()
    decoder = DecoderConfig(depth=1, width=config.model.text.width, num_heads=4, mlp_dim=64)
    text = dataclasses.replace(config.model.text, causal=True)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, text=text, decoder=decoder))
    columns = text.context_length // 2
    short = dataclasses.replace(text, context_length=columns)
    short = dataclasses.replace(config, model=dataclasses.replace(config.model, text=short))
    shapes = {name: column.shape for name, column in batch_of(config, text=(BATCH, columns)).items()}
    assert step_flops(config, shapes)["captioner"] == step_flops(short)["captioner"] < step_flops(config)["captioner"]


def test_the_longest_batch_is_one_that_training_draws():
    image = dataclasses.replace(get_preset("siglip2_naflex_b16").image, max_patches=64, patch_budgets=(8, 16))
    config = tiny_config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, image=image))
    assert batch_shapes(config)["image"][0][:2] == (BATCH, 16)


def test_images_in_a_smaller_budget_count_less():
    preset = get_preset("siglip2_naflex_b16")
    config = dataclasses.replace(tiny_config(), model=preset)
    shape, most = batch_shapes(config)["image"][0], preset.image.max_patches
    whole, half = (
        BatchFlops(config)(batch_of(config, image=(BATCH, patches, *shape[2:]))) for patches in (most, most // 2)
    )
    text = sum(value for part, value in step_flops(config).items() if not part.startswith("image"))
    assert whole == total(config) and 0.4 < (half - text) / (whole - text) < 0.5


def test_several_captions_of_an_image_count_each():
    config = dataclasses.replace(
        tiny_config(), data=dataclasses.replace(tiny_config().data, captions_per_image=3),
        loss=dataclasses.replace(tiny_config().loss, repeats="positives"),
    )  # fmt: skip
    assert BatchFlops(config)(batch_of(config)) == total(config)
    assert step_flops(config)["text tower"] == 3 * step_flops(tiny_config())["text tower"]


def test_accumulation_and_recomputation_count_nothing():
    config = tiny_config()
    model = dataclasses.replace(config.model, image=dataclasses.replace(config.model.image, remat="block"))
    assert total(dataclasses.replace(config, accumulation_steps=2, model=model)) == total(config)


def test_embeddings_that_are_read_count_nothing_and_a_frozen_tower_its_forward_pass():
    config = tiny_config(image_lr_multiplier=0.0)
    forward = step_flops(config)["image tower"]
    assert forward == pytest.approx(step_flops(tiny_config())["image tower"] / 3)
    read = dataclasses.replace(config, data=dataclasses.replace(config.data, image_embeddings="somewhere"))
    assert step_flops(read)["image tower"] == step_flops(read)["image attention"] == 0
    assert BatchFlops(read)(batch_of(read)) == total(config) - forward - step_flops(config)["image attention"]


def test_a_teacher_that_runs_counts_its_forward_pass_and_reads_whole_texts():
    config = tiny_config()
    towers = sum(value for part, value in step_flops(config).items() if part != "loss")
    taught = BatchFlops(config, Teacher(config, {}))
    assert taught(batch_of(config)) == pytest.approx(total(config) + towers / 3)
    cut = {"text": (BATCH // 2, 4), REST: (BATCH // 2, 4)}
    alone = BatchFlops(config)(batch_of(config, **cut))
    assert taught(batch_of(config, **cut, **{WHOLE: (BATCH, 8)})) == pytest.approx(alone + towers / 3)
    assert BatchFlops(config, EmbeddedTeacher(32, 10.0))(batch_of(config)) == total(config)


@pytest.mark.parametrize("name", [*CHIPS])
def test_known_chips_have_their_published_peak(name):
    device = SimpleNamespace(device_kind=CHIPS[name].device_kind)
    assert peak_of_device(device, "bfloat16") == CHIPS[name].peak
    assert peak_of_device(device, "float32") in (CHIPS[name].peak, CHIPS[name].peak / 2)  # TPU, TF32


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H100 PCIe", "TPU v3", ""])
def test_others_have_none_rather_than_a_guess(kind):
    assert peak_of_device(SimpleNamespace(device_kind=kind), "bfloat16") is None


def test_float32_of_a_higher_precision_has_no_peak_and_other_names_are_the_same_chips():
    v5e, a100 = (SimpleNamespace(device_kind=kind) for kind in ("TPU v5e", "NVIDIA A100-SXM4-40GB"))
    with jax.default_matmul_precision("highest"):
        assert peak_of_device(v5e, "float32") is None
        assert peak_of_device(v5e, "bfloat16") == CHIPS["v5e"].peak
    assert peak_of_device(a100, "float32") == 156e12 and set(SAME_UNITS.values()) <= set(CHIPS)
    devices = np.array([v5e] * 8).reshape(8, 1, 1)
    assert peak_of_mesh(SimpleNamespace(devices=devices), "bfloat16") == 8 * 197e12
