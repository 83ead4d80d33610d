"""Optimizers do what the code they are named after does, whether blocks are scanned or not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipjax.config import ConfigError, OptimizerConfig, ScheduleConfig
from clipjax.mesh import path_name
from clipjax.optim import OPTIMIZERS, make_optimizer, make_schedule
from clipjax.optim.adamw import AdamWConfig
from tests.torch_reference import import_torch

STEPS = 20
CONSTANT = ScheduleConfig(name="constant")
COSINE = ScheduleConfig(name="cosine", warmup_steps=5)
DECAYED = {
    "image/patch_embed/kernel",
    "image/position_embedding",
    "image/block_0/attention/qkv/kernel",
    "image/block_1/attention/qkv/kernel",
    "text/token_embedding/embedding",
    "text/projection/kernel",
}


def config_of(name: str, **fields) -> OptimizerConfig:
    return OPTIMIZERS[name].config(**fields)


def make_params(depth: int = 2) -> dict:
    """Every kind of parameter of the contract, float32 normals of size 0.1: small, so that rounding is too."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return np.asarray(0.1 * rng.standard_normal(shape), np.float32)

    def block():
        return {
            "ln_1": {"scale": normal(32)},
            "attention": {"qkv": {"kernel": normal(32, 3, 32), "bias": normal(3, 32)}},
        }

    return {
        "image": {
            "patch_embed": {"kernel": normal(48, 32)},
            "cls_token": normal(32),
            "position_embedding": normal(5, 32),
            **{f"block_{i}": block() for i in range(depth)},
        },
        "text": {"token_embedding": {"embedding": normal(40, 32)}, "projection": {"kernel": normal(32, 16)}},
        "logit_scale": np.float32(0.1),
        "logit_bias": np.float32(-0.1),
    }


def make_grads(params: dict, steps: int) -> list[dict]:
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(lambda p: np.asarray(rng.standard_normal(np.shape(p)), np.float32), params) for _ in range(steps)
    ]


