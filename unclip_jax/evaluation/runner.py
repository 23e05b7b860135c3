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
import json
import os
import pathlib
import sys
import time
import warnings

import numpy as np

from unclip_jax import config as config_lib
from unclip_jax.evaluation import provenance, registry, report
from unclip_jax.evaluation.image_store import ImageStore
from unclip_jax.evaluation.pictures import ClipExtractor, Pictures

KEYS = (
    "model",
    "data",
    "count",
    "seed",
    "generation",
    "reference",
    "metrics",
    "report",
)
GENERATION_KEYS = (
    "prior_guidance",
    "decoder_guidance",
    "num_candidates",
    "prior_steps",
    "decoder_steps",
)
CHANCE_SHIFTS = 16  # mismatched arrangements that a chance level averages over


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of the results, with what it takes to read it.

    Attributes:
      value: of the generated pictures.
      stderr: its standard error, when it is a mean over pictures; else None.
      true_pictures: the same for the true pictures of the same captions.
      chance: the same for the generated pictures with mismatched captions, or None
        when the metric does not look at captions.
      better: "higher", "lower" or "".
      percent: whether 1.0 reads as 100%.
      text: what it says, in one line.
    """

    value: float
    stderr: float | None
    true_pictures: float
    chance: float | None
    better: str
    percent: bool
    text: str


def evaluate(config, workdir, model=None, log=print):
    """Run the evaluation a config describes; returns what results.json holds.

    Args:
      config: see configs/icons/eval.py for every key.
      workdir: folder for all outputs; made if needed.
      model: an UnCLIP-like object to use instead of loading config.model.
      log: called with each line of text for the user.

    Raises:
      ValueError, FileNotFoundError: a config that cannot work, before any picture is
        made where that can be known.
    """
    started = time.time()
    metrics = check_config(config)
    workdir = pathlib.Path(workdir)
    source, indices = select_examples(config.data, config.count, config.seed)
    examples, true = read_examples(source, indices)
    reference, reference_source = read_reference(config, true.shape)
    model_print = provenance.of_folder(config.model) if model is None else "injected"
    captions = [example["caption"] for example in examples]
    setting = {
        "model": model_print,
        "seed": int(config.seed),
        "captions": captions,
        "generation": config_lib.to_plain(config.generation),
    }
    if model is None:
        model = load_model(config.model)
    workdir.mkdir(parents=True, exist_ok=True)
    folder = workdir / "generated" / provenance.of_json(setting)[:12]
    store = ImageStore(folder, config.count)
    generate(model, captions, store, config, log)
    generated = store.read()
    if generated.shape != true.shape:
        raise ValueError(
            f"the model draws {generated.shape[1]}x{generated.shape[2]} pictures but "
            f"the source's are {true.shape[1]}x{true.shape[2]}: set "
            f"config.data.image_size={generated.shape[1]}"
        )

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
            "model": {"path": str(config.model), "fingerprint": model_print},
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


def load_model(folder):
    """UnCLIP from an export folder."""
    from unclip_jax.generation import UnCLIP  # heavy: only when a model is loaded

    return UnCLIP.load(folder)


def select_examples(data, count, seed):
    """(source, int64 (count,) example numbers drawn from it, the same every time)."""
    from unclip_jax.data.sources import make_source

    source = make_source(data)
    if count > len(source):
        raise ValueError(
            f"{count} examples were asked for, but the source has only {len(source)}; "
            "lower config.count (or config.reference.count)"
        )
    random = np.random.default_rng(seed)
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
    # A seed of its own: with the captions' source, other examples are drawn.
    source, indices = select_examples(
        type(config.data)(data), config.reference.count, config.seed + 1
    )
    _, images = read_examples(source, indices)
    if images.shape[1:] != shape[1:]:
        raise ValueError(
            f"reference pictures are {images.shape[1:3]}, the captions' {shape[1:3]}"
        )
    return images, source.fingerprint


def generate(model, captions, store, config, log=print):
    """Draw the pictures the store lacks, in batches, with a line of progress."""
    options = {
        key: value
        for key, value in config.generation.items()
        if key in GENERATION_KEYS and value is not None
    }
    batch_size = config.generation.batch_size
    starts = sorted({i // batch_size * batch_size for i in store.missing()})
    if not starts:
        log(f"all {len(captions)} pictures are there already")
        return
    kept = len(captions) - len(store.missing())
    log(
        f"generating {len(captions)} pictures in {store.folder}"
        + (f" ({kept} are there already)" if kept else "")
    )
    clock = time.time()
    for done, start in enumerate(starts):
        stop = min(start + batch_size, len(captions))
        images = model.text2image(
            captions[start:stop], seed=config.seed, first_index=start, **options
        )
        store.put(start, np.asarray(images))
        _progress(done + 1, len(starts), batch_size, time.time() - clock)


def _progress(done, total, batch_size, seconds):
    """One line, rewritten in a terminal, appended to a log otherwise."""
    rate = done * batch_size / max(seconds, 1e-9)
    left = datetime.timedelta(seconds=round(seconds / done * (total - done)))
    line = f"batch {done}/{total}  {rate:.2f} images/s  ETA {left}"
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{line:<60}", end=end, file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


def measure(metrics, pictures, truth, log=print):
    """Score generated and true pictures, and chance.

    Args:
      metrics: [(label, Metric, options)].
      pictures, truth: Pictures of the same examples.

    Returns:
      ({name: Score}, {name: list of N values}, [warnings]).
    """
    scores, per_picture, notes = {}, {}, []
    # CLIP features of captions and reference are the same for both: compute once.
    for label, metric, options in metrics:
        clock = time.time()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            got = metric.compute(pictures, **options)
            truth.share_texts_with(pictures)
            best = metric.compute(truth, **options)
        texts = [str(w.message) for w in caught if w.category is UserWarning]
        notes += [f"{label}: {text}" for text in dict.fromkeys(texts)]
        chance = _chance(metric, pictures, options) if metric.paired else {}
        for quantity, value in got.items():
            name = f"{label}/{quantity}" if quantity else label
            value = np.asarray(value, dtype=np.float64)
            stderr = None
            if value.ndim:
                per_picture[name] = value.tolist()
                stderr = float(value.std() / np.sqrt(value.size))
            about = metric.quantities[quantity]
            scores[name] = Score(
                value=float(value.mean()),
                stderr=stderr,
                true_pictures=float(np.mean(best[quantity])),
                chance=chance.get(quantity),
                better=about.better,
                percent=about.percent,
                text=about.text,
            )
        log(f"{label}: {time.time() - clock:.1f} s")
    return scores, per_picture, notes


def _chance(metric, pictures, options):
    """{quantity: mean over mismatched captions}."""
    n = len(pictures)
    shifts = np.unique(np.linspace(1, n - 1, CHANCE_SHIFTS).astype(int))
    got = [metric.compute(pictures.mismatched(s), **options) for s in shifts]
    return {q: float(np.mean([np.mean(g[q]) for g in got])) for q in got[0]}


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
