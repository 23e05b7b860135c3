"""Pictures under evaluation: images, what they should show, features made on demand."""

import numpy as np


class Pictures:
    """N pictures with their captions; features are computed once, when first asked.

    A metric gets one of these and takes what it needs.  The same metric then scores
    the generated pictures, the true pictures (the best one can hope for) and
    mismatched captions (chance), because only the contents differ.

    Attributes:
      images: uint8 (N, H, W, 3).
      examples: N dicts of the source's fields ("caption", "noun", ...), without image.
      reference: uint8 (M, H, W, 3) real pictures, or None.
      source: the data source of the examples, or None.
      extractors: name -> object with image(images) -> (N, D) and
        text(captions) -> (N, D).
    """

    def __init__(self, images, examples, extractors, reference=None, source=None):
        if len(images) != len(examples):
            raise ValueError(f"{len(images)} images for {len(examples)} captions")
        self.images = images
        self.examples = examples
        self.extractors = extractors
        self.reference = reference
        self.source = source
        self._order = np.arange(len(examples))
        self._cache = {}

    def __len__(self):
        return len(self.images)

    @property
    def captions(self):
        """The N captions, row by row with the images."""
        return [self.examples[i]["caption"] for i in self._order]

    @property
    def meanings(self):
        """What the captions say, whatever their wording: (noun, colour, background).

        Examples that do not say it mean their caption, word for word.
        """
        fields = ("noun", "colour", "background")
        if not all(field in self.examples[0] for field in fields):
            return self.captions
        return list(zip(*(self.wanted(field) for field in fields), strict=True))

    def wanted(self, field):
        """The examples' values of a field, row by row with the images: a list.

        Raises:
          ValueError: the source does not say it.
        """
        if field not in self.examples[0]:
            raise ValueError(
                f"the examples have no field {field!r} (they have "
                f"{', '.join(sorted(self.examples[0]))}); this metric needs a source "
                "that says it, such as icons"
            )
        return [self.examples[i][field] for i in self._order]

    def mismatched(self, shift):
        """The same images (and cached features), each with another one's caption."""
        other = Pictures(
            self.images, self.examples, self.extractors, self.reference, self.source
        )
        other._order = np.roll(self._order, shift)
        other._cache = self._cache
        return other

    def share_texts_with(self, other):
        """Use another set's text and reference features (same examples); returns self.

        Raises:
          ValueError: the other set has other examples or another reference.
        """
        if other.examples is not self.examples or other.reference is not self.reference:
            raise ValueError("only sets of the same examples and reference can share")
        shared = ("text", "reference")
        self._cache.update({k: v for k, v in other._cache.items() if k[0] in shared})
        return self

    def cached(self, key, compute):
        """compute() once per set of images; `key` is a tuple of hashable values."""
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]

    def image_features(self, extractor="clip"):
        """float32 (N, D) of the images."""
        run = self._extractor(extractor).image
        return self.cached(("image", extractor), lambda: run(self.images))

    def reference_features(self, extractor="clip"):
        """float32 (M, D) of the reference pictures.

        Raises:
          ValueError: there is no reference.
        """
        if self.reference is None:
            raise ValueError(
                "this metric compares with real pictures: set config.reference.count"
            )
        run = self._extractor(extractor).image
        return self.cached(("reference", extractor), lambda: run(self.reference))

    def text_features(self, extractor="clip", prefix=""):
        """float32 (N, D) of the captions, each with `prefix` before it."""
        run = self._extractor(extractor).text
        captions = [prefix + example["caption"] for example in self.examples]
        features = self.cached(("text", extractor, prefix), lambda: run(captions))
        return features[self._order]

    def _extractor(self, name):
        if name not in self.extractors:
            raise ValueError(
                f"no feature extractor {name!r}; known: {sorted(self.extractors)}"
            )
        return self.extractors[name]


class ClipExtractor:
    """CLIP features by the towers of an UnCLIP (which works in batches itself)."""

    def __init__(self, model):
        self.model = model

    def image(self, images):
        """float32 (N, D) of uint8 (N, H, W, 3), scaled to CLIP's size if need be."""
        return np.asarray(self.model.encode_image(self.model.fit_for_clip(images)))

    def text(self, captions):
        """float32 (N, D) of N strings."""
        return np.asarray(self.model.encode_text(captions))
