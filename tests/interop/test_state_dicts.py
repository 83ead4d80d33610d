"""A model is found whatever its checkpoint wraps it in, and a file that is not understood is described by its names."""

import logging

import numpy as np
import pytest

from clipjax.interop.names import InteropError, check_tensors, stored
from clipjax.interop.safetensors import write_safetensors
from clipjax.interop.source import open_weights
from clipjax.interop.state_dicts import model_tensors
from tests.interop.test_names import random_file, tiny
from tests.torch_reference import import_torch

PLAIN = {f"visual.{i}.weight": np.full((2, 3), i, np.float32) for i in range(12)}
PLAIN |= {"logit_scale": np.float32(1.5).reshape(()), "text.bias": np.arange(4, dtype=np.float32)}
OTHER = {name: array + 1 for name, array in PLAIN.items()}


def prefixed(prefix, arrays=PLAIN):
    return {prefix + name: array for name, array in arrays.items()}


def assert_is(found, expected=PLAIN):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        value = found[name].read() if hasattr(found[name], "read") else found[name]
        np.testing.assert_array_equal(value, array)


PREFIXES = [
    *("", "module.", "model.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "clip.", "state_dict."),
    *("model_state_dict.", "model_state_dict.module.", "state_dict.model.", "model._fsdp_wrapped_module.", "net.clip."),
    *("ema.module.", "model_ema.", "base_model.model."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_one_model_is_read_under_any_prefix(prefix, tmp_path):
    file = tmp_path / "model.safetensors"
    arrays = prefixed(prefix)
    write_safetensors(file, {name: array.shape for name, array in arrays.items()}, arrays.items())
    assert_is(open_weights(file).tensors)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"])
def test_a_tower_may_be_wrapped_by_itself(wrapper):
    assert_is(model_tensors({name.replace("visual.", f"visual.{wrapper}."): a for name, a in PLAIN.items()}, "file"))


def test_a_scale_inside_attention_is_not_a_second_model():
    layers = PLAIN | {f"visual.blocks.{i}.attn.logit_scale": np.ones(2, np.float32) for i in range(2)}
    assert_is(model_tensors(prefixed("module.", layers), "file"), layers)


@pytest.mark.parametrize("average", ["model_ema", "ema", "state_dict_ema", "ema_model", "swa_model", "ema.module"])
def test_the_model_is_read_and_its_average_is_named(average, caplog):
    both = prefixed("model.") | prefixed(f"{average}.", OTHER)
    with caplog.at_level(logging.WARNING):
        assert_is(model_tensors(both, "both.pt"))
    assert f"both.pt: read the model 'model'. The file also has '{average}'" in caplog.text
    assert f"--state_dict={average}" in caplog.text
    assert_is(model_tensors(both, "both.pt", average), OTHER)


def test_two_models_are_refused_by_their_prefixes_until_one_is_named():
    both = prefixed("student.") | prefixed("teacher.module.", OTHER)
    with pytest.raises(InteropError, match="holds several models: 'student', 'teacher.module'. Name one, such as --st"):
        model_tensors(both, "both.pt")
    assert_is(model_tensors(both, "both.pt", "teacher.module"), OTHER)
    with pytest.raises(InteropError, match="no model under --state_dict=ema. It has 'student', 'teacher.module'"):
        model_tensors(both, "both.pt", "ema")


def test_tensors_beside_the_model_are_named_but_not_the_optimizer_s(caplog):
    others = {
        "loss.prototypes": np.ones(3),
        "optimizer.state.0.exp_avg": np.ones(3),
        "criterion.logit_scale": np.ones(1),
    }
    with caplog.at_level(logging.WARNING):
        assert_is(model_tensors(prefixed("model.") | others, "lightning.ckpt"))
    assert "2 tensors outside it were not read, such as loss.prototypes, criterion.logit_scale." in caplog.text
    assert "optimizer" not in caplog.text


def test_the_error_says_how_the_file_s_names_begin_and_how_they_should():
    theirs = random_file("hf_clip", tiny("clip_vit_b32"))
    renamed = {name.replace("vision_model.", "image_encoder.", 1): array for name, array in theirs.items()}
    expected = {name: array.shape for name, array in theirs.items()}
    with pytest.raises(InteropError) as error:
        check_tensors(stored(renamed), expected, where="model.safetensors", family="hf_clip")
    lines = str(error.value).splitlines()
    assert (
        lines[1].startswith("  the file's names begin with '") and "'image_encoder.' (" in lines[1].split("expected")[0]
    )
    assert "'vision_model.' (" in lines[1].split("expected")[1] and "'logit_scale' (1)" in lines[1]
    assert any("unexpected: image_encoder." in line for line in lines) and len(lines) < 22
    assert any("more missing" in line for line in lines) and any("more unexpected" in line for line in lines)


def whole_module(torch, arrays):
    class Parts(torch.nn.Module):
        pass

    Parts.__qualname__, Parts.__module__ = "Parts", __name__
    globals()["Parts"] = Parts
    root = Parts()
    for name, tensor in arrays.items():
        at = root
        *parents, last = name.split(".")
        for parent in parents:
            if parent not in dict(at.named_children()):
                at.add_module(parent, Parts())
            at = getattr(at, parent)
        at.register_parameter(last, torch.nn.Parameter(tensor))
    return root


def test_what_torch_saves_is_read_whatever_it_is_in(tmp_path):
    torch = import_torch()
    sd = {name: torch.tensor(array) for name, array in PLAIN.items()}
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in sd.items()}
    optimizer = {
        "state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(1.0)}},
        "param_groups": [{"params": [0]}],
    }
    whole = whole_module(torch, sd)
    shared = {"model": sd}
    shared["itself"] = shared
    contents = {
        "plain": sd,
        "checkpoint": {"epoch": 3, "state_dict": sd, "optimizer": optimizer},
        "model_state_dict": {"model_state_dict": sd, "optimizer_state_dict": optimizer},
        "lightning": {"state_dict": prefixed("model.", sd), "pytorch-lightning_version": "2.0"},
        "deepspeed": {"module": sd, "optimizer": None},
        "named_parameters": parameters,
        "pairs": list(parameters.items()),
        "pairs_in_a_dict": {"model": list(whole.named_parameters())},
        "first_of_a_tuple": (prefixed("module._orig_mod.", sd), optimizer),
        "whole": whole,
        "whole_in_a_dict": {"model": whole, "optimizer": optimizer},
        "twice": {"state_dict": sd, "model": sd},
        "cycle": shared,
        "average": torch.optim.swa_utils.AveragedModel(whole).state_dict(),
    }
    for kind, content in contents.items():
        torch.save(content, tmp_path / f"{kind}.pt")
        found = open_weights(tmp_path / f"{kind}.pt").tensors
        assert found.keys() == PLAIN.keys(), kind
        assert_is(found)
