"""Evaluate an exported model from a config: generate, measure, write the results.

In the work folder appear

  generated/<key>/   the generated pictures in chunks, under a key of everything that
                     shapes them; a killed evaluation goes on where it stopped, and
                     another metric, asked for later, needs no new pictures.
  results.json       every number, its meaning and chance level, and the provenance.
  pictures.jsonl     one line per picture: caption, wanted, per-picture results.
  samples.png        the first pictures beside the true ones, with their captions.
  report.html        all of it on one page that needs nothing else.
"""

import dataclasses
import datetime
import functools
import json
import os
import pathlib
import time

import numpy as np

from unclip_jax import config as config_lib
from unclip_jax.data.sources import make_source
from unclip_jax.evaluation import provenance, registry, report
from unclip_jax.evaluation.drawing import GENERATION_KEYS, generate
from unclip_jax.evaluation.image_store import ImageStore
from unclip_jax.evaluation.pictures import ClipExtractor, Pictures
from unclip_jax.evaluation.scoring import measure
from unclip_jax.generation import UnCLIP

KEYS = (
    "model",
    "data",
    "count",
    "select",
    "seed",
    "generation",
    "reference",
    "metrics",
    "report",
)
SELECT = ("first", "random")


def evaluate(config, workdir, *, model=None, fingerprint=None, log=None):
    """Run the evaluation a config describes; returns what results.json holds.

    Args:
      config: see configs/icons/eval.py for every key.
      workdir: folder for all outputs; made if needed.
      model: an UnCLIP-like object to use instead of loading config.model.
      fingerprint: what tells that model from others; pictures are kept under it.
      log: called with each line of text for the user; prints it by default.

    Raises:
      ValueError, FileNotFoundError: a config that cannot work, before any picture is
        made where that can be known.
    """
    started = time.time()
    log = log or functools.partial(print, flush=True)
    metrics = check_config(config)
    workdir = pathlib.Path(workdir)
    source, indices = select_examples(config.data, config.count, config)
    examples, true = read_examples(source, indices)
    reference, reference_source = read_reference(config, true.shape)
    if model is None:
        fingerprint = provenance.of_folder(config.model)
    elif fingerprint is None:
        raise ValueError("a model given to evaluate() needs its fingerprint")
    captions = [example["caption"] for example in examples]
    options = config_lib.to_plain(config.generation)
    options.pop("batch_size")  # picture i does not depend on its batch
    setting = {
        "model": fingerprint,
        "seed": int(config.seed),
        "captions": captions,
        "generation": options,
    }
    if model is None:
        batch_size = config.generation.batch_size
        model = UnCLIP.load(config.model, batch_size=batch_size)
    if true.shape[1:3] != (model.image_size,) * 2:
        raise ValueError(
            f"the model draws {model.image_size}x{model.image_size} pictures but the "
            f"source's are {true.shape[1]}x{true.shape[2]}: set "
            f"config.data.image_size={model.image_size}"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    folder = workdir / "generated" / provenance.of_json(setting)[:12]
    store = ImageStore(folder, config.count)
    generate(model, captions, store, config, log)
    generated = store.read()
    extractors = {"clip": ClipExtractor(model)}
    pictures = Pictures(generated, examples, extractors, reference, source)
    truth = Pictures(true, examples, extractors, reference, source)
    scores, per_picture, notes = measure(metrics, pictures, truth, log)
    results = {
        "format": "unclip_jax evaluation",
        "version": 1,
        "scores": {name: dataclasses.asdict(score) for name, score in scores.items()},
        "warnings": notes,
        "provenance": {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - started, 1),
            "n": int(config.count),
            "seed": int(config.seed),
            "model": {"path": str(config.model), "fingerprint": fingerprint},
            "captions": {
                "source_fingerprint": source.fingerprint,
                "indices_sha256": provenance.of_array(indices),
                "captions_sha256": provenance.of_json(captions),
            },
            "reference": {
                "n": 0 if reference is None else len(reference),
                "source_fingerprint": reference_source,
            },
            "images_sha256": provenance.of_array(generated),
            "conventions": {label: options for label, _, options in metrics},
            "covariance": "float64, ddof 1",
            "versions": provenance.versions(),
            "config": config_lib.to_plain(config),
        },
    }
    write_results(workdir, results, per_picture, examples, generated, true, config)
    log(report.table(results))
    log(f"written: {workdir}/results.json, samples.png, report.html")
    return results


