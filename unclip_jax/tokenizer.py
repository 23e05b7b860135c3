"""CLIP's tokenizer: lower-cased byte-pair encoding, trained here or loaded.

The format is that of OpenAI's CLIP (section 2 of the unCLIP paper uses its encoder):
text in NFC, white space collapsed, lower-cased, split into words, digits and
punctuation, spelt in 256 byte symbols, the last symbol of each word marked `</w>`.
Numbers: 256 bytes, the same 256 with `</w>`, one per merge, then <|startoftext|> and
<|endoftext|>. A saved folder is what `transformers.CLIPTokenizerFast` loads.

OpenAI's and OpenCLIP's programs repair text first (ftfy, and HTML's entities twice), as
the captions that their weights were trained on were; transformers does not. So captions
are repaired for a folder of OpenCLIP, and for one whose tokenizer_config.json says so.
"""

import functools
import html
import json
import os
import pathlib
import ssl
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import ftfy
import numpy as np
import tokenizers
from etils import epath
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import trainers as bpe_trainers

from unclip_jax.errors import UsageError
from unclip_jax.files import atomic_write, read_json, sha256_json

START, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]"
    r"|[^\s\p{L}\p{N}]+"
)
FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
FILES += ("tokenizer_config.json", "tokenizer.json")
CONFIG, REPAIRS = "tokenizer_config.json", "fix_text"
OPEN_CLIP = "open_clip_config.json"  # its folders' captions are repaired
SMALLEST_VOCAB = 2 * 256 + 2  # every byte, inside and at the end of a word, and the two


