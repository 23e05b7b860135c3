"""Evaluates from a config: generates images (or takes some), measures, writes results.

In the work folder appear

  generated/<key>/   the generated images as PNG, under a key of everything that
                     shapes them; a killed evaluation goes on where it stopped, and
                     another metric, asked for later, needs no new images.
  features/          features and statistics of images, likewise.
  results.json       every number, its meaning and chance level, and the provenance;
  results.csv        the numbers alone.
  pictures.jsonl     one line per image: caption, attributes, per-image results.
  samples.png        the first images beside the true ones, with their captions.
  report.html        all of it on one page that needs nothing else.
  sweep.*            the curve over options of generation, when config.sweep asks.
"""

import dataclasses
import datetime
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from unclip_jax import config as config_lib
from unclip_jax import files
from unclip_jax.errors import UsageError
from unclip_jax.evaluation import inputs, pairing, sweep
from unclip_jax.evaluation.bits_per_dim import measure_bits_per_dim
from unclip_jax.evaluation.config import OPTIONAL, check_config, complete
from unclip_jax.evaluation.features import extractors
from unclip_jax.evaluation.features.gaussian import GaussianStatistics
from unclip_jax.evaluation.features.store import FeatureStore
from unclip_jax.evaluation.generate import generate
from unclip_jax.evaluation.image_sets import Images, open_images
from unclip_jax.evaluation.metrics import Metric
from unclip_jax.evaluation.priors import compare_priors
from unclip_jax.evaluation.report import html
from unclip_jax.evaluation.report.write_results import write_results, write_statistics
from unclip_jax.evaluation.sample_set import SampleSet
from unclip_jax.evaluation.scoring import measure
from unclip_jax.generation import UnCLIP
from unclip_jax.generation.picture_folder import PictureFolder
from unclip_jax.versions import versions

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
      config: see configs/icons/eval.py for every key; priors.py and bits_per_dim.py
        for the keys of their configs.
      workdir: folder for all outputs; made if needed.
      images: folder or npz of images made elsewhere, scored instead of generating any;
        where config.data names a source, `pairing.pair` says whose captions they have.
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
    config, workdir = complete(config), pathlib.Path(workdir)
    if make_reference:
        return write_reference(config, workdir, make_reference, log)
    if images:
        return evaluate_images(config, workdir, images, model, fingerprint, log)
    return evaluate_model(config, workdir, model, fingerprint, log)


def evaluate_model(config, workdir, model, fingerprint, log):
    """Scores the images that a model generates; with config.sweep, of its best point.

    Args: see `evaluate`; the config is complete.
    """
    job = _open(config, workdir, model, fingerprint, log, generates=True)

    def score(point, selected=None):
        started = time.time()
        images, about = _generate(job, point)
        return _score(job, point, images, about, started, selected)

    if not config.sweep:
        return _write(job, config, *score(config))
    selected, curves = sweep.run(config, lambda c: score(c)[0], workdir, log)
    config.generation.update(selected["options"])
    return _write(job, config, *score(config, selected), curves)


def evaluate_images(config, workdir, path, model, fingerprint, log):
    """Scores images made elsewhere.

    Args: see `evaluate`; `path` is a folder or npz, the config is complete.
    """
    if config.sweep:
        raise UsageError("config.sweep generates images: leave it out with --images")
    started = time.time()
    crop = config.crop if config.crop.get("generated") else OPTIONAL["crop"]
    images = open_images(path, crop["name"], crop["size"])
    config.count = len(images)
    job = _open(config, workdir, model, fingerprint, log, generates=False)
    about = {"images": {"path": images.path}}
    if job.examples:
        captions = [example["caption"] for example in job.examples.fields]
        how = pairing.pair_by_prompt(images, captions)
        how = how or pairing.pair(images, inputs.read_keys(job.examples))
        about["images"]["pairing"] = how
        log(f"images and captions are paired {how}")
    return _write(job, config, *_score(job, config, images, about, started))


