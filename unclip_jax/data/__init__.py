"""The data room: where examples come from and in which order they are read.

  sources/    random-access sequences of examples: folders, tars, tables, icons ...
  records.py  ArrayRecord shards of examples with their CLIP embeddings, read here and
              written by record_writer.py: a source too
  order.py    which examples a step reads: a pure function of (seed, step)
  readers.py  from examples to arrays; what cannot be read is replaced
  tf_feed.py  the feed "tf": a tf.data pipeline
  loader.py   `open_data`, and the two feeds of the same batches

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
