r"""Tries every family of weights, and every configuration of OpenCLIP, and writes what it saw into docs/interop.md.

    python -m docs.families                # tries what families.json lacks, which takes minutes; then writes the tables
    python -m docs.families open_clip ...  # tries these rows of clipjax.interop.FAMILIES again
    python -m docs.families --refused      # tries the configurations of OpenCLIP that were refused again
    python -m docs.families --draw         # writes the tables only

A family's model, with random weights, is saved by its own library, imported with its parity report, exported, and the
exported tensors are compared with the first ones. A configuration of OpenCLIP is a directory with its names and shapes,
and no numbers; it counts as read if clipjax opens it. A new row of FAMILIES needs its words in WORDS and a model in
docs.family_models.MODELS. A test compares the page with families.json.
"""

from __future__ import annotations

import collections
import importlib.metadata
import json
import logging
import math
import re
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from absl import logging as absl_logging

from clipjax.commands import export, import_weights
from clipjax.interop import FAMILIES, InteropError, open_foreign
from clipjax.interop.families import weights
from clipjax.interop.open_clip_config import CONFIG
from clipjax.interop.originals import ORIGINALS
from docs.generate import with_part

PAGE, RESULTS = Path(__file__).parent / "interop.md", Path(__file__).parent / "families.json"
TABLE, OPEN_CLIP = "table of families", "configurations of OpenCLIP"
LIBRARIES = ("transformers", "open_clip_torch", "timm", "torch")


class Words(NamedTuple):
    """What the table says of a family beside what was tried."""

    read: str  # which files
    presets: str  # that fit


WORDS: dict[str, Words] = {
    "hf_clip": Words("directory of transformers' `CLIPModel` or `MetaClip2Model`", "`clip_vit_*`"),
    "hf_siglip": Words(
        "directory of `SiglipModel` (SigLIP; SigLIP 2 of a fixed resolution)", "`siglip_*`, `siglip2_*`"
    ),
    "hf_siglip2": Words("directory of `Siglip2Model` ([NaFlex](naflex.md))", "`siglip2_naflex_*`"),
    "hf_chinese_clip": Words("directory of `ChineseCLIPModel`", ""),
    "hf_clip_image": Words(
        "directory of `CLIPVisionModel`, with or without projection ([one tower](#one-tower))",
        "image tower of `clip_vit_*`",
    ),
    "hf_clip_text": Words("directory of `CLIPTextModel`, with or without projection", "text tower of `clip_vit_*`"),
    "hf_siglip_image": Words("directory of `SiglipVisionModel`", "image tower of `siglip_*`, `siglip2_*`"),
    "hf_siglip_text": Words(
        "directory of `SiglipTextModel` or `Siglip2TextModel`", "text tower of `siglip_*`, `siglip2_*`"
    ),
    "hf_siglip2_image": Words("directory of `Siglip2VisionModel`", "image tower of `siglip2_naflex_*`"),
    "hf_align": Words("directory of `AlignModel` ([EfficientNet](conv_towers.md) and BERT)", "`align_base`"),
    "open_clip": Words(
        "`open_clip_config.json` and weights, OpenCLIP's own ViT", "`clip_vit_*`, `open_clip_vit_*`, `clipa_*`"
    ),
    "open_clip_siglip": Words("the same with timm's SigLIP tower (`visual.trunk`)", "`siglip_*`"),
    "open_clip_eva": Words(
        "the same with timm's EVA trunk (`EVA01-g-14*`, `EVA02-*`)", "`eva01_clip_*`, `eva02_clip_{b16,l14,bige14}*`"
    ),
    "open_clip_timm": Words(
        "the same with another ViT of timm: PE-Core, MobileCLIP-B, MobileCLIP2-B and -L, `vit_*_clip_*`, plain ViTs",
        "`pe_core_*`, `mobileclip_b`, `mobileclip2_*`",
    ),
    "open_clip_vitamin": Words("the same with timm's ViTamin", "`vitamin_*`"),
    "open_clip_coca": Words("the same with `multimodal_cfg`", "`coca_vit_*`"),
    "open_clip_hf_text": Words(
        "the same with `hf_model_name` ([a BERT, RoBERTa or XLM-R](#text-towers-from-the-hub); BiomedCLIP)",
        "`open_clip_{roberta,xlm_roberta_base}_vit_b32`, `open_clip_xlm_roberta_large_vit_h14`",
    ),
    "open_clip_resnet": Words("the same with a [ResNet](conv_towers.md)", "`clip_rn*`"),
    "open_clip_convnext": Words("the same with timm's ConvNeXt", "`open_clip_convnext_*`"),
    "openai": Words("OpenAI's archive of a ViT (`ViT-B-32.pt`): sizes are read from the tensors", "`clip_vit_*`"),
    "openai_resnet": Words("OpenAI's archive of a ResNet (`RN50.pt`)", "`clip_rn*`"),
    "long_clip": Words("Long-CLIP's `longclip-B.pt`, `longclip-L.pt` (248 text positions)", "`long_clip_vit_*`"),
    "eva_clip": Words(
        "`EVA*_CLIP_*.pt` of baaivision/EVA: the preset is recognised by the tensors' sizes",
        "`eva01_clip_*`, `eva02_clip_*`, `eva_clip_*`",
    ),
    "big_vision": Words("`.npz`, a name per layer", "`siglip_*`"),
    "big_vision_stacked": Words("`.npz`, all layers in one array", "`siglip_*`"),
}


