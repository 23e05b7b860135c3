"""Numbers of embeddings that training asks for by name (config.evaluators).

Each takes what a stage's `embed` gives, {name: (N, D)}, and returns {name: float}.
"""

import dataclasses
from collections.abc import Callable

from unclip_jax.evaluation.prior_metrics import prior_metrics
from unclip_jax.evaluation.retrieval import retrieval


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """One of EVALUATORS.

    Attributes:
      needs: names of embeddings, in the order of `compute`'s arguments.
      compute: float arrays (N, D) -> {name: float}.
    """

    needs: tuple[str, ...]
    compute: Callable

    def __call__(self, embeddings):
        """Scores of {name: (N, D)}."""
        return self.compute(*(embeddings[name] for name in self.needs))


EVALUATORS = {
    "retrieval": Evaluator(("image", "text"), retrieval),
    "prior": Evaluator(("predicted", "true", "text"), prior_metrics),
}
