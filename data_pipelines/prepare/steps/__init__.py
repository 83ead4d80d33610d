"""The steps, in their order. Add one: a file with its functions, a row here, its flags in options.py."""

from __future__ import annotations

from data_pipelines.prepare.steps import balance, decontaminate, languages, repeats, scores, shards
from data_pipelines.prepare.steps.captions import captions
from data_pipelines.prepare.steps.decode import decode
from data_pipelines.prepare.steps.kinds import BatchStep, CountStep, ExampleStep, GroupStep, Step

STEPS: dict[str, Step] = {
    # While a unit is read. Captions come first, because decoding is expensive.
    "captions": ExampleStep(lambda options: True, captions),
    "languages": ExampleStep(lambda options: bool(options.languages), languages.languages),
    "decode": ExampleStep(lambda options: True, decode),
    "score": BatchStep(lambda options: bool(options.clip_model), scores.score),
    # Over all rows.
    "same key": GroupStep(lambda options: True, repeats.same_key, repeats.key_votes, repeats.merge),
    "same image": GroupStep(
        lambda options: options.merge == "image", repeats.same_pixels, repeats.merge_votes, repeats.merge
    ),
    "decontaminate": GroupStep(
        lambda options: bool(options.decontaminate),
        decontaminate.members,
        decontaminate.votes,
        decontaminate.decontaminate,
        decontaminate.references,
        decontaminate.reference_members,
    ),
    "look-alikes": GroupStep(
        lambda options: options.near_duplicates >= 0, repeats.looks, repeats.looks_votes, repeats.drop_looks
    ),
    "same caption": GroupStep(
        lambda options: options.same_caption > 0, repeats.said, repeats.said_votes, repeats.drop_said
    ),
    "CLIP score": CountStep(lambda options: bool(options.clip_model), scores.count, scores.threshold, scores.choose),
    "balance": CountStep(
        lambda options: options.balance_limit > 0, balance.count, balance.probabilities, balance.balance
    ),
    "shards": CountStep(lambda options: True, shards.count, shards.layout, shards.assign),
}