def write_reference(config, workdir, path, log):
    """Writes the statistics of config.reference for the one extractor and layer.

    Args: see `evaluate`; `path` is the file, the config is complete.
    """
    metrics = check_config(config)
    kinds = extractors.check(config.extractors)
    extractors.layers_asked(metrics, kinds)  # names what is wrong with any metric
    metrics = {label: m for label, m in metrics.items() if m.statistics}
    asked = extractors.layers_asked(metrics, kinds)
    asked.pop(extractors.OWN, None)
    reference = inputs.read_reference(config)
    if len(asked) != 1 or len(*asked.values()) != 1:
        raise UsageError(
            "--make_reference writes the statistics of one extractor and layer, but "
            f"config.metrics asks for {asked or 'none'}"
        )
    if reference is None or isinstance(reference, GaussianStatistics):
        raise UsageError(
            "--make_reference needs images: set config.reference.count or .images"
        )
    ((name, extractor),) = extractors.make(kinds, asked).items()
    ((layer,),) = asked.values()
    store = FeatureStore(workdir / "features")
    statistics = store.statistics(reference, extractor, layer or extractor.default)
    write_statistics(path, statistics)
    log(f"written: {path}, {len(reference)} images, {name}: {extractor.label}")
    return dict(statistics.about)


@dataclasses.dataclass(frozen=True)
class _Job:
    """What all points of a sweep share."""

    workdir: pathlib.Path
    metrics: Mapping[str, Metric]
    extractors: Mapping[str, Any]
    examples: inputs.Examples | None
    reference: Images | GaussianStatistics | None
    model: Any
    fingerprint: str | None
    store: FeatureStore
    log: Callable[[str], None]


def _open(config, workdir, model, fingerprint, log, generates) -> _Job:
    """Checks the config and loads what it names; nothing is generated yet."""
    metrics = check_config(config)
    kinds = extractors.check(config.extractors)
    asked = extractors.layers_asked(metrics, kinds)
    if config.count < 2:
        raise UsageError(f"config.count = {config.count}: expected at least 2 captions")
    examples = None
    if config.data.get("source"):
        examples = inputs.read_examples(config, config.count)
    elif generates:
        raise UsageError(
            "config.data.source is empty: there are no captions to draw from; set it, "
            "or give images made elsewhere by --images"
        )
    for label, metric in metrics.items():
        if examples is None and metric.paired:
            raise UsageError(
                f"metric {label!r} looks at captions: set config.data.source, or leave "
                "it out"
            )
    reference = inputs.read_reference(config)
    if generates or extractors.OWN in asked:
        if model is None:
            batch_size = config.generation.batch_size
            model = UnCLIP.load(config.model, batch_size=batch_size)
            fingerprint = files.sha256_folder(config.model)
        elif fingerprint is None:
            raise UsageError("a model given to evaluate() needs its fingerprint")
    if generates:
        _check_size(model, examples.images)
    loaded = extractors.make(kinds, asked)
    if extractors.OWN in asked:
        loaded[extractors.OWN] = extractors.ClipExtractor(model, fingerprint)
    workdir.mkdir(parents=True, exist_ok=True)
    store = FeatureStore(workdir / "features")
    inputs_ = (examples, reference, model, fingerprint)
    return _Job(workdir, metrics, loaded, *inputs_, store, log)


def _check_size(model, images):
    height, width = images[:1].shape[1:3]
    if (height, width) != (model.image_size,) * 2:
        raise UsageError(
            f"the model draws {model.image_size}x{model.image_size} images but the "
            f"source's are {height}x{width}: set "
            f"config.data.image_size={model.image_size}, or config.crop"
        )


