"""Encoders fill arrays: whole, resumed, and of transformers' models as they are."""

import numpy as np
import pytest

from unclip_jax.data.aligned.encoding import encode
from unclip_jax.errors import UsageError
from unclip_jax.interop.transformers_encoder import transformers_encoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def squares(rows):
    return np.array(rows, float)[:, None] ** [1, 2]


def test_rows_are_written_and_an_interrupted_call_goes_on(tmp_path):
    path, calls = tmp_path / "a" / "x.npy", []

    def failing(rows):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return squares(rows)

    with pytest.raises(KeyboardInterrupt):
        encode(failing, range(10), path, batch_size=3)
    assert not path.exists()
    found = encode(failing, range(10), path, batch_size=3)
    np.testing.assert_array_equal(found, squares(range(10)).astype("f4"))
    assert calls[3] == [0, 2, 5]  # encoded again, to compare
    assert [rows[0] for rows in calls[:3] + calls[4:]] == [0, 3, 6, 6, 9]
    assert [file.name for file in path.parent.iterdir()] == ["x.npy"]
    encode(failing, range(10), path)
    assert len(calls) == 7 and calls[6] == [*range(10)]  # finished already
    with pytest.raises(FileExistsError, match=r"float32 \(10, 2\), not 9 rows"):
        encode(squares, range(9), path)


@pytest.mark.parametrize("finished", (False, True))
def test_rows_of_two_encoders_are_not_mixed(finished, tmp_path):
    """Another encoder, another width and other inputs are refused; nothing is lost."""
    path, calls = tmp_path / "x.npy", []

    def encoder(rows):
        calls.append(rows)
        if len(calls) == 3 and not finished:
            raise KeyboardInterrupt
        return squares(rows)

    try:
        encode(encoder, range(10), path, batch_size=3, dtype="float16")
    except KeyboardInterrupt:
        pass
    assert path.exists() == finished
    options = dict(path=path, batch_size=3, dtype="float16")
    others = (
        (lambda rows: 1.1 * squares(rows), range(10), "row [24];"),  # of 0 it is 0
        (lambda rows: squares(rows)[:, :1], range(10), "row 0;"),
        (squares, range(1, 11), "row 0;"),
    )
    for other, inputs, where in others:
        with pytest.raises(FileExistsError, match=f"another encoder, .* {where}"):
            encode(other, inputs, **options)
    with pytest.raises(FileExistsError, match="not 11 rows of float16"):
        encode(squares, range(11), **options)
    found = encode(lambda rows: 1.0001 * squares(rows), range(10), **options)
    np.testing.assert_allclose(found, squares(range(10)), rtol=1e-3)


@pytest.mark.parametrize(
    "encoder, message",
    [
        (
            lambda rows: np.zeros((1, 2)),
            r"made \(1, 2\) of 4 inputs, expected \(4, 2\)",
        ),
        (lambda rows: 0.0, r"made \(\) of 4 inputs"),
        (lambda rows: squares(rows) / np.array([[1, len(rows) - 2]]), "of input 4"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_bad_encoders(encoder, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        encode(encoder, range(6), tmp_path / "x.npy", batch_size=4)
    with pytest.raises(UsageError, match="expected a file NAME.npy"):
        encode(squares, [], tmp_path / "x.npy")


def tokenizer(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "cat"]
    (folder / "vocab.txt").write_text("\n".join(words))
    own = transformers.BertTokenizer(str(folder / "vocab.txt"), model_max_length=8)
    own.save_pretrained(folder)
    return own


@pytest.mark.slow
def test_models_of_transformers(tmp_path):
    """BERT's and a ViT's pooled output and masked states, the library's own: 1e-5."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=7, intermediate_size=8, **sizes)
    bert = transformers.BertModel(config, add_pooling_layer=True).eval()
    bert.save_pretrained(tmp_path / "bert")
    own = tokenizer(tmp_path / "bert")
    texts = ["a red cat", "cat"]
    given = own(texts, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        expected = bert(**given)
    pooled = transformers_encoder(tmp_path / "bert", "text")(texts)
    np.testing.assert_allclose(pooled, expected.pooler_output, atol=1e-5)
    tokens = transformers_encoder(tmp_path / "bert", "text", "tokens")(texts)
    masked = expected.last_hidden_state * given["attention_mask"][..., None]
    assert tokens.shape == (2, 8, 8)
    np.testing.assert_allclose(tokens, masked, atol=1e-5)

    config = transformers.ViTConfig(
        image_size=8, patch_size=4, intermediate_size=8, **sizes
    )
    vit = transformers.ViTModel(config).eval()
    vit.save_pretrained(tmp_path / "vit")
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    processor.save_pretrained(tmp_path / "vit")
    images = list(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8))
    with torch.no_grad():
        expected = vit(**processor(images, return_tensors="pt"))
    found = transformers_encoder(tmp_path / "vit", "image")(images)
    np.testing.assert_allclose(found, expected.pooler_output, atol=1e-5)


def test_folders_that_are_no_encoder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        transformers_encoder(tmp_path, "text")
    with pytest.raises(UsageError, match="got 'sound' and 'pooled'"):
        transformers_encoder(tmp_path, "sound")
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(UsageError, match="cannot be read by transformers"):
        transformers_encoder(tmp_path, "text")
