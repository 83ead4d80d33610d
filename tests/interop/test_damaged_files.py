"""Files that are cut short, shards that are not there, tensors too few, too many or misshapen, another family: each an
error that names it, and nothing written."""

import json

import numpy as np
import pytest

from clipjax.commands import import_weights
from clipjax.interop.export import write_npz
from clipjax.interop.families import FAMILIES
from clipjax.interop.foreign import open_foreign
from clipjax.interop.names import InteropError, Meaning
from clipjax.interop.safetensors import open_safetensors, write_safetensors
from clipjax.interop.torch_files import _integer, open_torch, write_torch
from tests.interop.test_commands import publish
from tests.interop.test_names import random_file, tiny

WRITERS = {"safetensors": write_safetensors, "pt": write_torch, "npz": write_npz}
MIB = 1 << 20


def save(arrays, file):
    shapes = {name: array.shape for name, array in arrays.items()}
    WRITERS[file.suffix[1:]](file, shapes, arrays.items())
    return file


def refused(source, tmp_path, message, **options):
    """import SOURCE is refused with this message, and the folder holds what it held."""
    before = sorted(entry.name for entry in tmp_path.iterdir())
    with pytest.raises(InteropError, match=message) as error:
        import_weights.run(source, tmp_path / "run", parity=False, **options)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == before
    return str(error.value)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("kept", [0, 5, 0.3, 0.999])
def test_a_file_that_is_cut_short_is_named(suffix, kept, tmp_path):
    file = save({"a": np.ones((30, 40), np.float32), "b": np.ones(50, np.float32)}, tmp_path / f"weights.{suffix}")
    whole = file.read_bytes()
    file.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    message = refused(file, tmp_path, "truncated")
    assert str(file) in message


