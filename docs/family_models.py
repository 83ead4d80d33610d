"""A small model with random weights of every family of weights, made by the library that the family is of.

MODELS has the models that docs.families tries: for each row of clipjax.interop.FAMILIES, what it is called -> a
function that saves one to a directory. Image towers of timm have their published sizes, because timm knows a tower by
its name; everything else is small.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from benchmarks.pytorch import declare_missing_operators
from clipjax.commands import export, import_weights
from clipjax.config import ModelConfig
from clipjax.interop import eva
from clipjax.interop.foreign import open_foreign
from clipjax.interop.open_clip_bert import hub_config
from clipjax.interop.open_clip_config import CONFIG
from clipjax.interop.originals import Original
from clipjax.models import presets
from clipjax.models.presets.bert import BERT_TOWERS

os.environ.setdefault("HF_HUB_OFFLINE", "1")
WIDTH, HEADS, LAYERS, IMAGE, PATCH, VOCAB, CONTEXT, EMBED = 64, 2, 2, 32, 8, 99, 10, 48
PRESET = "tried"


class Saved(NamedTuple):
    """A model's directory, and how to read it."""

    library: str  # what the results are compared with
    preset: ModelConfig | None = None  # where no file has the configuration
    original: Original | None = None  # where clipjax.interop.originals has no reader of the directory


def library(name: str = "torch") -> ModuleType:
    """torch, or a library that needs it."""
    declare_missing_operators(importlib.import_module("torch"))
    return importlib.import_module(name)


def randomised(model: Any) -> Any:
    """Every parameter and running statistic away from where it starts: zeros and ones would hide a missing one."""
    torch = library()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.add_(0.03 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    return model.eval()


def hf(kind: str, vision: dict[str, Any], text: dict[str, Any], **options: Any) -> Callable[[Path], Saved]:
    """A model of transformers; kind: the beginning of its classes' names."""

    def save(path: Path) -> Saved:
        transformers = library("transformers")
        config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, **options)
        randomised(getattr(transformers, f"{kind}Model")(config)).save_pretrained(path)
        return Saved("transformers")

    return save


def hf_tower(kind: str, config: dict[str, Any], projected: bool = False) -> Callable[[Path], Saved]:
    """One tower of transformers; kind: the beginning of its classes' names, such as CLIPVision."""

    def save(path: Path) -> Saved:
        transformers = library("transformers")
        cls = getattr(transformers, f"{kind}Model" + "WithProjection" * projected)
        randomised(cls(getattr(transformers, f"{kind}Config")(**config))).save_pretrained(path)
        return Saved("transformers")

    return save


def open_clip_model(vision: dict[str, Any], text: dict[str, Any] | None = None, **options: Any) -> Any:
    """(configuration, model): a model of open_clip with a small text tower; text: other options of it."""
    shared = dict(context_length=CONTEXT, vocab_size=VOCAB, width=WIDTH, heads=HEADS, layers=LAYERS)
    config = dict(embed_dim=EMBED, vision_cfg=vision, text_cfg=shared | (text or {})) | options
    with known_text_towers():
        return config, randomised(build(config))


def build(config: dict[str, Any]) -> Any:
    """open_clip's model of a model_cfg; it may be built without storage, under torch.device("meta")."""
    open_clip = library("open_clip")
    config = json.loads(json.dumps(config))
    named = "hf_model_name" in config["text_cfg"]
    config["text_cfg"] |= {"hf_model_pretrained": False} if named else {}
    custom = config.pop("custom_text", False) or named
    cls = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    return cls(**config)


@contextlib.contextmanager
def known_text_towers() -> Iterator[None]:
    """Text towers of the hub are made without asking it: those that clipjax knows with their sizes."""
    library("open_clip")
    from open_clip import hf_model

    def config_of(name: str, **_: Any) -> Any:
        if name in BERT_TOWERS:
            sizes = hub_config(BERT_TOWERS[name])
        else:
            sizes = dict(model_type="m2m_100" if "nllb" in name else "mt5" if "mt5" in name else "roberta")
        return hf_model.AutoConfig.for_model(**sizes)

    with mock.patch.object(hf_model.AutoConfig, "from_pretrained", config_of):
        yield


def open_clip(vision: dict[str, Any], text: dict[str, Any] | None = None, **options: Any) -> Callable[[Path], Saved]:
    """A directory of open_clip."""

    def save(path: Path) -> Saved:
        config, model = open_clip_model(vision, text, **options)
        if hasattr(model, "text_decoder"):
            with library().no_grad():  # open_clip leaves this one uninitialised
                model.text_decoder.text_projection.normal_(std=0.2)
        path.mkdir()
        (path / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {"interpolation": "bicubic"}}))
        library("torch").save(model.state_dict(), path / "open_clip_pytorch_model.bin")
        return Saved("open_clip" + " with timm" * ("timm_model_name" in vision))

    return save


