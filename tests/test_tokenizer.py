"""The tokenizer: CLIP's format, the same ids as transformers, clear refusals."""

import http.server
import json
import threading
import time

import numpy as np
import pytest

from unclip_jax import tokenizer as tokenizer_module
from unclip_jax.data.loader import open_data
from unclip_jax.data.sources.icons import Icons
from unclip_jax.tokenizer import Tokenizer, train_tokenizer

TEXTS = [
    "a red umbrella on a teal background",
    "",
    "   ",
    "It's  we'll I'd they've\tnot\n\nhere, don't",
    "Cafe\u0301 ÉCOLE naïve 東京 ß İstanbul ǅ ﬁ Å Å",
    "🦄🦄 \u200d\u00a0\u2003x",
    "x1234 -- !!! a.b, c;d 'S 'RE ''",
    "<|endoftext|> inside <|startoftext|>",
    "<|EndOfText|>",
    "\x00\x07 a",
    "umbrella " * 30,
]


@pytest.fixture(scope="module")
def captions():
    return Icons(nouns=24, colours=8, backgrounds=8).captions(3000)


@pytest.fixture(scope="module")
def folder(captions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(captions, folder, 640, context_length=16)
    return folder


def test_transformers_loads_it_and_agrees(folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizerFast.from_pretrained(folder)
    ours = Tokenizer.load(folder)
    assert len(theirs) == ours.vocab_size
    assert theirs.eos_token_id == theirs.pad_token_id == ours.eot_id
    assert theirs.bos_token_id == ours.sot_id
    assert theirs.model_max_length == 16
    for text in TEXTS:
        ids = theirs(text, padding="max_length", truncation=True)["input_ids"]
        assert ours.encode([text])[0].tolist() == ids, text


def test_vocab_and_merges_alone_give_the_same_ids(folder, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    a, b = Tokenizer.load(folder, 12), Tokenizer.load(tmp_path, 12)
    assert a.fingerprint == b.fingerprint
    assert np.array_equal(a.encode(TEXTS), b.encode(TEXTS))


def test_numbers_are_laid_out_as_clip_lays_them(folder):
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    # As in OpenAI's vocabulary: "!" is 0, "a</w>" is 256 + 64, the markers are last.
    assert vocab["!"] == 0 and vocab["a"] == 64 and vocab["a</w>"] == 320
    assert vocab["<|startoftext|>"] == len(vocab) - 2
    assert vocab["<|endoftext|>"] == len(vocab) - 1
    assert sorted(vocab.values()) == list(range(len(vocab)))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert merges[0].startswith("#version")
    assert len(merges) - 1 == len(vocab) - 514


def test_rows_start_end_and_are_padded_with_the_end(folder):
    tokenizer = Tokenizer.load(folder)
    tokens = tokenizer.encode(["", "a red key on blue", "red " * 50])
    assert tokens.dtype == np.int32 and tokens.shape == (3, 16)
    assert (tokens[:, 0] == tokenizer.sot_id).all()
    assert (tokens[0, 1:] == tokenizer.eot_id).all()
    assert (tokens[1, 6:] == tokenizer.eot_id).all()
    assert (tokens[1, 1:6] != tokenizer.eot_id).all()
    assert tokens[2, -1] == tokenizer.eot_id and tokens[2, -2] != tokenizer.eot_id
    assert tokenizer.encode([]).shape == (0, 16)


def test_training_is_repeatable_and_words_of_captions_become_tokens(captions):
    a = train_tokenizer(captions, None, 4096, 16)
    b = train_tokenizer(iter(captions), None, 4096, 16)
    assert a.fingerprint == b.fingerprint
    assert a.vocab_size < 4096  # no more merges to learn
    tokens = a.encode(captions)
    words = [len(c.replace(",", " ,").split()) for c in captions]
    assert ((tokens != a.eot_id).sum(1) - 1 == words).all()
    assert tokens.max() < a.vocab_size
    assert all(
        a.decode(t).replace(" ,", ",") == c
        for t, c in zip(tokens, captions, strict=True)
    )


def test_unseen_text_comes_back(folder):
    tokenizer = Tokenizer.load(folder, 64)
    (tokens,) = tokenizer.encode(["Zürich 東京 quokka"])
    assert tokenizer.decode(tokens) == "zürich 東京 quokka"


def test_captions_cut_short_are_told_where_it_is_asked_for(folder, recwarn):
    long = ["word " * 100]
    Tokenizer.load(folder, 9).encode(long)
    warned = Tokenizer.load(folder, 9, warn=True)
    warned.encode(["a"])
    assert not recwarn.list
    with pytest.warns(UserWarning, match="tokens, of which the first 7 are seen"):
        (tokens,) = warned.encode(long)
    assert tokens[0] == warned.sot_id and tokens[-1] == warned.eot_id


def test_saving_again_is_fine_and_over_another_is_refused(folder, captions):
    before = (folder / "tokenizer.json").read_bytes()
    Tokenizer.load(folder).save(folder)
    assert (folder / "tokenizer.json").read_bytes() == before
    with pytest.raises(FileExistsError, match="another tokenizer"):
        train_tokenizer(captions, folder, 600)
    assert (folder / "tokenizer.json").read_bytes() == before


def test_bad_input_is_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no tokenizer in"):
        Tokenizer.load(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    for name in (tmp_path / "none", f"{tmp_path.name}/none", "../x", "a/b/c", ""):
        with pytest.raises(FileNotFoundError):
            Tokenizer.load(name)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ValueError, match="not a readable tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="at least 514"):
        train_tokenizer(["a"], None, 100)
    with pytest.raises(ValueError, match="list of captions"):
        Tokenizer.load(folder).encode("a red heart")
    with pytest.raises(ValueError, match="context_length"):
        Tokenizer.load(folder, 2)


def test_public_tokenizers_by_name(folder, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizerFast.from_pretrained(folder)

    monkeypatch.setattr(tokenizer_module, "_why_the_hub_is_away", lambda: "")

    def from_pretrained(name, local_files_only):
        if name != "openai/clip":
            raise OSError(f"{name} is not a known model\nand more")
        return theirs

    monkeypatch.setattr(
        transformers.CLIPTokenizerFast, "from_pretrained", from_pretrained
    )
    got = Tokenizer.load("openai/clip")
    assert got.context_length == 16
    assert np.array_equal(got.encode(TEXTS), Tokenizer.load(folder).encode(TEXTS))
    got.save(tmp_path / "kept")
    assert Tokenizer.load(tmp_path / "kept").fingerprint == got.fingerprint
    data = open_data(
        {"source": "icons", "nouns": 2, "tokenizer": "openai/clip"},
        tokenizer_dir=tmp_path / "kept",
    )
    assert data.spec.tokenizer_folder == str(tmp_path / "kept")
    with pytest.raises(FileNotFoundError, match="neither a folder here nor"):
        Tokenizer.load("nobody/no-such-tokenizer")


@pytest.mark.slow
@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_that_is_away_is_asked_once(monkeypatch, offline):
    """transformers alone would try for minutes."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"reached .* name a folder with one"):
        Tokenizer.load("nobody/nothing")
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("status,reached", [(200, True), (404, True), (None, False)])
def test_a_hub_that_answers_is_not_away(monkeypatch, status, reached):
    from huggingface_hub import constants

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        if status is not None:
            threading.Thread(target=server.handle_request, daemon=True).start()
        else:
            server.server_close()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        assert (tokenizer_module._why_the_hub_is_away() == "") == reached


def test_another_kind_of_tokenizer_is_refused(tmp_path):
    import tokenizers

    other = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a"))
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="not a CLIP tokenizer"):
        Tokenizer.load(tmp_path)
