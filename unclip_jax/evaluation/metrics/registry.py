"""The metrics a config can ask for by name.

To add one: write its file (a function of features), then one entry here.  An entry's
`compute(pictures, **options)` returns {quantity: float, or (N,) one value per
picture}; the options and their defaults are its keyword arguments, and what the
config may set.
"""

import dataclasses
import inspect
from collections.abc import Callable

import numpy as np

from unclip_jax.config import check_keys
from unclip_jax.evaluation.features.store import CHUNK
from unclip_jax.evaluation.metrics import frechet as frechet_lib
from unclip_jax.evaluation.metrics import icons as icons_lib
from unclip_jax.evaluation.metrics.aesthetic import aesthetic, layers_of
from unclip_jax.evaluation.metrics.clip_score import HESSEL_PREFIX, clip_score
from unclip_jax.evaluation.metrics.cmmd import cmmd
from unclip_jax.evaluation.metrics.density_coverage import density_coverage
from unclip_jax.evaluation.metrics.inception_score import inception_score
from unclip_jax.evaluation.metrics.kid import kid
from unclip_jax.evaluation.metrics.pairwise_distance import pairwise_distance
from unclip_jax.evaluation.metrics.precision_recall import precision_recall
from unclip_jax.evaluation.metrics.r_precision import r_precision
from unclip_jax.evaluation.metrics.retrieval import retrieval
from unclip_jax.evaluation.metrics.vendi import vendi
from unclip_jax.interop.tensor_files import read_tensors


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One number of a metric.

    Attributes:
      text: one line for a reader who is new to it.
      better: "higher", "lower" or "" (neither: it describes).
      percent: whether 1.0 reads as 100%.
    """

    text: str
    better: str = "higher"
    percent: bool = False


@dataclasses.dataclass(frozen=True)
class Metric:
    """A named metric.

    Attributes:
      compute: (Pictures, **options) -> {quantity: float or (N,)}.
      quantities: name -> Quantity; the single quantity of a metric is named "".
      paired: whether it looks at captions; then its chance level is what mismatched
        captions score.
      statistics: whether mean and covariance are all it wants of the reference.
      minimum: options -> the least number of pictures, known before any is made.
    """

    compute: Callable
    quantities: dict[str, Quantity]
    paired: bool = False
    statistics: bool = False
    minimum: Callable = lambda options: 2

    def options(self, given, where):
        """The full options: defaults with `given` on top.

        Raises:
          ValueError: an unknown option (names the nearest).
        """
        parameters = list(inspect.signature(self.compute).parameters.values())[1:]
        check_keys(given, [p.name for p in parameters], where)
        return {p.name: given.get(p.name, p.default) for p in parameters}


def _clip_score(pictures, convention="cosine", features="clip"):
    prefix = HESSEL_PREFIX if convention == "hessel" else ""
    image = pictures.image_features(features)
    text = pictures.text_features(features, prefix)
    return {"": clip_score(image, text, convention)}


def _r_precision(pictures, pool=100, k=1, seed=0, features="clip"):
    image, text = pictures.image_features(features), pictures.text_features(features)
    return {"": r_precision(image, text, pool, k, seed, pictures.meanings)}


def _retrieval(pictures, features="clip"):
    image, text = pictures.image_features(features), pictures.text_features(features)
    return retrieval(image, text)


def _frechet(pictures, features="clip"):
    """Through statistics, cached or given, unless there are few pictures."""
    x = pictures.image_features(features)
    frechet_lib.warn_few(x.shape[0], x.shape[1])
    if pictures.few_references(x.shape[1]):
        y = pictures.reference_features(features)
        return {"": frechet_lib.frechet_from_features(x, y)}
    mean, covariance = pictures.reference_statistics(features)
    distance = frechet_lib.frechet_distance(
        *frechet_lib.statistics(x, "generated features"), mean, covariance
    )
    return {"": distance}


def _fid(pictures, features="inception"):
    return _frechet(pictures, features)


def _inception_score(
    pictures, splits=10, seed=2020, features="inception/logits_unbiased"
):
    mean, std = inception_score(pictures.image_features(features), splits, seed)
    return {"mean": mean, "std": std}


def _aesthetic(pictures, weights="", features="clip"):
    if not weights:
        raise ValueError("metric 'aesthetic' needs `weights`, a .pth or .safetensors")
    expected = "LAION's sac+logos+ava1-l14-linearMSE.pth, or another such chain"
    layers = layers_of(read_tensors(weights, expected))
    return {"": aesthetic(pictures.image_features(features), layers)}


def _kid(pictures, subsets=100, subset_size=1000, seed=2020, features="clip"):
    x = pictures.image_features(features)
    y = pictures.reference_features(features)
    mean, std = kid(x, y, subsets, subset_size, seed)
    return {"mean": mean, "std": std}


def _cmmd(pictures, features="clip"):
    x = pictures.image_features(features)
    return {"": cmmd(x, pictures.reference_features(features))}


def _precision_recall(pictures, k=3, features="clip"):
    x = pictures.image_features(features)
    y = pictures.reference_features(features)
    return dict(zip(("precision", "recall"), precision_recall(x, y, k), strict=True))


def _density_coverage(pictures, k=5, features="clip"):
    x = pictures.image_features(features)
    y = pictures.reference_features(features)
    return dict(zip(("density", "coverage"), density_coverage(x, y, k), strict=True))


def _vendi(pictures, features="clip"):
    return {"": vendi(pictures.image_features(features))}


def _pairwise_distance(pictures, features="clip"):
    return {"": pairwise_distance(pictures.image_features(features))}


def _icons(pictures, max_shift=2):
    source = pictures.source
    if not hasattr(source, "mask"):
        raise ValueError("the icons checks need config.data.source = 'icons'")
    names, nouns = list(source.colours), list(source.nouns)

    def read():
        palette = np.array([source.colours[name] for name in names])
        masks = np.stack([source.mask(noun) for noun in nouns])
        masks, reach = icons_lib.jittered(masks, getattr(source, "jitter", 0.0))
        images, shift = pictures.images, max_shift + reach
        parts = (images[i : i + CHUNK] for i in range(0, len(images), CHUNK))
        return icons_lib.join_readings(
            [icons_lib.read_icons(part, palette, masks, shift) for part in parts]
        )

    return icons_lib.check_icons(
        pictures.cached(("icons", max_shift), read),
        background=[names.index(c) for c in pictures.wanted("background")],
        glyph_colour=[names.index(c) for c in pictures.wanted("colour")],
        glyph=[nouns.index(noun) for noun in pictures.wanted("noun")],
    )


def _recall_text(k, question):
    place = "the nearest" if k == 1 else f"among the {k} nearest"
    return Quantity(f"{question} {place} of all", percent=True)


REGISTRY: dict[str, Metric] = {
    "clip_score": Metric(
        _clip_score,
        {
            "": Quantity(
                "how well a picture fits its caption: the cosine of CLIP's embeddings "
                "of both (hessel: x 2.5, torchmetrics: x 100); judge it by the true "
                "pictures' and by chance"
            )
        },
        paired=True,
    ),
    "r_precision": Metric(
        _r_precision,
        {
            "": Quantity(
                "how often CLIP picks a picture's own caption out of a pool of them "
                "(100 unless options say otherwise)",
                percent=True,
            )
        },
        paired=True,
        minimum=lambda options: options["pool"],
    ),
    "retrieval": Metric(
        _retrieval,
        {
            f"{way}@{k}": _recall_text(k, question)
            for k in (1, 5, 10)
            for way, question in (
                ("text_to_image", "a caption's own picture is"),
                ("image_to_text", "a picture's own caption is"),
            )
        },
        paired=True,
    ),
    "frechet": Metric(
        _frechet,
        {
            "": Quantity(
                "how far the generated pictures as a set are from the real ones: FID's "
                "formula on other features, so no value to compare with an FID; 0 is "
                "the same mean and covariance",
                better="lower",
            )
        },
        statistics=True,
    ),
    "fid": Metric(
        _fid,
        {
            "": Quantity(
                "how far the generated pictures as a set are from the real ones, in "
                "quality and variety together; 0 is the same. Compare only equal "
                "numbers of pictures, references and conventions",
                better="lower",
            )
        },
        statistics=True,
    ),
    "inception_score": Metric(
        _inception_score,
        {
            "mean": Quantity(
                "pictures are of something definite, and of many things: 1 (all alike) "
                "to 1008; knows no caption and no real picture"
            ),
            "std": Quantity("its spread over splits", better=""),
        },
        minimum=lambda options: options["splits"],
    ),
    "aesthetic": Metric(
        _aesthetic,
        {"": Quantity("how people would rate the picture, 1 to 10, guessed")},
    ),
    "kid": Metric(
        _kid,
        {
            "mean": Quantity(
                "as FID, but unbiased: fair also for few pictures; around 0 is the "
                "same, and may be below",
                better="lower",
            ),
            "std": Quantity("its spread over random subsets", better=""),
        },
        minimum=lambda options: options["subset_size"],
    ),
    "cmmd": Metric(
        _cmmd,
        {
            "": Quantity(
                "as KID, in CLIP's embeddings and with a kernel that sees the whole "
                "distribution, x 1000; 0 is the same",
                better="lower",
            )
        },
    ),
    "precision_recall": Metric(
        _precision_recall,
        {
            "precision": Quantity(
                "generated pictures that could be real: as near to a real one as real "
                "ones are to each other",
                percent=True,
            ),
            "recall": Quantity(
                "real pictures that the model could have drawn: low when it leaves "
                "kinds of pictures out",
                percent=True,
            ),
        },
        minimum=lambda options: options["k"] + 1,
    ),
    "density_coverage": Metric(
        _density_coverage,
        {
            "density": Quantity(
                "as precision, but one odd real picture counts little; 1 is what real "
                "pictures get, more is possible"
            ),
            "coverage": Quantity(
                "as recall, but odd generated pictures do not help: real ones with a "
                "generated one nearby",
                percent=True,
            ),
        },
    ),
    "vendi": Metric(
        _vendi,
        {
            "": Quantity(
                "how many different pictures there are in effect: 1 (all alike) to n"
            )
        },
    ),
    "pairwise_distance": Metric(
        _pairwise_distance,
        {"": Quantity("variety: mean distance of two pictures, 0 if all are alike")},
    ),
    "icons": Metric(
        _icons,
        {
            "background": Quantity("the background is the named colour", percent=True),
            "glyph_colour": Quantity("the glyph is the named colour", percent=True),
            "glyph_top1": Quantity(
                "the glyph looks most like the named one, of all glyphs", percent=True
            ),
            "glyph_top5": Quantity(
                "the named glyph is among the five most alike", percent=True
            ),
            "all": Quantity("background, colour and glyph all right", percent=True),
        },
        paired=True,
    ),
}


def find(label, options):
    """(Metric, its full options) for an entry of config.metrics.

    Args:
      label: the entry's key, the name in the results.
      options: the entry's value; its "metric" names the metric when the label does
        not (so that one metric can stand twice, with different options).

    Raises:
      ValueError: unknown metric or option, with the nearest name.
    """
    given = dict(options or {})
    name = given.pop("metric", label)
    check_keys({name: None}, REGISTRY, "config.metrics")
    metric = REGISTRY[name]
    return metric, metric.options(given, f"config.metrics.{label}")
