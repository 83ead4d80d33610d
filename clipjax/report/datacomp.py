"""DataComp's 38 sets: their names, main metrics and averages, and eval_results.jsonl.

The names and metrics are those of the benchmark (Gadre et al., 2304.14108); docs/suites.md says which sets are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipjax.config import EvaluatorConfig
from clipjax.files import write_text
from clipjax.report.published import clip_benchmark_entry

FILE = "eval_results.jsonl"
RECALLS = ("image_retrieval_recall@1", "text_retrieval_recall@1")


class Task(NamedTuple):
    """One of the sets."""

    name: str  # in result files
    main_metric: str = "acc1"


PER_CLASS, BOTH_WAYS = "mean_per_class_recall", "mean_recall@1"
TASKS: dict[str, Task] = {
    "imagenet1k": Task("ImageNet 1k"),
    "imagenet_sketch": Task("ImageNet Sketch"),
    "imagenetv2": Task("ImageNet v2"),
    "imagenet-a": Task("ImageNet-A"),
    "imagenet-o": Task("ImageNet-O"),
    "imagenet-r": Task("ImageNet-R"),
    "objectnet": Task("ObjectNet"),
    "vtab/caltech101": Task("Caltech-101", PER_CLASS),
    "cifar10": Task("CIFAR-10"),
    "vtab/cifar100": Task("CIFAR-100"),
    "vtab/clevr_count_all": Task("CLEVR Counts"),
    "vtab/clevr_closest_object_distance": Task("CLEVR Distance"),
    "country211": Task("Country211"),
    "vtab/dtd": Task("Describable Textures"),
    "vtab/eurosat": Task("EuroSAT"),
    "fgvc_aircraft": Task("FGVC Aircraft", PER_CLASS),
    "food101": Task("Food-101"),
    "gtsrb": Task("GTSRB"),
    "vtab/kitti_closest_vehicle_distance": Task("KITTI Vehicle Distance"),
    "mnist": Task("MNIST"),
    "vtab/flowers": Task("Oxford Flowers-102", PER_CLASS),
    "vtab/pets": Task("Oxford-IIIT Pet", PER_CLASS),
    "voc2007": Task("Pascal VOC 2007"),
    "vtab/pcam": Task("PatchCamelyon"),
    "renderedsst2": Task("Rendered SST2"),
    "vtab/resisc45": Task("RESISC45"),
    "cars": Task("Stanford Cars"),
    "stl10": Task("STL-10"),
    "sun397": Task("SUN397"),
    "vtab/svhn": Task("SVHN"),
    "retrieval/flickr_1k_test_image_text_retrieval": Task("Flickr", BOTH_WAYS),
    "retrieval/mscoco_2014_5k_test_image_text_retrieval": Task("MSCOCO", BOTH_WAYS),
    "misc/winogavil": Task("WinoGAViL", "jaccard_score_10-12"),
    "wilds/iwildcam": Task("iWildCam", "F1-macro_all"),
    "wilds/camelyon17": Task("Camelyon17"),
    "wilds/fmow": Task("FMoW", "acc_worst_region"),
    "fairness/dollar_street": Task("Dollar Street", "acc_top5_wg"),
    "fairness/geode": Task("GeoDE", "acc_wg"),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "ImageNet": ("ImageNet 1k",),
    "ImageNet dist. shifts": (
        "ImageNet Sketch", "ImageNet v2", "ImageNet-A", "ImageNet-O", "ImageNet-R", "ObjectNet",
    ),
    "VTAB": (
        "Caltech-101", "CIFAR-100", "CLEVR Counts", "CLEVR Distance", "Describable Textures", "EuroSAT",
        "KITTI Vehicle Distance", "Oxford Flowers-102", "Oxford-IIIT Pet", "PatchCamelyon", "RESISC45", "SVHN",
        "SUN397",
    ),
    "Retrieval": ("Flickr", "MSCOCO", "WinoGAViL"),
    "Average": tuple(task.name for task in TASKS.values()),
}  # fmt: skip


class Average(NamedTuple):
    """The mean of main metrics over those sets of a group that were measured."""

    value: float | None  # None where no set was measured
    measured: int
    missing: tuple[str, ...]  # sets that were not measured; with any, the value is not the published average


def entry(name: str, evaluator: EvaluatorConfig, result: Mapping[str, Any]) -> dict[str, Any] | None:
    """A line of eval_results.jsonl: {"key", "dataset", "metrics": {..., "main_metric"}}; None for another set."""
    published = clip_benchmark_entry(name, evaluator, result, model="", pretrained="")
    key = "" if published is None else published["dataset"].removeprefix("wds/")
    if key not in TASKS:
        return None
    metrics = published["metrics"]
    if all(recall in metrics for recall in RECALLS):
        metrics[BOTH_WAYS] = float(np.mean([metrics[recall] for recall in RECALLS]))
    task = TASKS[key]
    return {"key": key, "dataset": task.name, "metrics": {**metrics, "main_metric": metrics.get(task.main_metric)}}


def averages(scores: Mapping[str, float | None]) -> dict[str, Average]:
    """{group: its average}; scores: set's name in result files -> main metric, None or absent where not measured."""
    found = {}
    for group, names in GROUPS.items():
        known = [scores[name] for name in names if scores.get(name) is not None]
        missing = tuple(name for name in names if scores.get(name) is None)
        found[group] = Average(float(np.mean(known)) if known else None, len(known), missing)
    return found


def write(out: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes out/eval_results.jsonl, a line for each set in the order of TASKS. entries: key -> what `entry` gave."""
    write_text(out / FILE, "".join(json.dumps(entries[key]) + "\n" for key in TASKS if key in entries))


def summary(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines with the averages, each saying over how many of its sets it is, and which are missing."""
    scores = {line["dataset"]: line["metrics"]["main_metric"] for line in entries.values()}
    lines = []
    for group, average in averages(scores).items():
        of = average.measured + len(average.missing)
        value = "not measured" if average.value is None else f"{average.value:.4f}"
        over = f"over {average.measured} of {of} sets, not the published average" if average.missing else f"{of} sets"
        lines.append(f"{group:22}{value:>13}  {over if average.value is not None else ''}".rstrip())
    missing = averages(scores)["Average"].missing
    if missing:
        lines.append(f"Not measured: {', '.join(missing)}.")
    return lines
