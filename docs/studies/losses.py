r"""Makes the study docs/studies/losses.md: data, runs, the JSON of all results, plots and tables.

    python -m docs.studies.losses            # everything that is missing, and what follows from it
    python -m docs.studies.losses --draw     # plots and tables from losses.json; trains nothing

Data is written to data/study, runs to sweeps/study; both are used again where they are there. Needs npm and apt-get, as
data_pipelines.emoji and data_pipelines.openclipart do. A test checks that the page has the tables of the JSON.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from clipjax.config import SourceConfig
from clipjax.data.sources import open_source
from clipjax.files import replacing, write_text
from clipjax.json_files import read_json_lines
from clipjax.report.statistics import Difference, difference, holm
from clipjax.runs.sweep import is_sweep, read_sweep
from docs.generate import with_part
from experiments.study_losses import BATCH_SIZES, IMAGES_SEEN, SPLITS

FOLDER = Path(__file__).parent
PAGE, RESULTS = FOLDER / "losses.md", FOLDER / "losses.json"
DATA, SWEEPS = Path("data/study"), Path("sweeps/study")
SEEDS, JOBS = 3, 2
RECORDS = {
    "emoji": "data_pipelines.emoji --held_out_names=0.1",
    "openclipart": "data_pipelines.openclipart --fetch --longest_side=48 --held_out_artists=0.2 "
    "--splits=train=0.85,test=0.15",
}
# dataset -> (loss, how repeats count)
LOSSES = {
    "emoji": [("softmax", "negatives"), ("sigmoid", "negatives"), ("softmax", "positives"), ("sigmoid", "positives")],
    "openclipart": [("softmax", "negatives"), ("sigmoid", "negatives")],
}
COMPARED = [
    (("sigmoid", "negatives"), ("softmax", "negatives")),
    (("softmax", "positives"), ("softmax", "negatives")),
    (("sigmoid", "positives"), ("sigmoid", "negatives")),
]
METRICS = [
    f"{evaluator}/{way}_{rank}"
    for evaluator in ("style", "names")
    for way in ("image_to_text", "text_to_image")
    for rank in ("r1", "r5", "r10")
]
SHOWN = {
    "style/image_to_text_r5": "held-out style, image to text",
    "style/text_to_image_r5": "held-out style, text to image",
    "names/image_to_text_r5": "held-out names, image to text",
    "names/text_to_image_r5": "held-out names, text to image",
}
COLOURS = {"softmax": "#2b6cb0", "sigmoid": "#c05621"}


def main() -> None:
    if sys.argv[1:] not in ([], ["--draw"]):
        sys.exit(__doc__)
    if not sys.argv[1:]:
        for dataset in RECORDS:
            for words in commands(dataset):
                print(shlex.join(words), flush=True)
                program = words[1:] if words[0] == "python" else ["-m", *words]
                subprocess.run([sys.executable, *program], check=True)
        write_text(RESULTS, as_json(collect(SWEEPS)))
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    for dataset in RECORDS:
        draw(results, dataset, FOLDER / "images" / f"losses_{dataset}.png")
    write_text(PAGE, page_with_tables(PAGE.read_text(encoding="utf-8"), results))


def commands(dataset: str) -> list[list[str]]:
    """The command lines that make a dataset, its tokenizer and all its runs, in order."""
    records = str(DATA / dataset)
    losses = ",".join(map(":".join, LOSSES[dataset]))
    return [
        ["python", "-m", *RECORDS[dataset].split(), f"--out={records}"],
        ["python", "-m", "data_pipelines.train_tokenizer", f"--records={records}", "--vocab_size=2048"]
        + [f"--out={records}.model"],
        *(
            ["clipjax", "sweep", f"--config=experiments/study_losses.py:{dataset},{batch}", f"--seeds={SEEDS}"]
            + [f"--workdir={SWEEPS}/{dataset}-{batch}", f"--jobs={JOBS}", "--vary", f"loss.name,loss.repeats={losses}"]
            for batch in BATCH_SIZES
        ),
    ]


def collect(sweeps: str | Path) -> dict[str, Any]:
    """What losses.json holds: the metrics of every setting whose seeds are all trained, and what explains them."""
    cells = []
    for dataset, batch in itertools.product(RECORDS, BATCH_SIZES):
        folder = Path(sweeps) / f"{dataset}-{batch}"
        for cell in read_sweep(folder).cells if is_sweep(folder) else ():
            lines = [line for line in read_json_lines(folder / cell.path / "metrics.jsonl") if METRICS[0] in line]
            if cell.status != "finished" or not lines:
                continue
            row = {"dataset": dataset, "loss": cell.values["loss.name"], "repeats": cell.values["loss.repeats"]}
            row |= {"batch_size": batch, "seed": cell.seed, "seconds": cell.seconds}
            cells.append(row | {"values": [round(lines[-1][name], 5) for name in METRICS]})
    trained = collections.Counter(setting_of(cell) for cell in cells)
    cells = [cell for cell in cells if trained[setting_of(cell)] == SEEDS]
    key = lambda row: [row[name] for name in ("dataset", "repeats", "loss", "batch_size", "seed")]  # noqa: E731
    return {
        "machine": machine() | {"jobs": JOBS, "flags": os.environ.get("XLA_FLAGS", "")},
        "images_seen": IMAGES_SEEN,
        "commands": {dataset: [shlex.join(words) for words in commands(dataset)] for dataset in RECORDS},
        "records": {dataset: number_of_records(dataset) for dataset in RECORDS},
        "chance": {dataset: chances(dataset) for dataset in RECORDS},
        "metrics": METRICS,
        "cells": sorted(cells, key=key),
    }


def setting_of(cell: Mapping[str, Any]) -> tuple:
    """(dataset, loss, how repeats count, batch size) of a row of the JSON."""
    return tuple(cell[name] for name in ("dataset", "loss", "repeats", "batch_size"))


def number_of_records(dataset: str) -> dict[str, int]:
    """{split: its records} of the splits that the study uses."""
    splits = ["train", *SPLITS[dataset].values()]
    return {split: len(open_source(SourceConfig(path=str(DATA / dataset), split=split))) for split in splits}


def chances(dataset: str) -> dict[str, float]:
    """{metric: its value for random embeddings}, for recall at 5, over 20 draws.

    Images have embeddings of their own; equal captions have the same one, so that their ranks are tied.
    """
    result = {}
    for evaluator, split in SPLITS[dataset].items():
        source = open_source(SourceConfig(path=str(DATA / dataset), split=split))
        records = [source[i] for i in range(len(source))]
        pair = np.array([record["pair_id"] for record in records])
        _, caption = np.unique([record["texts"][0] for record in records], return_inverse=True)
        match = pair[:, None] == pair[None, :]
        rng, hits = np.random.default_rng(0), np.zeros(2)
        for _ in range(20):
            scores = rng.normal(size=(len(records), caption.max() + 1))[:, caption]
            hits += [recall_at_5(scores, match), recall_at_5(scores.T, match.T)]
        for way, share in zip(("image_to_text", "text_to_image"), hits / 20, strict=True):
            result[f"{evaluator}/{way}_r5"] = round(float(share), 4)
    return result


def recall_at_5(scores: np.ndarray, match: np.ndarray) -> float:
    """The share of rows whose best match has fewer than five others above or beside it. Both [queries, candidates]."""
    best = np.where(match, scores, -np.inf).max(axis=1, keepdims=True)
    return float(np.mean(np.sum((scores >= best) & ~match, axis=1) < 5))


def as_json(results: Mapping[str, Any]) -> str:
    """JSON with one line for each cell."""
    cells = ",\n".join(f"  {json.dumps(cell)}" for cell in results["cells"])
    return json.dumps(results | {"cells": []}, indent=1).replace('"cells": []', f'"cells": [\n{cells}\n ]') + "\n"


def of_seeds(
    results: Mapping[str, Any], dataset: str, loss: tuple[str, str], batches: Sequence[int], metric: str
) -> dict[int, float]:
    """{seed: the metric in percent, its mean over the batch sizes}, of the seeds that were trained at all of them."""
    place, by_batch = results["metrics"].index(metric), []
    for batch in batches:
        where = {"dataset": dataset, "loss": loss[0], "repeats": loss[1], "batch_size": batch}
        rows = [cell for cell in results["cells"] if where.items() <= cell.items()]
        by_batch.append({cell["seed"]: 100 * cell["values"][place] for cell in rows})
    seeds = set.intersection(*map(set, by_batch))
    return {seed: float(np.mean([values[seed] for values in by_batch])) for seed in sorted(seeds)}


def page_with_tables(page: str, results: Mapping[str, Any]) -> str:
    """The page with the tables and commands that the results give, in the place of its own."""
    shown = [line for dataset in RECORDS for line in results["commands"][dataset]]
    lines = "".join(
        line.replace(" --seeds", " \\\n  --seeds").replace(" --vary", " \\\n  --vary") + "\n" for line in shown
    )
    page = with_part(page, "commands", f"```bash\n{lines}```\n", "docs.studies.losses")
    for dataset in RECORDS:
        page = with_part(page, f"{dataset} table", table(results, dataset), "docs.studies.losses")
        page = with_part(page, f"{dataset} differences", differences(results, dataset), "docs.studies.losses")
    return page


def table(results: Mapping[str, Any], dataset: str) -> str:
    """Mean and standard deviation over the seeds, as Markdown: a row for each metric and batch size."""
    losses = LOSSES[dataset]
    lines = [["recall at 5", "batch", *map(label, losses)], ["---"] * 2 + ["---:"] * len(losses)]
    for metric, title in SHOWN.items():
        for batch in BATCH_SIZES:
            values = [list(of_seeds(results, dataset, loss, [batch], metric).values()) for loss in losses]
            chance = f"{title} (chance {100 * results['chance'][dataset][metric]:.1f})"
            lines.append(
                [chance if batch == BATCH_SIZES[0] else "", f"{batch:,}", *(mean_and_spread(v) for v in values)]
            )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def differences(results: Mapping[str, Any], dataset: str) -> str:
    """Paired differences in points, as Markdown, at each batch size and of the means over the batch sizes.

    Bold: the 95% interval of the mean leaves out zero; with a dagger, also after Holm's correction over the table.
    """
    compared = [pair for pair in COMPARED if pair[0] in LOSSES[dataset]]
    cells = [
        difference(*(of_seeds(results, dataset, loss, batches, metric) for loss in pair))
        for pair in compared
        for metric in SHOWN
        for batches in (*((batch,) for batch in BATCH_SIZES), BATCH_SIZES)
    ]
    texts = iter(interval(cell) for cell in holm(cells))
    lines = [["recall at 5", *(f"{batch:,}" for batch in BATCH_SIZES), "mean"]]
    lines.append(["---"] + ["---:"] * (len(BATCH_SIZES) + 1))
    for one, other in compared:
        for title in SHOWN.values():
            lines.append(
                [f"{label(one)} - {label(other)}: {title}", *(next(texts) for _ in range(len(BATCH_SIZES) + 1))]
            )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def interval(found: Difference) -> str:
    """ "+1.2 ± 0.4": the mean difference and half its 95% interval, bold where that leaves out zero."""
    if not found.test:
        return "-"
    text = f"{found.mean:+.1f} ± {(found.high - found.low) / 2:.1f}"
    return f"**{text}**{' †' * found.significant}" if found.p < 0.05 else text


def mean_and_spread(values: Sequence[float]) -> str:
    """ "12.3 ± 0.4": mean and standard deviation; "-" without values."""
    if not values:
        return "-"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def label(loss: tuple[str, str]) -> str:
    return loss[0] if loss[1] == "negatives" else f"{loss[0]}, repeats as {loss[1]}"


def draw(results: Mapping[str, Any], dataset: str, path: str | Path) -> None:
    """A picture of the four metrics over the batch size: means, and every seed as a point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(2, 2).flat, SHOWN.items(), strict=True):
        for place, loss in enumerate(LOSSES[dataset]):
            points = [(b, list(of_seeds(results, dataset, loss, [b], metric).values())) for b in BATCH_SIZES]
            points = [(batch * 1.03 ** (place - 1), values) for batch, values in points if values]
            style = {"color": COLOURS[loss[0]], "linestyle": "-" if loss[1] == "negatives" else "--"}
            axes.plot([x for x, _ in points], [np.mean(y) for _, y in points], label=label(loss), **style)
            for x, values in points:
                hollow = {} if loss[1] == "negatives" else {"markerfacecolor": "white"}
                axes.plot([x] * len(values), values, "o", color=style["color"], markersize=4, **hollow)
        chance = 100 * results["chance"][dataset][metric]
        axes.axhline(chance, color="#a0aec0", linestyle=":", label="chance")
        axes.set_xscale("log", base=2)
        axes.set_xticks(BATCH_SIZES, [f"{batch:,}" for batch in BATCH_SIZES])
        axes.set(title=title, xlabel="batch size", ylabel="recall at 5 (%)", xlim=(56, 1200), ylim=(0, None))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


if __name__ == "__main__":
    main()
