"""The images that are scored, with features on demand, and the scores of metrics."""

import copy
import dataclasses
import time
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.features.gaussian import GaussianStatistics, check_fits
from unclip_jax.evaluation.features.store import FeatureStore
from unclip_jax.evaluation.image_sets import Images
from unclip_jax.evaluation.inputs import Examples

CHANCE_SHIFTS = 16  # mismatched arrangements that a chance level averages over


class SampleSet:
    """N images with their captions; features are computed once, when first asked.

    A metric gets one of these and takes what it needs.  The same metric then scores
    the generated images, the true images (the best one can hope for) and mismatched
    captions (chance), because only the contents differ.

    Attributes:
      images: N of them.
      examples: N dicts of the source's fields ("caption", "noun", ...), without image;
        none when there are no captions.
      source: the data source of the examples, or None.
      reference: M real images, GaussianStatistics of some, or None.
      extractors: name -> extractor, see features/__init__.py.
      store: computes and keeps features.
    """

    def __init__(
        self,
        images: Images,
        examples: Examples | None,
        extractors: Mapping[str, Any],
        reference: Images | GaussianStatistics | None = None,
        store: FeatureStore | None = None,
    ):
        """Raises UsageError unless there is one example for each image, or none."""
        if examples and len(images) != len(examples.fields):
            raise UsageError(
                f"{len(images)} images for {len(examples.fields)} captions"
            )
        self.images = images
        self.examples = examples.fields if examples else ()
        self.source = examples.source if examples else None
        self.extractors = extractors
        self.reference = reference
        self.store = store or FeatureStore()
        self._order = np.arange(len(images))
        self._cache: dict[tuple[Hashable, ...], Any] = {}

    def __len__(self):
        return len(self.images)

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The examples, row by row with the images."""
        return [self.examples[i] for i in self._order.tolist()]

    @property
    def caption_groups(self) -> list[Hashable]:
        """What the captions mean: N values, row by row with the images.

        Captions mean their words where the source does not say which mean the same.
        """
        return [row.get("caption_group", row["caption"]) for row in self.rows]

    def mismatched(self, shift: int) -> "SampleSet":
        """The same images (and cached features), each with another one's caption."""
        other = copy.copy(self)
        other._order = np.roll(self._order, shift)
        return other

    def share_texts_with(self, other: "SampleSet") -> "SampleSet":
        """Takes text and reference features from a set of the same examples."""
        shared = ("text", "reference", "reference statistics")
        self._cache.update({k: v for k, v in other._cache.items() if k[0] in shared})
        return self

    def cached(self, key: tuple[Hashable, ...], compute: Callable[[], Any]) -> Any:
        """compute(), once per set of images."""
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]

    def image_features(self, name: str = "clip") -> np.ndarray:
        """float32 (N, D) of the images; `name` as in features/__init__.py."""
        return self._features("image", self.images, name)

    def reference_features(self, name: str = "clip") -> np.ndarray:
        """float32 (M, D) of the reference images.

        Raises:
          UsageError: there is no reference, or only its statistics.
        """
        if isinstance(self.reference, GaussianStatistics):
            raise UsageError(
                "this metric compares with real images one by one, but "
                "config.reference.statistics has only their mean and covariance: set "
                "config.reference.images or .count instead"
            )
        return self._features("reference", self._reference_images(), name)

    def reference_statistics(self, name: str = "clip") -> GaussianStatistics:
        """Mean and covariance of the reference images.

        Raises:
          UsageError: there is no reference, or its statistics were made otherwise.
        """
        extractor, layer = self._extractor(name)
        if isinstance(self.reference, GaussianStatistics):
            about = {**extractor.about, "layer": layer}
            where = "config.reference.statistics"
            for note in check_fits(self.reference, about, where):
                warnings.warn(note, stacklevel=2)
            return self.reference
        images = self._reference_images()
        return self.cached(
            ("reference statistics", name),
            lambda: self.store.statistics(images, extractor, layer),
        )

    def few_references(self, width: int) -> bool:
        """Whether there are no more reference images than features are wide."""
        if isinstance(self.reference, GaussianStatistics):
            return False
        return len(self._reference_images()) <= width

    def text_features(self, name: str = "clip", prefix: str = "") -> np.ndarray:
        """float32 (N, D) of the captions, each with `prefix` before it."""
        extractor, _ = self._extractor(name)
        if not hasattr(extractor, "text"):
            raise UsageError(f"the features {name!r} are of images only")
        captions = [prefix + example["caption"] for example in self.examples]
        key = ("text", name, prefix)
        return self.cached(key, lambda: extractor.text(captions))[self._order]

    def _reference_images(self) -> Images:
        if not isinstance(self.reference, Images):
            raise UsageError(
                "this metric compares with real images: set config.reference"
            )
        return self.reference

    def _features(self, what, images, name):
        extractor, layer = self._extractor(name)
        key = (what, name.partition("/")[0])
        return self.cached(key, lambda: self.store.features(images, extractor))[layer]

    def _extractor(self, name):
        """(extractor, layer) of "extractor" or "extractor/layer"."""
        name, _, layer = name.partition("/")
        if name not in self.extractors:
            raise UsageError(
                f"no feature extractor {name!r}; known: {sorted(self.extractors)}"
            )
        extractor = self.extractors[name]
        return extractor, layer or extractor.default


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of the results, with what it takes to read it.

    Attributes:
      value: of the generated images.
      stderr: its standard error, when it is a mean over images; else None.
      true_pictures: the same for the true images of the same captions, or None.
      chance: the same for the generated images with mismatched captions, or None
        when the metric does not look at captions.
      better: "higher", "lower" or "".
      percent: whether 1.0 reads as 100%.
      text: what it says, in one line.
    """

    value: float
    stderr: float | None
    true_pictures: float | None
    chance: float | None
    better: str
    percent: bool
    text: str


def measure(
    metrics: Mapping[str, Any],
    generated: SampleSet,
    true: SampleSet | None,
    log: Callable[[str], None] = print,
) -> tuple[dict[str, Score], dict[str, list[float]], list[str]]:
    """Scores generated and true images, and chance.

    Args:
      metrics: {label: Metric}.
      generated, true: sets of the same examples.
      log: called with each line of text for the user.

    Returns:
      ({name: Score}, {name: N values}, [warnings]).
    """
    scores, per_image, notes = {}, {}, []
    for label, metric in metrics.items():
        clock = time.time()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            values = metric(generated)
            best = {}
            if true is not None:
                # features of captions and reference are the same: computed once
                best = metric(true.share_texts_with(generated))
        texts = [str(w.message) for w in caught if w.category is UserWarning]
        notes += [f"{label}: {text}" for text in dict.fromkeys(texts)]
        chance = _chance(metric, generated) if metric.paired else {}
        for quantity, value in values.items():
            name = f"{label}/{quantity}" if quantity else label
            value = np.asarray(value, dtype=np.float64)
            stderr = None
            if value.ndim:
                per_image[name] = value.tolist()
                stderr = float(value.std() / np.sqrt(value.size))
            scores[name] = Score(
                value=float(value.mean()),
                stderr=stderr,
                true_pictures=float(np.mean(best[quantity])) if best else None,
                chance=chance.get(quantity),
                **dataclasses.asdict(metric.quantities[quantity]),
            )
        log(f"{label}: {time.time() - clock:.1f} s")
    return scores, per_image, notes


def _chance(metric, samples):
    """{quantity: mean over mismatched captions}."""
    n = len(samples)
    shifts = np.unique(np.linspace(1, n - 1, CHANCE_SHIFTS).astype(int))
    drawn = [metric(samples.mismatched(shift)) for shift in shifts]
    return {q: float(np.mean([np.mean(d[q]) for d in drawn])) for q in drawn[0]}
