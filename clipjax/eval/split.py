"""What an evaluator reads beside the split that it evaluates, such as the training split of a probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Split:
    """One of an evaluator's other sources, open. All processes read it together."""

    records: int
    # global arrays {"image", "text", "label", "pair_id", "index", "valid"}, every record once, in order
    batches: Callable[[], Iterator[dict[str, jax.Array]]]
    record: Callable[[int], dict[str, Any]]  # a record by its index, see clipjax.data.sources.Source
    class_names: Sequence[str]  # what its labels index; () where labels are numbers without names
    where: Callable[[int], tuple[str, int]]  # (index of a record) -> (its file, its position there), for errors
