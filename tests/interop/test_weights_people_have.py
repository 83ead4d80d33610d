"""Renamed, wrapped and half-configured weights are read; the rest is refused by what was found in them."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from clipjax.commands import import_weights
from clipjax.config import MeshConfig
from clipjax.interop import bert_rules
from clipjax.interop.config_files import read_sections, timm_name
from clipjax.interop.export import WRITERS
from clipjax.interop.families import FAMILIES, recognise, weights
from clipjax.interop.foreign import open_foreign
from clipjax.interop.hf_clip import read as read_hf_clip
from clipjax.interop.names import Description, InteropError
from clipjax.interop.open_clip_bert import read_text
from clipjax.interop.safetensors import write_safetensors
from clipjax.interop.source import open_weights
from clipjax.interop.state_dicts import model_tensors
from clipjax.mesh import make_mesh
from tests.interop.test_commands import publish
from tests.interop.test_names import random_file, tiny

CLIP = tiny("clip_vit_b32")


@pytest.fixture(scope="module")
def clip():
    return random_file("hf_clip", CLIP)


def directory(path, config, arrays, name="model.safetensors"):
    """A directory with config.json or, for OpenCLIP's tensors, open_clip_config.json, and the arrays in one file."""
    path.mkdir(exist_ok=True)
    for file, content in config.items():
        (path / file).write_text(json.dumps(content))
    write = WRITERS[{".bin": ".pt", ".ckpt": ".pt"}.get("." + name.rpartition(".")[2], "." + name.rpartition(".")[2])]
    write(path / name, {n: a.shape for n, a in arrays.items()}, arrays.items())
    return path


def configuration(family, model=CLIP):
    from clipjax.interop.names import Meaning

    return FAMILIES[family].write(Meaning(model, FAMILIES[family].pixels))


WRAPPED = [
    *("_orig_mod.", "module.", "model.", "net.", "clip.", "_fsdp_wrapped_module.", "module._orig_mod."),
    *("model._orig_mod.module.", "state_dict.model.", "state_dict.model._orig_mod.", "model_state_dict.module."),
    *("model.clip.", "module.model.net.", "_forward_module.model.", "state_dict._fsdp_wrapped_module."),
]
FILES = ["model.safetensors", "pytorch_model.bin", "last.ckpt", "weights.npz"]


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("file", FILES)
def test_a_wrapped_model_is_read_from_every_kind_of_file(prefix, file, clip, tmp_path):
    arrays = {prefix + name: array for name, array in clip.items()}
    source = open_weights(directory(tmp_path / "clip", configuration("hf_clip"), arrays, file))
    name, family = recognise(source.description)
    assert name == "hf_clip" and source.weights == file
    found = weights(family, source.tensors)
    assert found.keys() == clip.keys()
    np.testing.assert_array_equal(found["logit_scale"].read(), clip["logit_scale"])


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "net.", "clip.", "state_dict.model.", "net.module."]
)
def test_one_wrapped_tower_is_read_without_a_temperature_to_find_it_by(prefix, clip):
    own = {name: array for name, array in clip.items() if name.startswith("text_model.")}
    assert model_tensors({prefix + name: array for name, array in own.items()}, "file").keys() == own.keys()


