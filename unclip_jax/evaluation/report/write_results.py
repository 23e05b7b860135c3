"""The files an evaluation leaves, each whole or absent; written by process 0 alone."""

import csv
import io
import json

import jax

from unclip_jax.evaluation.features import gaussian
from unclip_jax.evaluation.report import html
from unclip_jax.files import atomic_write


def write_results(
    workdir, results, per_image, curves, fields, generated, true, options
):
    """Write results.json, results.csv, pictures.jsonl, samples.png and report.html.

    Args:
      results: as in results.json.
      per_image: {quantity: N values}.
      curves: [(svg, what it says)] of a sweep.
      fields: N dicts of the examples, or None.
      generated, true: images (true: or None); the first of them are shown.
      options: config.report.
    """
    if jax.process_index():
        return
    rows = []
    for i in range(len(generated)):
        example = fields[i] if fields else {"caption": ""}
        plain = {k: v for k, v in example.items() if isinstance(v, str | int | float)}
        scores = {name: values[i] for name, values in per_image.items()}
        rows.append({"index": i, **plain, "results": scores})
    count = min(options.pictures, len(rows))
    shown = (rows[:count], generated[:count], None if true is None else true[:count])
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    atomic_write(workdir / "pictures.jsonl", lines)
    atomic_write(workdir / "samples.png", html.samples_png(*shown, options.columns))
    atomic_write(workdir / "report.html", html.html(results, *shown, curves))
    columns = ("value", "stderr", "true_pictures", "chance", "better")
    scores = results["scores"].items()
    table = [{"metric": n, **{c: s[c] for c in columns}} for n, s in scores]
    atomic_write(workdir / "results.csv", csv_text(table))
    text = json.dumps(results, indent=1, allow_nan=False)
    atomic_write(workdir / "results.json", text + "\n")


def write_statistics(path, statistics):
    """A statistics file, by process 0."""
    if not jax.process_index():
        gaussian.write(path, statistics)


def csv_text(rows):
    """Dicts with the same keys as CSV, str."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
