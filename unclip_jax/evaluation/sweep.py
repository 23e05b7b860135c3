"""The diversity-fidelity curve: one evaluation per value of some generation options.

All points draw from the same noise, image by image, so what differs is the option.
The point with the least FID (or whichever metric config.sweep.select names) was chosen
by looking at the metric itself; results of it say so.
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from unclip_jax.config import check_keys
from unclip_jax.errors import UsageError
from unclip_jax.evaluation.config import GENERATION_KEYS, EvaluateConfig
from unclip_jax.evaluation.metrics import make_metric
from unclip_jax.evaluation.report import plots
from unclip_jax.evaluation.report.results import csv_text
from unclip_jax.files import atomic_write

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


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is tried.

    Attributes:
      points: {option: value}, all combinations.
      count: images per point (default: config.count).
      select: the score whose best point is then evaluated in full.
    """

    points: tuple[dict[str, Any], ...]
    count: int
    select: str


def read_sweep(config: EvaluateConfig) -> Sweep | None:
    """What config.sweep asks for; None when it is empty.

    Its keys: lists of values of generation options; `count` and `select`.

    Raises:
      UsageError: unknown keys, no values, or nothing to select by.
    """
    if not config.sweep:
        return None
    check_keys(config.sweep, (*GENERATION_KEYS, "count", "select"), "config.sweep")
    values = dict(config.sweep)
    count, select = values.pop("count", config.count), values.pop("select", "fid")
    lists = [v if isinstance(v, list | tuple) else [v] for v in values.values()]
    combinations = itertools.product(*lists)
    points = tuple(dict(zip(values, c, strict=True)) for c in combinations)
    if not values or not points:
        raise UsageError("config.sweep has no values to try: decoder_guidance=(1., 2.)")
    if select.partition("/")[0] not in config.metrics:
        raise UsageError(
            f"config.sweep.select = {select!r}: expected a score of config.metrics "
            f"({', '.join(config.metrics)})"
        )
    if count > config.count:
        raise UsageError(
            f"config.sweep.count = {count} is more than config.count = {config.count}"
        )
    return Sweep(points, count, select)


def run(
    sweep: Sweep,
    config: EvaluateConfig,
    score: Callable[[EvaluateConfig], dict],
    workdir: pathlib.Path,
    log: Callable[[str], None],
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Evaluates every point, writes sweep.json and .csv, and the curves as .svg.

    Args:
      sweep: what to try.
      config: of the full evaluation.
      score: what results.json would hold of one setting.
      workdir: where the files go.
      log: called with lines of text.

    Returns:
      ({"options", "score", "value", "note", "of"} of the selected point,
        [(svg, what it says)] of the curves).
    """
    rows: list[dict[str, Any]] = []
    for i, point in enumerate(sweep.points, start=1):
        log(f"sweep {i}/{len(sweep.points)}: {_text(point)}")
        generation = {**config.generation, **point}
        here = dataclasses.replace(config, generation=generation, count=sweep.count)
        scores = score(here)["scores"]
        values = {name: about["value"] for name, about in scores.items()}
        rows.append({**point, "n": sweep.count, **values})
    select = sweep.select
    if select not in rows[0]:
        raise UsageError(f"config.sweep.select = {select!r}: found {list(rows[0])}")
    label, _, quantity = select.partition("/")
    metric = make_metric(label, config.metrics[label])
    better = min if metric.quantities[quantity].better == "lower" else max
    best = better(range(len(rows)), key=lambda i: rows[i][select])
    options = sweep.points[best]
    selected = {
        "options": options,
        "score": select,
        "value": rows[best][select],
        "of": len(rows),
        "note": f"{_text(options)} was selected: the best {select} of {len(rows)} "
        f"settings on {sweep.count} pictures, so its {select} is optimistic",
    }
    curves = []
    labels = [*map(_text, sweep.points)]
    for x, y, text in _axes(config):
        points = [(row[x], row[y]) for row in rows]
        svg = plots.curve_svg(points, labels, best, x, y)
        curves.append((svg, text))
        if jax.process_index() == 0:
            atomic_write(workdir / f"sweep_{y}_{x}.svg".replace("/", "_"), svg)
    if jax.process_index() == 0:
        table = [{**row, "selected": i == best} for i, row in enumerate(rows)]
        atomic_write(workdir / "sweep.csv", csv_text(table))
        text = json.dumps({"points": table, "selected": selected}, indent=1)
        atomic_write(workdir / "sweep.json", text + "\n")
    log(selected["note"])
    return selected, curves


def _axes(config) -> Iterator[tuple[str, str, str]]:
    """Those of CURVES whose metrics are there, by the names of their scores."""
    for *axes, text in CURVES:
        for x in _scores(config, axes[0]):
            for y in _scores(config, axes[1]):
                # not precision of one extractor, recall of another
                if "/" not in x or x.partition("/")[0] == y.partition("/")[0]:
                    yield x, y, text


def _scores(config, name) -> Iterator[str]:
    """Scores of the config's metrics that are called `name`, whatever their labels."""
    metric, slash, quantity = name.partition("/")
    for label, options in config.metrics.items():
        if (options or {}).get("metric", label) == metric:
            yield label + slash + quantity


def _text(point):
    return ", ".join(f"{k} {v}" for k, v in point.items())