@pytest.mark.parametrize("family", ["hf_clip", "open_clip"])
def test_a_scale_and_a_bias_may_be_lists_of_one_number_and_the_bias_needs_no_configuration(family, tmp_path):
    arrays = random_file(family, CLIP)
    arrays["logit_scale"] = arrays["logit_scale"].reshape(1)
    config = configuration(family)
    arrays["logit_bias"] = np.array([-7.5], np.float32)
    if family == "open_clip":
        config["open_clip_config.json"]["model_cfg"]["nonscalar_logit_scale"] = True
    foreign = open_foreign(directory(tmp_path / "clip", config, arrays))
    params = foreign.variables(make_mesh(MeshConfig()))["params"]
    np.testing.assert_array_equal(params["logit_scale"], arrays["logit_scale"][0])
    assert params["logit_scale"].shape == ()
    assert foreign.config.model.logit_bias_init == -10.0
    np.testing.assert_array_equal(params["logit_bias"], np.float32(-7.5))


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_siglip_224",
        "vit_base_patch16_siglip_224.webli",
        "timm/vit_base_patch16_siglip_224.v2_webli",
        "hf-hub:timm/vit_base_patch16_siglip_224.webli",
        "hf_hub:timm/vit_base_patch16_siglip_224",
    ],
)
def test_a_timm_name_may_have_a_tag_and_a_place(name):
    assert timm_name({"timm_model_name": name}) == "vit_base_patch16_siglip_224"
    vision = dict(timm_model_name=name, timm_pool="map", timm_proj="none", image_size=224)
    files = {"open_clip_config.json": {"model_cfg": dict(embed_dim=768, vision_cfg=vision, text_cfg={})}}
    description = Description(files, {"visual.trunk.pos_embed": (1, 196, 768), "logit_scale": ()})
    found, family = recognise(description)
    assert found == "open_clip_siglip" and family.read(description).model.image.width == 768


def test_configurations_with_only_config_dicts_are_transformers_defaults_over_them():
    config = configuration("hf_clip")["config.json"]
    expected = read_hf_clip(Description({"config.json": config}, {}))
    renamed = {f"{n}_dict" if n in ("text_config", "vision_config") else n: value for n, value in config.items()}
    assert read_hf_clip(Description(read_sections({"config.json": renamed}), {})) == expected
    # Beside text_config, the other is the whole section: what it leaves out has transformers' default.
    both = config | {"text_config_dict": {"hidden_size": 32}}
    text = read_hf_clip(Description({"config.json": both}, {})).model.text
    assert (text.width, text.depth, text.num_heads, text.vocab_size) == (32, 12, 8, 49408)
    openai = {"model_type": "clip", "text_config": {"eos_token_id": 2}, "text_config_dict": {"hidden_size": 768}}
    assert read_hf_clip(Description({"config.json": openai}, {})).model.text.eos_id == -1


def test_metaclip_2_ends_a_text_at_its_own_id():
    section = {"model_type": "metaclip_2", "text_config": {"eos_token_id": 2, "vocab_size": 901_629}}
    description = Description({"config.json": section}, {"text_model.x": ()})
    name, family = recognise(description)
    meaning = family.read(description)
    assert name == "hf_clip" and meaning.model.text.eos_id == 2
    again = family.write(meaning)["config.json"]
    assert again["model_type"] == "metaclip_2" and again["text_config"]["model_type"] == "metaclip_2_text_model"
    assert family.read(Description({"config.json": again}, {})).model == meaning.model


def test_open_clip_s_own_list_has_the_model_cfg_alone():
    model = configuration("open_clip")["open_clip_config.json"]["model_cfg"]
    assert read_sections({"open_clip_config.json": model}) == {"open_clip_config.json": {"model_cfg": model}}
    with pytest.raises(InteropError, match="open_clip_config.json: model_cfg: vision_cfg is 'ViT'; expected an object"):
        read_sections({"open_clip_config.json": {"model_cfg": {"vision_cfg": "ViT"}}})


def both_formats(path, other=CLIP):
    """A directory of transformers' files with OpenCLIP's beside them, of the same model or another."""
    for family, model, file in (("hf_clip", CLIP, "model"), ("open_clip", other, "open_clip_model")):
        directory(path, configuration(family, model), random_file(family, model), f"{file}.safetensors")
    return path


def test_of_two_libraries_files_transformers_are_read_and_family_names_the_other(tmp_path, caplog):
    path = both_formats(tmp_path / "both")
    with caplog.at_level(logging.WARNING):
        assert open_foreign(path).name == "hf_clip"
    assert "read model.safetensors as 'hf_clip'. open_clip_model.safetensors is not read" in caplog.text
    assert "--family=open_clip reads it instead" in caplog.text
    other = open_foreign(path, family="open_clip")
    assert (other.name, other.source.weights) == ("open_clip", "open_clip_model.safetensors")
    (path / "config.json").unlink()
    assert open_foreign(path).source.weights == "open_clip_model.safetensors"


