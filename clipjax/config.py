"""The experiment's configuration: a ConfigDict checked once into frozen dataclasses.

    config_dict = experiments.quickstart.get_config()      # ml_collections.ConfigDict
    config = from_config_dict(config_dict)                 # ExperimentConfig, types checked
    check(config, num_devices=8, process_count=1)          # clipjax.training.check: the parts fit together

Every field and its default stands here; `default_config()` gives the same tree as a ConfigDict, so
that `--config.optimizer.learning_rate=1e-3` works for any of them. Nothing else in clipjax reads a
ConfigDict.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ml_collections import ConfigDict, config_dict

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]  # gelu is exact (erf); quick_gelu is OpenAI CLIP's
Remat = Literal["none", "attention", "dots", "offload", "full"]  # see docs/mesh.md for what each costs
Init = Literal["clip", "big_vision"]  # whose initial weights
Dtype = Literal["float32", "bfloat16"]


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the field, what was found and what to do."""


@dataclass(frozen=True)
class BlockConfig:
    """What a transformer's blocks are made of, for both towers and the decoder; the defaults are CLIP's."""

    norm: Literal["layer", "rms"] = "layer"
    post_norm: bool = False  # x + LN(f(x)) instead of x + f(LN(x)) (EVA-02-CLIP E/14)
    mlp: Literal["plain", "swiglu"] = "plain"  # swiglu: silu(gate) * up in the activation's place
    qkv_bias: Literal["qkv", "qv", "none"] = "qkv"  # which of query, key and value have a bias (EVA: qv)
    attention_norm: bool = False  # a norm between attention and its output matrix (EVA-02's sub-LN)
    mlp_norm: bool = False  # a norm before the MLP's last matrix (EVA-02's sub-LN)
    layer_scale: float = 0.0  # initial value of a learned factor per channel on every branch; 0: none
    attention: Literal["dense", "flash"] = "dense"  # flash: on TPUs one kernel, weights never in HBM (docs/mesh.md)


@dataclass(frozen=True)
class ImageTowerConfig(BlockConfig):
    name: str = "vit"  # a row of clipjax.models.IMAGE_TOWERS
    image_size: int = 224  # pixels; images are square. naflex: the side of the grid of positions, in pixels
    patch_size: int = 32
    max_patches: int = 256  # naflex: patches an image has at most; batches are padded to as many
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    pool: Literal["cls", "gap", "map", "attentional", "parallel", "cascade"] = "cls"  # docs/models.md
    pooler_queries: int = 256  # pool attentional, parallel, cascade: how many tokens the pooler makes (CoCa)
    pooler_heads: int = 8
    class_token: bool = False  # one that is not pooled, where pool is not "cls" (CLIPA, CoCa)
    norm_after_pool: bool = False  # ln_post on what pool "cls" or "gap" gives and not on all tokens (CLIPA)
    position: Literal["learned", "sincos", "none"] = "learned"
    rope: bool = False  # rotary positions in two dimensions (EVA-02)
    rope_theta: float = 10_000.0
    rope_grid: int = 16  # rows and columns are scaled to as many, whatever the resolution; 0: not scaled
    pre_norm: bool = True  # CLIP's LayerNorm between the position embedding and the first block
    patch_bias: bool = False
    patch_dropout: float = 0.0  # share of the patches left out, training only (FLIP, 2212.00794)
    projection: bool = True  # linear map to embed_dim; False: width == embed_dim
    projection_bias: bool = False
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    init: Init = "clip"
    dropout: float = 0.0
    drop_path: float = 0.0
    scan_layers: bool = True
    remat: Remat = "none"
    stages: tuple[int, ...] = ()  # resnet, convnext: blocks of each; stage i is 2^i width wide (resnet: 2^(i + 2))
    norm_momentum: float = 0.9  # resnet, efficientnet: how much of BatchNorm's running statistics a step keeps
    width_coefficient: float = 1.0  # efficientnet
    depth_coefficient: float = 1.0  # efficientnet
    depthwise_padding: tuple[int, ...] = ()  # efficientnet: blocks with a stride of 2 whose input has an odd size
    head: Literal["linear", "mlp"] = "linear"  # convnext
    attention_chunk: int = 0  # a device's examples whose attention weights exist at a time; 0: all


