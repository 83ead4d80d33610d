"""Seeds and readers of weights, of directories that models are published in, and of tokenizers."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.fuzzing import mutations as m
from clipjax.config import ExperimentConfig, MeshConfig, TokenizerConfig
from clipjax.data.tokenizers import make_tokenizer
from clipjax.interop.export import write_npz
from clipjax.interop.families import FAMILIES, check_towers, recognise
from clipjax.interop.foreign import open_foreign, read_meaning
from clipjax.interop.names import InteropError, Meaning, flatten, their_shapes
from clipjax.interop.npz import open_npz
from clipjax.interop.safetensors import open_safetensors, write_safetensors
from clipjax.interop.sentencepiece_files import to_pipeline
from clipjax.interop.soundness import refuse_far_larger, sound
from clipjax.interop.source import open_weights
from clipjax.interop.torch_files import open_torch, write_torch
from clipjax.mesh import make_mesh
from clipjax.models.presets import get_preset
from clipjax.training.state import abstract_state, eval_variables

ARRAYS = {
    "logit_scale": np.float32(4.6),
    "visual.conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "text.bias": np.arange(5, dtype=np.float16),
    "ids": np.arange(4, dtype=np.int64),
}
# family -> (preset whose small version is published in its format, whether all of open_foreign is run)
PUBLISHED = {"hf_clip": "clip_vit_b32", "hf_siglip": "siglip_b16", "open_clip": "clip_vit_b32"}
PUBLISHED |= {"hf_siglip2": "siglip2_naflex_b16", "open_clip_siglip": "siglip_b16"}
TEXTS = ["", "a photo of two dogs, 12!", "\u00e9\u6f22\U0001f600 <s>"]
SOME = 10
WHOLE = 60  # inputs, of which one is read by open_foreign as a whole: it traces the model, which takes a second


def weights() -> list[tuple]:
    """Files of weights by the four formats, each read to its last number."""
    shapes = {name: np.shape(array) for name, array in ARRAYS.items()}
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, write in {"a.pt": write_torch, "a.npz": write_npz, "a.safetensors": write_safetensors}.items():
            write(Path(folder) / name, shapes, ARRAYS.items())
            files[name] = (Path(folder) / name).read_bytes()
    packed = io.BytesIO()
    np.savez_compressed(packed, **ARRAYS)
    files["packed.npz"] = packed.getvalue()
    opens = {".pt": open_torch, ".npz": open_npz, ".safetensors": open_safetensors}
    changes = {
        ".pt": m.of_zip(lambda name: m.mutate_bytes),
        ".npz": m.of_zip(lambda name: m.mutate_bytes),
        ".safetensors": m.of_safetensors,
    }

    def reader(name: str) -> Any:
        def read(folder: Path) -> None:
            for tensor in opens[Path(name).suffix](folder / name).values():
                try:
                    array = tensor.read()
                except InteropError:
                    continue
                assert isinstance(array, np.ndarray) and array.shape == tuple(tensor.shape)

        return read

    cases = [(name, {name: data}, {name: changes[Path(name).suffix]}, reader(name)) for name, data in files.items()]
    half = len(ARRAYS) // 2
    index, shards = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for number, names in enumerate((list(ARRAYS)[:half], list(ARRAYS)[half:])):
            shard = f"model-{number}.safetensors"
            some = {name: np.float32(ARRAYS[name]) for name in names}
            write_safetensors(Path(folder) / shard, {n: np.shape(a) for n, a in some.items()}, some.items())
            shards[shard], index = (Path(folder) / shard).read_bytes(), index | dict.fromkeys(names, shard)
    shards["model.safetensors.index.json"] = json.dumps({"weight_map": index}).encode()

    def read_sharded(folder: Path) -> None:
        for tensor in open_weights(folder).tensors.values():
            tensor.read()

    return [*cases, ("sharded", shards, {"model.safetensors.index.json": m.of_json}, read_sharded)]


def directories() -> list[tuple]:
    """Directories of five families: their JSON, or their weights, is mutated."""
    cases = []
    for family, preset in PUBLISHED.items():
        with tempfile.TemporaryDirectory() as folder:
            _publish(Path(folder), family, preset)
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        changes = {name: m.of_json if name.endswith("json") else m.of_safetensors for name in files}
        changes |= {f"{name} ": change for name, change in changes.items() if name.endswith("json")}  # more often
        cases.append((family, files, changes, _read_directory))
    return cases


def _publish(folder: Path, family: str, preset: str) -> None:
    """A small model of random weights, as the family's library writes it."""
    model, row = get_preset(preset), FAMILIES[family]
    shared = dict(width=16, depth=2, num_heads=2, mlp_dim=24, scan_layers=False)
    image = replace(model.image, image_size=16, patch_size=8, **shared)
    text = replace(model.text, vocab_size=40, context_length=6, **shared)
    model = replace(model, image=image, text=text, embed_dim=16)
    own = eval_variables(abstract_state(ExperimentConfig(model=model), make_mesh(MeshConfig())))
    shapes = their_shapes(row.tensors(model), model, flatten(own))
    for name, content in row.write(Meaning(model, row.pixels)).items():
        (folder / name).write_text(json.dumps(content))
    arrays = {name: np.asarray(jnp.zeros(shape)) for name, shape in shapes.items()}
    write_safetensors(folder / row.weights, shapes, arrays.items())


