"""Evaluators named in a training config, run on the EMA while training.

    c.evaluators = dict(
        retrieval=dict(every=1000, count=1024, data=dict(split="held_out")),
        zero_shot=dict(every=1000, label="noun", templates=("a picture of a {}",)),
    )

They run at the first and the last step and at every `every`-th between; their scores
are rows of metrics.jsonl, "NAME/score", and go to TensorBoard. Options: Evaluator's in
evaluation/evaluators.py. A `data` that names a source stands alone.
"""

import jax
import numpy as np

from unclip_jax.data import loader
from unclip_jax.errors import UsageError
from unclip_jax.evaluation.evaluators import EVALUATORS
from unclip_jax.parallel import batches, sharding
from unclip_jax.training.run_config import TrainConfig

# Keys of config.data that come with the training data's tokenizer.
OF_TOKENIZER = ("tokenizer", "vocab_size", "context_length")


class Evaluators:
    """Embeds examples with the stage's `embed`, always with the same noise.

    Raises UsageError when the stage has no `embed`, or not what an evaluator needs.
    """

    def __init__(self, config: TrainConfig, stage, data, mesh, writer, interrupted):
        """Reads the examples.

        Args:
          config: of the run.
          stage, data, mesh: what is trained, on what and where.
          writer: where the scores go.
          interrupted: () -> bool, asked before each batch; after a yes `run` does
            nothing more.
        """
        self._options = options = config.evaluator_options()
        self._config, self._mesh = config, mesh
        self._writer, self._interrupted = writer, interrupted
        if options and not hasattr(stage, "embed"):
            raise UsageError(
                f"stage {config.stage!r} has nothing for config.evaluators: it makes "
                "no embeddings"
            )
        self._names, self._spec = tuple(stage.batch_spec), stage.batch_spec
        self._own_rows = batches.process_rows(mesh, config.batch_size)
        self._sets = {}
        for name, wanted in options.items():
            source = self._open(wanted.data, data) if wanted.data else data
            rows = None
            if jax.process_count() > 1:
                starts = range(0, wanted.count, config.batch_size)
                rows = np.concatenate([start + self._own_rows for start in starts])
            self._sets[name] = EVALUATORS[name].read(source, wanted, self._names, rows)
        self._rng = jax.device_put(
            jax.random.key(config.seed), sharding.replicated(mesh)
        )
        if options:
            self._embed = jax.jit(stage.embed, out_shardings=sharding.replicated(mesh))

    def due(self, step: int) -> bool:
        """Whether any of them runs after `step` steps."""
        return bool(self._due(step))

    def run(self, step: int, state) -> None:
        """Writes the scores of those that are due."""
        scores = {}
        for name in self._due(step):
            arrays, about = self._sets[name]
            embeddings = self._embeddings(state.averaged, arrays)
            if embeddings is None:
                return
            evaluator = EVALUATORS[name]
            if missing := [n for n in evaluator.needs if n not in embeddings]:
                raise UsageError(
                    f"config.evaluators.{name} needs {', '.join(missing)}, but stage "
                    f"{self._config.stage!r} embeds {', '.join(sorted(embeddings))}"
                )
            for score, value in evaluator(embeddings, about).items():
                scores[f"{name}/{score}"] = value
        if scores:
            self._writer.scalars(step, scores)

    def _due(self, step) -> list[str]:
        ends = (0, self._config.steps)
        options = self._options.items()
        return [name for name, o in options if step in ends or step % o.every == 0]

    def _open(self, changes, data):
        """Other examples than the training's, in tokens of the training's tokenizer."""
        own = {} if "source" in changes else self._config.data
        wanted = {**own, **changes}
        wanted = {k: v for k, v in wanted.items() if k not in OF_TOKENIZER}
        wanted["tokenizer"] = data.spec.tokenizer_folder
        wanted["context_length"] = data.spec.context_length
        return loader.open_data(wanted)

    def _embeddings(self, params, arrays):
        """{name: float32 (n, D)} on the host, or None when interrupted.

        Computed in batches of config.batch_size. n is the length of the longest array;
        the last row of a shorter one is repeated.
        """
        size = self._config.batch_size
        count = max(map(len, arrays.values()))
        placing, found = sharding.batch_sharding(self._mesh), []
        for start in range(0, count, size):
            if self._interrupted():
                return None
            rows = start + self._own_rows
            batch = {k: a[np.minimum(rows, len(a) - 1)] for k, a in arrays.items()}
            batch = batches.place(batch, placing, size, self._spec, self._own_rows)
            rng = jax.random.fold_in(self._rng, start)
            found.append(jax.device_get(self._embed(params, rng, batch)))
        return {k: np.concatenate([f[k] for f in found])[:count] for k in found[0]}