@dataclass(frozen=True)
class TextTowerConfig(BlockConfig):
    name: str = "transformer"  # a row of clipjax.models.TEXT_TOWERS; what is marked "bert" is read by that one only
    vocab_size: int = 49408
    context_length: int = 77
    width: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_dim: int = 2048
    causal: bool = True
    # eos: at eos_id. last: the last position, padding included (SigLIP). cls: a token appended (CoCa), or bert's first
    # position. bert: mean, of all but padding; pooler, BERT's tanh layer on the first position.
    pool: Literal["eos", "last", "gap", "cls", "mean", "pooler"] = "eos"
    eos_id: int = -1  # where a text ends: the first position with this id; < 0: the largest id (OpenAI)
    pad_id: int = 0  # pool="cls" and bert: the padding, which nothing attends to
    position: Literal["learned", "none"] = "learned"
    rope: bool = False  # rotary positions
    rope_theta: float = 10_000.0
    projection_bias: bool = False
    # none: width == embed_dim. bert: mlp, two maps with a GELU between (open_clip).
    projection: Literal["linear", "mlp", "none"] = "linear"
    num_positions: int = 0  # bert: rows of the position table; 0: context_length
    positions_after_padding: bool = False  # bert: counted from pad_id + 1 on, padding not counted (RoBERTa)
    token_types: int = 2  # bert: rows of the token type table, of which the first is used
    pooler: bool = False  # bert: has the parameters of BERT's pooler; ALIGN has them and does not use them
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    init: Init = "clip"
    dropout: float = 0.0
    drop_path: float = 0.0
    scan_layers: bool = True
    remat: Remat = "none"
    attention_chunk: int = 0  # a device's examples whose attention weights exist at a time; 0: all


@dataclass(frozen=True)
class DecoderConfig(BlockConfig):
    """The captioner of loss "coca"; depth 0: none."""

    depth: int = 0  # pairs of a self-attention and a cross-attention block
    width: int = 512  # the text tower's
    num_heads: int = 8
    mlp_dim: int = 2048
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    init: Init = "clip"
    dropout: float = 0.0
    drop_path: float = 0.0
    remat: Remat = "none"
    attention_chunk: int = 0


@dataclass(frozen=True)
class ModelConfig:
    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    embed_dim: int = 512
    logit_scale_init: float = 1 / 0.07  # the scale itself; the parameter is its logarithm
    logit_scale_max: float = 100.0  # 0: not clipped
    logit_bias_init: float | None = None  # None: no bias parameter (CLIP); -10.0 for SigLIP
    dtype: Dtype = "float32"  # compute dtype; parameters are float32


@dataclass(frozen=True)
class LossConfig:
    name: str = "softmax"  # a row of clipjax.losses.LOSSES
    comm: Literal["dense", "all_gather", "chunked", "ring"] = "all_gather"
    tile: int = 0  # rows of the local block compared at a time; 0: chosen by the loss
    dtype: Dtype = "float32"  # what embeddings are rounded to before they meet; bfloat16 halves what moves
    repeats: Literal["negatives", "positives", "ignore"] = "negatives"  # what pairs with an equal pair_id are
    label_smoothing: float = 0.1  # label_smoothing only
    in_modal_weight: float = 0.25  # cyclip only
    cross_modal_weight: float = 0.25  # cyclip only
    teacher: str = ""  # distill only: the --workdir of the teacher's run
    distill_weight: float = 1.0  # distill only
    contrastive_weight: float = 1.0  # coca only
    caption_weight: float = 2.0  # coca only


@dataclass(frozen=True)
class MeshConfig:
    data: int = -1  # -1: all devices that fsdp and tensor leave
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class ScheduleConfig:
    name: Literal["cosine", "rsqrt", "linear", "constant"] = "cosine"
    warmup_steps: int = 0
    final_fraction: float = 0.0  # cosine and linear end at this fraction of the learning rate
    rsqrt_timescale: int = 10_000  # steps
    cooldown_steps: int = 0  # rsqrt and constant: linear to zero over the last steps


@dataclass(frozen=True)
class OptimizerConfig:
    name: str = "adamw"  # a row of clipjax.optim.updates.OPTIMIZERS
    learning_rate: float = 5e-4
    weight_decay: float = 0.2
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-6
    moment_dtype: Dtype = "float32"  # of the first moment
    grad_clip_norm: float = 0.0  # global norm; 0: off
    image_lr_multiplier: float = 1.0  # 0: the tower is frozen (LiT) and has no optimizer state
    text_lr_multiplier: float = 1.0
    ema_decay: float = 0.0  # 0: no EMA parameters
    max_nonfinite_steps: int = 10  # consecutive skipped steps before the run stops
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


