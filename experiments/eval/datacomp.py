r"""DataComp's 38 data sets and their averages, from the folder that its download script fills.

    clipjax eval --checkpoint=runs/mine --config=experiments/eval/datacomp.py:/data/datacomp --out=results/mine

/data/datacomp has wds_NAME_test folders (WebDatasets, as from CLIP_benchmark), and for retrieval
flickr_1k_test_image_text_retrieval and mscoco_2014_5k_test_image_text_retrieval with Parquet files. What is not there
is listed and left out; an average over fewer sets says so. WinoGAViL is not read. docs/suites.md describes the files.
"""

from pathlib import Path

from ml_collections import ConfigDict

from clipjax.config import EvaluatorConfig, eval_config
from clipjax.data.sources import ParquetConfig, WebDatasetConfig
from clipjax.eval import GroupedConfig, RetrievalConfig, ZeroShotConfig
from clipjax.report.datacomp import TASKS

NOT_READ = ("misc/winogavil",)
# The group of a picture is one of the numbers beside its label. DataComp numbers no region of FMoW "Other", so all
# regions count, as in its own code.
GROUPS = {
    "wilds/iwildcam": {},
    "wilds/fmow": {"group": 0, "worst_as": "acc_worst_region"},
    "fairness/dollar_street": {"group": 0, "top": 5, "worst_as": "acc_top5_wg"},
    "fairness/geode": {"group": 0, "worst_as": "acc_wg"},
}


def get_config(root: str = "data/datacomp") -> ConfigDict:
    config = eval_config()
    evaluators = {key: evaluator_of(key, Path(root)) for key in TASKS if key not in NOT_READ}
    config.eval.evaluators = {key.replace("/", "-"): part for key, part in evaluators.items()}
    config.absent = config.broken = "skip"
    config.suite = "datacomp"
    return config


def evaluator_of(key: str, root: Path) -> EvaluatorConfig:
    """The evaluator of one set. Equal scores are ordered as DataComp's code orders them."""
    shared = {"published_as": f"wds/{key}", "ties": "first"}
    kind, _, name = key.rpartition("/")
    if kind == "retrieval":
        source = ParquetConfig(path=str(root / name), split="test", text_key="caption")
        return RetrievalConfig(source=source, **shared, all_captions=True)
    folder = name if kind == "fairness" else key.replace("/", "-")
    places = [root / f"wds_{folder}{ending}" for ending in ("_test", "")]
    source = WebDatasetConfig(path=str(next((place for place in places if place.is_dir()), places[0])), split="test")
    if key in GROUPS:
        return GroupedConfig(source=source, **shared, **GROUPS[key], templates=())
    return ZeroShotConfig(source=source, **shared, templates=())
