"""Steps that changed nothing, because their loss or gradient was not finite."""

import json
from collections.abc import Sequence

import jax
from etils import epath

from unclip_jax.data import order
from unclip_jax.errors import UsageError
from unclip_jax.files import atomic_write
from unclip_jax.training.run_config import TrainConfig

FILE = "skipped_steps.jsonl"


class SkippedSteps:
    """Writes which examples such steps were given, and ends a run of too many.

    skipped_steps.jsonl has a row {"step", "examples"} for each: its number as in
    metrics.jsonl, and the numbers of its examples in the data.
    """

    def __init__(self, workdir, config: TrainConfig, num_examples: int):
        self._path = epath.Path(workdir) / FILE
        self._config, self._count = config, num_examples
        limit = config.max_skipped or config.log_every
        self._limit = min(limit, config.steps)
        self._in_a_row = 0

    def note(self, last: int, skipped: Sequence[bool]) -> None:
        """Of the steps up to number `last`: whether each was skipped, in order.

        Raises UsageError when config.max_skipped (by default log_every) followed each
        other.
        """
        first = last - len(skipped) + 1
        numbers = [first + i for i, was in enumerate(skipped) if was]
        if numbers and jax.process_index() == 0:
            self._write(numbers)
        for was in skipped:
            self._in_a_row = self._in_a_row + 1 if was else 0
            if self._in_a_row >= self._limit:
                raise UsageError(
                    f"no loss or gradient was finite in {self._in_a_row} steps in a "
                    f"row, up to step {last}: nothing was changed by them. Lower "
                    "config.optimizer.learning_rate, or set grad_clip_norm; "
                    f"{self._path} says which examples they had"
                )

    def _write(self, numbers):
        rows = {}
        if self._path.exists():
            lines = self._path.read_text().splitlines()
            rows = {json.loads(line)["step"]: line for line in lines}
        config = self._config
        for number in numbers:
            examples = order.batch_indices(
                config.seed, number - 1, config.batch_size, self._count
            )
            row = {"step": number, "examples": examples.tolist()}
            rows[number] = json.dumps(row)
        text = "".join(f"{rows[number]}\n" for number in sorted(rows))
        atomic_write(self._path, text)