def train(config: OptimizerConfig, params: dict, grads: list[dict]) -> dict:
    """Parameters after one step for each of grads; total_steps is their number."""
    tx = make_optimizer(config, params, total_steps=len(grads))

    @jax.jit
    def step(params, state, grad):
        updates, state = tx.update(grad, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state = tx.init(params)
    for grad in grads:
        params, state = step(params, state, grad)
    return jax.tree.map(np.asarray, params)


def by_name(tree: dict) -> dict:
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same_change(found: dict, expected: dict, start: dict, tolerance: float = 1e-5) -> None:
    """What training changed is equal, relative to the largest change of each parameter, but for the rounding of
    float32 parameters at each step."""
    found, expected, start = by_name(found), by_name(expected), by_name(start)
    assert found.keys() == expected.keys() == start.keys()
    for name, before in start.items():
        change = expected[name] - before.astype(np.float64)
        assert np.abs(change).max() > 0, f"the reference did not move {name}"
        error = np.abs(found[name] - before.astype(np.float64) - change).max()
        rounding = STEPS * np.spacing(np.abs(before).max())
        assert error < tolerance * np.abs(change).max() + rounding, f"{name}: {error:.1e}"


def train_torch(make, config: OptimizerConfig, params: dict, grads: list[dict], decayed=DECAYED) -> dict:
    """The same with a torch optimizer in float64; its learning rate is set from our schedule at each step."""
    torch = import_torch()
    schedule = make_schedule(config, len(grads))
    tensors = {name: torch.nn.Parameter(torch.tensor(p, dtype=torch.float64)) for name, p in by_name(params).items()}
    groups = [
        {"params": [t for name, t in tensors.items() if name in decayed], "weight_decay": config.weight_decay},
        {"params": [t for name, t in tensors.items() if name not in decayed], "weight_decay": 0.0},
    ]
    optimizer = make(groups)
    for step, grad in enumerate(grads):
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(step))
        for name, g in by_name(grad).items():
            tensors[name].grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
    leaves = [tensors[path_name(path)].detach().numpy() for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def stack_blocks(tree: dict) -> dict:
    """image/block_0, block_1, ... -> image/blocks with a leading layer axis, as scan_layers=True has them."""
    image = {name: leaf for name, leaf in tree["image"].items() if not name.startswith("block_")}
    blocks = [tree["image"][f"block_{i}"] for i in range(len(tree["image"]) - len(image))]
    return {**tree, "image": {**image, "blocks": jax.tree.map(lambda *layers: np.stack(layers), *blocks)}}


def test_adamw_equals_torch_adamw_with_openclip_decay_groups():
    torch = import_torch()
    params = make_params()
    config = AdamWConfig(learning_rate=1e-2, weight_decay=0.2, b1=0.9, b2=0.98, eps=1e-6, schedule=COSINE)
    grads = make_grads(params, STEPS)
    expected = train_torch(lambda g: torch.optim.AdamW(g, betas=(0.9, 0.98), eps=1e-6), config, params, grads)
    assert_same_change(train(config, params, grads), expected, params)


def test_lion_equals_timm_lion():
    timm = import_torch("timm.optim")
    params = make_params()
    config = config_of("lion", learning_rate=1e-3, weight_decay=1.0, b1=0.9, b2=0.99, schedule=COSINE)
    grads = make_grads(params, STEPS)
    expected = train_torch(lambda g: timm.Lion(g, betas=(0.9, 0.99)), config, params, grads)
    assert_same_change(train(config, params, grads), expected, params)


def test_lamb_equals_timm_lamb():
    timm = import_torch("timm.optim")
    params = make_params()
    config = config_of("lamb", learning_rate=1e-2, weight_decay=0.05, b2=0.999, schedule=COSINE)
    grads = make_grads(params, STEPS)

    def make(groups):
        return timm.Lamb(groups, betas=(0.9, 0.999), eps=1e-6, max_grad_norm=None)

    assert_same_change(train(config, params, grads), train_torch(make, config, params, grads), params)


def test_adafactor_equals_torch_adafactor():
    # torch factors every matrix, optax from 128 x 128 on: only sizes where they agree (see clipjax/optim/adafactor.py).
    torch = import_torch()
    rng = np.random.default_rng(0)
    params = {
        "image": {"mlp": {"kernel": np.asarray(0.02 * rng.standard_normal((128, 160)), np.float32)}},
        "text": {"ln": {"scale": np.ones(32, np.float32)}},
    }
    config = config_of("adafactor", learning_rate=1e-2, weight_decay=0.1, schedule=CONSTANT)
    grads = make_grads(params, STEPS)
    expected = train_torch(torch.optim.Adafactor, config, params, grads, decayed={"image/mlp/kernel"})
    assert_same_change(train(config, params, grads), expected, params)


def test_adafactor_equals_optax_adafactor_whatever_the_shapes():
    params = make_params()
    params["image"]["wide"] = {"kernel": np.asarray(0.02 * np.random.default_rng(2).standard_normal((128, 160)), "f4")}
    config = config_of("adafactor", learning_rate=1e-2, weight_decay=0.0, schedule=CONSTANT)
    grads = make_grads(params, 5)
    tx = optax.adafactor(1e-2)
    expected = jax.tree.map(jnp.asarray, params)
    state, update = tx.init(expected), jax.jit(tx.update)
    for grad in grads:
        updates, state = update(grad, state, expected)
        expected = optax.apply_updates(expected, updates)
    assert_same_change(train(config, params, grads), expected, params)


def test_bv_adafactor_equals_timm_big_vision_adafactor():
    timm = import_torch("timm.optim")
    torch = import_torch()
    params = make_params()
    config = config_of("bv_adafactor", learning_rate=1e-3, weight_decay=1e-3, b2=0.9, schedule=CONSTANT)
    grads = make_grads(params, STEPS)

    def make(groups):
        return timm.AdafactorBigVision(
            groups, min_dim_size_to_factor=32, beta2_cap=0.9, momentum_dtype=torch.float64, unscaled_wd=True
        )

    kernels = {name for name in DECAYED if name.endswith("kernel")}
    expected = train_torch(make, config, params, grads, decayed=kernels)
    assert_same_change(train(config, params, grads), expected, params)


def numpy_adam(config: OptimizerConfig, params: dict, grads: list[dict], decay_per_step) -> dict:
    """Adam in float64; decay_per_step(name, peak share r) is the share of the parameter that goes at a step."""
    schedule = make_schedule(config, len(grads))
    params = {name: p.astype(np.float64) for name, p in by_name(params).items()}
    m, v = ({name: np.zeros_like(p) for name, p in params.items()} for _ in range(2))
    for step, grad in enumerate(grads):
        rate = float(schedule(step))
        for name, g in by_name(grad).items():
            g = g.astype(np.float64)
            m[name] = config.b1 * m[name] + (1 - config.b1) * g
            v[name] = config.b2 * v[name] + (1 - config.b2) * g * g
            m_hat, v_hat = m[name] / (1 - config.b1 ** (step + 1)), v[name] / (1 - config.b2 ** (step + 1))
            decay = decay_per_step(name, rate / config.learning_rate) * params[name]
            params[name] = params[name] - rate * m_hat / (np.sqrt(v_hat) + config.eps) - decay
    return params


@pytest.mark.parametrize("name", ["adamw", "bv_adam"])
def test_adam_dialects_equal_their_rule_in_float64(name):
    params = make_params()
    config = config_of(name, learning_rate=1e-3, weight_decay=5e-3, b2=0.95, eps=1e-8, schedule=COSINE)
    grads = make_grads(params, STEPS)

    def decay(leaf, share):
        if name == "adamw":
            return config.learning_rate * share * config.weight_decay * (leaf in DECAYED)
        return share * config.weight_decay * leaf.endswith("kernel")

    expected = numpy_adam(config, params, grads, decay)
    found = by_name(train(config, params, grads))
    for leaf, value in expected.items():
        np.testing.assert_allclose(found[leaf], value, rtol=0, atol=1e-6, err_msg=leaf)


@pytest.mark.parametrize(("ours", "theirs"), [("adamw", "bv_adam"), ("lion", "bv_lion")])
def test_the_same_weight_decay_is_a_thousand_times_stronger_in_big_vision_at_learning_rate_1e_3(ours, theirs):
    params = make_params()
    no_grads = [jax.tree.map(np.zeros_like, params)]

    def shrinks(name, weight_decay):
        config = config_of(name, learning_rate=1e-3, weight_decay=weight_decay, schedule=CONSTANT)
        after, before = (by_name(t)["text/projection/kernel"] for t in (train(config, params, no_grads), params))
        return np.median(1 - np.float64(after) / before)

    assert shrinks(theirs, 5e-3) == pytest.approx(5e-3, rel=1e-4)
    assert shrinks(ours, 5e-3) == pytest.approx(5e-6, rel=1e-2)
    assert shrinks(ours, 5.0) == pytest.approx(shrinks(theirs, 5e-3), rel=1e-4)


def test_decay_leaves_norms_biases_scalars_and_tokens_alone():
    params = make_params()
    no_grads = [jax.tree.map(np.zeros_like, params)]

    def decayed(config):
        after, before = by_name(train(config, params, no_grads)), by_name(params)
        return {name for name in before if not np.array_equal(after[name], before[name])}

    assert decayed(config_of("adamw", weight_decay=0.5, schedule=CONSTANT)) == DECAYED
    kernels = {name for name in DECAYED if name.endswith("kernel")}
    assert decayed(config_of("bv_adam", weight_decay=5e-3, schedule=CONSTANT)) == kernels


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scanned_blocks_train_as_unrolled_ones(name):
    params = make_params()
    grads = make_grads(params, 3)
    # Layers of very different size: a norm taken over the whole stack would show.
    params["image"]["block_1"] = jax.tree.map(lambda p: 10 * p, params["image"]["block_1"])
    for grad in grads:
        grad["image"]["block_1"] = jax.tree.map(lambda g: 0.01 * g, grad["image"]["block_1"])
    config = config_of(name, learning_rate=1e-2, weight_decay=5e-3, schedule=CONSTANT)
    unrolled = train(config, params, grads)
    scanned = train(config, stack_blocks(params), [stack_blocks(grad) for grad in grads])
    assert_same_change(scanned, stack_blocks(unrolled), stack_blocks(params), tolerance=2e-5)


def test_adafactor_does_not_factor_over_the_layer_axis_of_a_deep_tower():
    params = {"image": {f"block_{i}": {"ln_1": {"scale": np.ones(32, np.float32)}} for i in range(40)}}
    grads = make_grads(params, 3)
    config = config_of("bv_adafactor", weight_decay=0.0, schedule=CONSTANT)
    scanned = train(config, stack_blocks(params), [stack_blocks(grad) for grad in grads])
    assert_same_change(scanned, stack_blocks(train(config, params, grads)), stack_blocks(params))


def test_muon_makes_query_key_and_value_updates_orthogonal_one_by_one():
    params = stack_blocks(make_params())
    grads = make_grads(params, 1)
    config = config_of("muon", learning_rate=1.0, weight_decay=0.0, b1=0.95, schedule=CONSTANT)
    name = "image/blocks/attention/qkv/kernel"
    change = by_name(train(config, params, grads))[name] - by_name(params)[name]
    for layer in range(2):
        for part in range(3):
            values = np.linalg.svd(change[layer, :, part, :], compute_uv=False) / (0.2 * np.sqrt(32))
            assert values[:-1].min() > 0.6 and values.max() < 1.25  # the iteration's own spread around 1


def test_muon_first_step_equals_torch_muon_and_adam_elsewhere():
    torch = import_torch()
    params = make_params()
    grads = make_grads(params, 1)
    options = dict(learning_rate=1e-2, weight_decay=0.1, b1=0.95, schedule=CONSTANT)
    config = config_of("muon", **options)
    found, start = by_name(train(config, params, grads)), by_name(params)
    adamw = by_name(train(config_of("adamw", **options), params, grads))
    for name, before in start.items():
        if not name.endswith("qkv/kernel"):
            np.testing.assert_array_equal(found[name], adamw[name])
            continue
        for part in range(3):
            matrix = torch.nn.Parameter(torch.tensor(before[:, part].copy()))
            matrix.grad = torch.tensor(by_name(grads[0])[name][:, part].copy())
            torch.optim.Muon([matrix], lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw").step()
            change = matrix.detach().numpy() - before[:, part]
            error = np.linalg.norm(found[name][:, part] - before[:, part] - change) / np.linalg.norm(change)
            assert error < 0.02  # torch iterates in bfloat16


def test_gradients_are_clipped_by_their_global_norm_before_anything_else():
    params = make_params()
    grads = make_grads(params, 3)
    grads[1] = jax.tree.map(lambda g: 1e-3 * g, grads[1])  # below the limit: left as it is
    config = AdamWConfig(learning_rate=1e-2, grad_clip_norm=1.0, eps=1e-2)

    def clip(grad):
        norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in by_name(grad).values()))
        return jax.tree.map(lambda g: np.asarray(g / max(norm, 1.0), np.float32), grad)

    expected = train(dataclasses.replace(config, grad_clip_norm=0.0), params, [clip(grad) for grad in grads])
    assert_same_change(train(config, params, grads), expected, params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_frozen_tower_has_no_state_no_update_and_no_part_in_the_clipped_norm(name):
    params = stack_blocks(make_params())
    config = config_of(name, weight_decay=5e-3, image_lr_multiplier=0.0, grad_clip_norm=1.0)
    if hasattr(config, "eps"):
        config = dataclasses.replace(config, eps=1e-2)
    state = make_optimizer(config, params, 10).init(params)
    assert not [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state) if "image" in path_name(path)]
    grads = make_grads(params, 2)
    loud = [{**grad, "image": jax.tree.map(lambda g: 1e6 * g, grad["image"])} for grad in grads]
    after, with_loud_gradients = (train(config, params, g) for g in (grads, loud))
    jax.tree.map(np.testing.assert_array_equal, after, with_loud_gradients)
    jax.tree.map(np.testing.assert_array_equal, after["image"], params["image"])
    assert np.abs(after["text"]["projection"]["kernel"] - params["text"]["projection"]["kernel"]).max() > 0


