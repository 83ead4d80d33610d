"""Retrieval in many languages: one evaluator for each."""

from __future__ import annotations

from collections.abc import Sequence

from clipjax.config import require
from clipjax.data.sources.multilingual import MultilingualConfig, languages_in
from clipjax.eval.retrieval import RetrievalConfig


def multilingual(
    path: str, languages: Sequence[str] = (), *, name: str = "retrieval", images: str = "", **options: object
) -> dict[str, RetrievalConfig]:
    """{"NAME_LANGUAGE": retrieval with all captions in the language} for each language of a multilingual set.

        config.eval.evaluators.update(multilingual("data/xm3600", name="xm3600"))

    path, images: as clipjax.data.sources.MultilingualConfig has them. languages: () for all that the path has, which
    reads it. options: of RetrievalConfig. Raises ConfigError where there are no languages, ManifestError for a path
    that cannot be read.
    """
    chosen = list(languages) or languages_in(path)
    require(len(chosen) > 0, f"{path} has no files NAME-LANGUAGE.json, and no languages in its one file.")
    return {
        f"{name}_{language}": RetrievalConfig(
            source=MultilingualConfig(path=str(path), language=language, images=images),
            **{"all_captions": True, **options},
        )
        for language in chosen
    }
