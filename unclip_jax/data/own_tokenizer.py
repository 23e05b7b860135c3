"""The tokenizer of a run that names none: trained on the captions of its data."""

import json
import pathlib

from unclip_jax import config as config_lib
from unclip_jax.data.sources import Source
from unclip_jax.errors import UsageError
from unclip_jax.files import atomic_write, read_json
from unclip_jax.tokenizer import Tokenizer, train_tokenizer

MAX_CAPTIONS = 100_000  # that it is trained on
TRAINED_ON = "trained_on.json"  # beside the tokenizer


def open_own_tokenizer(
    source: Source,
    folder: str | None,
    vocab_size: int,
    context_length: int | None,
) -> Tokenizer:
    """Returns a tokenizer trained on a source's captions, now or in an earlier start.

    Args:
      source: of the captions.
      folder: where it is kept; None is in memory.
      vocab_size: at most so many tokens.
      context_length: tokens per caption; None is `fitting_length`.

    Raises:
      FileExistsError: `folder` holds one that was trained otherwise.
      UsageError: the source has no captions.
    """
    options = {
        "source_fingerprint": source.fingerprint,
        "vocab_size": vocab_size,
        "context_length": context_length,
    }
    note = None if folder is None else pathlib.Path(folder) / TRAINED_ON
    if note is not None and note.is_file():
        earlier = read_json(note, "")
        config_lib.check_keys(earlier, options, str(note))
        diff = [name for name in options if earlier.get(name) != options[name]]
        if diff:
            raise FileExistsError(
                f"{str(folder)!r} holds a tokenizer trained otherwise ({diff[0]} was "
                f"{earlier.get(diff[0])!r}, now {options[diff[0]]!r}); choose another "
                "workdir or remove it"
            )
        return Tokenizer.load(folder)
    captions = source.captions(MAX_CAPTIONS)
    if not captions:
        raise UsageError("the data has no captions to train a tokenizer on")
    tokenizer = train_tokenizer(captions, None, vocab_size)
    if context_length is None:
        context_length = fitting_length(tokenizer, captions)
    tokenizer.context_length = context_length
    if note is not None:
        tokenizer.save(note.parent)
        atomic_write(note, json.dumps(options))
    return tokenizer


def fitting_length(tokenizer: Tokenizer, captions) -> int:
    """Returns the tokens that the longest caption needs, in whole fours.

    Start and end are included; at most as many as the tokenizer has.
    """
    tokens = tokenizer.encode(captions)
    longest = 2 + int((tokens[:, 1:] != tokenizer.eot_id).sum(axis=1).max())
    return min(-(-longest // 4) * 4, tokenizer.context_length)
