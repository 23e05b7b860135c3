"""Runs of the toy stage, and what they leave."""

import io
import json

import jax
import numpy as np

from tests.training import toy
from unclip_jax.training.loop import train


def run(workdir, config=None, data=None, stream=None, **more):
    return train(
        config or toy.make_config(),
        workdir,
        stage=toy.Stage(),
        data=data or toy.Data(),
        stream=stream or io.StringIO(),
        **more,
    )


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))
