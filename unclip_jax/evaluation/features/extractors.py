"""Feature extractors a config can ask for: images in, features out.

An extractor has `image(uint8 (N, H, W, 3)) -> {layer: (N, D)}`, `default`, the layer
that its bare name means, `about`, what its numbers depend on, `label`, that in words,
and, where it knows language, `text(captions) -> (N, D)`.  A metric's `features` names
one of config's `extractors` (or "clip", the evaluated model's own), and a layer after a
slash where there are several: "inception", "inception/768".
"""

import inspect
from collections.abc import Callable

import numpy as np

from unclip_jax import config as config_lib
from unclip_jax import files
from unclip_jax.errors import UsageError
from unclip_jax.evaluation.features.dinov2 import DinoExtractor
from unclip_jax.evaluation.features.inception import InceptionExtractor
from unclip_jax.generation import UnCLIP
from unclip_jax.interop import inception as inception_weights

OWN = "clip"  # the extractor that is always there: the evaluated model's CLIP


class ClipExtractor:
    """CLIP features by the towers of an UnCLIP (which works in batches itself)."""

    default = ""

    def __init__(self, model, fingerprint):
        self.model = model
        self.about = {"network": "clip", "weights_sha256": fingerprint}
        self.label = f"CLIP {fingerprint[:12]}"

    def image(self, images):
        """float32 (N, D) of uint8 (N, H, W, 3), scaled to CLIP's size if need be."""
        images = self.model.fit_for_clip(images)
        return {"": np.asarray(self.model.encode_image(images))}

    def text(self, captions):
        """float32 (N, D) of N strings."""
        return np.asarray(self.model.encode_text(captions))


def _inception(
    layers,
    convention="pytorch-fid",
    weights="",
    cache="",
    url=inception_weights.URL,
    sha256=inception_weights.SHA256,
    batch_size=32,
):
    loaded = inception_weights.load_inception(weights, cache, url, sha256)
    names = dict.fromkeys(layer or InceptionExtractor.default for layer in layers)
    return InceptionExtractor(loaded, convention, tuple(names), batch_size)


def _clip(layers, model="", batch_size=32):
    if any(layers):
        raise UsageError(f"a CLIP has no layers to choose: {layers[-1]!r}")
    if not model:
        raise UsageError("an extractor 'clip' needs `model`, the folder of an export")
    loaded = UnCLIP.load(model, parts=("clip",), batch_size=batch_size)
    return ClipExtractor(loaded, files.sha256_folder(model))


def _dinov2(layers, weights="", batch_size=32):
    if any(layers):
        raise UsageError(f"DINOv2 has no layers to choose: {layers[-1]!r}")
    if not weights:
        raise UsageError(
            "an extractor 'dinov2' needs `weights`, a folder of transformers' "
            "Dinov2Model (facebook/dinov2-large, as the literature)"
        )
    return DinoExtractor(weights, batch_size)


# Kind -> maker(layers asked for, **options); a config may set the options.
KINDS: dict[str, Callable] = {
    "inception": _inception,
    "clip": _clip,
    "dinov2": _dinov2,
}


def check(config):
    """Check config.extractors: {name: {option: value}}; "extractor" names the kind.

    Returns:
      {name: (maker, options)}.

    Raises:
      UsageError: an unknown kind or option.
    """
    checked = {}
    for name, options in config_lib.to_plain(config).items():
        options = dict(options or {})
        kind = options.pop("extractor", name)
        where = f"config.extractors.{name}"
        if name == OWN:
            raise UsageError(f"{where}: this name is the evaluated model's own CLIP")
        config_lib.check_keys({kind: None}, KINDS, "config.extractors")
        known = list(inspect.signature(KINDS[kind]).parameters)[1:]
        config_lib.check_keys(options, known, where)
        checked[name] = (KINDS[kind], options)
    return checked


def layers_asked(metrics, checked):
    """{extractor: [layers]} that the options of metrics name, "" for its own default.

    Args:
      metrics: {label: Metric}.
      checked: from `check`.

    Raises:
      UsageError: a metric names an extractor that config.extractors lacks.
    """
    asked = {}
    for label, metric in metrics.items():
        if "features" in metric.options:
            name, _, layer = metric.options["features"].partition("/")
            if name != OWN and name not in checked:
                raise UsageError(
                    f"config.metrics.{label}: features {name!r}: expected {OWN!r} or "
                    "one of config.extractors "
                    f"({', '.join(sorted(checked)) or 'which is empty'})"
                )
            asked.setdefault(name, set()).add(layer)
    return {name: sorted(layers) for name, layers in asked.items()}


def make(checked, asked):
    """{name: extractor} of those that are asked for; nothing else is loaded.

    Args:
      checked: from `check`.
      asked: from `layers_asked`.
    """
    loaded = {}
    for name in asked.keys() - {OWN}:
        maker, options = checked[name]
        loaded[name] = maker(asked[name], **options)
    return loaded