class Tokenizer:
    """Captions to token numbers, int32, of one fixed length.

    Attributes:
      context_length: int, tokens per caption with start and end.
      vocab_size: int.
      sot_id, eot_id: int, of <|startoftext|> and <|endoftext|>.
      fix_text: bool, whether captions are repaired first, see `repair`.
      fingerprint: str, another for another vocabulary, other merges, or repairs.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        context_length: int = 77,
        warn: bool = False,
        fix_text: bool = False,
    ):
        """Raises UsageError when it is not CLIP's kind of tokenizer."""
        if context_length < 3:
            raise UsageError(f"context_length must be at least 3, got {context_length}")
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.context_length = int(context_length)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        start, end = backend.token_to_id(START), backend.token_to_id(END)
        if start is None or end is None:
            raise UsageError(
                f"not a CLIP tokenizer: its vocabulary of {self.vocab_size} has no "
                f"{START} and {END}"
            )
        if self.vocab_size < SMALLEST_VOCAB:
            raise UsageError(
                f"not a CLIP tokenizer: a vocabulary of {self.vocab_size}, of which "
                f"{SMALLEST_VOCAB} would be single bytes and {START} and {END}"
            )
        self.sot_id, self.eot_id = start, end
        self.fix_text = fix_text
        self._warn = warn

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of vocabulary and merges; equal for tokenizers that encode alike."""
        model = json.loads(self._backend.to_str())["model"]
        vocab = sorted(self._backend.get_vocab(with_added_tokens=True).items())
        own = [vocab, _pairs(model["merges"])]
        return sha256_json([*own, REPAIRS] if self.fix_text else own)

    @classmethod
    def load(
        cls, name_or_folder, context_length: int | None = None, warn: bool = False
    ) -> "Tokenizer":
        """Reads a folder (see `save`) or a public CLIP tokenizer.

        Args:
          name_or_folder: a folder with tokenizer.json, or with vocab.json and
            merges.txt; or a name such as "openai/clip-vit-large-patch14", which
            transformers looks up.
          context_length: None is the folder's own (77 when it does not say).
          warn: whether to warn of captions that are too long.

        Raises:
          FileNotFoundError: neither a folder with a tokenizer nor a name that can be
            found. UsageError: another kind of tokenizer.
        """
        folder = pathlib.Path(name_or_folder)
        if (folder / "tokenizer.json").is_file():
            backend = _read(folder / "tokenizer.json", tokenizers.Tokenizer.from_file)
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
            vocab, merges = _read(files, lambda f: models.BPE.read_file(*f))
            backend = _make_backend(vocab, merges)
        elif folder.exists():
            raise FileNotFoundError(
                f"no tokenizer in {str(folder)!r}: expected tokenizer.json, or "
                "vocab.json and merges.txt"
            )
        elif _is_path(folder):
            raise FileNotFoundError(f"tokenizer folder {str(folder)!r} does not exist")
        else:
            backend, own = _from_hub(str(name_or_folder))
            return cls(backend, context_length or own, warn)
        config = _read_config(folder)
        length = context_length or _own_length(config)
        fix_text = bool(config.get(REPAIRS, (folder / OPEN_CLIP).is_file()))
        return cls(backend, length, warn, fix_text)

    def encode(self, captions: Sequence[str]) -> np.ndarray:
        """int32 (N, L): start, tokens, end, then end as padding.

        What is too long is cut; the end token is always there.
        """
        if isinstance(captions, str):
            raise UsageError(f"encode takes a list of captions, got {captions!r}")
        tokens = np.full((len(captions), self.context_length), self.eot_id, np.int32)
        tokens[:, 0] = self.sot_id
        if self.fix_text:
            captions = [repair(caption) for caption in captions]
        encoded = self._backend.encode_batch(list(captions), add_special_tokens=False)
        for row, encoding in zip(tokens, encoded, strict=True):
            ids = encoding.ids[: self.context_length - 2]
            if self._warn and len(ids) < len(encoding.ids):
                warnings.warn(
                    f"a caption has {len(encoding.ids)} tokens, of which the first "
                    f"{len(ids)} are seen",
                    stacklevel=2,
                )
            row[1 : 1 + len(ids)] = ids
        return tokens

    def token_id(self, token: str) -> int | None:
        """The number of a token as the vocabulary spells it; None if it has none."""
        return self._backend.token_to_id(token)

    def decode(self, tokens) -> str:
        """The text of one row of token numbers, up to its first end token."""
        ids = [int(t) for t in tokens]
        ids = ids[: ids.index(self.eot_id)] if self.eot_id in ids else ids
        ids = [t for t in ids if t != self.sot_id]
        text = self._backend.decode(ids, skip_special_tokens=False)
        return text.replace(SUFFIX, " ").strip()

    def save(self, folder) -> None:
        """Writes the files that transformers loads; each is whole or absent.

        Raises FileExistsError when the folder holds another tokenizer.
        """
        folder = pathlib.Path(folder)
        if (folder / "tokenizer.json").is_file():
            if type(self).load(folder).fingerprint != self.fingerprint:
                raise FileExistsError(
                    f"{str(folder)!r} holds another tokenizer; choose another folder "
                    "or remove it"
                )
        folder.mkdir(parents=True, exist_ok=True)
        model = json.loads(self._backend.to_str())["model"]
        merges = "\n".join(" ".join(pair) for pair in _pairs(model["merges"]))
        special = {
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": END,
        }
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.context_length,
            "add_prefix_space": False,
            "do_lower_case": True,
            **({REPAIRS: True} if self.fix_text else {}),
            **special,
        }
        texts = {
            "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
            "merges.txt": f"#version: 0.2\n{merges}\n",
            "special_tokens_map.json": json.dumps(special, indent=1),
            CONFIG: json.dumps(config, indent=1),
            "tokenizer.json": self._backend.to_str(),  # last: the folder is whole
        }
        for name, text in texts.items():
            atomic_write(folder / name, text)


def repair(caption: str) -> str:
    """The caption as OpenAI's CLIP and OpenCLIP see it.

    Mojibake, curly quotes, ligatures and full-width letters are made plain by ftfy;
    HTML's entities are letters, also where they were escaped twice.
    """
    return html.unescape(html.unescape(ftfy.fix_text(caption))).strip()


def copy_tokenizer(source: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Copies the files of a tokenizer, and no others, out of a folder or a bucket.

    Raises FileNotFoundError when `source` holds none.
    """
    source, folder = epath.Path(source), pathlib.Path(folder)
    texts = {f: (source / f).read_text() for f in FILES if (source / f).is_file()}
    if not texts:
        raise FileNotFoundError(
            f"{source} is not a tokenizer: none of {', '.join(FILES)} in it"
        )
    if (source / OPEN_CLIP).is_file():  # that file stays behind
        config = {REPAIRS: True, **json.loads(texts.get(CONFIG, "{}"))}
        texts[CONFIG] = json.dumps(config, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        atomic_write(folder / name, text)


def train_tokenizer(
    captions: Iterable[str],
    folder,
    vocab_size: int,
    context_length: int = 77,
) -> Tokenizer:
    """Learns the merges from captions and saves the tokenizer.

    Args:
      captions: any number of str.
      folder: where to save; None saves nothing.
      vocab_size: the most tokens, at least 514; fewer when the captions offer fewer
        merges.
      context_length: saved as the tokenizer's own.

    Returns:
      the Tokenizer, a function of the captions and vocab_size alone.
    """
    if vocab_size < SMALLEST_VOCAB:
        raise UsageError(
            f"vocab_size must be at least {SMALLEST_VOCAB} (256 bytes twice and two "
            f"markers), got {vocab_size}"
        )
    learner = _make_backend({}, [])
    trainer = bpe_trainers.BpeTrainer(
        vocab_size=vocab_size,
        end_of_word_suffix=SUFFIX,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    merges = _pairs(json.loads(learner.to_str())["model"]["merges"])
    merges = merges[: vocab_size - SMALLEST_VOCAB]
    letters = _byte_symbols()
    tokens = [*letters, *(letter + SUFFIX for letter in letters)]
    tokens += dict.fromkeys("".join(pair) for pair in merges)
    vocab = {token: i for i, token in enumerate([*tokens, START, END])}
    tokenizer = Tokenizer(_make_backend(vocab, merges), context_length)
    if folder is not None:
        tokenizer.save(folder)
    return tokenizer


def _byte_symbols() -> list[str]:
    """The 256 printable stand-ins of bytes, in CLIP's order (its bytes_to_unicode)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = len(set(range(256)) - set(printable))
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(others)]


def _make_backend(vocab, merges) -> tokenizers.Tokenizer:
    """CLIP's pipeline around a vocabulary; as transformers builds it."""
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[tuple(pair) for pair in merges],
            continuing_subword_prefix="",
            end_of_word_suffix=SUFFIX,
            fuse_unk=False,
            unk_token=END if vocab else None,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                tokenizers.Regex(WORDS), behavior="removed", invert=True
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    if START in vocab and END in vocab:
        backend.add_special_tokens([START, END])
        backend.post_processor = processors.RobertaProcessing(
            (END, vocab[END]), (START, vocab[START]), False, False
        )
    return backend


def _is_path(folder) -> bool:
    """Meant as a folder, not as owner/name: asking the network takes long."""
    parts = folder.parts
    if len(parts) == 2 and not folder.is_absolute():
        return parts[0] == ".." or folder.parent.is_dir()
    return len(parts) != 1


def _from_hub(name):
    """(backend, its context length) of a public tokenizer, by transformers."""
    from transformers import CLIPTokenizerFast  # pyrefly: ignore

    away = _why_the_hub_is_away()
    try:
        found = CLIPTokenizerFast.from_pretrained(name, local_files_only=bool(away))
        if len(found) < SMALLEST_VOCAB:  # transformers makes one of no files at all
            raise FileNotFoundError(f"it has no more than {len(found)} words")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if away:
            reason = (
                f"the hub cannot be reached ({away}) and it is not in the cache; fetch "
                "it where there is a network, or name a folder with one"
            )
        raise FileNotFoundError(
            f"tokenizer {name!r} is neither a folder here nor a CLIP tokenizer that "
            f"transformers can find: {reason}"
        ) from error
    length = found.model_max_length
    return _plain_copy(found.backend_tokenizer), length if length < 10**6 else 77


def _why_the_hub_is_away() -> str:
    """Why nothing can be fetched, after one attempt; "" if it can.

    transformers would try each of a dozen files again and again, for minutes, without
    a word.
    """
    from huggingface_hub import constants  # pyrefly: ignore

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError:  # it answers
        return ""
    except OSError as error:
        reason = getattr(error, "reason", error)
        # certificates that transformers may know by another way
        return "" if isinstance(reason, ssl.SSLError) else str(reason)
    return ""


def _plain_copy(backend):
    # transformers patches its own object's decode; a copy has none of that.
    return tokenizers.Tokenizer.from_str(backend.to_str())


def _read_config(folder) -> dict[str, Any]:
    file = folder / CONFIG
    config = read_json(file, "") if file.is_file() else {}
    repairs = config.get(REPAIRS, False)
    if not isinstance(repairs, bool):
        raise UsageError(f"{file}: {REPAIRS} is {repairs!r}, expected true or false")
    return config


def _own_length(config) -> int:
    """model_max_length of a tokenizer_config.json, or CLIP's 77."""
    length = config.get("model_max_length", 77)
    return int(length) if length < 10**6 else 77  # "no limit" is written as 1e30


def _read(what, reader):
    try:
        return reader(what if isinstance(what, tuple) else str(what))
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        raise UsageError(f"{what} is not a readable tokenizer: {error}") from error


def _pairs(merges) -> list[tuple[str, ...]]:
    """Merges as pairs; files of some versions write them as "a b"."""
    return [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