@dataclass(frozen=True)
class TokenizerConfig:
    """Part of the checkpoint's fingerprint. None is what the originals of that kind do: see docs/tokenizers.md."""

    name: str = "sentencepiece"  # a row of clipjax.data.tokenizers.TOKENIZERS
    # sentencepiece: the .model file; hf: tokenizer.json or its folder; clip_bpe: bpe_simple_vocab_16e6.txt.gz, or a
    # folder with vocab.json and merges.txt
    path: str = ""
    clean: bool | None = None  # repair wrong encodings (ftfy), resolve HTML entities, join white space (OpenAI CLIP)
    lowercase: bool | None = None
    canonicalize: bool = False  # also drop punctuation and repeated white space (big_vision's zero-shot text)
    drop_underscore: bool = False  # canonicalize: "_" is dropped (transformers' SigLIP), not made a space (big_vision)
    add_bos: bool | None = None
    add_eos: bool | None = None
    eos_to_pad: bool = False  # the end of text counts for truncation and then becomes padding (CLIPA)
    pad_id: int | None = None  # None: the tokenizer's own pad id, or its EOS id where it has none


@dataclass(frozen=True)
class SourceConfig:
    """docs/data.md says what each kind of source makes of these."""

    name: str = "array_record"  # a row of clipjax.data.sources.SOURCES
    # array_record: folder with manifest.json; tfds: dataset name; webdataset, parquet: folder, file or pattern
    # ("shards/{00000..00012}.tar", "data/*.parquet"); folder: folder of images, or a .csv, .tsv or .jsonl table
    path: str = ""
    split: str = "train"
    data_dir: str = ""  # tfds: where it was prepared; webdataset: for the indexes; folder: where a table's paths start
    image_key: str = "image"  # feature, column, or extension in a tar; array_record has its own, as of the next two
    text_key: str = "text"  # feature, column or field of a .json with captions; not tfds: several, joined by commas
    label_key: str = "label"


@dataclass(frozen=True)
class MixturePart:
    source: SourceConfig = field(default_factory=SourceConfig)
    weight: float = 1.0  # the part's share of the examples is weight / sum of all weights


@dataclass(frozen=True)
class PixelConfig:
    """What stands between an encoded image and the tower; part of the checkpoint's fingerprint."""

    resize: Literal["squash", "center_crop", "pad"] = "squash"  # evaluation; pad: the longer side to size, then fill
    scale_to: int = 0  # squash, center_crop: the sides, or the shorter one, before the centre is cut; 0: image_size
    center: Literal["round", "floor"] = "round"  # half of an odd margin: to even (torchvision), or down (transformers)
    fill: int = 0  # pad: grey level of the border
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = True  # False: bilinear between four pixels whatever the scale (big_vision)
    alpha: Literal["white", "drop"] = "white"  # transparent pixels: over white, or whatever colour they hide
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class AugmentConfig:
    """Training only."""

    name: Literal["random_resized_crop", "none"] = "random_resized_crop"
    scale: tuple[float, ...] = (0.9, 1.0)  # area of the crop, as a share of the image
    ratio: tuple[float, ...] = (0.75, 4 / 3)
    flip: float = 0.0  # probability of a left-right flip


