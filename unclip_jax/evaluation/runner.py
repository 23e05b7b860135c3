"""Evaluates from a config: makes a folder of images, scores it, writes results.

In the work folder appear

  generated/<key>/   the generated images as PNG, under a key of everything that
                     shapes them; a killed evaluation goes on where it stopped, and
                     another metric, asked for later, needs no new images.
  features/          features and statistics of images, likewise.
  results.json       every number, its meaning and chance level, and the provenance;
  results.csv        the numbers alone.
  pictures.jsonl     one line per image: caption, attributes, per-image results.
  samples.png        the first images beside the true ones, with their captions.
  report.html        all of it on one page;
  best_and_worst.html  the images that each score puts highest and lowest.
  sweep.*            the curve over options of generation, when config.sweep asks.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from unclip_jax import config as config_lib
from unclip_jax import files
from unclip_jax.errors import UsageError
from unclip_jax.evaluation import features, inputs, pairing, sweep
from unclip_jax.evaluation.bits_per_dim import measure_bits_per_dim
from unclip_jax.evaluation.config import (
    CropConfig,
    EvaluateConfig,
    make_metrics,
    read_config,
)
from unclip_jax.evaluation.features import gaussian
from unclip_jax.evaluation.features.clip import ClipExtractor
from unclip_jax.evaluation.features.gaussian import GaussianStatistics
from unclip_jax.evaluation.features.store import FeatureStore
from unclip_jax.evaluation.generate import generate
from unclip_jax.evaluation.image_sets import Images, open_images
from unclip_jax.evaluation.metrics import Metric
from unclip_jax.evaluation.priors import compare_priors
from unclip_jax.evaluation.report import html, results
from unclip_jax.evaluation.scoring import SampleSet, measure
from unclip_jax.generation import UnCLIP
from unclip_jax.generation.loading import hash_model
from unclip_jax.generation.picture_folder import PictureFolder

# A key that only configs of another evaluation have -> what does that.
OTHERS = {"priors": compare_priors, "bits_per_dim": measure_bits_per_dim}


def evaluate(
    config,
    workdir,
    *,
    images="",
    make_reference="",
    model=None,
    fingerprint=None,
    log=None,
):
    """Runs the evaluation that a config describes; returns what results.json holds.

    Args:
      config: see config.py for every key; priors.py and bits_per_dim.py for the keys
        of their configs.
      workdir: folder for all outputs; made if needed.
      images: folder or npz of images made elsewhere, scored instead of generating any;
        where config.data names a source, `pairing` says whose captions they have.
      make_reference: file to write the statistics of the reference to; that is all
        that is then done.
      model: an UnCLIP-like object to use instead of loading config.model.
      fingerprint: what tells that model from others; images are kept under it.
      log: called with each line of text for the user; by default process 0 prints it.

    Raises:
      UsageError, FileNotFoundError: a config that cannot work, before any image is
        generated where that can be known.
    """
    log = log or _print_once
    flags = {"images": images, "make_reference": make_reference}
    named = [name for name, value in flags.items() if value]
    for key, run in OTHERS.items():
        if key in config:
            if named:
                raise UsageError(f"--{named[0]} is not used with a config of {key}")
            return run(config, workdir, model=model, log=log)
    if len(named) > 1:
        raise UsageError("give --images or --make_reference, not both")
    config, workdir = read_config(config), pathlib.Path(workdir)
    if make_reference:
        return write_reference(config, workdir, make_reference, log)
    if images:
        return evaluate_images(config, workdir, images, model, fingerprint, log)
    return evaluate_model(config, workdir, model, fingerprint, log)


def evaluate_model(
    config: EvaluateConfig, workdir: pathlib.Path, model, fingerprint, log
) -> dict[str, Any]:
    """Scores the images that a model generates; with config.sweep, of its best point.

    Args: see `evaluate`.
    """
    swept = sweep.read_sweep(config)
    metrics = make_metrics(config, swept.count if swept else config.count)
    scorer = Scorer.open(config, workdir, metrics, model, fingerprint, log, True)

    def score(point, selected=None):
        started = time.time()
        images = scorer.generate(point)
        options = {k: v for k, v in point.options.items() if v is not None}
        settings = scorer.model.settings(**options)
        for part, values in settings.items():
            log(f"{part}: {', '.join(f'{k} {v}' for k, v in values.items())}")
        about = {"path": point.model, "fingerprint": scorer.fingerprint}
        about = {"model": {**about, "drawn_with": settings}}
        return scorer.score(point, images, started, about, selected)

    if not swept:
        return scorer.write(score(config))
    selected, curves = sweep.run(swept, config, lambda c: score(c)[0], workdir, log)
    generation = {**config.generation, **selected["options"]}
    best = dataclasses.replace(config, generation=generation)
    return scorer.write(score(best, selected), curves)


def evaluate_images(
    config: EvaluateConfig, workdir: pathlib.Path, path: str, model, fingerprint, log
) -> dict[str, Any]:
    """Scores images made elsewhere, in a folder or npz.

    Args: see `evaluate`.
    """
    if config.sweep:
        raise UsageError("config.sweep generates images: leave it out with --images")
    started = time.time()
    crop = config.crop if config.crop.generated else CropConfig()
    images = open_images(path, crop.name, crop.size)
    config = dataclasses.replace(config, count=len(images))
    metrics = make_metrics(config, config.count)
    scorer = Scorer.open(config, workdir, metrics, model, fingerprint, log, False)
    about = {"path": path}
    if scorer.examples:
        about["pairing"] = pairing.pair_by_prompt(
            images, scorer.examples.captions
        ) or pairing.pair(images, inputs.read_keys(scorer.examples))
        log(f"images and captions are paired {about['pairing']}")
    return scorer.write(scorer.score(config, images, started, {"images": about}))


def write_reference(
    config: EvaluateConfig, workdir: pathlib.Path, path: str, log
) -> dict[str, Any]:
    """Writes the statistics of config.reference for the one extractor and layer.

    Args: see `evaluate`; `path` is the file.
    """
    metrics = make_metrics(config, 0)
    extractors = features.read_options(config.extractors)
    features.layers_asked(metrics, extractors)  # names what is wrong with any metric
    metrics = {label: m for label, m in metrics.items() if m.statistics}
    asked = features.layers_asked(metrics, extractors)
    asked.pop(features.OWN, None)
    reference = inputs.read_reference(config)
    if len(asked) != 1 or len(*asked.values()) != 1:
        raise UsageError(
            "--make_reference writes the statistics of one extractor and layer, but "
            f"config.metrics asks for {asked or 'none'}"
        )
    if not isinstance(reference, Images):
        raise UsageError(
            "--make_reference needs images: set config.reference.count or .images"
        )
    ((name, extractor),) = features.load(extractors, asked).items()
    ((layer,),) = asked.values()
    store = FeatureStore(workdir / "features")
    statistics = store.statistics(reference, extractor, layer or extractor.default)
    if not jax.process_index():
        gaussian.write(path, statistics)
    log(f"written: {path}, {len(reference)} images, {name}: {extractor.label}")
    return dict(statistics.about)


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores sets of images: all that the points of a sweep share."""

    config: EvaluateConfig
    workdir: pathlib.Path
    metrics: Mapping[str, Metric]
    extractors: Mapping[str, Any]
    examples: inputs.Examples | None
    reference: Images | GaussianStatistics | None
    model: Any
    fingerprint: str | None
    store: FeatureStore
    log: Callable[[str], None]

    @classmethod
    def open(cls, config, workdir, metrics, model, fingerprint, log, generates):
        """Checks the config and loads what it names; nothing is generated yet."""
        extractors = features.read_options(config.extractors)
        asked = features.layers_asked(metrics, extractors)
        if config.count < 2:
            raise UsageError(f"config.count = {config.count}: expected at least 2")
        examples = None
        if config.data.get("source"):
            examples = inputs.read_examples(config)
        elif generates:
            raise UsageError(
                "config.data.source is empty: there are no captions to draw from; set "
                "it, or give images made elsewhere by --images"
            )
        for label, metric in metrics.items():
            if examples is None and metric.paired:
                raise UsageError(
                    f"metric {label!r} looks at captions: set config.data.source, or "
                    "leave it out"
                )
        reference = inputs.read_reference(config)
        if generates or features.OWN in asked:
            if model is None:
                model = UnCLIP.load(config.model, batch_size=config.batch_size)
                fingerprint = hash_model(config.model)
            elif fingerprint is None:
                raise UsageError("a model given to evaluate() needs its fingerprint")
        if generates and examples:
            _check_size(model, examples.images)
        loaded = features.load(extractors, asked)
        if features.OWN in asked:
            loaded[features.OWN] = ClipExtractor(model, fingerprint)
        workdir.mkdir(parents=True, exist_ok=True)
        data = (examples, reference, model, fingerprint)
        store = FeatureStore(workdir / "features")
        return cls(config, workdir, metrics, loaded, *data, store, log)

    def generate(self, config: EvaluateConfig) -> Images:
        """The images of one setting in their folder; those that it lacks are drawn."""
        captions = self.examples.captions if self.examples else []
        # Keyed by all captions, generated for the first `count`: a sweep's images are
        # the first of the full evaluation's.
        setting = {
            "model": self.fingerprint,
            "seed": config.seed,
            "generation": config_lib.to_plain(config.options),
        }
        key = files.sha256_json({**setting, "captions": captions})[:12]
        folder = PictureFolder(self.workdir / "generated" / key, captions, setting)
        return generate(self.model, folder, config, self.log)

    def score(self, config, images, started, about, selected=None):
        """(what results.json holds, {quantity: N values}, the images)."""
        examples = self.examples and self.examples.first(len(images))
        shared = (examples, self.extractors, self.reference, self.store)
        generated, true = SampleSet(images, *shared), None
        if examples:
            true = SampleSet(examples.images, *shared)
        scores, per_image, notes = measure(self.metrics, generated, true, self.log)
        written = results.describe(
            config,
            scores,
            notes,
            self.metrics,
            self.extractors,
            images,
            examples,
            self.reference,
            {"seconds": round(time.time() - started, 1), **about},
            selected,
        )
        return written, per_image, images

    def write(self, scored, curves=()) -> dict[str, Any]:
        """Writes what `score` returned, with the curves of a sweep."""
        written, per_image, images = scored
        shown = (images, self.examples, self.config.report, curves)
        results.write(self.workdir, written, per_image, *shown)
        self.log(html.table(written))
        self.log(f"written: {self.workdir}/results.json, samples.png, report.html")
        return written


def _check_size(model, images):
    height, width = images[:1].shape[1:3]
    if (height, width) != (model.image_size,) * 2:
        raise UsageError(
            f"the model draws {model.image_size}x{model.image_size} images but the "
            f"source's are {height}x{width}: set "
            f"config.data.image_size={model.image_size}, or config.crop"
        )


def _print_once(line):
    """Every process has the same numbers: process 0 speaks for all."""
    if jax.process_index() == 0:
        print(line, flush=True)
