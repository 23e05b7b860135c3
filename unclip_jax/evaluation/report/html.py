"""Results for people: a table, a picture of samples, one self-contained HTML page.

Everything here takes plain data: `results` as in results.json, `rows` as in
pictures.jsonl, images uint8 (N, H, W, 3).
"""

import base64
import html as html_lib
import io
import json

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unclip_jax.grids import FONT_SIZE, GAP, caption_grid

REPORT, EXTREMES = "report.html", "best_and_worst.html"

STYLE = """body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 1080px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .3em .8em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left; }
td:not(:last-child) { white-space: nowrap; }
td.value { font-weight: 600; }
@media (max-width: 640px) {  /* a metric is a block: its numbers, then what it says */
  tr:first-child { display: none; }
  tr { display: flex; flex-wrap: wrap; gap: 0 1em; padding: .6em 0;
    border-bottom: 1px solid #ddd; }
  td { padding: 0; border: 0; }
  td:first-child { font-weight: 600; }
  td:first-child, td:last-child { flex-basis: 100%; }
  td[data-name]::before { content: attr(data-name) " "; color: #555;
    font-weight: 400; }
  td:empty { display: none; }
}
summary { cursor: pointer; font-size: 1.2em; font-weight: 600; margin: 1em 0; }
.curves { display: flex; flex-wrap: wrap; gap: 18px; }
.curves figure { flex: 1 1 400px; }
.curves svg { width: 100%; height: auto; }
.grid { display: grid; gap: 18px;
  grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); }
figure { margin: 0; }
img { width: 104px; height: 104px; image-rendering: pixelated;
  outline: 1px solid #ccc; margin-right: 4px; }
figcaption { line-height: 1.3; }
.checks { font-size: 13px; color: #555; }
.ok { color: #17722b; } .no { color: #b3261e; }
.note { background: #fff6dc; padding: .4em .8em; }
pre { background: #f4f4f4; padding: .8em; overflow: auto; font-size: 12px; }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>unclip_jax evaluation</title>
<style>
{style}</style></head><body>
<h1>Evaluation</h1>
<p>{summary}</p>
<table>{table}
</table>
{legend}
{notes}
{curves}
<h2>Pictures</h2>
<p>The first {shown} of {n}, in order, none picked.{sides}</p>
<div class="grid">
{pictures}
</div>
<details><summary>Provenance</summary>
<pre>{provenance}</pre></details>
</body></html>
"""

_LEGEND = """<p><b>true pictures</b>: the same number for the real pictures of the same
captions, the best one can hope for. <b>chance</b>: the same for the generated pictures
with each other's captions, what a model that ignores its caption would get. ± is one
standard error over the pictures.</p>"""


def format_value(value, percent, stderr=None):
    """A number as people read it: '93.1% ± 1.7' or '0.412'; '' for None."""
    if value is None:
        return ""
    if percent:
        error = "" if stderr is None else f" ± {100 * stderr:.1f}"
        return f"{100 * value:.1f}%{error}"
    error = "" if stderr is None else f" ± {stderr:.2g}"
    return f"{value:.4g}{error}"


def table(results):
    """The results as a text table with one explained number a line."""
    header = ("metric", "generated", "true pictures", "chance", "better")
    lines = []
    for name, score in results["scores"].items():
        lines.append(
            (
                name,
                format_value(score["value"], score["percent"], score["stderr"]),
                format_value(score["true_pictures"], score["percent"]),
                format_value(score["chance"], score["percent"]) or "-",
                score["better"] or "-",
            )
        )
    widths = [max(len(r[c]) for r in (header, *lines)) for c in range(len(header))]

    def line(cells, text):
        first, *rest = (c.rjust(w) for c, w in zip(cells, widths, strict=True))
        return "  ".join((cells[0].ljust(len(first)), *rest, text))

    texts = [score["text"] for score in results["scores"].values()]
    out = [f"{results['provenance']['n']} pictures", line(header, "what it says")]
    out += [line(cells, text) for cells, text in zip(lines, texts, strict=True)]
    out += [f"note: {note}" for note in results["warnings"]]
    return "\n".join(out)


def figure(row, generated, true=None):
    """A picture, and the true one beside it, with what single pictures are scored.

    Args:
      row: "caption", "results": {check: 0 or 1, or a score}.
      generated, true: uint8 (H, W, 3).
    """
    caption = html_lib.escape(row["caption"])
    marks = []
    for name, value in row["results"].items():
        text, kind = f"{_short(name)} {value:.3g}", ""
        if value in (0, 1):  # a check
            kind = ' class="ok"' if value else ' class="no"'
            text = f"{'✓' if value else '✗'} {_short(name)}"
        marks.append(f"<span{kind}>{html_lib.escape(text)}</span>")
    sides = [("generated", generated), *([] if true is None else [("true", true)])]
    images = "".join(
        f'<img src="{_data_uri(image)}" alt="{side}: {caption}">'
        for side, image in sides
    )
    checks = f'<div class="checks">{", ".join(marks)}</div>'
    return f"<figure>{images}<figcaption>{caption}{checks}</figcaption></figure>"


