"""The tokenizer of an export: captions to token numbers, and nothing else.

Training, saving and public tokenizers are the data room's; what it saves is read here
without it, so that an export can be used alone.
"""

import os
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
import tokenizers

START, END = "<|startoftext|>", "<|endoftext|>"


class ExportedTokenizer:
    """Captions to int32 (N, context_length): start, tokens, end, end as padding.

    Attributes:
      context_length, vocab_size, sot_id, eot_id: ints.
    """

    def __init__(self, backend: tokenizers.Tokenizer, context_length: int):
        """Raises ValueError when it has no start and end tokens."""
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.context_length = context_length
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.sot_id, self.eot_id = map(backend.token_to_id, (START, END))
        if self.sot_id is None or self.eot_id is None:
            raise ValueError(f"not a CLIP tokenizer: it has no {START} or no {END}")

    def encode(self, captions: Sequence[str]) -> np.ndarray:
        """What is too long is cut, with a warning; the end token is always there."""
        tokens = np.full((len(captions), self.context_length), self.eot_id, np.int32)
        tokens[:, 0] = self.sot_id
        encoded = self._backend.encode_batch(list(captions), add_special_tokens=False)
        for row, encoding in zip(tokens, encoded, strict=True):
            ids = encoding.ids[: self.context_length - 2]
            if len(ids) < len(encoding.ids):
                warnings.warn(
                    f"a caption has {len(encoding.ids)} tokens, of which the first "
                    f"{len(ids)} are seen",
                    stacklevel=2,
                )
            row[1 : 1 + len(ids)] = ids
        return tokens


def read_tokenizer(folder: str | os.PathLike, context_length: int) -> ExportedTokenizer:
    """Reads tokenizer.json of `folder`, or vocab.json and merges.txt.

    Raises FileNotFoundError if they are not there, ValueError if it is not a tokenizer.
    """
    folder = pathlib.Path(folder)
    file = folder / "tokenizer.json"
    old = [folder / "vocab.json", folder / "merges.txt"]
    if not file.is_file() and not all(f.is_file() for f in old):
        raise FileNotFoundError(
            f"no tokenizer in {folder}: it has no tokenizer.json, nor vocab.json and "
            "merges.txt"
        )
    try:
        if file.is_file():
            backend = tokenizers.Tokenizer.from_file(str(file))
        else:
            from transformers import CLIPTokenizerFast

            fast = CLIPTokenizerFast(*map(str, old))
            backend = fast.backend_tokenizer
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        raise ValueError(f"{folder} has no readable tokenizer: {error}") from error
    return ExportedTokenizer(backend, context_length)
