"""What `python -m unclip_jax.report` does: the curves of runs as one HTML page.

The page needs nothing else: curves are inline SVG, pictures are in it.
"""

import base64
import html
import json
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.report import plots
from unclip_jax.files import atomic_write
from unclip_jax.progress import duration
from unclip_jax.training import run_folder

POINTS = 500  # of a curve; of more, means of neighbors are drawn
SPEED = "images_per_second"
# Neither of use to a reader of curves.
OMITTED = ("step_seconds", "images_per_second_per_chip", "compile_seconds")
TYPES = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 1080px; margin: 1.5em auto; padding: 0 1em; }}
.curves {{ display: grid; gap: 18px;
  grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); }}
figure {{ margin: 0 0 1em; }}
.curves svg {{ width: 100%; height: auto; }}
img {{ max-width: 100%; height: auto; display: block; image-rendering: pixelated; }}
summary {{ cursor: pointer; color: #555; margin: .6em 0; }}
nav a {{ margin-right: 1em; }}
</style></head><body>
<h1>{title}</h1>
{links}
{images}
{runs}
</body></html>
"""


def report(
    runs: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    images: Sequence[str | os.PathLike] = (),
    links: Sequence[str | os.PathLike] = (),
) -> None:
    """Writes the page of some runs.

    Args:
      runs: folders of training runs.
      out: the page.
      images: files that are shown above the curves.
      links: files that are linked, relative to the page.

    Raises:
      FileNotFoundError: no run, or no such file.
      UsageError: a run that has not logged anything, or an image of another format.
    """
    for file in (*images, *links):
        if not pathlib.Path(file).is_file():
            raise FileNotFoundError(f"{str(file)!r} does not exist")
    folder = pathlib.Path(out).parent
    anchors = [
        f'<a href="{html.escape(os.path.relpath(link, folder))}">'
        f"{html.escape(os.path.relpath(link, folder))}</a>"
        for link in links
    ]
    shared = os.path.commonpath([os.path.abspath(run) for run in runs])
    title = f"Training in {os.path.relpath(shared)}"
    page = PAGE.format(
        title=html.escape(title),
        links=f"<nav>{''.join(anchors)}</nav>" if anchors else "",
        images="\n".join(map(_image, images)),
        runs="\n".join(map(_section, runs)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(out, page)


def read_curves(run: str | os.PathLike) -> dict[str, list[tuple[int, float]]]:
    """{metric: [(step, value)]} of a run's metrics.jsonl, by rising step.

    Of a step that was logged twice, by a run that went back, the last row counts. A
    row that a crash cut short is left out, as are values that are not finite.
    """
    path = pathlib.Path(run) / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows: dict[int, dict[str, Any]] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows.setdefault(row["step"], {}).update(row)
    curves: dict[str, list[tuple[int, float]]] = {}
    for step, row in sorted(rows.items()):
        for name, value in row.items():
            is_number = isinstance(value, int | float)
            if name != "step" and is_number and abs(value) < float("inf"):
                curves.setdefault(name, []).append((step, value))
    return curves


def _section(run) -> str:
    """The part of the page that is about one run."""
    config, status = run_folder.read_config(run), run_folder.read_status(run)
    curves = read_curves(run)
    if "loss" not in curves:
        raise UsageError(f"{run} has no metrics yet: nothing was logged")
    shown = ["loss", *(name for name in curves if "/" in name), SPEED]
    more = [name for name in sorted(curves) if name not in (*shown, *OMITTED)]
    previews = sorted((pathlib.Path(run) / "previews").glob("*.png"))
    preview = ""
    if previews:
        step = previews[-1].stem.lstrip("0") or "0"
        preview = _image(previews[-1], f"preview of step {step}")
    return f"""<h2>{html.escape(config["stage"])}</h2>
<p>{html.escape(_summary(config, status, curves))}</p>
{preview}
<div class="curves">
{_svgs(curves, shown)}
</div>
<details><summary>{len(more)} more curves</summary><div class="curves">
{_svgs(curves, more)}
</div></details>"""


def _summary(
    config: Mapping[str, Any],
    status: Mapping[str, Any],
    curves: Mapping[str, Sequence[tuple[int, float]]],
) -> str:
    """One sentence: how far a run is, how fast it was, and its loss."""
    steps = [step for step, _ in curves["loss"]]
    seconds = dict(curves.get("step_seconds", ()))
    before = (0, *steps)
    total = sum(
        seconds.get(step, 0.0) * (step - last)
        for last, step in zip(before, steps, strict=False)
    )
    text = (
        f"Step {steps[-1]:,} of {config['steps']:,}, "
        f"{config['batch_size']} images a step, {duration(total)} of training; "
        f"loss {curves['loss'][-1][1]:.4g}"
    )
    if SPEED in curves:
        rate = statistics.median(value for _, value in curves[SPEED])
        text += f", {rate:,.0f} images/s in the median"
    return text + ("." if status["done"] else ". Not finished.")


def _svgs(curves, names) -> str:
    return "\n".join(
        f"<figure><figcaption>{html.escape(name.replace('_', ' '))}: "
        f"<b>{curves[name][-1][1]:.4g}</b></figcaption>"
        f"{plots.line_svg(_thin(curves[name]))}</figure>"
        for name in names
        if name in curves
    )


def _thin(points):
    """At most POINTS points: means of as many neighbors as it takes."""
    size = -(-len(points) // POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (statistics.fmean(x for x, _ in group), statistics.fmean(y for _, y in group))
        for group in groups
    ]


def _image(file, title: str = "") -> str:
    """An image file, within the page, below its title or its name."""
    file = pathlib.Path(file)
    title = title or file.stem.replace("_", " ")
    if file.suffix.lower() not in TYPES:
        raise UsageError(f"{file} is no image: expected one of {', '.join(TYPES)}")
    data = base64.b64encode(file.read_bytes()).decode()
    kind = TYPES[file.suffix.lower()]
    name, source = html.escape(file.name), f"data:image/{kind};base64,{data}"
    return f'<figure>{html.escape(title)}<img src="{source}" alt="{name}"></figure>'