def main() -> None:
    """Tries what was asked for, saving after each, and writes the page."""
    names = [name for name in sys.argv[1:] if not name.startswith("--")]
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if "--draw" not in sys.argv[1:]:
        absl_logging.set_verbosity(absl_logging.ERROR)
        logging.disable(logging.WARNING)
        for name in names or [name for name in FAMILIES if name not in results.get("families", {})]:
            results.setdefault("families", {})[name] = try_family(name)
            save(results)
        outcomes = results.setdefault("open_clip", {})
        if "--refused" in sys.argv[1:]:
            outcomes = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, str)}
        for name, outcome in try_open_clip(outcomes) if not names else ():
            results["open_clip"][name] = outcome
            save(results)
    results = json.loads(RESULTS.read_text(encoding="utf-8"))  # in the file's order
    if missing := FAMILIES.keys() - results["families"].keys():
        sys.exit(f"Not tried yet: {', '.join(sorted(missing))}. Run python -m docs.families without names.")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_tables(page, results), encoding="utf-8")


def save(results: dict[str, Any]) -> None:
    """Writes families.json, with the versions of the libraries."""
    results["versions"] = {name: importlib.metadata.version(name) for name in LIBRARIES}
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def try_family(name: str) -> dict[str, Any]:
    """What each model of the family is called -> its library, differences, and how its export compares.

    Raises InteropError where an import or an export is refused, AssertionError where an export is not equal.
    """
    from docs.family_models import MODELS, known_as_preset

    tried = {}
    for model, make in MODELS[name].items():
        print(f"{name}: {model}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            source, run, out = (Path(folder) / part for part in ("original", "run", "out"))
            saved, format = make(source), FAMILIES[name].format
            reader = mock.patch.dict(ORIGINALS, {format: lambda _, given=saved.original: given})
            with known_as_preset(saved.preset) as preset, reader if saved.original else nullcontext():
                import_weights.run(str(source), run, preset=preset)
                report = json.loads((run / "parity.json").read_text())
                export.run(run, out, format=format, nearest_pixels=True, tokenizer=False)
                written = compare_exports(name, source, out, preset)
            if not report["compared"]:
                raise InteropError(f"{name}: {model} was not compared: {report['why']}.")
        tried[model] = {"library": saved.library, "outputs": report["outputs"], "exported_as": written}
    return tried


def compare_exports(name: str, source: Path, out: Path, preset: str) -> str:
    """The family of an export: another only where both hold the same model (a text tower of SigLIP and of SigLIP 2).

    Raises AssertionError unless the source is of this family, and the export has the same tensors, bit for bit.
    """
    first, again = (open_foreign(str(path), preset=preset) for path in (source, out))
    assert first.name == name, first.name
    ours, theirs = (weights(each.family, each.source.tensors) for each in (again, first))
    assert ours.keys() == theirs.keys()
    for tensor, stored in theirs.items():
        np.testing.assert_array_equal(ours[tensor].read(), stored.read(), err_msg=tensor)
    assert first.config.model == again.config.model
    return again.name


def try_open_clip(done: dict[str, Any]) -> Any:
    """Yields (name, the family that reads it, or {"refused": why}) of OpenCLIP's configurations that are not `done`."""
    from docs.family_models import build, known_text_towers, library

    torch, open_clip = library(), library("open_clip")
    for name in open_clip.list_models():
        if name in done:
            continue
        config = open_clip.get_model_config(name)
        with known_text_towers(), torch.device("meta"):
            shapes = {tensor: tuple(value.shape) for tensor, value in build(config).state_dict().items()}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {"mode": "RGB"}}))
            write_holes(Path(folder) / "open_clip_model.safetensors", shapes)
            try:
                outcome = open_foreign(folder).name
            except InteropError as error:
                outcome = {"refused": refusal(config, str(error).replace(folder, "DIR"))}
        print(f"{name}: {outcome}", flush=True)
        yield name, outcome


