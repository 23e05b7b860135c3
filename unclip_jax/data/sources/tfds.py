"""Any TensorFlow Datasets data set that has images, by name.

    config.data = dict(source="tfds", name="coco_captions/2014", split="train",
                       caption="captions/text", data_dir="data/tfds")

It must lie prepared on disk in the format ArrayRecord, which can be read at random:

    tfds.builder(name, data_dir=..., file_format="array_record").download_and_prepare()

Captions are a text, a list of texts (each image of COCO has five or more), or a class
label, which is put into `template`.
"""

import functools
import queue
import threading

from unclip_jax.data.sources import BadRecord
from unclip_jax.data.sources.image_source import ImageSource, Raw
from unclip_jax.errors import UsageError

READERS = 16  # at most, of a split; each opens its files
CAPTIONS = ("captions/text", "captions", "caption", "text", "label")


class Tfds(ImageSource):
    """A source of the examples of one split (see the module)."""

    def __init__(
        self,
        name: str,  # as for tfds.builder: "coco_captions/2014:1.1.0"
        split: str = "train",  # "train[:90%]" and "val+test" work too
        data_dir: str = "",  # "" is TFDS's own
        image: str = "image",  # fields; "a/b" is field b inside of a
        caption: str = "",  # "" is the first one of a usual name
        key: str = "",  # "" is the split and the example's number
        template: str = "a photo of a {}",  # of captions that are labels
        **common,  # see ImageSource
    ):
        """Opens the split.

        Raises:
          FileNotFoundError: it is not prepared on disk.
          UsageError: no such split or field, or no format that can be read at random.
        """
        super().__init__(**common)
        builder = _find(name, data_dir)
        if not builder.info.splits:
            raise FileNotFoundError(_not_prepared(builder, "it was never prepared"))
        parts = [part.partition("[")[0].strip() for part in split.split("+")]
        if any(part not in builder.info.splits for part in parts):
            raise UsageError(
                f"{name} has no split {split!r}: {', '.join(builder.info.splits)}"
            )
        features = builder.info.features
        self._image, self._key, self._split = image, key, split
        if type(find_feature(features, image)).__name__ != "Image":
            raise UsageError(
                f"field {image!r} of {name} holds no images: set config.data.image "
                f"to one of {', '.join(features)}"
            )
        found = [c for c in CAPTIONS if find_feature(features, c) is not None]
        if not caption and not found:
            raise UsageError(
                f"{name} has no field of captions by a usual name "
                f"({', '.join(CAPTIONS)}): set config.data.caption to one of "
                f"{', '.join(features)}"
            )
        self._caption = caption or found[0]
        for field in (self._caption, key):
            if field and find_feature(features, field) is None:
                raise UsageError(f"{name} has no field {field!r}: {features}")
        self._label = None
        feature = find_feature(features, self._caption)
        if hasattr(feature, "int2str"):
            self._label, self._template = feature.int2str, template
        self._open = functools.partial(_open, builder, split)
        examples = self._open()
        self._length = len(examples)
        # a reader's position is shared by its callers: each has one to itself
        self._idle: queue.LifoQueue = queue.LifoQueue()
        self._idle.put(examples)
        self._more = threading.Semaphore(READERS - 1)
        info = builder.info.splits[split]
        self.set_fingerprint(
            name=builder.info.full_name,
            split=split,
            fields=[image, self._caption, key, self._label and template],
            shards=list(info.shard_lengths or []),
            count=info.num_examples,
        )

    def __len__(self):
        return self._length

    def load(self, i: int) -> Raw:
        """Key, image bytes and captions of example i."""
        example = self._example(i)
        key = self._name(i)
        if self._key:
            key = _text(find_value(example, self._key))
        return Raw(key, find_value(example, self._image), self._captions_of(example))

    def load_captions(self, i: int):
        """The captions of example i, without reading its image."""
        return self._captions_of(self._example(i))

    def _name(self, i):
        return f"{self._split}-{i:08d}"

    def _example(self, i):
        examples = self._take_reader()
        try:
            return examples[i]
        except (RuntimeError, ValueError, IndexError) as error:
            raise BadRecord(self._name(i), f"damaged bytes ({error})") from error
        finally:
            self._idle.put(examples)

    def _take_reader(self):
        """One that nobody uses: another is opened while there are few."""
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            if self._more.acquire(blocking=False):
                return self._open()
            return self._idle.get()

    def _captions_of(self, example):
        value = find_value(example, self._caption)
        if self._label:
            name = self._label(int(value)).replace("_", " ")
            return [self._template.format(name)]
        if isinstance(value, bytes | str):
            return [_text(value)]
        return [_text(item) for item in value]


def _find(name, data_dir):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, AssertionError) as error:
        raise FileNotFoundError(
            f"TFDS has no data set {name!r} in {data_dir or 'its own folder'} "
            f"({_short(error)})"
        ) from error


def skip_images(features):
    """The decoders of TFDS that leave images as their bytes."""
    import tensorflow_datasets as tfds

    return {
        name: tfds.decode.SkipDecoding()
        for name, feature in features.items()
        if isinstance(feature, tfds.features.Image)
    }


def _open(builder, split):
    """The split as a random-access sequence whose images stay encoded."""
    try:
        decoders = skip_images(builder.info.features)
        return builder.as_data_source(split, decoders=decoders)
    except NotImplementedError as error:
        why = "it is in a format that cannot be read at random"
        raise UsageError(_not_prepared(builder, why)) from error
    except (AssertionError, OSError, RuntimeError) as error:
        raise FileNotFoundError(_not_prepared(builder, _short(error))) from error


def _not_prepared(builder, why) -> str:
    name = builder.info.full_name
    return (
        f"{name} cannot be read from {builder.data_dir}: {why}. Prepare it with "
        f"tfds.builder({name!r}, data_dir=..., file_format='array_record')"
        ".download_and_prepare()"
    )


def _short(error) -> str:
    return " ".join(str(error).split())[:200]


def find_feature(features, path):
    """The feature called "a" or "a/b", or None; names may themselves hold slashes."""
    if path in features:
        return features[path]
    first, _, rest = path.partition("/")
    if not rest or first not in features:
        return None
    inner = features[first]
    inner = getattr(inner, "feature", inner)  # a sequence of dicts
    return find_feature(inner, rest) if hasattr(inner, "keys") else None


def find_value(example, path):
    """What an example has in the field "a" or "a/b"."""
    if path in example:
        return example[path]
    first, _, rest = path.partition("/")
    return find_value(example[first], rest)


def _text(value) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