def _generate(job, config):
    """(the images of one setting, what made them), those that are missing drawn now."""
    captions = [example["caption"] for example in job.examples.fields]
    options = config_lib.to_plain(config.generation)
    options.pop("batch_size")  # image i does not depend on its batch
    # Keyed by all captions, generated for the first `count`: a sweep's images are the
    # first of the full evaluation's.
    setting = {
        "model": job.fingerprint,
        "seed": int(config.seed),
        "captions": captions,
        "generation": options,
    }
    path = job.workdir / "generated" / files.sha256_json(setting)[:12]
    del setting["captions"]  # the folder takes them apart
    folder = PictureFolder(path, captions, setting)
    images = generate(job.model, folder, config.count, config, job.log)
    model = {"path": str(config.model), "fingerprint": job.fingerprint}
    return images, {"model": model}


def _score(job, config, images, about, started, selected=None):
    """(results as in results.json, {quantity: N values}, the images)."""
    count, examples = len(images), job.examples
    shared = (job.extractors, job.reference, examples and examples.source, job.store)
    fields = examples and examples.fields[:count]
    generated, true = SampleSet(images, fields, *shared), None
    if examples:
        true = SampleSet(examples.images.first(count), fields, *shared)
    scores, per_image, notes = measure(job.metrics, generated, true, job.log)
    scores = {name: dataclasses.asdict(score) for name, score in scores.items()}
    _name_conventions(scores, job)
    labels = {name: e.label for name, e in job.extractors.items()}
    notes += [f"{name}: {s}" for name, s in labels.items() if "NOT COMPARABLE" in s]
    notes += [*images.notes, *getattr(job.reference, "notes", ())]
    if selected:
        notes.insert(0, selected["note"])
    results = {
        "format": "unclip_jax evaluation",
        "version": 1,
        "scores": scores,
        "warnings": notes,
        "provenance": {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - started, 1),
            "n": count,
            "seed": int(config.seed),
            **about,
            "captions": _about_captions(examples, count),
            "reference": _about_reference(job.reference),
            "images_sha256": images.fingerprint,
            "conventions": {label: m.options for label, m in job.metrics.items()},
            "extractors": {n: e.about for n, e in job.extractors.items()},
            "extractor_labels": labels,
            "covariance": "float64, ddof 1",
            "selected": selected,
            "versions": versions(),
            "config": config_lib.to_plain(config),
        },
    }
    return results, per_image, images


def _write(job, config, results, per_image, images, curves=()):
    """Writes the results of `_score`, with the curves of a sweep; returns them."""
    true, fields = None, None
    if job.examples:
        true, fields = job.examples.images.first(len(images)), job.examples.fields
    shown = (fields, images, true, config.report)
    write_results(job.workdir, results, per_image, curves, *shown)
    job.log(html.table(results))
    job.log(f"written: {job.workdir}/results.json, samples.png, report.html")
    return results


def _name_conventions(scores, job):
    """Says in each score's text whose features it is of: the number depends on them."""
    for label, metric in job.metrics.items():
        extractor = metric.options.get("features", extractors.OWN).partition("/")[0]
        if extractor != extractors.OWN:
            for name in scores:
                if name.partition("/")[0] == label:
                    scores[name]["text"] += f" [{job.extractors[extractor].label}]"


def _about_captions(examples, count):
    if examples is None:
        return None
    captions = [example["caption"] for example in examples.fields[:count]]
    return {
        "source_fingerprint": examples.source.fingerprint,
        "indices_sha256": files.sha256_array(examples.indices[:count]),
        "captions_sha256": files.sha256_json(captions),
    }


def _about_reference(reference):
    if reference is None:
        return {"n": 0}
    if isinstance(reference, GaussianStatistics):
        return {"fingerprint": reference.fingerprint, **reference.about}
    about = {"n": len(reference), "fingerprint": reference.fingerprint}
    return {**about, **reference.about}


def _print_once(line):
    """Every process has the same numbers: process 0 speaks for all."""
    if jax.process_index() == 0:
        print(line, flush=True)
