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

import math

import numpy as np

from unclip_jax import config as config_lib
from unclip_jax.data import order
from unclip_jax.data.sources import LOADER_KEYS, BadRecord, make_source
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


class Mixture:
    """A source made of others (see the module).

    Attributes:
      counts: {name: examples of that source in the mixture}.
      image_size, fingerprint: as of any source; those of records besides, if all are.
      crop: "random" if one of the sources has it, see PictureSource.
    """

    def __init__(
        self,
        sources,  # {name: {"weight": float, "source": str, its options}}
        num_examples: int | None = None,
        seed: int = 0,
    ):
        """Raises UsageError for no sources, weights or sources that do not fit."""
        if not sources:
            raise UsageError("config.data.sources is empty: name at least one")
        self._sources, weights = {}, {}
        for name, options in sources.items():
            options = config_lib.to_plain(options)
            weights[name] = options.pop("weight", 1.0)
            if not isinstance(weights[name], int | float) or weights[name] <= 0:
                raise UsageError(
                    f"config.data.sources.{name}.weight must be above 0, got "
                    f"{weights[name]!r}"
                )
            for key in LOADER_KEYS[1:]:
                if key in options:
                    raise UsageError(
                        f"config.data.sources.{name}.{key}: set config.data.{key}"
                    )
            self._sources[name] = make_source(options)
        self.image_size = self._common("image_size", lambda s: s.image_size)
        crops = (getattr(source, "crop", "center") for source in self._sources.values())
        self.crop = "random" if "random" in crops else "center"
        total = sum(weights.values())
        shares = {name: weight / total for name, weight in weights.items()}
        if num_examples is None:
            wanted = max(len(s) / shares[n] for n, s in self._sources.items())
        else:
            wanted = num_examples
        self.counts = {
            name: max(1, math.floor(wanted * share + 0.5))
            for name, share in shares.items()
        }
        self._length = sum(self.counts.values())
        self._walks = [
            _Walk(name, source, self.counts[name], int(order.make_key(seed, number)))
            for number, (name, source) in enumerate(self._sources.items())
        ]
        parts = [(n, s.fingerprint, self.counts[n]) for n, s in self._sources.items()]
        self.fingerprint = sha256_json(["mixture", parts, seed])
        if all(hasattr(source, "arrays") for source in self._sources.values()):
            self._become_records()

    def __len__(self):
        return self._length

    def __getitem__(self, i: int) -> dict:
        """As of the source that has example i, with its name before the key."""
        return self.cropped(i, None)

    def cropped(self, i: int, position: float | None) -> dict:
        """As `self[i]`; a source of random crops gives its square at `position`."""
        walk, j = self._find(i)
        try:
            if getattr(walk.source, "crop", "center") == "random":
                example = dict(walk.source.cropped(walk.at(j), position))
            else:
                example = dict(walk.source[walk.at(j)])
        except BadRecord as bad:
            raise type(bad)(f"{walk.name}/{bad.key}", bad.reason) from bad
        return {**example, "key": f"{walk.name}/{example['key']}"}

    def captions(self, n: int | None = None) -> list[str]:
        """The captions of each source's share of the first n examples."""
        n = len(self) if n is None else min(n, len(self))
        found = []
        for walk in self._walks:
            share = math.ceil(n * walk.count / len(self))
            found += walk.source.captions(min(share, len(walk.source)))
        return found

    def _find(self, i):
        """(walk, number in it) of example i: each walk's turns lie evenly spread."""
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        i, total = int(i), len(self)
        for walk in self._walks:
            before = i * walk.count // total
            if (i + 1) * walk.count // total > before:
                return walk, before
            i, total = i - before, total - walk.count
        raise AssertionError("the last walk takes what is left")

    def _common(self, what, get):
        found = {name: get(source) for name, source in self._sources.items()}
        first = next(iter(found.values()))
        if any(value != first for value in found.values()):
            raise UsageError(f"the sources of a mixture differ in {what}: {found}")
        return first

    def _become_records(self):
        for name in ALIKE:
            self._common(name, lambda source, name=name: source.manifest[name])
        first = self._walks[0].source
        self.manifest = {**first.manifest, "num_records": len(self)}
        self.arrays, self.path = first.arrays, first.path
        self.tokenizer_folder = first.tokenizer_folder
        shares = {n: count / len(self) for n, count in self.counts.items()}
        self.statistics = None
        if first.statistics is not None:
            self.statistics = first.statistics | mix_statistics(
                [(shares[n], s.statistics) for n, s in self._sources.items()]
            )

    def read(self, i, names, turn=0):
        """See RecordReader.read; of mixtures of records only."""
        walk, j = self._find(i)
        return walk.source.read(walk.at(j), names, turn)

    def read_batch(self, indices, names, turns):
        """See RecordReader.read_batch; of mixtures of records only."""
        found = [self._find(i) for i in indices]
        out, bad = {}, []
        for walk in self._walks:
            rows = np.array([r for r, (w, _) in enumerate(found) if w is walk], int)
            if not rows.size:
                continue
            places = np.array([walk.at(found[row][1]) for row in rows])
            part, failed = walk.source.read_batch(places, names, turns[rows])
            for name, values in part.items():
                shape = (len(indices), *values.shape[1:])
                out.setdefault(name, np.empty(shape, values.dtype))[rows] = values
            bad += rows[failed].tolist()
        return out, sorted(bad)


class _Walk:
    """Goes through a source again and again, scattered over it."""

    def __init__(self, name, source, count, key):
        self.name, self.source, self.count = name, source, count
        size = len(source)
        self._offset = key % size
        stride = max(1, round(size * 0.6180339887))  # golden: any part is spread out
        while math.gcd(stride, size) != 1:
            stride += 1
        self._stride = stride

    def at(self, j: int) -> int:
        """The j-th example's number in the source."""
        size = len(self.source)
        return (self._offset + j % size * self._stride) % size


def mix_statistics(parts) -> dict[str, np.ndarray]:
    """mean, cov, std and mean_norm of a mixture, from [(share, statistics)].

    Also unit_mean and unit_cov, if all parts have them.
    """
    mean, cov = _mix_moments(parts, "mean", "cov")
    mixed = {
        "mean": mean,
        "cov": cov,
        "std": np.sqrt(np.clip(np.diagonal(cov), 0, None)),
        "mean_norm": np.asarray(sum(share * s["mean_norm"] for share, s in parts)),
    }
    if all("unit_mean" in s for _, s in parts):
        unit_mean, unit_cov = _mix_moments(parts, "unit_mean", "unit_cov")
        mixed |= {"unit_mean": unit_mean, "unit_cov": unit_cov}
    return mixed


def _mix_moments(parts, mean, cov):
    """The mean and covariance of a mixture, by their names in the statistics."""
    mixed = sum(share * s[mean] for share, s in parts)
    second = sum(share * (s[cov] + np.outer(s[mean], s[mean])) for share, s in parts)
    return mixed, second - np.outer(mixed, mixed)