def test_a_tower_multiplier_scales_its_updates_and_its_decay_and_nothing_else():
    params = make_params()
    grads = make_grads(params, 1)
    config = AdamWConfig(learning_rate=1e-2, weight_decay=0.5)
    plain, tenth = (
        first_updates(dataclasses.replace(config, image_lr_multiplier=m), params, grads[0]) for m in (1.0, 0.1)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, 0.1 * a, rtol=1e-6), plain["image"], tenth["image"])
    jax.tree.map(np.testing.assert_array_equal, plain["text"], tenth["text"])
    np.testing.assert_array_equal(plain["logit_scale"], tenth["logit_scale"])


def first_updates(config: OptimizerConfig, params: dict, grad: dict) -> dict:
    tx = make_optimizer(config, params, 10)
    return tx.update(grad, tx.init(params), params)[0]


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"adafactor"}))
def test_first_moments_in_bfloat16_have_path_and_shape_of_their_parameters(name):
    params = stack_blocks(make_params())
    config = config_of(name, weight_decay=5e-3, moment_dtype="bfloat16")
    tx = make_optimizer(config, jax.eval_shape(lambda: params), 10)
    state = by_name_and_dtype(jax.eval_shape(tx.init, params))
    moments = [(path, shape) for path, shape, dtype in state if dtype == jnp.bfloat16]
    for name, p in by_name(params).items():
        assert [shape for path, shape in moments if path.endswith("/" + name)] == [p.shape]


