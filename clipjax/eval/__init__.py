"""Evaluators. They see batches and functions that embed them, and know no model.

To add one: a file with `evaluate` (and a config dataclass for options of its own), and a row in EVALUATORS.
docs/evaluation.md describes the arguments.
"""

from clipjax.config import Part
from clipjax.eval import (
    compositional,
    embedding_health,
    features,
    few_shot,
    grouped,
    knn,
    linear_probe,
    linear_probe_adamw,
    multilabel,
    retrieval,
    zero_shot,
)
from clipjax.eval.class_names import check_classes
from clipjax.eval.compositional import CompositionalConfig
from clipjax.eval.embedding_health import EmbeddingHealthConfig
from clipjax.eval.few_shot import FewShotConfig
from clipjax.eval.grouped import GroupedConfig
from clipjax.eval.knn import KNNConfig
from clipjax.eval.languages import multilingual
from clipjax.eval.linear_probe import LinearProbeConfig
from clipjax.eval.linear_probe_adamw import LinearProbeAdamWConfig
from clipjax.eval.multilabel import MultilabelConfig
from clipjax.eval.retrieval import RetrievalConfig
from clipjax.eval.zero_shot import ZeroShotConfig

__all__ = [
    "EVALUATORS",
    "CompositionalConfig",
    "EmbeddingHealthConfig",
    "FewShotConfig",
    "GroupedConfig",
    "KNNConfig",
    "LinearProbeAdamWConfig",
    "LinearProbeConfig",
    "MultilabelConfig",
    "RetrievalConfig",
    "ZeroShotConfig",
    "multilingual",
]

EVALUATORS: dict[str, Part] = {
    "zero_shot": Part(ZeroShotConfig, zero_shot.evaluate, zero_shot.check),
    "multilabel": Part(MultilabelConfig, multilabel.evaluate, check_classes),
    "retrieval": Part(RetrievalConfig, retrieval.evaluate),
    "grouped": Part(GroupedConfig, grouped.evaluate, grouped.check),
    "compositional": Part(CompositionalConfig, compositional.evaluate, compositional.check),
    "linear_probe": Part(LinearProbeConfig, linear_probe.evaluate, features.check_probe),
    "linear_probe_adamw": Part(LinearProbeAdamWConfig, linear_probe_adamw.evaluate, features.check_probe),
    "few_shot": Part(FewShotConfig, few_shot.evaluate, few_shot.check),
    "knn": Part(KNNConfig, knn.evaluate, knn.check),
    "embedding_health": Part(EmbeddingHealthConfig, embedding_health.evaluate),
}
