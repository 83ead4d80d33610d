"""A batch whose texts are cut gives the loss and the gradient of the whole batch, by at most MAX_PROGRAMS programs."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from clipjax.config import ConfigError, DecoderConfig
from clipjax.data.cut import REST, WHOLE
from clipjax.losses import LOSSES
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.models.towers.bert import BertConfig
from clipjax.models.towers.naflex import naflex_of
from clipjax.models.towers.text import TextTransformerConfig
from clipjax.planning.hlo import collectives, parse
from clipjax.training import cut
from clipjax.training.check import check
from clipjax.training.cut import chosen_lengths, cut_batches, describe_planned, describe_text_cut, text_cut
from clipjax.training.gradients import make_loss_and_gradients
from clipjax.training.state import create_state
from clipjax.training.step import CompiledSteps, batch_shapes
from clipjax.training.teacher import Teacher
from tests.tiny import IMAGE_SIZE, VOCAB, tiny_config

BATCH, CONTEXT, END = 128, 64, VOCAB - 1
SMALL = dict(vocab_size=VOCAB, context_length=CONTEXT, width=16, depth=1, num_heads=2, mlp_dim=32)
CLIP = TextTransformerConfig(scan_layers=False, **SMALL)
BERT = BertConfig(scan_layers=False, projection_bias=True, **SMALL)


def config_of(text=CLIP, loss="softmax", data=(), **changes):
    config = tiny_config(loss=loss)
    image = replace(config.model.image, depth=1, scan_layers=False)
    model = replace(config.model, image=image, text=text, **changes.pop("model", {}))
    return replace(config, global_batch_size=BATCH, model=model, data=replace(config.data, **dict(data)), **changes)


def batch_of(captions=1, long_every=16, long=40, seed=0):
    """Texts of 4 to 11 tokens; every sixteenth has 40, so that each of eight devices has one."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 12, (BATCH, captions))
    lengths[::long_every] = long
    text = np.zeros((BATCH, captions, CONTEXT), np.int32)
    for at, length in np.ndenumerate(lengths):
        text[at][: length - 1], text[at][length - 1] = rng.integers(1, END, length - 1), END
    image = rng.integers(0, 256, (BATCH, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    return {"image": image, "text": text[:, 0] if captions == 1 else text, "pair_id": np.arange(BATCH, dtype=np.int32)}


def loss_and_gradient(config, devices, batch, *, cut):
    """(shapes of the texts, loss, gradient) of one batch, cut as a run would or whole."""
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    state = create_state(config, mesh)
    if cut:
        ((batch, _),) = cut_batches(config, mesh, None, iter([(batch, None)]))
    columns = [name for name in (*batch_shapes(config), REST) if name in batch]
    shapes = [batch[name].shape[-1] for name in ("text", REST) if name in batch]
    value = jax.jit(make_loss_and_gradients(config, mesh))
    on_mesh = jax.device_put({name: batch[name] for name in columns}, batch_sharding(mesh))
    loss, _, gradient, _ = value(state.params, state.batch_stats, on_mesh, jax.random.key(0))
    return shapes, float(loss), jax.tree.map(np.asarray, gradient)


def assert_cut_equals_whole(config, devices, batch, lengths):
    shapes, loss, gradient = loss_and_gradient(config, devices, batch, cut=True)
    assert shapes == lengths
    whole, expected_loss, expected = loss_and_gradient(config, devices, batch, cut=False)
    assert whole == [CONTEXT]
    assert loss == pytest.approx(expected_loss, rel=2e-6)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6 * largest), gradient, expected)


@pytest.fixture(autouse=True)
def few_rows_are_enough(monkeypatch):
    monkeypatch.setattr(cut, "MIN_ROWS_OF_SEVERAL", 16)


@pytest.mark.parametrize(("loss", "devices"), [pytest.param("softmax", 1, marks=pytest.mark.slow), ("sigmoid", 8)])
def test_loss_and_gradient_of_a_cut_batch_are_the_whole_ones(loss, devices):
    assert_cut_equals_whole(config_of(loss=loss), devices, batch_of(), [16, 48])


@pytest.mark.slow
def test_one_length_for_all_rows_gives_the_whole_loss_and_gradient():
    assert_cut_equals_whole(config_of(data={"short_texts": 0.0}), 1, batch_of(), [48])


