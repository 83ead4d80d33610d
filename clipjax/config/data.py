"""The sections of data: where examples come from, how an image becomes pixels, how a text becomes ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from clipjax.config.fields import ORDER, experiment, meaning, runtime, section


@dataclass(frozen=True)
class TokenizerConfig:
    """Part of the checkpoint's fingerprint. None is what the originals of that kind do: see docs/tokenizers.md."""

    name: str = meaning("sentencepiece")  # a row of clipjax.data.tokenizers.TOKENIZERS
    # sentencepiece: the .model file; hf: tokenizer.json or its folder; clip_bpe: bpe_simple_vocab_16e6.txt.gz, or a
    # folder with vocab.json and merges.txt
    path: str = runtime("")
    # repair wrong encodings (ftfy), resolve HTML entities, join white space (OpenAI CLIP)
    clean: bool | None = meaning(None)
    lowercase: bool | None = meaning(None)
    canonicalize: bool = meaning(False)  # also drop punctuation and repeated white space (big_vision's zero-shot text)
    # canonicalize: "_" is dropped (transformers' SigLIP), not made a space (big_vision)
    drop_underscore: bool = meaning(False)
    add_bos: bool | None = meaning(None)
    add_eos: bool | None = meaning(None)
    eos_to_pad: bool = meaning(False)  # the end of text counts for truncation and then becomes padding (CLIPA)
    pad_id: int | None = meaning(None)  # None: the tokenizer's own pad id, or its EOS id where it has none


@dataclass(frozen=True)
class SourceConfig:
    """docs/data.md says what each kind of source makes of these."""

    name: str = experiment("array_record", fixed=ORDER)  # a row of clipjax.data.sources.SOURCES
    # array_record: folder with manifest.json; tfds: dataset name; webdataset, parquet: folder, file or pattern
    # ("shards/{00000..00012}.tar", "data/*.parquet"); folder: folder of images, or a .csv, .tsv or .jsonl table
    path: str = runtime("")
    split: str = experiment("train", fixed=ORDER)
    # tfds: where it was prepared; webdataset: for the indexes; folder: where a table's paths start
    data_dir: str = runtime("")
    # feature, column, or extension in a tar; array_record has its own, as of the next two
    image_key: str = experiment("image", fixed=ORDER)
    # feature, column or field of a .json with captions; not tfds: several, joined by commas
    text_key: str = experiment("text", fixed=ORDER)
    label_key: str = experiment("label", fixed=ORDER)


@dataclass(frozen=True)
class MixturePart:
    source: SourceConfig = section(SourceConfig)
    weight: float = experiment(1.0, fixed=ORDER)  # the part's share of the examples is weight / sum of all weights


@dataclass(frozen=True)
class PixelConfig:
    """What stands between an encoded image and the tower; part of the checkpoint's fingerprint."""

    # evaluation; pad: the longer side to size, then fill
    resize: Literal["squash", "center_crop", "pad"] = meaning("squash", converted=True)
    # squash, center_crop: the sides, or the shorter one, before the centre is cut; 0: image_size
    scale_to: int = meaning(0, converted=True)
    # half of an odd margin: to even (torchvision), or down (transformers)
    center: Literal["round", "floor"] = meaning("round", converted=True)
    fill: int = meaning(0, converted=True)  # pad: grey level of the border
    interpolation: Literal["bicubic", "bilinear"] = meaning("bicubic", converted=True)
    # False: bilinear between four pixels whatever the scale (big_vision)
    antialias: bool = meaning(True, converted=True)
    # transparent pixels: over white, or whatever colour they hide
    alpha: Literal["white", "drop"] = meaning("white", converted=True)
    mean: tuple[float, ...] = meaning((0.5, 0.5, 0.5))
    std: tuple[float, ...] = meaning((0.5, 0.5, 0.5))


@dataclass(frozen=True)
class AugmentConfig:
    """Training only."""

    name: Literal["random_resized_crop", "none"] = experiment("random_resized_crop")
    scale: tuple[float, ...] = experiment((0.9, 1.0))  # area of the crop, as a share of the image
    ratio: tuple[float, ...] = experiment((0.75, 4 / 3))
    flip: float = experiment(0.0)  # probability of a left-right flip


@dataclass(frozen=True)
class DataConfig:
    train: SourceConfig = section(SourceConfig)
    mixture: dict[str, MixturePart] = field(default_factory=dict)  # several sources instead of `train`
    pixels: PixelConfig = section(PixelConfig)
    augment: AugmentConfig = section(AugmentConfig)
    # a frozen image tower's, from clipjax embed --tower=image, in place of images
    image_embeddings: str = experiment("")
    # of config.loss.teacher, from clipjax embed --tower=teacher; it then does not run
    teacher_embeddings: str = experiment("")
    # Of JPEGs in training; evaluation's pixels are always Pillow's. auto: simplejpeg where it is installed.
    decoder: Literal["auto", "simplejpeg", "pillow"] = experiment("auto")
    num_threads: int = runtime(2)
    prefetch: int = runtime(2)  # global batches kept ready on the devices
    worker_count: int = runtime(0)  # processes; 0: threads of this process
    max_bad_share: float = runtime(0.01)  # of the records read; more stops the run