def check_config(config):
    """Check every key and option; returns [(label, Metric, options)].

    Raises:
      ValueError: anything unknown or impossible, with the nearest valid name.
    """
    config_lib.check_keys(config, KEYS, "config")
    if missing := [key for key in KEYS if key not in config]:
        raise ValueError(f"config lacks {', '.join(missing)}")
    allowed = (*GENERATION_KEYS, "batch_size")
    config_lib.check_keys(config.generation, allowed, "config.generation")
    config_lib.check_keys(config.reference, ("data", "count"), "config.reference")
    config_lib.check_keys(config.report, ("pictures", "columns"), "config.report")
    if config.select not in SELECT:
        raise ValueError(f"config.select = {config.select!r}: expected one of {SELECT}")
    if config.generation.batch_size < 1:
        raise ValueError(
            f"config.generation.batch_size = {config.generation.batch_size}: "
            "expected at least 1"
        )
    metrics = []
    for label, given in config.metrics.items():
        metric, options = registry.find(label, config_lib.to_plain(given or {}))
        least = max(2, metric.minimum(options))
        if config.count < least:
            raise ValueError(
                f"config.count = {config.count}, but metric {label!r} with {options} "
                f"needs at least {least} pictures"
            )
        metrics.append((label, metric, options))
    if not metrics:
        raise ValueError(
            f"config.metrics is empty; known metrics: {', '.join(registry.REGISTRY)}"
        )
    return metrics


def select_examples(data, count, config):
    """(source, int64 (count,) example numbers drawn from it, the same every time)."""
    source = make_source(data)
    if count > len(source):
        raise ValueError(
            f"{count} examples were asked for, but the source has only {len(source)}; "
            "lower config.count (or config.reference.count)"
        )
    if config.select == "first":
        return source, np.arange(count)
    random = np.random.default_rng(config.seed)
    return source, np.sort(random.choice(len(source), count, replace=False))


def read_examples(source, indices):
    """(list of dicts without the image, uint8 (N, H, W, 3)) of a source's examples."""
    examples, images = [], []
    for i in indices:
        example = dict(source[int(i)])
        images.append(np.asarray(example.pop("image")))
        examples.append(example)
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise ValueError(
            f"the source's pictures differ in shape ({sorted(shapes)[:3]}); set "
            "config.data.image_size"
        )
    return examples, np.stack(images)


def read_reference(config, shape):
    """(uint8 (M, H, W, 3) or None, fingerprint) of the reference pictures."""
    if config.reference.count == 0:
        return None, None
    data = {
        **config_lib.to_plain(config.data),
        **config_lib.to_plain(config.reference.data),
    }
    source, indices = select_examples(
        type(config.data)(data), config.reference.count, config
    )
    _, images = read_examples(source, indices)
    if images.shape[1:] != shape[1:]:
        raise ValueError(
            f"reference pictures are {images.shape[1:3]}, the captions' {shape[1:3]}"
        )
    return images, source.fingerprint


def write_results(workdir, results, per_picture, examples, generated, true, config):
    """Write results.json, pictures.jsonl, samples.png and report.html, each whole."""
    rows = []
    for i, example in enumerate(examples):
        plain = {k: v for k, v in example.items() if isinstance(v, str | int | float)}
        got = {name: values[i] for name, values in per_picture.items()}
        rows.append({"index": i, **plain, "results": got})
    count = min(config.report.pictures, len(rows))
    shown = (rows[:count], generated[:count], true[:count])
    _write(workdir / "pictures.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    _write(workdir / "samples.png", report.samples_png(*shown, config.report.columns))
    _write(workdir / "report.html", report.html(results, *shown))
    text = json.dumps(results, indent=1, allow_nan=False)
    _write(workdir / "results.json", text + "\n")


def _write(path, content):
    """Write str or bytes so that the file is whole or absent."""
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)
