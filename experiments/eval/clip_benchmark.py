r"""CLIP_benchmark's 41 data sets, from a folder that holds them as WebDatasets.

    clipjax eval --checkpoint=runs/mine --config=experiments/eval/clip_benchmark.py:/data/wds
    clipjax eval --checkpoint=weights/b32 --config=experiments/eval/clip_benchmark.py:/data/wds --model=ViT-B-32 \
      --pretrained=openai --out=results/b32

/data/wds has a folder for each set: wds_imagenet1k, wds_vtab-cifar10, ... (or wds_imagenet1k_test). Those that are not
there are listed and left out. Prompts and class names are the sets' own. docs/suites.md describes the result files.
"""

from pathlib import Path

from ml_collections import ConfigDict

from clipjax.config import EvaluatorConfig, eval_config
from clipjax.data.sources import WebDatasetConfig
from clipjax.eval import MultilabelConfig, RetrievalConfig, ZeroShotConfig

RETRIEVAL = ("mscoco_captions", "flickr8k", "flickr30k")
MULTILABEL = ("voc2007_multilabel",)
CLASSIFICATION = (
    "imagenet1k", "imagenetv2", "imagenet_sketch", "imagenet-a", "imagenet-r", "imagenet-o", "objectnet", "fer2013",
    "voc2007", "sun397", "cars", "fgvc_aircraft", "mnist", "stl10", "gtsrb", "country211", "renderedsst2",
    "vtab/caltech101", "vtab/cifar10", "vtab/cifar100", "vtab/clevr_count_all", "vtab/clevr_closest_object_distance",
    "vtab/diabetic_retinopathy", "vtab/dmlab", "vtab/dsprites_label_orientation", "vtab/dsprites_label_x_position",
    "vtab/dsprites_label_y_position", "vtab/dtd", "vtab/eurosat", "vtab/kitti_closest_vehicle_distance", "vtab/flowers",
    "vtab/pets", "vtab/pcam", "vtab/resisc45", "vtab/smallnorb_label_azimuth", "vtab/smallnorb_label_elevation",
    "vtab/svhn",
)  # fmt: skip


def get_config(root: str = "data/wds") -> ConfigDict:
    config = eval_config()
    evaluators = {name: evaluator_of(name, Path(root)) for name in (*RETRIEVAL, *CLASSIFICATION, *MULTILABEL)}
    config.eval.evaluators = {name.replace("/", "-"): part for name, part in evaluators.items()}
    config.absent = config.broken = "skip"
    return config


def evaluator_of(name: str, root: Path) -> EvaluatorConfig:
    """The evaluator of one set. Equal scores are ordered as CLIP_benchmark orders them, to compare with its tables."""
    shared = {"source": source_of(name, root), "published_as": f"wds/{name}", "ties": "first"}
    if name in RETRIEVAL:
        return RetrievalConfig(**shared, all_captions=True)
    return (MultilabelConfig if name in MULTILABEL else ZeroShotConfig)(**shared, templates=())


def source_of(name: str, root: Path) -> WebDatasetConfig:
    """The test split of a set, in a folder named after it."""
    folders = [root / f"wds_{name.replace('/', '-')}{ending}" for ending in ("", "_test")]
    return WebDatasetConfig(path=str(next((f for f in folders if f.is_dir()), folders[0])), split="test")