def by_name_and_dtype(tree) -> list[tuple]:
    return [(path_name(path), x.shape, x.dtype) for path, x in jax.tree_util.tree_leaves_with_path(tree)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ScheduleConfig("cosine"), {0: 1.0, 50: 0.5, 75: 0.5 - 0.5 * np.sqrt(0.5), 100: 0.0, 120: 0.0}),
        (ScheduleConfig("cosine", warmup_steps=20), {0: 0.05, 9: 0.5, 19: 1.0, 20: 1.0, 60: 0.5, 100: 0.0}),
        (ScheduleConfig("cosine", final_fraction=0.1), {0: 1.0, 50: 0.55, 100: 0.1}),
        (ScheduleConfig("linear", warmup_steps=20), {0: 0.05, 20: 1.0, 40: 0.75, 80: 0.25, 100: 0.0}),
        (ScheduleConfig("linear", final_fraction=0.2), {0: 1.0, 50: 0.6, 100: 0.2}),
        (ScheduleConfig("constant", warmup_steps=10), {0: 0.1, 9: 1.0, 99: 1.0}),
        (ScheduleConfig("constant", cooldown_steps=10), {89: 1.0, 90: 1.0, 95: 0.5, 99: 0.1, 100: 0.0, 101: 0.0}),
        (
            ScheduleConfig("rsqrt", warmup_steps=10, rsqrt_timescale=30, cooldown_steps=10),
            {0: 0.1, 9: 1.0, 10: 1.0, 40: np.sqrt(0.5), 90: np.sqrt(3 / 11), 95: 0.5 * np.sqrt(30 / 115)},
        ),
    ],
    ids=lambda value: value.name if isinstance(value, ScheduleConfig) else "",
)
def test_schedule_values_at_exact_steps(schedule, expected):
    learning_rate = make_schedule(AdamWConfig(learning_rate=2e-3, schedule=schedule), total_steps=100)
    for step, share in expected.items():
        assert float(learning_rate(step)) == pytest.approx(2e-3 * share, rel=1e-6, abs=1e-10), step
        assert float(jax.jit(learning_rate)(jnp.int32(step))) == pytest.approx(2e-3 * share, rel=1e-6, abs=1e-10)


