"""Evaluate from a config: generate (or take pictures), measure, write the results.

In the work folder appear

  generated/<key>/   the generated pictures in chunks, under a key of everything that
                     shapes them; a killed evaluation goes on where it stopped, and
                     another metric, asked for later, needs no new pictures.
  features/          features and statistics of pictures, likewise.
  results.json       every number, its meaning and chance level, and the provenance;
  results.csv        the numbers alone.
  pictures.jsonl     one line per picture: caption, wanted, per-picture results.
  samples.png        the first pictures beside the true ones, with their captions.
  report.html        all of it on one page that needs nothing else.
  sweep.*            the curve over options of generation, when config.sweep asks.
"""

import copy
import dataclasses
import datetime
import functools
import pathlib
import time
from typing import Any

from unclip_jax import config as config_lib
from unclip_jax import files
from unclip_jax.evaluation import inputs, sweep
from unclip_jax.evaluation.drawing import GENERATION_KEYS, generate
from unclip_jax.evaluation.features import extractors
from unclip_jax.evaluation.features.gaussian import GaussianStatistics
from unclip_jax.evaluation.features.store import FeatureStore
from unclip_jax.evaluation.image_sets import CROPS, open_images
from unclip_jax.evaluation.image_store import ImageStore
from unclip_jax.evaluation.metrics import registry
from unclip_jax.evaluation.pictures import Pictures
from unclip_jax.evaluation.priors import compare_priors
from unclip_jax.evaluation.report import artifacts, html
from unclip_jax.evaluation.scoring import measure
from unclip_jax.generation import UnCLIP

KEYS = ("reference", "metrics")
# Keys that may be left out, and what they then are.
OPTIONAL = {
    "model": "",  # folder of an export
    "data": {"source": ""},  # none: no captions
    "count": 0,  # with --images it is that of the pictures
    "select": "first",
    "seed": 0,
    "generation": {"batch_size": 32},
    "report": {"pictures": 48, "columns": 6},
    "extractors": {},  # name -> options, see extractors.py
    "crop": {"name": "", "size": 0},  # of real pictures, see image_sets.CROPS
    "caption_filter": "",  # "package.module:function" of a caption: keep it?
    "sweep": {},  # see sweep.py
}


@dataclasses.dataclass
class Loaded:
    """What all points of a sweep share."""

    metrics: list
    extractors: dict[str, Any]
    examples: inputs.Examples | None
    reference: Any
    model: Any
    fingerprint: str | None
    store: FeatureStore


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
    """Run the evaluation a config describes; returns what results.json holds.

    Args:
      config: see configs/icons/eval.py for every key, and priors.py for those of a
        config of priors.
      workdir: folder for all outputs; made if needed.
      images: folder or npz of pictures made elsewhere, scored instead of drawing any;
        picture i belongs to caption i, where config.data names a source.
      make_reference: file to write the statistics of the reference to; that is all
        that is then done.
      model: an UnCLIP-like object to use instead of loading config.model.
      fingerprint: what tells that model from others; pictures are kept under it.
      log: called with each line of text for the user; prints it by default.

    Raises:
      ValueError, FileNotFoundError: a config that cannot work, before any picture is
        made where that can be known.
    """
    if "priors" in config:  # draws no pictures
        return compare_priors(config, workdir, model=model, log=log)
    log = log or functools.partial(print, flush=True)
    config = complete(config)
    given = open_images(images) if images else None
    if given is not None:
        config.count = len(given)
    metrics = check_config(config)
    checked = extractors.check(config.extractors)
    asked = extractors.layers_asked(metrics, checked)
    workdir = pathlib.Path(workdir)
    if make_reference:
        asked = extractors.layers_asked(
            [m for m in metrics if m[1].statistics], checked
        )
        return _make_reference(config, workdir, make_reference, checked, asked, log)
    if config.count < 2:
        raise ValueError(f"config.count = {config.count}: expected at least 2 captions")
    examples = None
    if config.data.get("source"):
        examples = inputs.read_examples(config, config.count)
    if examples is None and given is None:
        raise ValueError(
            "config.data.source is empty: there are no captions to draw from; set it, "
            "or give pictures made elsewhere by --images"
        )
    for label, metric, _ in metrics:
        if examples is None and metric.paired:
            raise ValueError(
                f"metric {label!r} looks at captions: set config.data.source, or leave "
                "it out"
            )
    reference = inputs.read_reference(config)
    needs_model = given is None or extractors.OWN in asked
    if model is None and needs_model:
        fingerprint = files.of_folder(config.model)
        batch_size = config.generation.batch_size
        model = UnCLIP.load(config.model, batch_size=batch_size)
    elif needs_model and fingerprint is None:
        raise ValueError("a model given to evaluate() needs its fingerprint")
    if given is None:
        _check_size(model, examples.images)
    found = extractors.make(checked, asked)
    if extractors.OWN in asked:
        found[extractors.OWN] = extractors.ClipExtractor(model, fingerprint)
    workdir.mkdir(parents=True, exist_ok=True)
    store = FeatureStore(workdir / "features")
    loaded = Loaded(metrics, found, examples, reference, model, fingerprint, store)
    selected, curves = None, ()
    if config.sweep:
        run = functools.partial(_score, loaded=loaded, workdir=workdir, log=log)
        selected, curves = sweep.run(config, run, workdir, log)
        config.generation.update(selected["options"])
    return _score(config, loaded, workdir, log, given, selected, curves)