def timm(name: str, size: int, pool: str, proj: str | None = None, **text: Any) -> Callable[[Path], Saved]:
    """A directory of open_clip with an image tower of timm; size: of its images."""
    vision = dict(timm_model_name=name, timm_model_pretrained=False, timm_pool=pool, timm_proj=proj, image_size=size)
    options = dict(embed_dim=768, init_logit_bias=-10.0) if pool == "map" and proj == "none" else {}
    return open_clip(vision, text, custom_text=True, **options)


def openai(vision: dict[str, Any]) -> Callable[[Path], Saved]:
    """A state dict of OpenAI's layout: open_clip's model of the same names, and three numbers."""

    def save(path: Path) -> Saved:
        heads = dict(width=64, heads=1)  # theirs are 64 wide
        _, model = open_clip_model(vision, heads, quick_gelu=True)
        torch, numbers = library(), dict(input_resolution=IMAGE, context_length=CONTEXT, vocab_size=VOCAB)
        path.mkdir()
        torch.save(model.state_dict() | {n: torch.tensor(value) for n, value in numbers.items()}, path / "model.pt")
        return Saved("open_clip", original=as_original(model))

    return save


def long_clip(path: Path) -> Saved:
    """A state dict of Long-CLIP's layout, and open_clip's model of the rows of both tables that count."""
    _, model = open_clip_model(dict(VIT, head_width=64), dict(width=64, heads=1, context_length=248), quick_gelu=True)
    state = model.state_dict()
    path.mkdir()
    library().save(state | {"positional_embedding_res": state["positional_embedding"].clone()}, path / "model.pt")
    return Saved("open_clip", original=as_original(model))


def big_vision(format: str) -> Callable[[Path], Saved]:
    """An .npz of big_vision's layout, written by clipjax, and open_clip's model that has read it."""

    def save(path: Path) -> Saved:
        name, text = "vit_base_patch32_siglip_256", dict(SIGLIP_TEXT, act_kwargs=dict(approximate="tanh"))
        timm(name, 256, "map", "none", **text)(path.parent / "source")
        import_weights.run(path.parent / "source", path.parent / "source_run", parity=False)
        export.run(path.parent / "source_run", path, format=format, nearest_pixels=True)
        config = json.loads((path.parent / "source" / CONFIG).read_text())["model_cfg"]
        model = build(config)
        library("open_clip").load_checkpoint(model, str(path / "checkpoint.npz"))
        preset = open_foreign(path.parent / "source").config.model
        return Saved("open_clip, which read the file", preset, as_original(model.eval()))

    return save


