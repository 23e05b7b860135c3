"""The diversity-fidelity curve: one evaluation per value of some generation options.

All points draw from the same noise, image by image, so what differs is the option.
The point with the least FID (or whichever metric config.sweep.select names) was chosen
by looking at the metric itself; results of it say so.
"""

import copy
import itertools
import json

import jax

from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError
from unclip_jax.evaluation.generate import GENERATION_KEYS
from unclip_jax.evaluation.metrics import make_metric
from unclip_jax.evaluation.report import plots
from unclip_jax.evaluation.report.write_results import csv_text
from unclip_jax.files import atomic_write

OWN_KEYS = ("count", "select")
FIDELITY = (
    "Guidance trades diversity for fidelity. Right: pictures agree more with their "
    "captions. Down: as a set they are more like the real ones. The best settings are "
    "at the lower right; where the curve turns up, pictures lose variety."
)
# Curves, drawn when the config has metrics of these names: (x, y, what it says).
CURVES = (
    ("clip_score", "fid", FIDELITY),
    ("clip_score", "frechet", FIDELITY),
    (
        "precision_recall/recall",
        "precision_recall/precision",
        "Up: more of the generated pictures look real. Right: more of the real ones "
        "have a generated one like them. Guidance buys the first with the second; the "
        "best settings are at the upper right.",
    ),
)


def check(config):
    """Check config.sweep; returns the images a point of it takes.

    Its keys: lists of values of generation options; `count`, images per point
    (default: config.count); `select`, the score whose best point is then evaluated in
    full (default "fid").

    Raises:
      UsageError: unknown keys, no values, or nothing to select by.
    """
    options = config.sweep
    if not options:
        return config.count
    config_lib.check_keys(options, (*GENERATION_KEYS, *OWN_KEYS), "config.sweep")
    if not points(config):
        raise UsageError("config.sweep has no values to try: decoder_guidance=(1., 2.)")
    select = options.get("select", "fid")
    if select.partition("/")[0] not in config.metrics:
        raise UsageError(
            f"config.sweep.select = {select!r}: expected a score of config.metrics "
            f"({', '.join(config.metrics)})"
        )
    count = options.get("count", config.count)
    if count > config.count:
        raise UsageError(
            f"config.sweep.count = {count} is more than config.count = {config.count}"
        )
    return count


def points(config):
    """[{option: value}]: all combinations of the swept options."""
    swept = {k: v for k, v in config.sweep.items() if k not in OWN_KEYS}
    swept = {k: v if isinstance(v, list | tuple) else [v] for k, v in swept.items()}
    combinations = itertools.product(*swept.values())
    every = [dict(zip(swept, values, strict=True)) for values in combinations]
    return [point for point in every if point]


def run(config, score, workdir, log):
    """Evaluate every point, write sweep.json and .csv, and the curves as .svg.

    Args:
      score: (config) -> results of one setting.
      workdir: where the files go.
      log: called with lines of text.

    Returns:
      ({"options", "score", "value", "note", "of"} of the selected point,
        [(svg, what it says)] of the curves).
    """
    rows, tried = [], points(config)
    for i, point in enumerate(tried):
        here = copy.deepcopy(config)
        here.generation.update(point)
        here.count = check(config)
        log(f"sweep {i + 1}/{len(tried)}: {_text(point)}")
        results = score(here)
        values = {name: s["value"] for name, s in results["scores"].items()}
        rows.append({**point, "n": here.count, **values})
    select = config.sweep.get("select", "fid")
    if select not in rows[0]:
        raise UsageError(f"config.sweep.select = {select!r}: found {list(rows[0])}")
    name, _, quantity = select.partition("/")
    metric = make_metric(name, config_lib.to_plain(config.metrics[name] or {}))
    lower = metric.quantities[quantity].better == "lower"
    best = (min if lower else max)(rows, key=lambda row: row[select])
    options = {k: best[k] for k in tried[0]}
    selected = {
        "options": options,
        "score": select,
        "value": best[select],
        "of": len(rows),
        "note": f"{_text(options)} was selected: the best {select} of {len(rows)} "
        f"settings on {best['n']} pictures, so its {select} is optimistic",
    }
    drawn = _curves(config, rows, selected)
    if jax.process_index() == 0:
        table = [{**row, "selected": row is best} for row in rows]
        atomic_write(workdir / "sweep.csv", csv_text(table))
        text = json.dumps({"points": table, "selected": selected}, indent=1)
        atomic_write(workdir / "sweep.json", text + "\n")
        for name, svg, _ in drawn:
            atomic_write(workdir / f"{name}.svg", svg)
    log(selected["note"])
    return selected, [(svg, text) for _, svg, text in drawn]


def _curves(config, rows, selected):
    """[(name, svg, what it says)] of those of CURVES whose metrics are there."""
    labels = [_text({k: row[k] for k in selected["options"]}) for row in rows]
    values = [row[selected["score"]] for row in rows]
    marked, curves = values.index(selected["value"]), []
    for *axes, text in CURVES:
        for x in _scores(config, axes[0]):
            for y in _scores(config, axes[1]):
                if "/" in x and x.partition("/")[0] != y.partition("/")[0]:
                    continue  # precision of one extractor, recall of another
                curve = [(row[x], row[y]) for row in rows]
                svg = plots.curve_svg(curve, labels, marked, x, y)
                curves.append((f"sweep_{y}_{x}".replace("/", "_"), svg, text))
    return curves


def _scores(config, name):
    """Scores of the config's metrics that are called `name`, whatever their labels."""
    metric, slash, quantity = name.partition("/")
    for label, given in config.metrics.items():
        if (given or {}).get("metric", label) == metric:
            yield label + slash + quantity


def _text(point):
    return ", ".join(f"{k} {v}" for k, v in point.items())