def test_two_libraries_files_that_differ_ask_for_a_family(tmp_path):
    gelu = replace(CLIP, image=replace(CLIP.image, activation="gelu"), text=replace(CLIP.text, activation="gelu"))
    path = both_formats(tmp_path / "both", gelu)
    with pytest.raises(InteropError, match="image.activation='quick_gelu' and 'gelu'.* --family=hf_clip or --fam"):
        open_foreign(path)
    assert open_foreign(path, family="open_clip").config.model.image.activation == "gelu"


def test_safetensors_come_before_bin_and_what_trainers_keep_is_no_model(clip, tmp_path):
    path = directory(tmp_path / "clip", configuration("hf_clip"), clip)
    directory(path, {}, {name: array + 1 for name, array in clip.items()}, "pytorch_model.bin")
    source = open_weights(path)
    assert (source.weights, source.others) == ("model.safetensors", ("pytorch_model.bin",))
    np.testing.assert_array_equal(source.tensors["logit_scale"].read(), clip["logit_scale"])
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").rename(path / "step_100.bin")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth"):
        (path / name).write_bytes(b"")
    assert open_weights(path).weights == "step_100.bin"


def test_an_import_says_which_file_it_read(tmp_path, capsys):
    path = both_formats(tmp_path / "both")
    import_weights.run(path, tmp_path / "run", parity=False)
    assert "\nRead model.safetensors. Not read: open_clip_model.safetensors.\n" in capsys.readouterr().out