def big_vision_rates(peak, total, warmup, steps, timescale=None, cooldown=0):
    """big_vision's rsqrt, or its cosine where timescale is None, for the first `steps` updates; float64."""
    step = np.arange(steps, dtype=np.float64)
    after = np.maximum(step - warmup, 0)
    if timescale:
        rates = peak / np.sqrt(1 + after / timescale)
    else:
        rates = peak * 0.5 * (1 + np.cos(np.pi * after / (total - warmup)))
    rates *= np.minimum(1, step / warmup) if warmup else 1
    return rates * (np.minimum(1, (total - step) / cooldown) if cooldown else 1)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name.startswith("bv_")])
@pytest.mark.parametrize(
    ("schedule", "others"),
    [
        (ScheduleConfig("cosine", warmup_steps=4), {}),
        (ScheduleConfig("cosine", warmup_steps=1), {}),
        (ScheduleConfig("cosine"), {}),
        (ScheduleConfig("rsqrt", 5, rsqrt_timescale=7, cooldown_steps=6), dict(timescale=7, cooldown=6)),
    ],
)
def test_bv_optimizers_warm_up_from_zero_as_big_vision_does(name, schedule, others):
    config = config_of(name, learning_rate=2e-3, weight_decay=0.0, schedule=schedule)
    rates = make_schedule(config, STEPS)
    expected = big_vision_rates(2e-3, STEPS, schedule.warmup_steps, STEPS, **others)
    np.testing.assert_allclose([float(rates(step)) for step in range(STEPS)], expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(("name", "first"), [("lion", 1e-2 / 3), ("bv_lion", 0.0)])
def test_the_first_update_of_a_warm_up_has_the_rate_of_its_dialect(name, first):
    params = {"text": {"kernel": np.ones((2, 2), np.float32)}}
    config = config_of(name, learning_rate=1e-2, weight_decay=0.0, schedule=ScheduleConfig("linear", warmup_steps=3))
    (change,) = jax.tree.leaves(first_updates(config, params, params))
    np.testing.assert_allclose(change, -first, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "bv_lion"])
