"""Labelled images as examples: the texts of a record are prompts with the name of its class."""

from __future__ import annotations

from typing import Any

from clipjax.config import ConfigError, SourceConfig
from clipjax.data.records import ManifestError
from clipjax.data.templates import TemplateError, pieces_of


class PromptedSource:
    """A source whose records have prompts as texts, one for each template of config.prompts, in their order.

    Training draws one of them for each example, as it draws one of several captions. The pair_id of a record is its
    label: with config.loss.repeats="positives", images of one class are positives of each other's prompts. A record
    without a label keeps its captions, and has no pair_id. Everything else is as the source itself has it.

    Raises ConfigError for a template without a place for the name, and for records with several classes; ManifestError
    for a source without class names.
    """

    def __init__(self, source: Any, config: SourceConfig):
        self.source = source
        try:
            pieces = [pieces_of(template) for template in config.prompts]
        except TemplateError as error:
            raise ConfigError(f"prompts: {error}") from error
        where = f"{config.path}, split '{config.split}'"
        if getattr(source, "task", "") == "multilabel":
            raise ConfigError(f"{where} has images of several classes; prompts name one class. Leave prompts out.")
        if not source.class_names:
            raise ManifestError(
                f"{where} has no class names to fill into prompts. Write a file classnames.txt beside the data, one "
                "name a line for the labels 0, 1, ..., or leave prompts out to train on captions."
            )
        self.prompts = [[name.join(parts) for parts in pieces] for name in source.class_names]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.source[index]
        if record["label"] < 0:
            return {**record, "pair_id": -1}  # an id of its own could be a label
        return {**record, "texts": self.prompts[record["label"]], "pair_id": record["label"]}

    def captions(self, index: int) -> list[str]:
        """The prompts of a record."""
        return self[index]["texts"]

    def __getattr__(self, name: str) -> Any:
        # What is optional for sources is there where the source has it. Pickle asks before there is a source.
        if name == "source" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.source, name)