def html(results, rows, generated, true, curves=(), extremes=()):
    """One HTML page with pictures embedded: str.

    Args:
      results: as in results.json.
      rows: one dict per shown picture ("caption", "results": {check: 0 or 1}).
      generated, true: uint8 (len(rows), H, W, 3); true may be None.
      curves: [(svg, what it says)] of a sweep.
      extremes: names of the scores that EXTREMES has a section for.
    """
    escape = html_lib.escape
    provenance = results["provenance"]
    lines = _table_html(results["scores"], "model" in provenance, extremes)
    figures = [
        figure(row, generated[i], None if true is None else true[i])
        for i, row in enumerate(rows)
    ]
    has_captions = true is not None
    return _PAGE.format(
        style=STYLE,
        summary=escape(_summary(provenance)),
        table="\n".join(lines),
        legend=_LEGEND if has_captions else "",
        notes="\n".join(
            f'<p class="note">{escape(note)}</p>'
            for note in _merge(results["warnings"], results["scores"])
        ),
        sides=" Left: generated from the caption. Right: the true picture."
        if has_captions
        else "",
        curves=_curves_html(curves, provenance),
        shown=len(rows),
        n=provenance["n"],
        pictures="\n".join(figures),
        provenance=escape(json.dumps(provenance, indent=1)),
    )


def _summary(provenance):
    """One sentence: what was scored, and against what."""
    count, date = provenance["n"], provenance["date"]
    if "model" in provenance:
        path = provenance["model"]["path"]
        return f"{count} pictures, seed {provenance['seed']}, model {path}, {date}"
    about = provenance.get("images", {})
    if pairing := about.get("pairing"):
        return f"{count} pictures made elsewhere, with captions {pairing}, {date}"
    config, text = provenance["config"], f"{count} pictures of {about.get('path')}"
    reference = config.get("reference", {})
    if other := reference.get("images") or reference.get("statistics"):
        size = provenance["reference"].get("n")
        text += f", compared with {f'{size} of ' if size else ''}{other}"
    return f"{text}, {date}"


def _table_html(scores, generated_here, extremes):
    """The rows of the table; columns in which no score has a value are left out."""
    columns = {
        "value": "generated" if generated_here else "value",
        "true_pictures": "true pictures",
        "chance": "chance",
        "better": "better",
    }
    empty = (None, "")
    columns = {
        key: title
        for key, title in columns.items()
        if any(score[key] not in empty for score in scores.values())
    }
    names = ("metric", *columns.values(), "what it says")
    yield f"<tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>"
    for name, score in scores.items():
        title = html_lib.escape(name)
        if name in extremes:
            title = f'<a href="{EXTREMES}#{title}">{title}</a>'
        cells = [f"<td>{title}</td>"]
        for key, title in columns.items():
            text = score[key] or ""
            if key != "better":
                error = score["stderr"] if key == "value" else None
                text = format_value(score[key], score["percent"], error)
            kind = ' class="value"' if key == "value" else ""
            cells.append(f'<td{kind} data-name="{title}">{text}</td>')
        cells.append(f"<td>{html_lib.escape(score['text'])}</td>")
        yield f"<tr>{''.join(cells)}</tr>"


def _merge(warnings, scores):
    """The warnings; those of several metrics that say the same as one."""
    labels = {name.partition("/")[0] for name in scores}
    merged: dict[str, list[str]] = {}
    for warning in warnings:
        label, _, text = warning.partition(": ")
        is_labeled = label in labels and bool(text)
        merged.setdefault(text if is_labeled else warning, []).extend(
            [label] if is_labeled else []
        )
    return [": ".join(filter(None, (", ".join(w), t))) for t, w in merged.items()]


def _curves_html(curves, provenance):
    """The curves of a sweep with their texts; "" when there are none."""
    if not curves:
        return ""
    points = provenance["selected"]["of"]
    figures = "\n".join(
        f"<figure>{svg}<figcaption>{html_lib.escape(text)}</figcaption></figure>"
        for svg, text in curves
    )
    return (
        f"<h2>Sweep</h2>\n<p>{points} settings, each with the same noise for picture "
        "i; red: the one that was selected and is evaluated above, there on all "
        f'{provenance["n"]} pictures.</p>\n<div class="curves">\n{figures}\n</div>'
    )


def samples_png(rows, generated, true, columns=6):
    """Generated | true pictures in a grid, captions under them: PNG bytes.

    Args:
      rows: one dict per picture ("caption", ...).
      generated, true: uint8 (len(rows), H, W, 3); true may be None.
      columns: pairs in a row.
    """
    height, width = generated.shape[1:3]
    pairs, text = generated, "generated"
    if true is not None:
        gap = np.full((len(rows), height, max(1, width // 32), 3), 208, np.uint8)
        pairs = np.concatenate([generated, gap, true], axis=2)
        text = "left: generated    right: true picture"
    columns = max(1, min(columns, len(rows)))
    grid = caption_grid(pairs, [row["caption"] for row in rows], columns)
    head = Image.new("RGB", (grid.shape[1], 2 * FONT_SIZE), "white")
    font = ImageFont.load_default(FONT_SIZE)
    ImageDraw.Draw(head).text((GAP, FONT_SIZE // 2), text, "#666666", font)
    return _png(Image.fromarray(np.concatenate([np.asarray(head), grid])))


def _short(name):
    """'icons/glyph_top1' -> 'glyph top1'."""
    return name.split("/")[-1].replace("_", " ")


def _png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _data_uri(image):
    data = base64.b64encode(_png(Image.fromarray(np.asarray(image)))).decode()
    return f"data:image/png;base64,{data}"
