"""Evaluators. They see batches and functions that embed them, and know no model.

To add one: a file with `evaluate` (and a config dataclass for options of its own), and a row in EVALUATORS.
docs/evaluation.md describes the arguments.
"""

from clipjax.config import Part
from clipjax.eval import compositional, retrieval, zero_shot
from clipjax.eval.compositional import CompositionalConfig
from clipjax.eval.languages import multilingual
from clipjax.eval.retrieval import RetrievalConfig
from clipjax.eval.zero_shot import ZeroShotConfig

__all__ = ["EVALUATORS", "CompositionalConfig", "RetrievalConfig", "ZeroShotConfig", "multilingual"]

EVALUATORS: dict[str, Part] = {
    "zero_shot": Part(ZeroShotConfig, zero_shot.evaluate, zero_shot.check),
    "retrieval": Part(RetrievalConfig, retrieval.evaluate),
    "compositional": Part(CompositionalConfig, compositional.evaluate, compositional.check),
}