def sharded(folder):
    """hf_siglip's directory in two shards."""
    publish(folder)
    arrays = {name: 0.1 * array for name, array in random_file("hf_siglip", tiny("siglip_b16")).items()}
    (folder / "model.safetensors").unlink()
    assigned = {}
    for i, names in enumerate(np.array_split(list(arrays), 2), 1):
        shard = f"model-0000{i}-of-00002.safetensors"
        save({str(name): arrays[name] for name in names}, folder / shard)
        assigned |= {str(name): shard for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": assigned}))
    return folder, assigned


def test_shards_are_read_as_one_file(tmp_path):
    folder, assigned = sharded(tmp_path / "source")
    assert set(open_foreign(folder).source.tensors) == set(assigned)


def test_files_that_a_mac_leaves_beside_the_weights_are_not_read(tmp_path):
    folder, _ = sharded(tmp_path / "siglip")
    for name in ("._config.json", "._model.safetensors", "._spiece.model"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    assert not {"._config.json", "._spiece.model"} & open_foreign(folder).source.description.beside


def test_a_shard_that_is_not_there_is_named(tmp_path):
    folder, _ = sharded(tmp_path / "source")
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, tmp_path, "index.json names files that are not there: model-00002-of-00002.safetensors")


def test_a_shard_that_is_cut_short_is_named(tmp_path):
    folder, _ = sharded(tmp_path / "source")
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(folder, tmp_path, "model-00001-of-00002.safetensors is truncated")


def test_a_shard_without_a_tensor_that_the_index_puts_there_is_named(tmp_path):
    folder, assigned = sharded(tmp_path / "source")
    moved = "logit_scale"
    other = next(shard for shard in assigned.values() if shard != assigned[moved])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": assigned | {moved: other}}))
    refused(folder, tmp_path, f"assigns tensors to files that lack them: {moved}")


# family: (preset, its files beside the weights are needed, a tensor of it)
TENSORS = {
    "hf_clip": ("clip_vit_b32", "text_projection.weight"),
    "hf_siglip2": ("siglip2_naflex_b16", "vision_model.head.probe"),
    "open_clip": ("clip_vit_b32", "visual.ln_post.bias"),
    "big_vision": ("siglip_b16", "params/img/MAPHead_0/probe"),
}


@pytest.mark.parametrize("family", TENSORS)
def test_one_tensor_missing_one_too_many_and_one_misshapen_are_named(family, tmp_path, monkeypatch):
    preset, name = TENSORS[family]
    model, row = tiny(preset), FAMILIES[family]
    arrays = random_file(family, model)
    source = tmp_path / "source"
    source.mkdir()
    options = {}
    if family == "big_vision":
        monkeypatch.setitem(import_weights.open_foreign.__globals__, "get_preset", lambda _: model)
        options = dict(preset="siglip_b16")
    for file, content in row.write(Meaning(model, row.pixels)).items():
        (source / file).write_text(json.dumps(content))
    shape = arrays[name].shape
    wrong = np.zeros((*shape[:-1], shape[-1] + 1), np.float32)
    changes = {
        f"missing: {name} {list(shape)}": {n: a for n, a in arrays.items() if n != name},
        "surprise [3]": arrays | {"surprise": np.zeros(3, np.float32)},
        f"{name}: the file has {list(wrong.shape)}, the configuration says {list(shape)}": arrays | {name: wrong},
    }
    for message, changed in changes.items():
        save(changed, source / row.weights)
        found = refused(source, tmp_path, "does not hold a model of family", **options)
        assert message in found and len(found.splitlines()) == 2, found


def test_files_of_another_family_are_refused(tmp_path):
    siglip, clip = publish(tmp_path / "siglip"), publish(tmp_path / "clip", "open_clip", "clip_vit_b32")
    refused(siglip, tmp_path, "no open_clip_config.json beside the weights", family="open_clip")
    refused(siglip, tmp_path, "not a CLIP of OpenAI's", family="openai")
    refused(siglip, tmp_path, "no published model has these sizes", family="eva_clip")
    for family in ("hf_clip", "hf_siglip", "hf_siglip2", "hf_align"):
        refused(clip, tmp_path, "no config.json beside the weights", family=family)
    for family in ("open_clip_coca", "open_clip_hf_text", "open_clip_eva", "open_clip_siglip", "open_clip_resnet"):
        refused(siglip, tmp_path, "no open_clip_config.json beside the weights", family=family)
    for family in ("open_clip_coca", "open_clip_hf_text", "open_clip_eva", "open_clip_resnet", "open_clip_convnext"):
        refused(clip, tmp_path, f"not configured as a model of family '{family}'", family=family)
    # Named as it is, and with the other's configuration, whose tensors it lacks.
    (clip / "config.json").write_text((siglip / "config.json").read_text())
    refused(clip, tmp_path, "missing: text_model", family="hf_siglip")
    save({"unknown.weight": np.ones((2, 2), np.float32)}, tmp_path / "else.safetensors")
    refused(tmp_path / "else.safetensors", tmp_path, "none of the families.*unknown.weight")


def test_a_state_dict_is_read_as_it_was_written(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "matrix": rng.normal(size=(3, 5)).astype(np.float32).T,
        "half": rng.normal(size=(2, 3, 4)).astype(np.float16),
        "scalar": np.array(224, np.int64),
        "nothing": np.zeros((0, 4), np.float32),
        "é": np.ones(2, np.float64),
    }
    found = open_torch(save(arrays, tmp_path / "model.pt"))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].read().dtype == array.dtype
        np.testing.assert_array_equal(found[name].read(), array)


def test_8_bit_floats_are_refused_by_the_tensor_s_name(tmp_path):
    header = json.dumps({"a.weight": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(InteropError, match=r"model\.safetensors: tensor a\.weight is of type F8_E4M3; expected one of"):
        open_safetensors(tmp_path / "model.safetensors")


def test_sizes_beyond_31_bits_are_written():
    import pickle

    for value in (0, 2**31 - 1, 2**31, 2**40):
        assert pickle.loads(pickle.PROTO + b"\2" + _integer(value) + pickle.STOP) == value
