"""An export's tokenizer gives the numbers that training saw."""

import numpy as np
import pytest

from unclip_jax.interop.tokens import read_tokenizer
from unclip_jax.tokenizer import train_tokenizer

CAPTIONS = [
    "a red umbrella on a teal background",
    "",
    "  Ünïcode ❤ and   SPACES\n",
    "don't <|endoftext|> stop",
    "word " * 10_000,
]


def test_equals_the_data_rooms(tmp_path):
    ours = train_tokenizer(CAPTIONS * 2, tmp_path, 540, context_length=9)
    read = read_tokenizer(tmp_path, 9)
    for name in ("context_length", "vocab_size", "sot_id", "eot_id"):
        assert getattr(read, name) == getattr(ours, name)
    tokens = read.encode(CAPTIONS)
    assert tokens.dtype == np.int32 and tokens.shape == (5, 9)
    np.testing.assert_array_equal(tokens, ours.encode(CAPTIONS))


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer in"):
        read_tokenizer(tmp_path, 9)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="no readable tokenizer"):
        read_tokenizer(tmp_path, 9)
