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

# Samples picture: sizes in pixels.
_TILE = 96  # side of a picture
_GAP = 4  # between a generated picture and the true one
_MARGIN = 14  # between cells
_FONT = 13
_LINES = 3  # of caption

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>unclip_jax evaluation</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 1080px; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
th, td {{ padding: .3em .8em; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child, th:last-child, td:last-child {{ text-align: left; }}
td.value {{ font-weight: 600; }}
.grid {{ display: grid; gap: 18px;
  grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); }}
figure {{ margin: 0; }}
img {{ width: 104px; height: 104px; image-rendering: pixelated;
  outline: 1px solid #ccc; margin-right: 4px; }}
figcaption {{ line-height: 1.3; }}
.checks {{ font-size: 13px; color: #555; }}
.ok {{ color: #17722b; }} .no {{ color: #b3261e; }}
.note {{ background: #fff6dc; padding: .4em .8em; }}
pre {{ background: #f4f4f4; padding: .8em; overflow: auto; font-size: 12px; }}
</style></head><body>
<h1>Evaluation</h1>
<p>{summary}</p>
<table><tr><th>metric</th><th>generated</th><th>true pictures</th><th>chance</th>
<th>better</th><th>what it says</th></tr>
{table}
</table>
<p><b>true pictures</b>: the same number for the real pictures of the same captions, the
best one can hope for. <b>chance</b>: the same for the generated pictures with each
other's captions, what a model that ignores its caption would get. ± is one standard
error over the pictures.</p>
{notes}
<h2>Pictures</h2>
<p>The first {shown} of {n}, in order, none picked. Left: generated from the caption.
Right: the true picture.</p>
<div class="grid">
{pictures}
</div>
<h2>Provenance</h2>
<pre>{provenance}</pre>
</body></html>
"""


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
    out = [f"{results['provenance']['n']} captions", line(header, "what it says")]
    out += [line(cells, text) for cells, text in zip(lines, texts, strict=True)]
    out += [f"note: {note}" for note in results["warnings"]]
    return "\n".join(out)


def html(results, rows, generated, true):
    """One HTML page with pictures embedded: str.

    Args:
      results: as in results.json.
      rows: one dict per shown picture ("caption", "results": {check: 0 or 1}).
      generated, true: uint8 (len(rows), H, W, 3).
    """
    escape = html_lib.escape
    provenance = results["provenance"]
    lines = []
    for name, score in results["scores"].items():
        cells = (
            f"<td>{escape(name)}</td>",
            '<td class="value">'
            f"{format_value(score['value'], score['percent'], score['stderr'])}</td>",
            f"<td>{format_value(score['true_pictures'], score['percent'])}</td>",
            f"<td>{format_value(score['chance'], score['percent'])}</td>",
            f"<td>{score['better']}</td>",
            f"<td>{escape(score['text'])}</td>",
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    figures = []
    for row, ours, real in zip(rows, generated, true, strict=True):
        checks = ", ".join(
            f'<span class="{"ok" if ok else "no"}">{"✓" if ok else "✗"} '
            f"{escape(_short(name))}</span>"
            for name, ok in row["results"].items()
        )
        caption = escape(row["caption"])
        figures.append(
            f'<figure><img src="{_data_uri(ours)}" alt="generated: {caption}">'
            f'<img src="{_data_uri(real)}" alt="true: {caption}">'
            f'<figcaption>{caption}<div class="checks">{checks}</div>'
            "</figcaption></figure>"
        )
    summary = (
        f"{provenance['n']} captions, seed {provenance['seed']}, model "
        f"{provenance['model']['path']}, {provenance['date']}"
    )
    return _PAGE.format(
        summary=escape(summary),
        table="\n".join(lines),
        notes="\n".join(
            f'<p class="note">{escape(note)}</p>' for note in results["warnings"]
        ),
        shown=len(rows),
        n=provenance["n"],
        pictures="\n".join(figures),
        provenance=escape(json.dumps(provenance, indent=1)),
    )


def samples_png(rows, generated, true, columns=6):
    """Generated | true pictures in a grid, captions under them: PNG bytes.

    Args:
      rows: one dict per picture ("caption", "results").
      generated, true: uint8 (len(rows), H, W, 3).
      columns: pairs in a row.
    """
    font = ImageFont.load_default(_FONT)
    cell_width = 2 * _TILE + _GAP
    cell_height = _TILE + _LINES * (_FONT + 3) + 4
    columns = max(1, min(columns, len(rows)))
    count = -(-len(rows) // columns)
    head = _FONT + 10
    page = Image.new(
        "RGB",
        (
            columns * (cell_width + _MARGIN) + _MARGIN,
            head + count * (cell_height + _MARGIN) + _MARGIN,
        ),
        "white",
    )
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, 8), "left: generated    right: true", "#666666", font)
    for i, (row, ours, real) in enumerate(zip(rows, generated, true, strict=True)):
        x = _MARGIN + i % columns * (cell_width + _MARGIN)
        y = head + _MARGIN + i // columns * (cell_height + _MARGIN)
        for image, left in ((ours, x), (real, x + _TILE + _GAP)):
            page.paste(_tile(image), (left, y))
            # A thin frame, or a white background would have no edge.
            draw.rectangle(
                (left, y, left + _TILE - 1, y + _TILE - 1), outline="#cccccc"
            )
        for j, line in enumerate(_wrap(row["caption"], font, cell_width)):
            top = y + _TILE + 3 + j * (_FONT + 3)
            draw.text((x, top), line, "#222222", font)
    return _png(page)


def _tile(image):
    """A picture (H, W, 3) at _TILE x _TILE; small ones keep their hard pixels."""
    image = Image.fromarray(np.asarray(image))
    small = image.width <= _TILE
    filter_ = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return image.resize((_TILE, _TILE), filter_)


def _wrap(text, font, width):
    """Lines of at most `width` pixels; what does not fit _LINES ends in '...'."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    lines.append(line)
    if len(lines) > _LINES:
        lines = lines[:_LINES]
        while lines[-1] and font.getlength(lines[-1] + "...") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "..."
    return lines


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
