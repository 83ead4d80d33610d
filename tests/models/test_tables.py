"""Every row of the tables of towers says the truth about its tower."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from clipjax.config import ConfigError, ImageTowerConfig, PatchBudget, TextTowerConfig
from clipjax.config.fields import declarations
from clipjax.models import IMAGE_TOWERS, TEXT_TOWERS, TowerOutput, image_tower, patch_budget
from clipjax.models.pixels import image_of
from clipjax.models.presets import get_preset
from clipjax.models.towers.vit import ViTConfig
from clipjax.training.init_from import unused_options

ROWS = [
    pytest.param(name, row, base, id=name)
    for table, base in ((IMAGE_TOWERS, ImageTowerConfig), (TEXT_TOWERS, TextTowerConfig))
    for name, row in table.items()
]


@pytest.mark.parametrize(("name", "row", "base"), ROWS)
def test_a_rows_options_have_its_name_roles_and_the_fields_it_mentions(name, row, base):
    config = row.config()
    assert config.name == name and isinstance(config, base)
    own = {declared for declared, _, _ in declarations(config)}  # raises TypeError for a field without a role
    assert own == {field.name for field in dataclasses.fields(config)}
    assert own >= {*row.tensor_axis, *row.random}
    assert ("max_patches" in own) == (row.patch_budget is not None)
    assert set(row.random) == own & {"dropout", "drop_path", "patch_dropout"}
    row.check(config, config.width)


@pytest.mark.parametrize(("name", "row", "base"), ROWS)
def test_a_rows_tower_returns_what_the_row_says(name, row, base):
    config, embed_dim = row.config(), 16
    tower = row.module(config, embed_dim, jnp.float32)
    columns = {n: jax.ShapeDtypeStruct(shape, dtype) for n, (shape, dtype) in row.columns(config, 2).items()}
    x = columns["text"] if base is TextTowerConfig else image_of(columns)

    def run(x, hidden_layers=()):
        x = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.uint8 else a, x)
        return tower.init_with_output(jax.random.key(0), x, False, hidden_layers)

    output, variables = jax.eval_shape(run, x)
    assert isinstance(output, TowerOutput) and output.hidden == ()
    assert output.pooled.shape == (2, embed_dim) and output.tokens.shape[0] == 2
    assert ("batch_stats" in variables) == row.running_statistics
    if row.flops:
        assert row.flops(config, embed_dim).tokens == output.tokens.shape[1:]
    if row.hidden_states:
        (hidden,) = jax.eval_shape(lambda x: run(x, (-1,)), x)[0].hidden
        assert hidden.state.shape == hidden.normed.shape and hidden.state.shape[-1] == config.width
    else:
        with pytest.raises(ConfigError, match=f"tower '{name}' has no states of layers"):
            jax.eval_shape(lambda x: run(x, (-1,)), x)


def test_a_towers_name_and_dataclass_must_agree():
    with pytest.raises(ConfigError, match="'resnet' goes with ResNetConfig, not with ViTConfig"):
        image_tower(ViTConfig(name="resnet"))
    assert patch_budget(ViTConfig()) is None
    assert patch_budget(get_preset("siglip2_naflex_b16").image) == PatchBudget(16, 256)


def test_init_from_compares_a_vits_options_that_naflex_lacks_only_if_they_are_used():
    vit, naflex = get_preset("siglip2_b16_256"), get_preset("siglip2_naflex_b16")
    unused = unused_options(vit, naflex)
    assert {"image.rope", "image.norm_after_pool", "image.position"} <= unused
    assert not {"image.pool", "image.num_heads", "text.pool"} & unused
    turned = dataclasses.replace(vit, image=dataclasses.replace(vit.image, rope=True))
    assert "image.rope" not in unused_options(turned, naflex)
