"""What an evaluation leaves: results.json with its provenance, tables and pages.

Files are whole or absent, and written by process 0 alone.
"""

import csv
import dataclasses
import datetime
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from unclip_jax import config as config_lib
from unclip_jax import files
from unclip_jax.evaluation.config import EvaluateConfig, ReportConfig
from unclip_jax.evaluation.features.gaussian import GaussianStatistics
from unclip_jax.evaluation.image_sets import Images
from unclip_jax.evaluation.inputs import Examples
from unclip_jax.evaluation.metrics import Metric
from unclip_jax.evaluation.report import extremes, html
from unclip_jax.evaluation.scoring import Score
from unclip_jax.files import atomic_write
from unclip_jax.versions import versions


def describe(
    config: EvaluateConfig,
    scores: Mapping[str, Score],
    notes: Sequence[str],
    metrics: Mapping[str, Metric],
    extractors: Mapping[str, Any],
    images: Images,
    examples: Examples | None,
    reference: Images | GaussianStatistics | None,
    about: Mapping[str, Any],
    selected: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What results.json holds: scores, warnings, and what they depend on.

    Args:
      config: of the evaluation.
      scores: {name: Score}.
      notes: warnings.
      metrics, extractors: by label and by name.
      images, examples, reference: what was scored.
      about: more of the provenance.
      selected: the point of a sweep that the config has, see sweep.py.
    """
    written = {name: dataclasses.asdict(score) for name, score in scores.items()}
    labels = {name: e.label for name, e in extractors.items()}
    for name, score in written.items():  # the number depends on whose features it is of
        options = metrics[name.partition("/")[0]].options
        extractor = options.get("features", "clip").partition("/")[0]
        if extractor != "clip":
            score["text"] += f" [{labels[extractor]}]"
    if isinstance(reference, Images):
        about_reference = {"n": len(reference), "fingerprint": reference.fingerprint}
        about_reference |= reference.about
        notes = [*notes, *reference.notes]
    elif reference is not None:
        about_reference = {"fingerprint": reference.fingerprint, **reference.about}
    else:
        about_reference = {"n": 0}
    incomparable = [f"{k}: {v}" for k, v in labels.items() if "NOT COMPARABLE" in v]
    return {
        "format": "unclip_jax evaluation",
        "version": 1,
        "scores": written,
        "warnings": [
            *([selected["note"]] if selected else []),
            *(*notes, *incomparable, *images.notes),
        ],
        "provenance": {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "n": len(images),
            "seed": config.seed,
            **about,
            "captions": examples and _describe_captions(examples.first(len(images))),
            "reference": about_reference,
            "images_sha256": images.fingerprint,
            "conventions": {label: m.options for label, m in metrics.items()},
            "extractors": {name: e.about for name, e in extractors.items()},
            "extractor_labels": labels,
            "covariance": "float64, ddof 1",
            "selected": selected,
            "versions": versions(),
            "config": config_lib.to_plain(config),
        },
    }


def _describe_captions(examples):
    return {
        "source_fingerprint": examples.source.fingerprint,
        "indices_sha256": files.sha256_array(examples.indices),
        "captions_sha256": files.sha256_json(examples.captions),
    }


def write(
    workdir: pathlib.Path,
    results: dict[str, Any],
    per_image: Mapping[str, Sequence[float]],
    images: Images,
    examples: Examples | None,
    options: ReportConfig,
    curves: Sequence[tuple[str, str]] = (),
) -> None:
    """Writes results.json, results.csv, pictures.jsonl, samples.png, report.html.

    And best_and_worst.html, where single images have scores.

    Args:
      workdir: where they go.
      results: from `describe`.
      per_image: {quantity: N values}.
      images, examples: what was scored; the first are shown.
      options: how many.
      curves: [(svg, what it says)] of a sweep.
    """
    if jax.process_index():
        return
    rows = []
    for i in range(len(images)):
        example = examples.fields[i] if examples else {"caption": ""}
        plain = {k: v for k, v in example.items() if isinstance(v, str | int | float)}
        scores = {name: values[i] for name, values in per_image.items()}
        rows.append({"index": i, **plain, "results": scores})
    count = min(options.pictures, len(rows))
    true = examples.images[:count] if examples else None
    shown = (rows[:count], images[:count], true)
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    atomic_write(workdir / "pictures.jsonl", lines)
    atomic_write(workdir / "samples.png", html.samples_png(*shown, options.columns))
    page = html.html(results, *shown, curves, per_image.keys())
    atomic_write(workdir / html.REPORT, page)
    if per_image:
        true = examples and examples.images
        page = extremes.page(results["scores"], per_image, rows, images, true)
        atomic_write(workdir / html.EXTREMES, page)
    columns = ("value", "stderr", "true_pictures", "chance", "better")
    scores = results["scores"].items()
    table = [{"metric": n, **{c: s[c] for c in columns}} for n, s in scores]
    atomic_write(workdir / "results.csv", csv_text(table))
    text = json.dumps(results, indent=1, allow_nan=False)
    atomic_write(workdir / "results.json", text + "\n")


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Dicts with the same keys as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
