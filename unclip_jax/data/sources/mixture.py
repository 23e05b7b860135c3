"""Several sources as one, each with a weight.

    config.data = dict(source="mixture", sources=dict(
        photos=dict(source="webdataset", path="data/photos", weight=3.0),
        icons=dict(source="icons", image_size=64, weight=1.0),
    ))

Example i is a pure function of (seed, i): example numbers are dealt to the sources as
evenly as can be (of any first n, each source has its share to within the number of
sources), and each source is gone through from end to end before it begins again, in
steps that scatter over it. By default the mixture is as long as it takes to show every
example of every source at least once.

Sources of records mix too, when one CLIP and one tokenizer made them.
"""

import collections
import contextlib
import math
from typing import Any, cast

import numpy as np

from unclip_jax import config as config_lib
from unclip_jax.data import order
from unclip_jax.data.sources import (
    LOADER_KEYS,
    BadRecord,
    LoadingSource,
    RecordSource,
    Source,
    check_examples,
    failed_of,
    has_random_crops,
    make_source,
)
from unclip_jax.errors import UsageError
from unclip_jax.files import sha256_json

# What records must have in common.
ALIKE = (
    "clip_fingerprint",
    "tokenizer_fingerprint",
    "context_length",
    "embedding_convention",
    "arrays",
)


def make_mixture(
    sources,  # {name: {"weight": float, "source": str, its options}}
    num_examples: int | None = None,
    seed: int = 0,
) -> "Mixture":
    """Returns the mixture of some sources, a RecordMixture if all hold records.

    Raises UsageError for no sources, weights or sources that do not fit.
    """
    if not config_lib.is_mapping(sources) or not sources:
        raise UsageError(
            "config.data.sources must be {name: options}, at least one, got "
            f"{sources!r}"
        )
    members, weights = {}, {}
    for name, options in sources.items():
        options = config_lib.to_plain(options)
        if not isinstance(options, dict):
            raise UsageError(
                f"config.data.sources.{name} must be the options of a source, got "
                f"{options!r}"
            )
        weights[name] = options.pop("weight", 1.0)
        where = f"config.data.sources.{name}.weight"
        config_lib.check_type(weights[name], float, where)
        if not 0 < weights[name] < math.inf:
            raise UsageError(f"{where} must be above 0, got {weights[name]!r}")
        for key in LOADER_KEYS[1:]:
            if key in options:
                raise UsageError(
                    f"config.data.sources.{name}.{key}: set config.data.{key}"
                )
        members[name] = make_source(options)
        check_examples(members[name], f"config.data.sources.{name}")
    if all(isinstance(source, RecordSource) for source in members.values()):
        return RecordMixture(members, weights, num_examples, seed)
    return Mixture(members, weights, num_examples, seed)


class Mixture:
    """A source made of others (see the module).

    Attributes:
      counts: {name: examples of that source in the mixture}.
      image_size, fingerprint: as of any source.
      crop: "random" if one of the sources has it, see CroppingSource.
      failed: {reason: how many} are no examples, of all sources.
    """

    def __init__(
        self,
        sources: dict[str, Source],
        weights: dict[str, float],
        num_examples: int | None,
        seed: int,
    ):
        """Raises UsageError for sources that do not fit."""
        self._sources = sources
        self.image_size = self._common("image_size", lambda s: s.image_size)
        crops = any(map(has_random_crops, sources.values()))
        self.crop = "random" if crops else "center"
        total = sum(weights.values())
        shares = {name: weight / total for name, weight in weights.items()}
        if num_examples is None:
            wanted = max(len(s) / shares[n] for n, s in sources.items())
        else:
            wanted = num_examples
        self.counts = {
            name: max(1, math.floor(wanted * share + 0.5))
            for name, share in shares.items()
        }
        self._length = sum(self.counts.values())
        self._epochs = [
            StridedEpochs(name, source, self.counts[name], order.make_key(seed, number))
            for number, (name, source) in enumerate(sources.items())
        ]
        self.failed: collections.Counter[str] = collections.Counter()
        for source in sources.values():
            self.failed.update(failed_of(source))
        parts = [(n, s.fingerprint, self.counts[n]) for n, s in sources.items()]
        self.fingerprint = sha256_json(["mixture", parts, seed])

    def __len__(self):
        return self._length

    def __getitem__(self, i: int) -> dict:
        """As of the source that has example i, with its name before the key."""
        return self.cropped(i, None)

    def cropped(self, i: int, position: float | None) -> dict:
        """As `self[i]`; a source of random crops gives its square at `position`."""
        return self.decode(self.load_bytes(i), position)

    def load_bytes(self, i: int) -> Any:
        """Reads the bytes of example i, see LoadingSource."""
        epochs, place = self._find(i)
        with epochs.named():
            source = epochs.source
            raw = (
                source.load_bytes(place) if isinstance(source, LoadingSource) else None
            )
        return epochs, place, raw

    def decode(self, loaded: Any, position: float | None) -> dict:
        """Returns the example of a `load_bytes`."""
        epochs, place, raw = loaded
        with epochs.named():
            if raw is not None:
                position = position if epochs.random_crops else None
                example = epochs.source.decode(raw, position)
            else:
                example = epochs.source[place]
        return {**example, "key": f"{epochs.name}/{example['key']}"}

    def captions(self, n: int | None = None) -> list[str]:
        """The captions of each source's share of the first n examples."""
        n = len(self) if n is None else min(n, len(self))
        texts = []
        for epochs in self._epochs:
            share = math.ceil(n * epochs.count / len(self))
            texts += epochs.source.captions(min(share, len(epochs.source)))
        return texts

    def _find(self, i) -> "tuple[StridedEpochs, int]":
        """Whose example i is, and its number there; each source's lie evenly spread."""
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        i, total = int(i), len(self)
        for epochs in self._epochs:
            before = i * epochs.count // total
            if (i + 1) * epochs.count // total > before:
                return epochs, epochs.index(before)
            i, total = i - before, total - epochs.count
        raise AssertionError("the last source takes what is left")

    def _common(self, what, get):
        values = {name: get(source) for name, source in self._sources.items()}
        first = next(iter(values.values()))
        if any(value != first for value in values.values()):
            raise UsageError(f"the sources of a mixture differ in {what}: {values}")
        return first


