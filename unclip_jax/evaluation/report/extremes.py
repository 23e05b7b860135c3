"""The page of the pictures that each metric finds best and worst."""

import html as html_lib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unclip_jax.evaluation.report.html import REPORT, STYLE, figure

SHOWN = 6  # of each end

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>unclip_jax evaluation: best and worst</title>
<style>
{style}</style></head><body>
<h1>Best and worst pictures</h1>
<p><a href="{report}">All numbers</a>. Of {n} pictures, the {shown} that a metric scores
highest and lowest; of equal scores, the first.{sides}</p>
{sections}
</body></html>
"""


def ends(values: Sequence[float], count: int) -> tuple[list[int], list[int]]:
    """(where the `count` largest values are, where the smallest), the extreme first.

    Of equal ones the first. The largest are none of those that equal the smallest, and
    the other way round: of values that are all the same there are no ends.
    """
    array = np.asarray(values, np.float64)
    count = min(count, len(array) // 2)
    high, low = (np.argsort(sign * array, kind="stable")[:count] for sign in (-1, 1))
    high, low = high[array[high] > array.min()], low[array[low] < array.max()]
    return high.tolist(), low.tolist()


def page(
    scores: Mapping[str, Mapping[str, Any]],
    per_image: Mapping[str, Sequence[float]],
    rows: Sequence[Mapping[str, Any]],
    generated: Any,
    true: Any = None,
    count: int = SHOWN,
) -> str:
    """One HTML page, with a section for each quantity that single pictures have.

    Args:
      scores: {name: score} as in results.json.
      per_image: {name: N values}.
      rows: N dicts as in pictures.jsonl.
      generated, true: N images each, in slices; true may be None.
      count: pictures of each end.
    """
    sections = []
    for name, values in per_image.items():
        high, low = ends(values, count)
        better = scores[name]["better"]
        titles = {"higher": ("Best", "Worst"), "lower": ("Worst", "Best")}
        pairs = zip(titles.get(better, ("Highest", "Lowest")), (high, low), strict=True)
        sections.append(
            f'<h2 id="{html_lib.escape(name)}">{html_lib.escape(name)}</h2>'
        )
        if not high:
            sections.append(f"<p>{values[0]:.3g} for every picture.</p>")
            continue
        for title, indices in sorted(pairs):  # the best, or the highest, first
            figures = [
                figure(
                    {**rows[i], "results": {name: values[i]}},
                    generated[i : i + 1][0],
                    None if true is None else true[i : i + 1][0],
                )
                for i in indices
            ]
            grid = f'<div class="grid">{"".join(figures)}</div>'
            sections.append(f"<h3>{title}</h3>\n{grid}")
    sides = " Left: generated from the caption. Right: the true picture."
    return _PAGE.format(
        style=STYLE,
        report=REPORT,
        n=len(rows),
        shown=count,
        sides="" if true is None else sides,
        sections="\n".join(sections),
    )