def test_the_schedule_follows_the_step_that_it_is_given_and_the_moments_the_updates(name):
    params = make_params()
    grads = make_grads(params, 2)
    config = config_of(name, learning_rate=1e-2, weight_decay=1e-3, image_lr_multiplier=0.5, schedule=COSINE)
    tx = make_optimizer(config, params, STEPS)
    update = jax.jit(tx.update)
    rate = make_schedule(config, STEPS)
    _, state = update(grads[0], tx.init(params), params, step=1)
    near, _ = update(grads[1], state, params)  # counts on: step 2
    far, after = update(grads[1], state, params, step=9)
    ratio = float(rate(9)) / float(rate(2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, ratio * a, rtol=1e-5, atol=1e-9), near, far)
    counts = [int(leaf) for leaf in jax.tree.leaves(after) if np.shape(leaf) == () and leaf.dtype == jnp.int32]
    assert counts.count(10) == 1 and set(counts) <= {2, 10}


def test_the_update_follows_the_schedule():
    params = make_params()
    grads = make_grads(params, 1) * 4  # Adam of a constant gradient is its sign, whatever the step
    schedule = ScheduleConfig("linear", warmup_steps=2)
    config = AdamWConfig(learning_rate=1e-2, weight_decay=0.0, eps=0.0, schedule=schedule)
    change = np.abs(train(config, params, grads)["image"]["cls_token"] - params["image"]["cls_token"])
    np.testing.assert_allclose(change, 1e-2 * (0.5 + 1.0 + 1.0 + 0.5), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adamW"}, r"config\.optimizer\.name='adamW' is unknown\. Did you mean 'adamw'\?"),
        ({"name": "bv_adafactr"}, r"Did you mean 'bv_adafactor'\?"),
        ({"image_lr_multiplier": 0.0, "text_lr_multiplier": 0.0}, r"both 0: nothing is left to train"),
        ({"name": "muon"}, r"config\.optimizer is a AdamWConfig, but 'muon' reads a MuonConfig"),
        ({"name": "bv_adam", "weight_decay": 0.2}, r"What AdamW calls 0\.2 is 0\.0001 here"),
        ({"schedule": ScheduleConfig("cosin")}, r"schedule\.name='cosin' is unknown\. Did you mean 'cosine'\?"),
        ({"schedule": ScheduleConfig(warmup_steps=100)}, r"warmup_steps=100 and cooldown_steps=0 do not fit"),
        ({"schedule": ScheduleConfig("rsqrt", 60, cooldown_steps=60)}, r"do not fit into config\.total_steps=100"),
        ({"schedule": ScheduleConfig("cosine", cooldown_steps=5)}, r"is for rsqrt and constant; cosine falls"),
        ({"schedule": ScheduleConfig("constant", final_fraction=0.5)}, r"final_fraction=0.5 is for cosine and linear"),
    ],
)
def test_values_that_cannot_train_are_refused_by_name(changes, message):
    config = config_of("bv_adam") if changes.get("name") == "bv_adam" else AdamWConfig()
    config = dataclasses.replace(config, **{"learning_rate": 5e-4, **changes})
    with pytest.raises(ConfigError, match=message):
        make_optimizer(config, make_params(), total_steps=100)
