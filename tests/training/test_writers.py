"""Curves and previews on Weights & Biases, with a stand-in for its package."""

import json
import sys
import types

import numpy as np
import pytest

from unclip_jax.errors import UsageError
from unclip_jax.training.writers import Writer, check_wandb


class Service(types.ModuleType):
    """What of the package is used, remembering what it was told."""

    def __init__(self):
        super().__init__("wandb")
        self.started, self.rows, self.finished = [], [], 0

    def init(self, **options):
        self.started.append(options)
        return self

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.finished += 1

    @staticmethod
    def Image(grid):
        return grid.shape


def test_a_resumed_run_goes_on_with_its_curves(tmp_path, monkeypatch):
    service = Service()
    (tmp_path / "run").mkdir()
    monkeypatch.setitem(sys.modules, "wandb", service)
    config = {"stage": "toy", "wandb": {"project": "unclip"}}
    for start in (0, 2):
        writer = Writer(tmp_path / "run", start, config)
        writer.scalars(start + 2, {"loss": 0.5})
        writer.close()
    assert service.rows == [{"step": 2, "loss": 0.5}, {"step": 4, "loss": 0.5}]
    first, second = service.started
    assert first == second and first["resume"] == "allow" and len(first["id"]) == 12
    assert (first["project"], first["name"]) == ("unclip", "run")
    assert first["config"] == config and service.finished == 2

    writer = Writer(tmp_path / "run", 4, config)
    writer.images(4, np.zeros((4, 8, 8, 3), np.uint8), columns=2)
    writer.close()
    assert service.rows[-1] == {"step": 4, "preview": (16, 16, 3)}


def test_a_service_that_refuses_is_one_line(tmp_path, monkeypatch):
    def init(**_):
        raise RuntimeError("No API key\nconfigured")

    service = Service()
    service.init = init
    monkeypatch.setitem(sys.modules, "wandb", service)
    with pytest.raises(UsageError, match="No API key configured; run `wandb login`"):
        Writer(tmp_path, 0, {"wandb": {"project": "unclip"}})


def test_without_the_package_it_says_so_and_unasked_it_is_not_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert check_wandb({}) is None
    with pytest.raises(ValueError, match="pip install wandb"):
        check_wandb({"wandb": {"project": "unclip"}})
    with pytest.raises(ValueError, match="did you mean 'project'"):
        check_wandb({"wandb": {"projct": "unclip"}})


def test_scores_that_are_made_again_are_not_written_twice(tmp_path):
    """The evaluators of the step that a run goes on from run again; a loss does not."""
    config = {"evaluators": {"retrieval": {}}}
    rows = [{"loss": 1.0}, {"retrieval/x": 0.5}, {"clip/x": 0.5}]
    for start in (0, 4, 4):
        writer = Writer(tmp_path, start, config)
        for row in rows[: 2 if start else 3]:
            writer.scalars(4 if "loss" not in row else 4 + start, row)
        writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [(row.pop("step"), *row) for row in map(json.loads, lines)]
    assert steps == [(4, "loss"), (4, "clip/x"), (8, "loss"), (4, "retrieval/x")]