def eva_clip(path: Path) -> Saved:
    """A state dict of baaivision/EVA's layout, written by clipjax, and open_clip's model that has read it by timm."""
    timm("eva02_base_patch16_clip_224", 224, "token")(path.parent / "source")
    import_weights.run(path.parent / "source", path.parent / "source_run", parity=False)
    preset = open_foreign(path.parent / "source").config.model
    with mock.patch.dict(eva.EVA_PRESETS, {PRESET: preset}):
        export.run(path.parent / "source_run", path, format="eva_clip", nearest_pixels=True)
    torch, reader = library(), library("timm.models.eva").checkpoint_filter_fn
    state = torch.load(path / "model.pt", weights_only=True)
    model = build(json.loads((path.parent / "source" / CONFIG).read_text())["model_cfg"])
    trunk = model.visual.trunk
    visual = {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")}
    trunk.load_state_dict(reader(visual, trunk), strict=True)
    rest = {name: tensor for name, tensor in state.items() if not name.startswith("visual.")}
    model.load_state_dict(rest | {f"visual.trunk.{name}": tensor for name, tensor in trunk.state_dict().items()})
    return Saved("open_clip with timm, which read the file", preset, as_original(model.eval()))


def as_original(model: Any) -> Original:
    """A model of open_clip as clipjax.interop.parity runs it; without a processor and a tokenizer."""
    torch = library()

    def forward(images: Any, texts: Any) -> dict[str, np.ndarray]:
        with torch.no_grad():
            encoded = model.encode_image(images, normalize=True), model.encode_text(texts, normalize=True)
            logits = model.logit_scale.exp() * encoded[0] @ encoded[1].T
            logits = logits if model.logit_bias is None else logits + model.logit_bias
        return dict(image_embedding=encoded[0].numpy(), text_embedding=encoded[1].numpy(), logits=logits.numpy())

    def missing(*_: Any) -> Any:
        raise NotImplementedError("the file says nothing about it")

    images = lambda pixels: torch.tensor(pixels.transpose(0, 3, 1, 2))  # noqa: E731
    return Original(forward, images, lambda ids: torch.tensor(ids).long(), missing, missing)


HF = dict(hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS)
HF_IMAGE = dict(image_size=IMAGE, patch_size=PATCH, **HF)
HF_TEXT = dict(vocab_size=VOCAB, max_position_embeddings=CONTEXT, **HF)
NAFLEX = dict(HF, patch_size=PATCH, num_patches=16)
SIGLIP = dict(projection_size=WIDTH, bos_token_id=0, eos_token_id=1)
ALIGN_IMAGE = dict(image_size=64, width_coefficient=0.25, depth_coefficient=0.5, hidden_dim=160)
SIGLIP_TEXT = dict(no_causal_mask=True, proj_bias=True, pool_type="last", norm_kwargs=dict(eps=1e-6))
VIT = dict(image_size=IMAGE, patch_size=PATCH, width=WIDTH, head_width=WIDTH // HEADS, layers=LAYERS)
RESNET = dict(image_size=IMAGE, patch_size=None, layers=[1, 1, 1, 1], width=32)
POOLER = dict(attentional_pool=True, attn_pooler_queries=6, attn_pooler_heads=2, output_tokens=True)
COCA_TEXT = dict(width=EMBED, embed_cls=True, output_tokens=True)
CAPTIONER = dict(layers=LAYERS, width=EMBED, heads=HEADS, vocab_size=VOCAB, context_length=CONTEXT)
ROBERTA = dict(hf_model_name="roberta-base", hf_model_pretrained=False, hf_pooler_type="mean_pooler")

MODELS: dict[str, dict[str, Callable[[Path], Saved]]] = {
    "hf_clip": {"CLIPModel": hf("CLIP", HF_IMAGE, dict(HF_TEXT, eos_token_id=2), projection_dim=EMBED)},
    "hf_siglip": {"SiglipModel": hf("Siglip", HF_IMAGE, HF_TEXT | SIGLIP)},
    "hf_siglip2": {"Siglip2Model": hf("Siglip2", NAFLEX, HF_TEXT | SIGLIP)},
    "hf_chinese_clip": {"ChineseCLIPModel": hf("ChineseCLIP", HF_IMAGE, HF_TEXT, projection_dim=EMBED)},
    "hf_clip_image": {
        "CLIPVisionModel": hf_tower("CLIPVision", HF_IMAGE),
        "CLIPVisionModelWithProjection": hf_tower("CLIPVision", dict(HF_IMAGE, projection_dim=EMBED), True),
    },
    "hf_clip_text": {
        "CLIPTextModel": hf_tower("CLIPText", dict(HF_TEXT, eos_token_id=2)),
        "CLIPTextModelWithProjection": hf_tower("CLIPText", dict(HF_TEXT, eos_token_id=2, projection_dim=EMBED), True),
    },
    "hf_siglip_image": {"SiglipVisionModel": hf_tower("SiglipVision", HF_IMAGE)},
    "hf_siglip_text": {"SiglipTextModel": hf_tower("SiglipText", HF_TEXT | SIGLIP)},
    "hf_siglip2_image": {"Siglip2VisionModel": hf_tower("Siglip2Vision", NAFLEX)},
    "hf_align": {"AlignModel": hf("Align", ALIGN_IMAGE, HF_TEXT, projection_dim=80)},
    "open_clip": {"ViT": open_clip(VIT), "CLIPA": open_clip(dict(VIT, pool_type="avg", no_ln_pre=True))},
    "open_clip_coca": {"CoCa": open_clip(VIT | POOLER, COCA_TEXT, multimodal_cfg=CAPTIONER, custom_text=True)},
    "open_clip_resnet": {"ResNet": open_clip(RESNET)},
    "open_clip_convnext": {
        "convnext_tiny": open_clip(dict(timm_model_name="convnext_tiny", timm_pool="", timm_proj="linear"))
    },
    "open_clip_siglip": {
        "vit_base_patch32_siglip_256": timm("vit_base_patch32_siglip_256", 256, "map", "none", **SIGLIP_TEXT)
    },
    "open_clip_hf_text": {
        "RoBERTa": open_clip(VIT, {**dict.fromkeys(("vocab_size", "width", "heads", "layers")), **ROBERTA})
    },
    "open_clip_eva": {"eva02_base_patch16_clip_224": timm("eva02_base_patch16_clip_224", 224, "token")},
    "open_clip_timm": {
        "PE-Core-T": timm("vit_pe_core_tiny_patch16_384", 384, "map"),
        "MobileCLIP2-B": timm("vit_base_mci_224", 224, "token"),
        "MobileCLIP2-L": timm("vit_large_patch14_clip_224", 224, "token", no_causal_mask=True),
    },
    "open_clip_vitamin": {"ViTamin-S": timm("vitamin_small_224", 224, "", "linear")},
    "eva_clip": {"EVA02-CLIP-B-16": eva_clip},
    "long_clip": {"ViT": long_clip},
    "openai": {"ViT": openai(dict(VIT, head_width=64))},
    "openai_resnet": {"ResNet": openai(RESNET)},
    "big_vision": {"SigLIP": big_vision("big_vision")},
    "big_vision_stacked": {"SigLIP": big_vision("big_vision_stacked")},
}


@contextlib.contextmanager
def known_as_preset(model: ModelConfig | None) -> Iterator[str]:
    """The name by which --preset knows the model; "" where none is needed."""
    if model is None:
        yield ""
        return
    with mock.patch.dict(presets.PRESETS, {PRESET: model}), mock.patch.dict(eva.EVA_PRESETS, {PRESET: model}):
        yield PRESET
