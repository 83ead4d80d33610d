"""Results in the formats of CLIP_benchmark and DataComp, and the averages of DataComp."""

import argparse
import ast
import csv
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

from clipjax.config import EvaluatorConfig, SourceConfig
from clipjax.eval import CompositionalConfig, GroupedConfig, RetrievalConfig, ZeroShotConfig
from clipjax.report import datacomp
from clipjax.report.published import clip_benchmark_entry, file_name, write_entry
from clipjax.report.suites import SUITES

CLASSES = {"top1": 0.5, "top5": 0.75, "mean_per_class_recall": 0.4, "classes": 10}
PAIRS = {
    f"{way}_r{k}": k / 20 + shift for way, shift in (("image_to_text", 0.1), ("text_to_image", 0)) for k in (1, 5, 10)
}


def test_classification_and_retrieval_have_the_names_that_clip_benchmark_gives_them(tmp_path):
    names = {"model": "ViT-B-32", "pretrained": "org/openai"}
    cifar = ZeroShotConfig(published_as="wds/vtab/cifar10")
    entry = clip_benchmark_entry("vtab-cifar10", cifar, CLASSES, **names)
    assert entry == {
        "dataset": "wds/vtab/cifar10", "model": "ViT-B-32", "pretrained": "org/openai",
        "task": "zeroshot_classification", "language": "en",
        "metrics": {"acc1": 0.5, "acc5": 0.75, "mean_per_class_recall": 0.4},
    }  # fmt: skip
    assert file_name(entry) == "vtab_cifar10_org_openai_ViT-B-32_en_zeroshot_classification.json"
    write_entry(tmp_path, entry)
    text = (tmp_path / "clip_benchmark" / file_name(entry)).read_text()
    assert json.loads(text) == entry and text.count("\n") == 1
    pairs = clip_benchmark_entry("flickr8k", RetrievalConfig(), PAIRS, **names)
    assert (pairs["task"], pairs["dataset"]) == ("zeroshot_retrieval", "flickr8k")
    assert pairs["metrics"]["image_retrieval_recall@5"] == PAIRS["text_to_image_r5"]
    assert pairs["metrics"]["text_retrieval_recall@5"] == PAIRS["image_to_text_r5"]


def test_a_number_that_is_not_there_or_not_finite_is_null():
    few = {"top1": 0.5, "mean_per_class_recall": float("nan")}  # two classes have no top five
    metrics = clip_benchmark_entry("x", ZeroShotConfig(), few, model="", pretrained="")["metrics"]
    assert metrics == {"acc1": 0.5, "acc5": None, "mean_per_class_recall": None}
    assert clip_benchmark_entry("x", EvaluatorConfig(), few, model="", pretrained="") is None


