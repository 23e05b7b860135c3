"""The model in pretrained/ draws what the sentence says, on captions it never saw."""

import numpy as np
import pytest

from tests.environment import ROOT
from unclip_jax import UnCLIP
from unclip_jax.data.sources.icons import Icons
from unclip_jax.evaluation.metrics.icons import check_icons, read_icons

COUNT = 8


@pytest.mark.slow
def test_held_out_captions_are_drawn_as_they_say():
    source = Icons(split="held_out", nouns=24, colours=8, backgrounds=8)
    examples = [source[i] for i in range(COUNT)]
    model = UnCLIP.load(ROOT / "pretrained" / "icons", batch_size=COUNT)
    images = model.text2image([e["caption"] for e in examples], decoder_steps=10)
    colours, nouns = list(source.colours), source.nouns
    checks = check_icons(
        read_icons(
            np.asarray(images),
            np.array([source.colours[name] for name in colours]),
            np.stack([source.mask(noun) for noun in nouns]),
        ),
        background=[colours.index(e["background"]) for e in examples],
        glyph_colour=[colours.index(e["colour"]) for e in examples],
        glyph=[nouns.index(e["noun"]) for e in examples],
    )
    assert checks["all"].sum() >= COUNT - 1