@dataclass(frozen=True)
class DataConfig:
    train: SourceConfig = field(default_factory=SourceConfig)
    mixture: dict[str, MixturePart] = field(default_factory=dict)  # several sources instead of `train`
    pixels: PixelConfig = field(default_factory=PixelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    image_embeddings: str = ""  # a frozen image tower's, from clipjax embed --tower=image, in place of images
    teacher_embeddings: str = ""  # of config.loss.teacher, from clipjax embed --tower=teacher; it then does not run
    # Of JPEGs in training; evaluation's pixels are always Pillow's. auto: simplejpeg where it is installed.
    decoder: Literal["auto", "simplejpeg", "pillow"] = "auto"
    num_threads: int = 2
    prefetch: int = 2  # global batches kept ready on the devices
    worker_count: int = 0  # processes; 0: threads of this process
    max_bad_share: float = 0.01  # of the records read; more stops the run


@dataclass(frozen=True)
class EvaluatorConfig:
    name: str = "zero_shot"  # a row of clipjax.eval.EVALUATORS
    source: SourceConfig = field(default_factory=SourceConfig)
    class_names: str = ""  # zero_shot: text file, a name a line; "": the names in the source's manifest
    templates: tuple[str, ...] = ("{}",)  # zero_shot: prompts, "{}" stands for the class name
    all_captions: bool = False  # retrieval: every caption of a record takes part (COCO, Flickr30k), not only its first


@dataclass(frozen=True)
class EvalConfig:
    every_steps: int = 0  # 0: only at the end of training
    batch_size: int = 256
    evaluators: dict[str, EvaluatorConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = 1000
    keep_last: int = 3
    keep_best: int = 1  # by best_metric; 0: none kept for being best
    best_metric: str = ""  # "evaluator/metric", larger is better; "": no best


@dataclass(frozen=True)
class LogConfig:
    every_steps: int = 50
    tensorboard: bool = True
    figures: bool = True  # the summary picture at the end of the run


@dataclass(frozen=True)
class ExperimentConfig:
    seed: int = 0
    total_steps: int = 10_000
    global_batch_size: int = 1024
    init_from: str = ""  # weights to start from: the --workdir of a run, or a directory that clipjax import wrote
    accumulation_steps: int = 1  # micro-batches a step's towers run in; the loss and its gradient are the whole batch's
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)


def default_config() -> ConfigDict:
    """A ConfigDict with every field of ExperimentConfig at its default; experiments start from it."""
    return to_config_dict(ExperimentConfig())


def to_config_dict(config: Any) -> ConfigDict:
    """Any of this module's dataclasses as a ConfigDict (floats stay floats, tuples stay tuples).

    Experiments use it for whole sections: `config.model = to_config_dict(get_preset("siglip_b16"))`.
    """
    result = ConfigDict()
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            value = to_config_dict(value)
        elif isinstance(value, dict):
            value = ConfigDict({k: to_config_dict(v) for k, v in value.items()})
        kind = _field_types(type(config))[f.name]
        if type(None) in typing.get_args(kind):
            # ConfigDict fixes a field's type by its first value; a placeholder takes None and the other type.
            result[f.name] = config_dict.placeholder(next(t for t in typing.get_args(kind) if t is not type(None)))
        result[f.name] = value
    return result


def to_json_dict(config: ExperimentConfig) -> dict:
    """Plain nested dict of JSON values; `from_json_dict` gives the same ExperimentConfig back."""
    return dataclasses.asdict(config)


def from_json_dict(tree: dict) -> ExperimentConfig:
    return _build(ExperimentConfig, tree, "config")


def from_config_dict(config: ConfigDict) -> ExperimentConfig:
    """ConfigDict -> frozen ExperimentConfig.

    Raises ConfigError for an unknown key (naming the nearest known one), a wrong type or a value that
    is not among a field's choices.
    """
    return _build(ExperimentConfig, config, "config")


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """' Did you mean ...? Known: ...' for an error about an unknown name."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return (f" Did you mean '{close[0]}'?" if close else "") + f" Known: {', '.join(known)}."


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless condition holds."""
    if not condition:
        raise ConfigError(message)


def _field_types(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _build(cls: type, tree: Mapping, path: str) -> Any:
    kinds = _field_types(cls)
    for key in tree:
        require(key in kinds, f"Unknown field {path}.{key}.{nearest(key, kinds)}")
    return cls(**{key: _convert(kinds[key], tree[key], f"{path}.{key}") for key in tree})


def _convert(kind: Any, value: Any, path: str) -> Any:
    """value as `kind`, or ConfigError naming the field, what it is and what it must be."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping | ConfigDict):
        return _build(kind, value, path)
    if origin is dict and isinstance(value, Mapping | ConfigDict):
        return {key: _convert(args[1], value[key], f"{path}.{key}") for key in value}
    if origin is Literal:
        require(value in args, f"{path}={value!r} is not a choice.{nearest(str(value), map(str, args))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(next(a for a in args if a is not type(None)), value, path)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    expected = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise ConfigError(f"{path} is {value!r} ({type(value).__name__}); expected {expected}.")