def clip_benchmarks_build():
    """Its function main_build alone: the module's imports need more than is installed here."""
    spec = importlib.util.find_spec("clip_benchmark")
    if spec is None:
        pytest.skip("clip_benchmark is not installed")
    tree = ast.parse((Path(spec.origin).parent / "cli.py").read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", "") == "main_build"]
    scope = {"json": json, "os": os, "csv": csv}
    exec(compile(tree, "cli.py", "exec"), scope)
    return scope["main_build"]


def test_clip_benchmarks_own_code_builds_its_table(tmp_path):
    build = clip_benchmarks_build()
    for name, evaluator, result in (("cars", ZeroShotConfig(), CLASSES), ("flickr8k", RetrievalConfig(), PAIRS)):
        write_entry(tmp_path, clip_benchmark_entry(name, evaluator, result, model="M", pretrained="P"))
    files = [str(path) for path in sorted((tmp_path / "clip_benchmark").glob("*.json"))]
    build(argparse.Namespace(files=files, output=str(tmp_path / "table.csv")))
    cars, flickr = csv.DictReader((tmp_path / "table.csv").open())
    assert (cars["dataset"], cars["acc1"], cars["model_fullname"]) == ("cars", "0.5", "M P")
    assert flickr["image_retrieval_recall@5"] == str(PAIRS["text_to_image_r5"])


def entries(left_out=()):
    """{key: line} of made-up results for all sets of DataComp."""
    found = {}
    for number, (key, task) in enumerate(datacomp.TASKS.items()):
        evaluator, result = ZeroShotConfig(published_as=f"wds/{key}"), {**CLASSES, "top1": number / 100}
        if task.main_metric == datacomp.BOTH_WAYS:
            evaluator, result = RetrievalConfig(published_as=key), PAIRS
        elif task.main_metric.startswith(("acc_", "F1")):
            group = 0 if task.main_metric.startswith("acc_") else -1
            evaluator = GroupedConfig(published_as=key, group=group, worst_as=task.main_metric)
            result = {**result, "f1_macro": 0.3, "worst_group": 0.2}
        if task.name not in left_out and key != "misc/winogavil":
            found[key] = datacomp.entry(key, evaluator, result)
    return found


def test_datacomps_lines_have_key_name_and_main_metric(tmp_path):
    found = entries()
    assert found["vtab/cifar100"]["dataset"] == "CIFAR-100"
    assert found["vtab/cifar100"]["metrics"]["main_metric"] == found["vtab/cifar100"]["metrics"]["acc1"]
    assert found["vtab/pets"]["metrics"]["main_metric"] == CLASSES["mean_per_class_recall"]
    flickr = found["retrieval/flickr_1k_test_image_text_retrieval"]["metrics"]
    assert flickr["main_metric"] == pytest.approx((PAIRS["image_to_text_r1"] + PAIRS["text_to_image_r1"]) / 2)
    mains = {key: found[key]["metrics"]["main_metric"] for key in found}
    assert (mains["wilds/iwildcam"], mains["wilds/fmow"], mains["fairness/geode"]) == (0.3, 0.2, 0.2)
    assert datacomp.entry("mine", ZeroShotConfig(published_as="wds/mine"), CLASSES) is None
    datacomp.write(tmp_path, found)
    lines = [json.loads(line) for line in (tmp_path / "eval_results.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [key for key in datacomp.TASKS if key != "misc/winogavil"]


def test_an_average_over_fewer_sets_says_so():
    assert {name: len(sets) for name, sets in datacomp.GROUPS.items()} == {
        "ImageNet": 1, "ImageNet dist. shifts": 6, "VTAB": 13, "Retrieval": 3, "Average": 38,
    }  # fmt: skip
    whole = {task.name: number / 100 for number, task in enumerate(datacomp.TASKS.values())}
    averages = datacomp.averages(whole)
    assert averages["Average"].value == pytest.approx(np.mean(list(whole.values())))
    assert averages["VTAB"].value == pytest.approx(np.mean([whole[name] for name in datacomp.GROUPS["VTAB"]]))
    assert not any(average.missing for average in averages.values())
    lines = SUITES["datacomp"].summary(entries(left_out=("CIFAR-100", "ImageNet 1k")))
    assert lines[0].split() == ["ImageNet", "not", "measured"]
    assert lines[2].endswith("over 12 of 13 sets, not the published average")
    assert lines[1].endswith("  6 sets")
    assert lines[-1] == "Not measured: ImageNet 1k, CIFAR-100, WinoGAViL."


def test_choices_between_captions_have_clip_benchmarks_names():
    names = {"model": "m", "pretrained": "p"}
    pairs = {"text_score": 0.5, "image_score": 0.4, "group_score": 0.3}
    entry = clip_benchmark_entry("winoground", CompositionalConfig(), pairs, **names)
    assert entry["metrics"] == {"image_acc": 0.4, "text_acc": 0.5, "acc": 0.3}
    entry = clip_benchmark_entry("sugar_crepe", CompositionalConfig(), {"text_score": 0.5}, **names)
    assert entry["metrics"] == {"image_acc": 1.0, "text_acc": 0.5, "acc": 0.5}  # one image to choose from


def test_language_is_that_of_the_source():
    class French(SourceConfig):
        language = "fr"

    entry = clip_benchmark_entry("x", ZeroShotConfig(source=French()), CLASSES, model="m", pretrained="p")
    assert entry["language"] == "fr"
