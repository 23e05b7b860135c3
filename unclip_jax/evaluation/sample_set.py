"""The images that are scored: with what they should show, and features on demand."""

import warnings

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.features.gaussian import GaussianStatistics, check_fits
from unclip_jax.evaluation.features.store import FeatureStore


class SampleSet:
    """N images with their captions; features are computed once, when first asked.

    A metric gets one of these and takes what it needs.  The same metric then scores
    the generated images, the true images (the best one can hope for) and mismatched
    captions (chance), because only the contents differ.

    Attributes:
      images: N of them, as in image_sets.py.
      examples: N dicts of the source's fields ("caption", "noun", ...), without image;
        None when there are no captions.
      reference: M real images, GaussianStatistics of some, or None.
      source: the data source of the examples, or None.
      extractors: name -> extractor, see extractors.py.
      store: FeatureStore that computes and keeps features.
    """

    def __init__(
        self, images, examples, extractors, reference=None, source=None, store=None
    ):
        if examples is not None and len(images) != len(examples):
            raise UsageError(f"{len(images)} images for {len(examples)} captions")
        self.images = images
        self.examples = examples
        self.extractors = extractors
        self.reference = reference
        self.source = source
        self.store = store or FeatureStore()
        self._order = np.arange(len(images))
        self._cache = {}

    def __len__(self):
        return len(self.images)

    @property
    def caption_groups(self):
        """What the captions mean: N hashable values, row by row with the images.

        Captions mean their words where the source does not say which mean the same.
        """
        rows = [self.examples[i] for i in self._order]
        return [row.get("caption_group", row["caption"]) for row in rows]

    def target_attribute(self, name):
        """The examples' values of a field, row by row with the images: a list.

        Raises:
          UsageError: the source does not say it.
        """
        if name not in self.examples[0]:
            raise UsageError(
                f"the examples have no field {name!r} (they have "
                f"{', '.join(sorted(self.examples[0]))}); this metric needs a source "
                "that says it, such as icons"
            )
        return [self.examples[i][name] for i in self._order]

    def mismatched(self, shift):
        """The same images (and cached features), each with another one's caption."""
        other = SampleSet(
            self.images,
            self.examples,
            self.extractors,
            self.reference,
            self.source,
            self.store,
        )
        other._order = np.roll(self._order, shift)
        other._cache = self._cache
        return other

    def share_texts_with(self, other):
        """Use another set's text and reference features (same examples); returns self.

        Raises:
          UsageError: the other set has other examples or another reference.
        """
        if other.examples is not self.examples or other.reference is not self.reference:
            raise UsageError("only sets of the same examples and reference can share")
        shared = ("text", "reference", "reference statistics")
        self._cache.update({k: v for k, v in other._cache.items() if k[0] in shared})
        return self

    def cached(self, key, compute):
        """compute() once per set of images; `key` is a tuple of hashable values."""
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]

    def image_features(self, name="clip"):
        """float32 (N, D) of the images; `name` as in extractors.py."""
        return self._features("image", self.images, name)

    def reference_features(self, name="clip"):
        """float32 (M, D) of the reference images.

        Raises:
          UsageError: there is no reference, or only its statistics.
        """
        if isinstance(self.reference, GaussianStatistics):
            raise UsageError(
                "this metric compares with real images one by one, but "
                "config.reference.statistics has only their mean and covariance: set "
                "config.reference.images or .data instead"
            )
        if self.reference is None:
            raise UsageError(
                "this metric compares with real images: set config.reference"
            )
        return self._features("reference", self.reference, name)

    def few_references(self, width):
        """Whether there are no more reference images than features are wide."""
        if isinstance(self.reference, GaussianStatistics):
            return False
        return self.reference is None or len(self.reference) <= width

    def reference_statistics(self, name="clip"):
        """(mean (D,), covariance (D, D)) of the reference images, float64.

        Raises:
          UsageError: there is no reference, or its statistics were made otherwise.
        """
        extractor, layer = self._extractor(name)
        statistics = self.reference
        if isinstance(statistics, GaussianStatistics):
            about = {**extractor.about, "layer": layer}
            for note in check_fits(statistics, about, "config.reference.statistics"):
                warnings.warn(note, stacklevel=2)
        else:
            statistics = self.cached(
                ("reference statistics", name),
                lambda: self.store.statistics(self.reference, extractor, layer),
            )
        return statistics.mean, statistics.covariance

    def text_features(self, name="clip", prefix=""):
        """float32 (N, D) of the captions, each with `prefix` before it."""
        extractor, _ = self._extractor(name)
        if not hasattr(extractor, "text"):
            raise UsageError(f"the features {name!r} are of images only")
        captions = [prefix + example["caption"] for example in self.examples]
        key = ("text", name, prefix)
        return self.cached(key, lambda: extractor.text(captions))[self._order]

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