def write_holes(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A .safetensors file with these float32 tensors and without numbers: a hole of their size."""
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def refusal(config: dict[str, Any], message: str) -> str:
    """What of a refused configuration clipjax does not read: a tower by its name, or the first line of the message."""
    text = config.get("text_cfg", {}).get("hf_model_name")
    image = config.get("vision_cfg", {}).get("timm_model_name")
    if text and "hf_model_name=" in message and "multimodal_cfg" not in config:
        return f"text tower `{text}`"
    if image and "timm_model_name=" in message:
        return f"image tower `{re.match('(vit_)?[a-z]+', image)[0]}*`"
    return message.splitlines()[0].removeprefix(f"{CONFIG}: ")


def with_tables(page: str, results: dict[str, Any]) -> str:
    """The page with both generated parts as the results give them."""
    for part, make in ((TABLE, family_table), (OPEN_CLIP, open_clip_list)):
        page = with_part(page, part, make(results), "docs.families")
    return page


def family_table(results: dict[str, Any]) -> str:
    """A row for each family that was tried, in the order of WORDS."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        "| Family | Read from | `--format` | Fits the presets | Tried with | Compared with | Largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, words in WORDS.items():
        tried = results["families"][name]
        libraries = ", ".join(dict.fromkeys(model["library"] for model in tried.values()))
        difference = f"{largest(tried, 'max_abs_error'):.0e} (cosine {largest(tried, 'cosine_error'):.0e})"
        cells = (f"`{name}`", words.read, f"`{FAMILIES[name].format}`", words.presets, ", ".join(tried), libraries)
        lines.append("| " + " | ".join((*cells, difference)) + " |")
    return "\n".join([*lines, "", f"Tried with {versions}.", ""])


def largest(tried: dict[str, Any], error: str) -> float:
    """Of the embeddings of all models of a family; a cosine above 1 is rounding."""
    sides = [model["outputs"].get(side) for model in tried.values() for side in ("image_embedding", "text_embedding")]
    return max(0.0, *(side[error] for side in sides if side))


def open_clip_list(results: dict[str, Any]) -> str:
    """How many configurations are read, by family, and which are refused, by reason."""
    outcomes = results["open_clip"]
    read = collections.Counter(outcome for outcome in outcomes.values() if isinstance(outcome, str))
    refused = collections.defaultdict(list)
    for name, outcome in outcomes.items():
        if isinstance(outcome, dict):
            refused[outcome["refused"]].append(name)
    version = results["versions"]["open_clip_torch"]
    counts = ", ".join(f"{count} as `{family}`" for family, count in read.most_common())
    lines = [
        f"clipjax reads {read.total()} of the {len(outcomes)} configurations of OpenCLIP {version}: {counts}. "
        f"It refuses {len(outcomes) - read.total()}:",
        "",
        "| Refused for | Configurations |",
        "|---|---|",
    ]
    for reason, names in sorted(refused.items(), key=lambda item: -len(item[1])):
        lines.append(f"| {reason} | {', '.join(f'`{name}`' for name in names)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
