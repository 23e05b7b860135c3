"""Numbers of embeddings that training asks for by name (config.evaluators).

Each reads its examples once and turns what a stage's `embed` gives for them,
{name: (N, D)}, into {name: float}. To add one: its options, how it reads, its scores.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from unclip_jax.evaluation import class_prompts
from unclip_jax.evaluation.metrics.embedding_metrics import embedding_metrics
from unclip_jax.evaluation.metrics.prior_metrics import prior_metrics
from unclip_jax.evaluation.metrics.reconstruction import reconstruction
from unclip_jax.evaluation.metrics.retrieval import retrieval
from unclip_jax.evaluation.metrics.zero_shot import zero_shot


@dataclasses.dataclass(frozen=True)
class Options:
    """One entry of config.evaluators."""

    every: int  # steps
    count: int = 1024  # examples, the first of the data; 0 turns it off
    data: Any = None  # what differs from config.data: dict(split="held_out")


@dataclasses.dataclass(frozen=True)
class ZeroShotOptions(class_prompts.Options, Options):
    """Of zero_shot."""


def first_examples(data, options, names, rows=None):
    """({name: (n, ...)}, {}) of the first examples of a data.loader.Dataset."""
    own = () if rows is None else (rows,)
    return data.take(min(options.count, len(data)), names, *own), {}


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """One of EVALUATORS.

    Attributes:
      needs: names of embeddings, in the order of `compute`'s arguments.
      compute: float arrays (N, D), and `read`'s keywords -> {name: float}.
      wants: names of embeddings that `compute` takes as keywords where there are some.
      read: (data, options, names of arrays, rows that this process feeds) ->
        ({name: (n, ...)}, keywords). Arrays may differ in length; embeddings then have
        the longest, whatever is past the end of what they are of.
      options: what an entry of the config may set.
    """

    needs: tuple[str, ...]
    compute: Callable
    read: Callable = first_examples
    options: type = Options
    wants: tuple[str, ...] = ()

    def __call__(self, embeddings, about):
        """Scores of {name: (N, D)} with the keywords of `read`."""
        more = {name: embeddings[name] for name in self.wants if name in embeddings}
        needed = (embeddings[name] for name in self.needs)
        return self.compute(*needed, **more, **about)


EVALUATORS = {
    "retrieval": Evaluator(("image", "text"), retrieval),
    "zero_shot": Evaluator(
        ("image", "text"), zero_shot, class_prompts.read, ZeroShotOptions
    ),
    "prior": Evaluator(("predicted", "true", "text"), prior_metrics),
    "reconstruction": Evaluator(("absolute_error", "squared_error"), reconstruction),
    "embedding": Evaluator(
        ("predicted", "true"), embedding_metrics, wants=("redrawn",)
    ),
}