def test_parts_of_a_model_without_an_index_are_read_together(clip, tmp_path):
    names = sorted(clip)
    path = tmp_path / "clip"
    for i, own in enumerate((names[:20], names[20:]), 1):
        arrays = {name: clip[name] for name in own}
        directory(path, configuration("hf_clip"), arrays, f"model-0000{i}-of-00002.safetensors")
    for place in (path, path / "model-00002-of-00002.safetensors"):
        assert open_weights(place).tensors.keys() == clip.keys()
    (path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(InteropError, match="one of 2 parts of a model. Missing beside it: model-00001-of-00002.safe"):
        open_weights(path)


TIMM = dict(embed_dim=512, text_cfg={}, vision_cfg=dict(timm_model_name="fastvit_mci1"))
OWN = {"visual.trunk.stem.weight": (8, 3, 3, 3), "logit_scale": ()}
REFUSED = {
    "vision_cfg.timm_model_name='fastvit_mci1', an image tower that clipjax does not have": (
        {"open_clip_config.json": {"model_cfg": TIMM}},
        OWN,
    ),
    "config.json says model_type='flava'": ({"config.json": {"model_type": "flava"}}, {"flava.logit_scale": ()}),
    "model_type='xyz_text_model', of which these weights are one tower only, of texts": (
        {"config.json": {"model_type": "xyz_text_model"}},
        {"text_model.embeddings.token_embedding.weight": (9, 8)},
    ),
    "one tower only, of images: their names begin with 'visual.'": ({}, {"visual.conv1.weight": (8, 3, 4, 4)}),
    "--family=openai; if they are OpenCLIP's, with --family=open_clip --preset=NAME": (
        {},
        {"visual.proj": (8, 8), "transformer.resblocks.0.ln_1.weight": (8,)},
    ),
    "names of transformers' models, and there is no config.json with a model_type": (
        {},
        {"vision_model.x": (8,), "text_model.x": (8,)},
    ),
    "none of the families: their tensors' names begin with 'backbone.' \\(1\\), such as backbone.conv.weight": (
        {},
        {"backbone.conv.weight": (8,)},
    ),
    "no image tower": ({"open_clip_config.json": {"model_cfg": TIMM}}, {"transformer.x": (8,)}),
}


@pytest.mark.parametrize("found", REFUSED)
def test_a_refusal_says_what_was_found_in_one_line(found):
    with pytest.raises(InteropError, match=found) as error:
        recognise(Description(*REFUSED[found]))
    assert "\n" not in str(error.value) and "open_clip_convnext" not in str(error.value)


def test_a_tensor_more_is_refused_by_name(tmp_path):
    arrays = random_file("open_clip", CLIP) | {"positional_embedding_res": np.zeros((6, 16), np.float32)}
    path = directory(tmp_path / "clip", configuration("open_clip"), arrays)
    with pytest.raises(InteropError, match=r"unexpected: positional_embedding_res \[6, 16\]"):
        open_foreign(path)


def bert_shapes(width=128, types=2, positions=512):
    at = "text.transformer"
    return {
        f"{at}.embeddings.word_embeddings.weight": (99, width),
        f"{at}.embeddings.position_embeddings.weight": (positions, width),
        f"{at}.embeddings.token_type_embeddings.weight": (types, width),
        f"{at}.encoder.layer.0.attention.self.query.weight": (width, width),
        f"{at}.encoder.layer.0.intermediate.dense.weight": (4 * width, width),
    }


OTHER = {"config.json": {"model_type": "bert", "num_attention_heads": 4, "hidden_act": "gelu_new", "pad_token_id": 3}}
# name on the hub, shapes, files: pad_id, positions after padding, heads, eps
BERTS = [
    ("microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract", bert_shapes(768), {}, (0, False, 12, 1e-12)),
    ("sentence-transformers/all-MiniLM-L6-v2", bert_shapes(384), {}, (0, False, 12, 1e-12)),
    ("vinai/bertweet-base", bert_shapes(768, 1, 130), {}, (1, True, 12, 1e-5)),
    ("allenai/biomed_roberta_base", bert_shapes(768, 1, 514), {}, (1, True, 12, 1e-5)),
    ("someone/my-bert", bert_shapes(128, 2, 40), {}, (0, False, 2, 1e-12)),
    ("someone/my-roberta", bert_shapes(128, 1, 40), {}, (1, True, 2, 1e-5)),
    ("google-bert/bert-base-uncased", bert_shapes(128), {}, (0, False, 2, 1e-12)),
    ("someone/model", bert_shapes(32, 2, 40), OTHER, (3, False, 4, 1e-12)),
]


@pytest.mark.parametrize(("name", "shapes", "files", "expected"), BERTS)
def test_a_text_tower_s_rules_follow_from_its_configuration_its_name_or_its_tensors(name, shapes, files, expected):
    text = read_text(dict(hf_model_name=name, context_length=8), shapes, files)
    assert (text.pad_id, text.positions_after_padding, text.num_heads, text.norm_eps) == expected
    assert text.num_positions == shapes["text.transformer.embeddings.position_embeddings.weight"][0]


def test_a_hub_name_may_be_a_directory_with_a_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(OTHER["config.json"]))
    rules = bert_rules.read_rules(str(tmp_path), "field", bert_shapes(32), {}, "text.transformer")
    assert (rules.num_heads, rules.pad_id, rules.activation) == (4, 3, "gelu_tanh")


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        ("google/mt5-base", {}, "hf_model_name='google/mt5-base' is not supported: the text tower's tensors are not"),
        ("someone/model", bert_shapes(128, 2, 40), "neither the name nor the tensors .2 token types, 40 positions."),
        (
            "someone/bert",
            bert_shapes(100),
            "100 wide, and nothing says how many heads it has. Put the text model's",
        ),
    ],
)
def test_a_text_tower_that_nothing_describes_is_refused_with_the_file_to_add(name, shapes, message):
    with pytest.raises(InteropError, match=message):
        read_text(dict(hf_model_name=name), shapes, {})


def test_a_published_directory_is_still_of_its_family(tmp_path):
    assert open_foreign(publish(tmp_path / "siglip")).name == "hf_siglip"
    with pytest.raises(InteropError, match="not a file of weights"):
        write_safetensors(tmp_path / "w.safetensors", {}, [])
        (tmp_path / "w.safetensors").rename(tmp_path / "w.txt")
        open_weights(tmp_path / "w.txt")
