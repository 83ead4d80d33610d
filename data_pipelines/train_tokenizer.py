"""Trains a SentencePiece tokenizer on the captions of a folder of records, or on a text file.

    python -m data_pipelines.train_tokenizer --records=data/scenes --vocab_size=256 --out=data/scenes.model
    python -m data_pipelines.train_tokenizer --records=data/mine --vocab_size=32000 --out=data/mine.model
    python -m data_pipelines.train_tokenizer --text=captions.txt --vocab_size=8000 --model_type=bpe --out=captions.model

Ids: 0 padding, 1 end of sequence, 2 unknown; there is no begin of sequence. The text is lower-cased first, as
`tokenizer.lowercase` (default True) does in training; --keep_case leaves it. From 1,024 pieces on, characters that
are no piece fall back to their bytes instead of the unknown id. The same text and arguments give the same
bytes; a small .json beside the model says what it was made from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from clipjax import files as atomic
from clipjax.config import SourceConfig
from clipjax.data.sources import open_source
from clipjax.data.tokenizers.train import TrainingTextError, train_sentencepiece
from clipjax.json_files import read_json_object
from clipjax.storage import as_path
from data_pipelines import command
from data_pipelines.command import PipelineError


def build(
    out: str | Path,
    *,
    records: str | Path | None = None,
    split: str = "train",
    text: str | Path | None = None,
    vocab_size: int = 32_000,
    model_type: str = "unigram",
    keep_case: bool = False,
    max_texts: int = 5_000_000,
    overwrite: bool = False,
) -> dict:
    """Writes the model to `out` and its description to `out` + ".json", which it prints and returns.

    records or text: where the captions come from. Of more than max_texts captions, that many evenly spaced
    ones are used: SentencePiece holds them in memory. The vocabulary is smaller than vocab_size when the text
    has fewer pieces. Raises PipelineError for no text, for a vocabulary too small for the text's
    characters, for an existing model made from something else (unless overwrite), and for an existing file or folder
    that is no SentencePiece model.
    """
    out = as_path(out)
    if (records is None) == (text is None):
        raise PipelineError("Give either --records=FOLDER or --text=FILE.")
    _refuse_other_file(out)
    lines = [line if keep_case else line.lower() for line in _texts(records, split, text, max_texts)]
    if not lines:
        raise PipelineError(f"{records or text} holds no text.")
    description = {
        "arguments": {"vocab_size": vocab_size, "model_type": model_type, "keep_case": keep_case},
        "texts": len(lines),
        "texts_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "sentencepiece": sentencepiece.__version__,
    }
    found = _existing(out)
    if found and {key: found.get(key) for key in description} == description:
        print(f"{out} was already made from this text: left as it is.")
    elif (found is not None or out.exists()) and not overwrite:
        raise PipelineError(f"{out} was made from other text or arguments. Choose another --out, or pass --overwrite.")
    else:
        model = _train(lines, vocab_size, model_type)
        found = description | {"model_sha256": hashlib.sha256(model).hexdigest()}
        # The description comes first: one without a model is ignored, but a model without one blocks the next run.
        atomic.write_text(_description_path(out), json.dumps(found, indent=1) + "\n")
        with atomic.replacing(out) as temporary:
            temporary.write_bytes(model)
    _print(out, lines)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = command.make_parser("train_tokenizer", __doc__)
    _add_flags(parser)
    command.run(build, parser, argv)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=command.output_path, required=True, help="the model file to write, NAME.model")
    parser.add_argument("--overwrite", action="store_true", help="replace a model made from other text or arguments")
    parser.add_argument("--records", type=command.output_path, help="folder of records: their captions")
    parser.add_argument("--split", default="train", help="of --records; default %(default)s")
    parser.add_argument("--text", type=command.local_path, help="UTF-8 file, one caption per line")
    parser.add_argument("--vocab_size", type=int, default=32_000, help="pieces at most; default %(default)s")
    parser.add_argument("--model_type", choices=("unigram", "bpe"), default="unigram", help="default %(default)s")
    parser.add_argument("--keep_case", action="store_true", help="no lower-casing; then set tokenizer.lowercase=False")
    parser.add_argument("--max_texts", type=int, default=5_000_000, help="captions used at most; default %(default)s")


def _train(lines: list[str], vocab_size: int, model_type: str) -> bytes:
    try:
        return train_sentencepiece(lines, vocab_size, model_type)
    except TrainingTextError as error:
        raise PipelineError(str(error)) from error


def _texts(records: str | Path | None, split: str, text: str | Path | None, max_texts: int) -> Iterator[str]:
    """Captions without empty ones, every n-th of them so that at most max_texts remain."""
    if text is not None:
        try:
            lines = atomic.split_lines(atomic.read_text(text))
        except atomic.TextFileError as error:
            raise PipelineError(str(error)) from error
        stride = -(-len(lines) // max_texts)
        yield from (line.strip() for line in lines[:: max(1, stride)] if line.strip())
        return
    source = open_source(SourceConfig(path=str(records), split=split))
    captions_each = len(source[0]["texts"])
    stride = -(-len(source) * captions_each // max_texts)
    for index in range(0, len(source), max(1, stride)):
        yield from (caption.strip() for caption in source[index]["texts"] if caption.strip())


def _existing(out: Path) -> dict | None:
    path = _description_path(out)
    if not path.exists() or not out.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if found.get("model_sha256") == hashlib.sha256(out.read_bytes()).hexdigest() else {}


def _refuse_other_file(out: Path) -> None:
    """Raises PipelineError where the model or its description would replace something else, such as the captions."""
    described = _description_path(out)
    if out.exists() and not _is_model(out):
        raise PipelineError(f"--out={out} exists and is not a SentencePiece model. Name another file.")
    if described.exists() and "texts_sha256" not in read_json_object(described):
        raise PipelineError(f"--out={out}: {described} exists and does not describe a model. Name another file.")


def _is_model(path: Path) -> bool:
    if path.is_dir():
        return False
    try:
        sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except RuntimeError:
        return False
    return True


def _description_path(out: Path) -> Path:
    return out.with_name(out.name + ".json")


def _print(out: Path, lines: list[str]) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=out.read_bytes())
    print(
        f"{out}: {processor.vocab_size():,} pieces from {len(lines):,} texts; "
        f"pad {processor.pad_id()}, eos {processor.eos_id()}, unk {processor.unk_id()}"
    )
    lengths = [len(ids) for ids in processor.encode(lines[:10_000], num_threads=1)]
    mean = sum(lengths) / len(lengths)
    print(f"  the first {len(lengths):,} texts have {mean:.1f} pieces on average, {max(lengths)} at most, without eos")
    for line in dict.fromkeys(lines[:: max(1, len(lines) // 4)][:4]):
        print(f"  {line}  ->  {' '.join(processor.encode(line, out_type=str))}")


if __name__ == "__main__":
    main()
