"""What `clipjax init` learns from the data: sources, a split, usable records, captions, and a tokenizer of these."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from clipjax.config import ConfigError, EvaluatorConfig, PixelConfig, SourceConfig, require
from clipjax.data.bad_records import BadRecord, bad_record
from clipjax.data.finding import Found, find_data
from clipjax.data.images.transforms import eval_image
from clipjax.data.mixture import fetch_ahead
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import Source, open_source
from clipjax.data.tokenizers.train import TrainingTextError, train_sentencepiece
from clipjax.inference.looking import evaluators_of, has_captions

MOST_READ = 20_000  # records whose captions are read; of more, that many evenly spaced ones
AT_A_TIME = 256  # records that are fetched together from a bucket
MOST_DECODED = 1_000  # of these, images that are decoded
FEWEST = 4  # records
MOST_CLASSES = 1_000  # different captions that are taken for names of classes
CLASS_NAME = ("{}",)  # prompts: the class's name alone
PROMPTS = ("{}", "a photo of a {}")  # of class names, which the tokenizer is to know as well


class Looked(NamedTuple):
    """What `look` found."""

    found: Found
    train: SourceConfig
    evaluated: SourceConfig
    split: str  # for people: where the records to evaluate on are from
    trained: int  # records
    held_out: int
    read: int
    bad: list[BadRecord]  # of those that were read
    texts: list[str]  # captions of those, without white space around them
    classes: tuple[str, ...]
    evaluators: dict[str, EvaluatorConfig]  # "zero_shot", "retrieval"

    @property
    def bad_share(self) -> float:
        """Of the records that were read, how many cannot be used."""
        return len(self.bad) / self.read

    @property
    def usable(self) -> int:
        """About how many of the records to train on can be used."""
        return round(self.trained * (1 - self.bad_share))


def look(data: Any, keys: dict[str, str]) -> Looked:
    """Opens the data and reads captions of it. Raises ConfigError."""
    found = find_data(data, keys)
    train, held_out, split = found.train, found.held_out, "a split of the data"
    try:
        source = open_source(train)
        if options := as_classes(train, source):
            train = dataclasses.replace(train, **options)
            held_out = held_out and dataclasses.replace(held_out, **options)
            found, source = found._replace(train=train, held_out=held_out), open_source(train)
        require(len(source) >= FEWEST, f"--data={data}: {len(source):,} records; expected {FEWEST} or more.")
        if held_out is None:
            train, held_out = found.split(len(source))
            split = f"every {_ordinal(train.every)} record"
            source = open_source(train)
        other = open_source(held_out)
    except ManifestError as error:
        raise ConfigError(f"--data={data}: {error}") from error
    read, bad, texts = read_some(source)
    require(
        bool(texts),
        f"--data={data}: none of {read} records can be used{': ' * bool(bad)}{describe_bad(bad)}.",
    )
    tried, unusable, _ = read_some(other, MOST_DECODED)
    require(
        len(unusable) < tried,
        f"--data={data}: none of {tried} records to evaluate on ({split}) can be used: {describe_bad(unusable)}. "
        "Mend them, or leave them out.",
    )
    evaluators = evaluators_of(held_out, other)
    require(bool(evaluators), f"--data={data}: the records have neither classes nor captions that differ.")
    return Looked(
        found, train, held_out, split, len(source), len(other), read, bad, texts, source.class_names, evaluators
    )


def describe_bad(bad: list[BadRecord]) -> str:
    """'10 unreadable record. The first: photos/a.csv record 3: ...', for records that cannot be used; "" for none."""
    causes = collections.Counter(record.cause for record in bad)
    counts = ", ".join(f"{count} {cause}" for cause, count in causes.most_common(3))
    return f"{counts}. The first: {bad[0]}" if bad else ""


def as_classes(config: SourceConfig, source: Source) -> dict[str, Any]:
    """Options with which a source is read as classes whose names are its captions; {} where captions say more.

    Such records have prompts as captions, and those of one class have one pair_id, as in class folders: images of a
    class are right for each other's captions.
    """
    if getattr(config, "captions", "") == "folders" or getattr(source, "task", "") == "multilabel":
        return {}
    if source.class_names:
        return {} if has_captions(source) else {"prompts": CLASS_NAME}
    if not (hasattr(config, "text_key") and hasattr(config, "label_key")):
        return {}
    count, _, texts = read_some(source, MOST_DECODED, decode=False)
    if len(texts) != count or not 2 <= len(set(texts)) <= min(MOST_CLASSES, count // 3):
        return {}
    options = {"label_key": config.text_key, "prompts": CLASS_NAME}
    try:
        open_source(dataclasses.replace(config, **options))
    except ManifestError:  # captions in files of their own, or in members of tars, are no column of labels
        return {}
    return options


def read_some(source: Source, most: int = MOST_READ, decode: bool = True) -> tuple[int, list[BadRecord], list[str]]:
    """(records read, those that cannot be used, captions) of at most `most` evenly spaced records."""
    indices = np.unique(np.linspace(0, len(source) - 1, min(len(source), most)).astype(int))
    decoded = set(indices[:: -(-len(indices) // MOST_DECODED)].tolist() if decode else ())
    bad: list[BadRecord] = []
    texts: list[str] = []
    for number, index in enumerate(map(int, indices)):
        if number % AT_A_TIME == 0:
            fetch_ahead(source, [int(one) for one in indices[number : number + AT_A_TIME]])
        try:
            record = source[index]
            if index in decoded:
                eval_image(record["image"], 32, PixelConfig())
            texts += [text.strip() for text in record["texts"] if text.strip()]
        except RecordError as error:
            bad.append(bad_record(source, index, error))
    return len(indices), bad, texts


def train_tokenizer(looked: Looked) -> tuple[bytes, int, int]:
    """(the SentencePiece model, its pieces, the tokens that nearly all captions and all prompts fit in).

    Raises ConfigError.
    """
    import sentencepiece

    captions = [text.lower() for text in looked.texts]
    prompts = [prompt.format(name.lower()) for name in looked.classes for prompt in PROMPTS if "{" not in name]
    lines = captions + prompts
    size = vocabulary_of(lines)
    for kind in ("unigram", "bpe"):
        try:
            content = train_sentencepiece(lines, size, kind)
            break
        except TrainingTextError as error:
            logging.info("%s: %s", kind, error)
            failure = error
    else:
        raise ConfigError(f"No tokenizer can be trained on the captions: {failure}") from failure
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    lengths = [len(ids) + 1 for ids in processor.encode(captions)]  # and the end of the text
    # A prompt that is cut loses its end, where the name of the class is.
    longest = max((len(ids) + 1 for ids in processor.encode(prompts)), default=0)
    return content, processor.vocab_size(), max(int(np.percentile(lengths, 99)), longest)


def vocabulary_of(lines: list[str]) -> int:
    """The largest number of pieces: about twice the number of different words, and room for all characters."""
    words = {word for line in lines for word in line.split()}
    characters = {character for line in lines for character in line}
    size = 2 ** int(np.ceil(np.log2(max(len(words), 100) * 2)))
    most = 1_000 if len(lines) < 10_000 else 32_000 if len(lines) > 1_000_000 else 16_000
    return max(min(size, most), len(characters) + 100)


def _ordinal(number: int) -> str:
    return f"{number}{ {2: 'nd', 3: 'rd'}.get(number, 'th') }"