@pytest.mark.slow
def test_bert_masks_its_padding_and_is_cut_too():
    assert_cut_equals_whole(config_of(BERT), 1, batch_of(long_every=1, long=20), [24])


@pytest.mark.slow
def test_micro_batches_are_cut_alike():
    assert_cut_equals_whole(config_of(accumulation_steps=2), 2, batch_of(), [16, 48])


@pytest.mark.slow
def test_several_captions_of_an_image_are_cut_alike():
    config = config_of(data={"captions_per_image": 2})
    config = replace(config, loss=replace(config.loss, repeats="positives"))
    assert_cut_equals_whole(config, 1, batch_of(captions=2), [16, 48])


@pytest.mark.slow
def test_coca_is_cut_to_one_length_and_counts_the_same_tokens():
    text = replace(CLIP, pool="cls", eos_id=END)
    decoder = DecoderConfig(width=16, depth=1, num_heads=2, mlp_dim=32)
    config = replace(config_of(text, model={"decoder": decoder}), loss=LOSSES["coca"].config(name="coca"))
    assert_cut_equals_whole(config, 1, batch_of(long_every=1, long=20), [24])


@pytest.mark.slow
def test_rows_stay_on_their_devices():
    """Two lengths add no exchange of activations: the gradient of the text tower is summed twice, and that is all."""
    config = config_of()
    mesh = make_mesh(config.mesh, jax.devices()[:8])
    state = create_state(config, mesh)
    texts = {"one": {"text": (BATCH, 48)}, "two": {"text": (BATCH // 2, 16), REST: (BATCH // 2, 48)}}
    received = {}
    for name, shapes in texts.items():
        batch = {
            "image": jax.ShapeDtypeStruct((BATCH, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8, sharding=batch_sharding(mesh)),
            **{n: jax.ShapeDtypeStruct(s, np.int32, sharding=batch_sharding(mesh)) for n, s in shapes.items()},
        }
        program = jax.jit(make_loss_and_gradients(config, mesh)).lower(state.params, {}, batch, jax.random.key(0))
        moved = collectives(parse(program.compile().as_text()), 8)
        received[name] = sum(c.bytes_received * c.times for c in moved)
    gradient = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state.params["text"]))  # received in a sum over devices
    assert received["two"] - received["one"] <= gradient


def test_a_program_is_compiled_when_a_batch_first_has_its_lengths(monkeypatch):
    config = config_of()
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    compiled = []

    def compile(self, shapes):
        lengths = tuple(shapes[name][0][-1] for name in ("text", REST) if name in shapes)
        compiled.append(lengths)
        key = tuple(sorted((name, shape) for name, (shape, _) in shapes.items()))
        self.programs[key] = lambda state, batch: (state, {"lengths": lengths})
        self.compile_seconds += 1.0
        return 1.0

    monkeypatch.setattr(CompiledSteps, "compile", compile)
    steps = CompiledSteps(config, mesh, None)
    assert compiled == [], "on CPUs nothing is compiled that no batch needs"
    batches = [batch_of(), batch_of(seed=1), batch_of(long_every=BATCH, long=11), batch_of(), batch_of(long_every=1)]
    found = [steps({}, batch)[1]["lengths"] for batch, _ in cut_batches(config, mesh, None, ((b, 0) for b in batches))]
    assert found == [(16, 48), (16, 48), (16,), (16, 48), (48,)]
    assert compiled == [(16, 48), (16,), (48,)]
    assert steps.compile_seconds == 3.0


def test_texts_are_cut_by_default_where_that_is_exact_and_the_first_line_says_so():
    told = lambda config: (chosen_lengths(config), describe_text_cut(config, text_cut(config)))  # noqa: E731
    assert told(config_of()) == ((16, 24, 32, 48, 64), "texts cut to 16, 24, 32, 48 or 64 tokens")
    assert told(config_of(BERT))[0] == (16, 24, 32, 48, 64)
    lengths, line = told(config_of(replace(CLIP, causal=False, pool="last")))
    assert lengths == (64,)
    assert "texts of 64 tokens (not cut: config.model.text.causal=False: every token attends to the padding)" in line
    assert told(config_of(data={"text_buckets": (64,)})) == ((64,), "texts of 64 tokens")
    assert told(config_of(replace(CLIP, dropout=0.1)))[0] == (64,), "a shorter batch would draw other numbers to drop"
    assert told(config_of(replace(CLIP, dropout=0.1), data={"text_buckets": (24,)}))[0] == (24, 64)


def test_nothing_is_said_about_texts_that_are_too_short_to_cut():
    for text in (replace(CLIP, context_length=16), replace(CLIP, context_length=16, causal=False)):
        assert describe_text_cut(config_of(text), text_cut(config_of(text))) == ""


def test_rows_have_one_length_where_their_order_matters():
    share = lambda config: text_cut(config).short  # noqa: E731
    assert share(config_of()) == 0.75
    assert share(config_of(replace(CLIP, drop_path=0.1))) == 0
    decoder = DecoderConfig(width=16, depth=1, num_heads=2, mlp_dim=32)
    assert share(config_of(model={"decoder": decoder})) == 0
    assert share(config_of(data={"short_texts": 0.0})) == 0


def test_a_teacher_that_reads_the_padding_keeps_its_texts_whole():
    siglip, clip = config_of(replace(CLIP, causal=False, pool="last")), config_of()
    student = replace(config_of(), loss=LOSSES["distill"].config(name="distill", teacher="/run"))
    for teacher, kept in [(siglip, True), (clip, False)]:
        shapes = batch_shapes(student, Teacher(teacher, {}))
        assert (WHOLE in shapes) == kept
        assert text_cut(student, Teacher(teacher, {})).keep_whole == kept
        assert text_cut(student, Teacher(teacher, {})).short == 0


def test_a_student_needs_what_its_teacher_needs():
    student = replace(config_of(), loss=LOSSES["distill"].config(name="distill", teacher="/run"))
    coca = config_of(replace(CLIP, pool="cls", eos_id=END))
    text = np.zeros((1, CONTEXT), np.int32)
    text[0, :5] = [1, 2, END, 4, 5]
    assert text_cut(student).needed(text).tolist() == [3]
    assert text_cut(student, Teacher(coca, {})).needed(text).tolist() == [6]


@pytest.mark.parametrize(("text", "data", "message"), [
    (replace(CLIP, causal=False), {"text_buckets": (16, 32)},
     r"text_buckets=\(16, 32\): config.model.text.causal=False: .* as in SigLIP.* Leave text_buckets empty"),
    (CLIP, {"text_buckets": (20, 32)}, r"20 is neither a multiple of 8 below config.model.text.context_length=64"),
    (CLIP, {"text_buckets": (32, 128)}, r"128 is neither .* nor 64 itself\. Use lengths such as 16, 24"),
    (CLIP, {"text_buckets": (8, 16, 24, 32, 40)}, r"could compile 21 programs .each pair of 6 lengths.*more than 16"),
    (replace(CLIP, context_length=512), {"text_buckets": tuple(range(16, 400, 16)), "short_texts": 0.0},
     r"could compile 25 programs, more than 16\. Use fewer lengths, such as"),
    (CLIP, {"text_buckets": (0, 16)}, r"config.data.text_buckets"),
])  # fmt: skip
def test_lengths_that_cannot_be_used_are_refused_with_the_reason(text, data, message):
    with pytest.raises(ConfigError, match=message):
        check(config_of(text, data=data), num_devices=8)


def test_budgets_of_patches_are_programs_too_and_are_refused_where_they_cannot_be_used():
    config = config_of()

    def with_budgets(*given, **data):
        image = naflex_of(config.model.image, max_patches=64, patch_budgets=given)
        return replace(config, model=replace(config.model, image=image), data=replace(config.data, **data))

    check(with_budgets(16, 32, 64), num_devices=8)
    assert chosen_lengths(with_budgets(16, 32, 64)) == (32, 64), "three pairs of lengths for each of three budgets"
    assert describe_planned(with_budgets(16, 64)) == (
        "batches have texts of 16, 32 or 64 tokens and images of 16 or 64 patches; the longest is planned"
    )
    with pytest.raises(
        ConfigError, match=r"patch_budgets=\(16, 100\): 100 is neither a multiple of 8 below max_patches"
    ):
        check(with_budgets(16, 100), num_devices=8)
    with pytest.raises(ConfigError, match="could compile 18 programs"):
        check(with_budgets(16, 32, 64, text_buckets=(24, 32)), num_devices=8)


def test_the_whole_context_alone_is_a_choice_for_every_text_tower():
    for text in (CLIP, BERT, replace(CLIP, causal=False, pool="last")):
        check(config_of(text, data={"text_buckets": (64,)}), num_devices=8)
