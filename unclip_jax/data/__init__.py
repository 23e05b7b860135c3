"""The data room: where examples come from and in which order they are read.

  sources/      random-access sequences of examples (icons; records are one too)
  tokenizer.py  CLIP-format byte-pair encoding: train, load, encode, save
  records.py    ArrayRecord shards of examples with their CLIP embeddings, read here
                and written by record_writer.py
  order.py      which examples a step reads: a pure function of (seed, step)
  loader.py     two feeds of the same batches: tf.data, or arrays in memory

Importing this room imports no TensorFlow; only the feed "tf" ever does.
"""

from unclip_jax.data.loader import Dataset, open_data
from unclip_jax.data.order import batch_indices
from unclip_jax.data.sources import BadRecord, make_source
from unclip_jax.tokenizer import Tokenizer, train_tokenizer

__all__ = [
    "BadRecord",
    "Dataset",
    "Tokenizer",
    "batch_indices",
    "make_source",
    "open_data",
    "train_tokenizer",
]
