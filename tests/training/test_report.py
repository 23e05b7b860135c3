"""The page of a run's curves."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from unclip_jax import command_line
from unclip_jax import report as command
from unclip_jax.evaluation.report.plots import line_svg
from unclip_jax.training.report import read_curves, report


@pytest.fixture
def run(tmp_path):
    """A run that went back from step 40 to 20, and was cut short in a row."""
    folder = tmp_path / "runs" / "clip"
    (folder / "previews").mkdir(parents=True)
    config = {"stage": "clip", "steps": 100, "batch_size": 8}
    (folder / "config.json").write_text(json.dumps(config))
    status = {"step": 60, "steps": 100, "done": False}
    (folder / "status.json").write_text(json.dumps(status))
    rows = [
        {"step": 20, "loss": 4.0, "images_per_second": 90.0, "step_seconds": 1.0},
        {"step": 40, "loss": 9.0, "images_per_second": 90.0, "step_seconds": 1.0},
        {"step": 40, "loss": 2.0, "images_per_second": 80.0, "step_seconds": 2.0},
        {"step": 40, "retrieval/text_to_image@1": 0.25},
        {"step": 60, "loss": 1.0, "images_per_second": 85.0, "grad_norm": float("nan")},
    ]
    lines = [json.dumps(row) for row in rows]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 80, "lo']))
    for step in (30, 60):
        Image.new("RGB", (4, 4)).save(folder / "previews" / f"{step:08d}.png")
    return folder


def test_a_step_that_was_taken_twice_counts_once(run):
    curves = read_curves(run)
    assert curves["loss"] == [(20, 4.0), (40, 2.0), (60, 1.0)]
    assert curves["retrieval/text_to_image@1"] == [(40, 0.25)]
    assert "grad_norm" not in curves


def test_the_page_needs_nothing_else(run, tmp_path):
    image, link = tmp_path / "samples.png", tmp_path / "eval" / "report.html"
    Image.new("RGB", (4, 4)).save(image)
    link.parent.mkdir()
    link.touch()
    out = tmp_path / "pages" / "report.html"
    report([run], out, [image], [link])
    page = out.read_text()
    assert page.count("<svg") == 3  # loss, retrieval, images/s
    assert page.count("<img") == 2
    assert 'href="../eval/report.html"' in page
    assert not re.search(r'src="(?!data:)|<script|https?://(?!www.w3.org)', page)
    assert "Step 60 of 100" in page and "1m00s of training" in page
    assert "85 images/s" in page and "Not finished" in page


def test_the_command_and_its_mistakes(run, tmp_path, capsys):
    def start(*flags):
        with pytest.raises(SystemExit) as stop:
            argv = ["report", *flags]
            command_line.run(
                command.main, config=False, extra_flags=command.FLAGS, argv=argv
            )
        return stop.value.code, capsys.readouterr()

    code, output = start(f"--run={run}")
    assert code == 0 and f"written: {run}/report.html" in output.out
    assert "--run is required" in start()[1].err
    assert "not the folder of a run" in start(f"--run={tmp_path}")[1].err
    assert "does not exist" in start(f"--run={run}", "--image=no.png")[1].err
    (run / "metrics.jsonl").unlink()
    assert "no metrics yet" in start(f"--run={run}")[1].err


def test_a_curve_spans_its_values_and_is_logarithmic_where_it_must_be():
    steps = np.arange(1, 30)

    def heights(values):
        svg = line_svg(list(zip(steps, values, strict=True)))
        path = re.search(r'polyline points="([^"]+)"', svg)[1]
        return np.array([float(p.split(",")[1]) for p in path.split()])

    y = heights(steps * 2.0)
    np.testing.assert_allclose(np.diff(y), np.diff(y)[0], atol=0.11)
    assert y[0] > y[-1]
    y = heights(10.0 ** (-steps / 10))  # a straight line in the logarithm
    np.testing.assert_allclose(np.diff(y), np.diff(y)[0], atol=0.11)
    assert y[0] < y[-1]