def _score(config, loaded, workdir, log, given=None, selected=None, curves=None):
    """Generate and measure one setting; returns the results.

    They are written unless `curves`, [(svg, text)] for the report, is None.
    """
    started = time.time()
    if given is None:
        generated, about = _generated(config, loaded, workdir, log)
    else:
        generated, about = given, {"images": {"path": given.path}}
    shared = (loaded.extractors, loaded.reference)
    examples, count = loaded.examples, len(generated)
    source = examples and examples.source
    fields = examples.fields[:count] if examples else None
    true = examples.images.first(count) if examples else None
    pictures = Pictures(generated, fields, *shared, source, loaded.store)
    truth = Pictures(true, fields, *shared, source, loaded.store) if examples else None
    scores, per_picture, notes = measure(loaded.metrics, pictures, truth, log)
    scores = {name: dataclasses.asdict(score) for name, score in scores.items()}
    _name_conventions(scores, loaded)
    labels = {name: e.label for name, e in loaded.extractors.items()}
    notes += [f"{name}: {s}" for name, s in labels.items() if "NOT COMPARABLE" in s]
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
            "reference": _about_reference(loaded.reference),
            "images_sha256": generated.fingerprint,
            "conventions": {label: options for label, _, options in loaded.metrics},
            "extractors": {n: e.about for n, e in loaded.extractors.items()},
            "extractor_labels": labels,
            "covariance": "float64, ddof 1",
            "selected": selected,
            "versions": files.versions(),
            "config": config_lib.to_plain(config),
        },
    }
    if curves is not None:
        found = (results, per_picture, curves)
        artifacts.write_results(workdir, *found, fields, generated, true, config.report)
        log(html.table(results))
        log(f"written: {workdir}/results.json, samples.png, report.html")
    return results


def _generated(config, loaded, workdir, log):
    """(the drawn pictures, what made them)."""
    captions = [example["caption"] for example in loaded.examples.fields]
    options = config_lib.to_plain(config.generation)
    options.pop("batch_size")  # picture i does not depend on its batch
    # Keyed by all captions, drawn for the first `count`: a sweep's pictures are the
    # first of the full evaluation's.
    setting = {
        "model": loaded.fingerprint,
        "seed": int(config.seed),
        "captions": captions,
        "generation": options,
    }
    folder = workdir / "generated" / files.of_json(setting)[:12]
    store = ImageStore(folder, config.count)
    generate(loaded.model, captions[: config.count], store, config, log)
    about = {"model": {"path": str(config.model), "fingerprint": loaded.fingerprint}}
    return store.images(), about


