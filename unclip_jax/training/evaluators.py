"""Evaluators named in a training config, run on the EMA while training.

    c.evaluators = dict(
        retrieval=dict(every=1000, count=1024, data=dict(split="held_out"))
    )

They run at the first and the last step and at every `every`-th between; their scores
are rows of metrics.jsonl, "NAME/score", and go to TensorBoard.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from unclip_jax import config as config_lib
from unclip_jax.data import loader
from unclip_jax.evaluation.evaluators import EVALUATORS
from unclip_jax.parallel import batches, sharding


@dataclasses.dataclass(frozen=True)
class Options:
    """One entry of config.evaluators."""

    every: int  # steps
    count: int = 1024  # examples, the first of the data
    data: Any = None  # what differs from config.data, e.g. dict(split="held_out")


def check(config) -> dict[str, Options]:
    """{name: Options} of config.evaluators, which may be missing.

    Raises ValueError for an unknown evaluator or option, or one without examples.
    """
    wanted = config.get("evaluators") or {}
    config_lib.check_keys(wanted, EVALUATORS, "config.evaluators")
    found = {}
    for name, given in wanted.items():
        where = f"config.evaluators.{name}"
        plain = config_lib.to_plain(given)
        data = plain.pop("data", None)
        options = config_lib.build(Options, plain, where)
        if options.every < 1 or options.count < 2:
            raise ValueError(
                f"{where}: every must be at least 1 and count at least 2, got "
                f"{options.every} and {options.count}"
            )
        found[name] = dataclasses.replace(options, data=data)
    return found


class Evaluators:
    """Embeds examples with the stage's `embed`, always with the same noise.

    Raises ValueError when the stage has no `embed`, or not what an evaluator needs.
    """

    def __init__(self, config, stage, data, mesh, tokenizer_dir):
        self._options = options = check(config)
        self._config, self._mesh = config, mesh
        if options and not hasattr(stage, "embed"):
            raise ValueError(
                f"stage {config.stage!r} has nothing for config.evaluators: it makes "
                "no embeddings"
            )
        self._names = tuple(stage.batch_spec)
        self._sets = {}
        for name, wanted in options.items():
            source = data
            if wanted.data:
                changed = {**config_lib.to_plain(config.data), **wanted.data}
                source = loader.open_data(
                    type(config)(changed), tokenizer_dir=tokenizer_dir
                )
            count = min(wanted.count, len(source))
            self._sets[name] = source.take(count, self._names), count
        self._rng = jax.device_put(
            jax.random.key(config.seed), sharding.replicated(mesh)
        )
        if options:
            self._embed = jax.jit(stage.embed, out_shardings=sharding.replicated(mesh))

    def due(self, step: int) -> list[str]:
        """Names of those that run before `step`, or at the end."""
        ends = (0, self._config.steps)
        options = self._options.items()
        return [name for name, o in options if step in ends or step % o.every == 0]

    def run(self, step: int, current, writer) -> dict[str, float]:
        """Scores of those that are due, which are also written."""
        scores = {}
        for name in self.due(step):
            embeddings = self._embeddings(current.ema, *self._sets[name])
            evaluator = EVALUATORS[name]
            if missing := [n for n in evaluator.needs if n not in embeddings]:
                raise ValueError(
                    f"config.evaluators.{name} needs {', '.join(missing)}, but stage "
                    f"{self._config.stage!r} embeds {', '.join(sorted(embeddings))}"
                )
            for score, value in evaluator(embeddings).items():
                scores[f"{name}/{score}"] = value
        if scores:
            writer.scalars(step, scores)
        return scores

    def _embeddings(self, params, examples, count):
        """{name: float32 (count, D)} on the host, in batches of config.batch_size."""
        size = self._config.batch_size
        placing = sharding.batch_sharding(self._mesh)
        found = []
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            batch = {name: examples[name][rows] for name in self._names}
            batch = batches.place(batch, placing, size)
            rng = jax.random.fold_in(self._rng, start)
            found.append(jax.device_get(self._embed(params, rng, batch)))
        return {k: np.concatenate([f[k] for f in found])[:count] for k in found[0]}