class RecordMixture(Mixture):
    """A mixture of records, and a RecordSource itself."""

    def __init__(
        self,
        sources: dict[str, RecordSource],
        weights: dict[str, float],
        num_examples: int | None,
        seed: int,
    ):
        """Raises UsageError for records of several CLIPs or tokenizers."""
        super().__init__(cast(dict[str, Source], sources), weights, num_examples, seed)
        for name in ALIKE:
            self._common(name, lambda source, name=name: source.manifest[name])
        first = next(iter(sources.values()))
        self.manifest = {**first.manifest, "num_records": len(self)}
        self.arrays, self.path = first.arrays, first.path
        self.tokenizer_folder = first.tokenizer_folder
        self.statistics = None
        if first.statistics is not None:
            shares = {n: count / len(self) for n, count in self.counts.items()}
            parts = [(shares[n], s.statistics) for n, s in sources.items()]
            self.statistics = {**first.statistics, **mix_statistics(parts)}

    def fetch(self, indices):
        """Reads the bytes of some records, see `BatchReader`."""
        records: list = [None] * len(indices)
        for source, rows, places in self._divide(indices):
            for row, record in zip(rows, source.fetch(places), strict=True):
                records[row] = record
        return records

    def read_batch(
        self, indices, names, caption_indices=None, positions=None, fetched=None
    ):
        """Reads the named arrays of several examples, see `BatchReader`."""
        examples: list = [None] * len(indices)
        for source, rows, places in self._divide(indices):
            part = source.read_batch(
                places,
                names,
                None if caption_indices is None else caption_indices[rows],
                None if positions is None else positions[rows],
                None if fetched is None else [fetched[row] for row in rows],
            )
            for row, example in zip(rows, part, strict=True):
                examples[row] = example
        return examples

    def _divide(self, indices):
        """(source, rows, numbers there) of the examples of each source."""
        places = [self._find(i) for i in indices]
        for epochs in self._epochs:
            rows = [row for row, place in enumerate(places) if place[0] is epochs]
            if rows:
                yield epochs.source, rows, [places[row][1] for row in rows]


class StridedEpochs:
    """The order in which a source is gone through again and again, scattered over it.

    Attributes:
      name, source: of the mixture.
      count: examples of the source in the mixture.
      random_crops: whether it is one of random crops.
    """

    def __init__(self, name: str, source, count: int, key):
        """Takes the first example from `key`."""
        self.name, self.source, self.count = name, source, count
        self.random_crops = has_random_crops(source)
        size = len(source)
        self._offset = int(key) % size
        stride = max(1, round(size * 0.6180339887))  # golden: any part is spread out
        while math.gcd(stride, size) != 1:
            stride += 1
        self._stride = stride

    @contextlib.contextmanager
    def named(self):
        """Puts the source's name before the key of a BadRecord."""
        try:
            yield
        except BadRecord as bad:
            raise type(bad)(f"{self.name}/{bad.key}", bad.reason) from bad

    def index(self, j: int) -> int:
        """Returns the j-th example's number in the source."""
        size = len(self.source)
        return (self._offset + j % size * self._stride) % size


def mix_statistics(parts) -> dict[str, np.ndarray]:
    """Returns mean, cov, std and mean_norm of a mixture of [(share, statistics)].

    Also unit_mean and unit_cov, if all parts have them.
    """
    mean, cov = _mix_moments(parts, "mean", "cov")
    mixed: dict[str, np.ndarray] = {
        "mean": mean,
        "cov": cov,
        "std": np.sqrt(np.clip(np.diagonal(cov), 0, None)),
        "mean_norm": np.asarray(sum(share * s["mean_norm"] for share, s in parts)),
    }
    if all("unit_mean" in s for _, s in parts):
        unit_mean, unit_cov = _mix_moments(parts, "unit_mean", "unit_cov")
        mixed |= {"unit_mean": unit_mean, "unit_cov": unit_cov}
    return mixed


def _mix_moments(parts, mean, cov) -> tuple[np.ndarray, np.ndarray]:
    """The mean and covariance of a mixture, by their names in the statistics."""
    mixed = np.sum([share * s[mean] for share, s in parts], axis=0)
    second = np.sum(
        [share * (s[cov] + np.outer(s[mean], s[mean])) for share, s in parts], axis=0
    )
    return mixed, second - np.outer(mixed, mixed)