def _make_reference(config, workdir, path, checked, asked, log):
    """Write the statistics of config.reference for the one extractor and layer."""
    reference = inputs.read_reference(config)
    asked = {name: layers for name, layers in asked.items() if name != extractors.OWN}
    if len(asked) != 1 or len(*asked.values()) != 1:
        raise ValueError(
            "--make_reference writes the statistics of one extractor and layer, but "
            f"config.metrics asks for {asked or 'none'}"
        )
    if reference is None or isinstance(reference, GaussianStatistics):
        raise ValueError(
            "--make_reference needs pictures: set config.reference.count or .images"
        )
    ((name, extractor),) = extractors.make(checked, asked).items()
    ((layer,),) = asked.values()
    store = FeatureStore(workdir / "features")
    statistics = store.statistics(reference, extractor, layer or extractor.default)
    artifacts.write_statistics(path, statistics)
    log(f"written: {path}, {len(reference)} pictures, {name}: {extractor.label}")
    return dict(statistics.about)


def complete(config):
    """A copy of the config with what may be left out filled in."""
    plain = config_lib.to_plain(config)
    return type(config)({**copy.deepcopy(OPTIONAL), **plain})


def check_config(config):
    """Check every key and option; returns [(label, Metric, options)].

    Raises:
      ValueError: anything unknown or impossible, with the nearest valid name.
    """
    config = complete(config)
    config_lib.check_keys(config, (*KEYS, *OPTIONAL), "config")
    if missing := [key for key in KEYS if key not in config]:
        raise ValueError(f"config lacks {', '.join(missing)}")
    allowed = (*GENERATION_KEYS, "batch_size")
    config_lib.check_keys(config.generation, allowed, "config.generation")
    config_lib.check_keys(config.reference, inputs.REFERENCE_KEYS, "config.reference")
    config_lib.check_keys(config.report, ("pictures", "columns"), "config.report")
    config_lib.check_keys(config.crop, ("name", "size"), "config.crop")
    config_lib.check_keys({config.crop.name: 0}, CROPS, "config.crop.name")
    if config.select not in inputs.SELECT:
        raise ValueError(
            f"config.select = {config.select!r}: expected one of {inputs.SELECT}"
        )
    if config.generation.batch_size < 1:
        raise ValueError(
            f"config.generation.batch_size = {config.generation.batch_size}: "
            "expected at least 1"
        )
    inputs.caption_filter(config.caption_filter)
    counts = {config.count, sweep.check(config)}
    metrics = []
    for label, given in config.metrics.items():
        metric, options = registry.find(label, config_lib.to_plain(given or {}))
        least = max(2, metric.minimum(options))
        if counts != {0} and min(counts) < least:  # 0: of pictures made elsewhere
            raise ValueError(
                f"config.count = {min(counts)}, but metric {label!r} with {options} "
                f"needs at least {least} pictures"
            )
        metrics.append((label, metric, options))
    if not metrics:
        raise ValueError(
            f"config.metrics is empty; known metrics: {', '.join(registry.REGISTRY)}"
        )
    return metrics


def _check_size(model, true):
    height, width = true[:1].shape[1:3]
    if (height, width) != (model.image_size,) * 2:
        raise ValueError(
            f"the model draws {model.image_size}x{model.image_size} pictures but the "
            f"source's are {height}x{width}: set "
            f"config.data.image_size={model.image_size}, or config.crop"
        )


def _name_conventions(scores, loaded):
    """Say in each score's text whose features it is of: the number depends on them."""
    for label, _, options in loaded.metrics:
        extractor = options.get("features", extractors.OWN).partition("/")[0]
        if extractor != extractors.OWN:
            for name in scores:
                if name.partition("/")[0] == label:
                    scores[name]["text"] += f" [{loaded.extractors[extractor].label}]"


def _about_captions(examples, count):
    if examples is None:
        return None
    captions = [example["caption"] for example in examples.fields[:count]]
    return {
        "source_fingerprint": examples.source.fingerprint,
        "indices_sha256": files.of_array(examples.indices[:count]),
        "captions_sha256": files.of_json(captions),
    }


def _about_reference(reference):
    if reference is None:
        return {"n": 0}
    if isinstance(reference, GaussianStatistics):
        return {"fingerprint": reference.fingerprint, **reference.about}
    about = {"n": len(reference), "fingerprint": reference.fingerprint}
    return {**about, **reference.about}
