"""The data sections: where examples come from, how an image becomes pixels, how a text becomes ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from clipjax.config.fields import ORDER, experiment, meaning, part, runtime, section
from clipjax.config.ranges import (
    CAPTIONS,
    GIBIBYTES,
    GREY,
    PARTS,
    PIXEL_MEAN,
    PIXEL_SPREAD,
    PIXELS_OR_ZERO,
    POSITIONS,
    PROPORTION,
    SHARE,
    TOKEN_ID,
    WORKERS,
    WORKERS_OR_ZERO,
)


@dataclass(frozen=True)
class TokenizerConfig:
    """What all tokenizers share; part of the checkpoint's fingerprint. docs/tokenizers.md has the rules of each family.

    None leaves the choice to the tokenizer, which follows the original implementation of its kind.
    """

    name: str = meaning("sentencepiece")  # a row of clipjax.data.tokenizers.TOKENIZERS
    path: str = runtime("", path="own")  # the vocabulary: a file or a folder, by kind
    # repair wrong encodings (ftfy), resolve HTML entities, join white space (OpenAI CLIP)
    clean: bool | None = meaning(None)
    lowercase: bool | None = meaning(None)  # lower the case of letters
    canonicalize: bool = meaning(False)  # also drop punctuation and repeated white space (big_vision's zero-shot text)
    # canonicalize: drop "_" (transformers' SigLIP) instead of making it a space (big_vision)
    drop_underscore: bool = meaning(False)
    add_bos: bool | None = meaning(None)  # begin with the id of the beginning of a text
    add_eos: bool | None = meaning(None)  # end with the id of the end of a text
    eos_to_pad: bool = meaning(False)  # the end of text counts for truncation and then becomes padding (CLIPA)
    # None: the vocabulary's own pad id, or its EOS id where it has none
    pad_id: int | None = meaning(None, within=TOKEN_ID)


@dataclass(frozen=True)
class SourceConfig:
    """What all sources share; the options of each kind are in its file in clipjax/data/sources."""

    name: str = experiment("array_record", fixed=ORDER)  # a row of clipjax.data.sources.SOURCES
    # a folder, a file, a pattern or a dataset's name, by kind; see docs/data.md
    path: str = runtime("", path="data")
    split: str = experiment("train", fixed=ORDER)  # part of the dataset, for sources that have parts
    # templates such as "a photo of a {}.": the texts of a record are then its class's name in each of them, and records
    # of one class have one pair_id
    prompts: tuple[str, ...] = experiment(())


@dataclass(frozen=True)
class MixturePart:
    """One of several training sources, with its weight."""

    source: SourceConfig = part("clipjax.data.sources:SOURCES", "array_record")
    # the part's share of the examples is weight / sum of all weights
    weight: float = experiment(1.0, within=PARTS, fixed=ORDER)


@dataclass(frozen=True)
class PixelConfig:
    """How an encoded image becomes the pixels that a tower sees; part of the checkpoint's fingerprint."""

    # for evaluation. pad: scale the longer side to the tower's size, then fill the rest
    resize: Literal["squash", "center_crop", "pad"] = meaning("squash", converted=True)
    # pixels of both sides (squash) or the shorter side (center_crop) before the centre is cut out; 0: image_size
    scale_to: int = meaning(0, within=PIXELS_OR_ZERO, converted=True)
    # half of an odd margin is rounded to the even number (torchvision), or down (transformers)
    center: Literal["round", "floor"] = meaning("round", converted=True)
    fill: int = meaning(0, within=GREY, converted=True)  # pad: grey level of the border
    interpolation: Literal["bicubic", "bilinear"] = meaning("bicubic", converted=True)
    # False: bilinear between four pixels at every scale (big_vision)
    antialias: bool = meaning(True, converted=True)
    # transparent pixels: composed over white, or shown in the colour they hide
    alpha: Literal["white", "drop"] = meaning("white", converted=True)
    # of red, green and blue, with pixels from 0 to 1
    mean: tuple[float, ...] = meaning((0.5, 0.5, 0.5), within=PIXEL_MEAN)
    std: tuple[float, ...] = meaning((0.5, 0.5, 0.5), within=PIXEL_SPREAD)  # of red, green and blue


@dataclass(frozen=True)
class AugmentConfig:
    """Training only."""

    name: Literal["random_resized_crop", "none"] = experiment("random_resized_crop")
    scale: tuple[float, ...] = experiment((0.9, 1.0), within=SHARE)  # area of the crop, as a share of the image
    ratio: tuple[float, ...] = experiment((0.75, 4 / 3), within=PROPORTION)  # width to height of the crop
    flip: float = experiment(0.0, within=SHARE)  # probability of a left-right flip


@dataclass(frozen=True)
class DataConfig:
    """What training reads, and how it reads it."""

    train: SourceConfig = part("clipjax.data.sources:SOURCES", "array_record")
    mixture: dict[str, MixturePart] = field(default_factory=dict)  # several sources instead of `train`
    pixels: PixelConfig = section(PixelConfig)
    augment: AugmentConfig = section(AugmentConfig)
    # texts of each image in a step, drawn from its captions or prompts; all are positives of the image
    captions_per_image: int = experiment(1, within=CAPTIONS)
    # lengths in tokens that a batch's texts are cut to, where the text tower computes the same without the rest of the
    # padding: the shortest that the batch needs. (): chosen; (context_length,): nothing is cut (docs/padding.md)
    text_buckets: tuple[int, ...] = runtime((), within=POSITIONS)
    # share of each device's texts, the shortest ones, that are cut to a length of their own; 0: one length for all
    short_texts: float = runtime(0.75, within=SHARE)
    # folder that clipjax embed --tower=image wrote: embeddings of a frozen image tower, read instead of images
    image_embeddings: str = experiment("")
    # folder that clipjax embed --tower=teacher wrote: embeddings of config.loss.teacher, which then does not run
    teacher_embeddings: str = experiment("")
    # decodes JPEGs in training; evaluation always uses Pillow. auto: simplejpeg where it is installed
    decoder: Literal["auto", "simplejpeg", "pillow"] = experiment("auto")
    num_threads: int = runtime(2, within=WORKERS)  # threads that read and decode, in each worker
    prefetch: int = runtime(2, within=WORKERS)  # global batches kept ready on the devices
    worker_count: int = runtime(0, within=WORKERS_OR_ZERO)  # processes; 0: threads of this process
    # local folder that keeps data read from buckets; "": ~/.cache/clipjax/data (docs/buckets.md)
    cache_dir: str = runtime("")
    # GiB that it may take, all runs of a host together, and at most half of the disk's room; 0: no data are kept
    cache_gib: float = runtime(64.0, within=GIBIBYTES)
    # share of the records read that may be bad; a larger one stops the run
    max_bad_share: float = runtime(0.01, within=SHARE)
