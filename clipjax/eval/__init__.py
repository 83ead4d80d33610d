"""Evaluators. They see batches and functions that embed them, and know no model.

To add one: a file with `evaluate` (and a config dataclass for options of its own), and a row in EVALUATORS.
docs/evaluation.md describes the arguments.
"""

from clipjax.config import Part
from clipjax.eval import grouped, multilabel, retrieval, zero_shot
from clipjax.eval.grouped import GroupedConfig
from clipjax.eval.multilabel import MultilabelConfig
from clipjax.eval.retrieval import RetrievalConfig
from clipjax.eval.zero_shot import ZeroShotConfig

__all__ = ["EVALUATORS", "GroupedConfig", "MultilabelConfig", "RetrievalConfig", "ZeroShotConfig"]

EVALUATORS: dict[str, Part] = {
    "zero_shot": Part(ZeroShotConfig, zero_shot.evaluate, zero_shot.check),
    "multilabel": Part(MultilabelConfig, multilabel.evaluate, multilabel.check),
    "retrieval": Part(RetrievalConfig, retrieval.evaluate),
    "grouped": Part(GroupedConfig, grouped.evaluate, grouped.check),
}
