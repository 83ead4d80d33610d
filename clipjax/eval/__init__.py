"""Evaluators. They see batches and two functions that embed them, and know no model.

Add one: one file with `evaluate` (see zero_shot.evaluate), one row in EVALUATORS.
"""

from clipjax.eval import retrieval, zero_shot

EVALUATORS = {"zero_shot": zero_shot.evaluate, "retrieval": retrieval.evaluate}