def _read_directory(folder: Path) -> None:
    if zlib.crc32(b"".join(path.read_bytes() for path in sorted(folder.glob("*.json")))) % WHOLE == 0:
        open_foreign(str(folder))
        return
    source = open_weights(folder)
    name, row = recognise(source.description)
    meaning = read_meaning(source, name, row)
    check_towers(name, row, meaning.model)
    meaning = sound(meaning, folder, name)
    refuse_far_larger(meaning, row, source.description, folder, name)


def tokenizers() -> list[tuple]:
    """A tokenizer.json of each model, SentencePiece's two models, and CLIP's vocabulary in both of its forms."""
    cases = [
        _case(f"{name}.json", {"tokenizer.json": data, "tokenizer_config.json": b'{"pad_token": "<pad>"}'}, "hf", "")
        for name, data in _pipelines().items()
    ]
    for kind in ("unigram", "bpe"):
        name = f"{kind}.model"
        cases.append(_case(name, {name: _sentencepiece(kind)}, "sentencepiece", name))
        cases.append((f"{name} exported", *_case(name, {name: _sentencepiece(kind)}, "", name)[1:3], _export(name)))
    letters = [*"abcdot", "</w>"]
    merges = "\n".join(("#version: 0.2", "d o", "do g</w>", "c a", "ca t</w>", "t o")).encode()
    cases.append(_case("openai", {"bpe.txt.gz": gzip.compress(merges, mtime=0)}, "clip_bpe", "bpe.txt.gz"))
    pieces = [
        "<|startoftext|>",
        "<|endoftext|>",
        *letters[:-1],
        "g</w>",
        "t</w>",
        "do",
        "dog</w>",
        "ca",
        "cat</w>",
        "to",
    ]
    vocab = json.dumps({piece: i for i, piece in enumerate(pieces)}).encode()
    return [*cases, _case("folder", {"vocab.json": vocab, "merges.txt": merges}, "clip_bpe", "")]


def _case(label: str, files: dict[str, bytes], kind: str, path: str) -> tuple:
    changes = {
        name: m.of_json if name.endswith("json") else m.of_gzip if name.endswith("gz") else
        m.of_lines if name.endswith("txt") else m.mutate_bytes
        for name in files
    }  # fmt: skip

    def read(folder: Path) -> None:
        tokenizer = make_tokenizer(TokenizerConfig(name=kind, path=str(folder / path)), 16)
        ids = tokenizer(TEXTS)
        assert ids.shape == (len(TEXTS), 16) and ids.dtype == np.int32 and ids.min() >= 0
        assert len(tokenizer.lengths(TEXTS)) == len(TEXTS)
        assert all(isinstance(piece, str) for piece in tokenizer.pieces(ids[0].tolist()))

    return label, files, changes, read


def _export(name: str) -> Any:
    def read(folder: Path) -> None:
        data = (folder / name).read_bytes()
        if zlib.crc32(data) % SOME == 0 or name.startswith("bpe"):  # a table of characters takes half a second
            to_pipeline(data)

    return read


def _pipelines() -> dict[str, bytes]:
    import tokenizers as library

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = [*special, "a", "dog", "##s", "cat", "d", "o", "g", "do", "\u2581a", "\u2581d"]
    vocab = {piece: i for i, piece in enumerate(words)}
    models = library.models
    made = {
        "wordpiece": models.WordPiece(vocab, unk_token="<unk>"),
        "bpe": models.BPE(vocab, [("d", "o"), ("do", "g")], unk_token="<unk>", byte_fallback=True),
        "unigram": models.Unigram([(piece, -float(i)) for i, piece in enumerate(words)], 3, False),
        "wordlevel": models.WordLevel(vocab, unk_token="<unk>"),
    }
    result = {}
    for name, model in made.items():
        pipeline, normalizers = library.Tokenizer(model), library.normalizers
        steps = [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(library.Regex(" +"), " ")]
        pipeline.normalizer = normalizers.Sequence(steps)
        splits = library.pre_tokenizers
        pipeline.pre_tokenizer = splits.Metaspace() if name == "unigram" else splits.BertPreTokenizer()
        pipeline.add_special_tokens(special)
        pipeline.post_processor = library.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        result[name] = pipeline.to_str().encode()
    return result


def _sentencepiece(kind: str) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    texts = [f"a photo of {n} {thing}s in the {place}" for n in (1, 2, 3) for thing in ("cat", "dog", "emu")
             for place in ("sea", "sun", "wood")]  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=24,
        model_type=kind,
        minloglevel=2,
        normalization_rule_name="nmt_nfkc" if kind == "unigram" else "identity",
    )
    return model.getvalue()
