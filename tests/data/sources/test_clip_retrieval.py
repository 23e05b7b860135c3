"""What clip-retrieval wrote: its convention, and rows that are no embeddings."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from unclip_jax.data.sources import BadRecord, LeftOut, make_source


def write(folder, parts, captions=None):
    """parts: (n, D) arrays, one a part."""
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir()
    for k, rows in enumerate(parts):
        np.save(folder / "img_emb" / f"img_emb_{k}.npy", rows.astype(np.float16))
        texts = captions or [f"number {i}" for i in range(len(rows))]
        table = pa.table({"caption": pa.array(texts, pa.string())})
        parquet.write_table(table, folder / "metadata" / f"metadata_{k}.parquet")
    return make_source({"source": "clip_retrieval", "path": str(folder)})


def rows(n, unit=False):
    x = 9 * np.random.default_rng(0).normal(size=(n, 8))
    return x / np.linalg.norm(x, axis=1, keepdims=True) if unit else x


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("counts", [(4,), (0, 4), (0, 0, 4, 3), (1500, 4)])
def test_the_convention_is_that_of_rows_that_are_there(tmp_path, unit, counts):
    data = write(tmp_path, [rows(n, unit) for n in counts])
    assert data.embedding_convention == ("unit" if unit else "raw")
    assert len(data) == sum(counts) and data[0]["caption"] == "number 0"


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 3, 7])
def test_a_row_that_is_no_embedding_is_unreadable_alone(tmp_path, value, row):
    unit = rows(8, unit=True)
    unit[row] = value
    data = write(tmp_path, [unit])
    assert data.embedding_convention == "unit"
    for i in range(8):
        if i == row:
            with pytest.raises(BadRecord, match=f"'0-{row}'.*image embedding is"):
                data[i]
        else:
            assert data[i]["key"] == f"0-{i}"


@pytest.mark.parametrize("caption", [None, "", " \n"])
def test_a_row_without_a_caption_is_left_out(tmp_path, caption):
    data = write(tmp_path, [rows(2)], ["a  b", caption])
    assert data[0]["caption"] == "a b" and data.captions() == ["a b"]
    with pytest.raises(LeftOut, match="no caption"):
        data[1]
