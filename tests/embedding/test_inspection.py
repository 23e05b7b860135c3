"""The report before training: counts, reasons, norms, a sheet of pictures."""

import numpy as np
from PIL import Image

from unclip_jax.embedding import inspection
from unclip_jax.embedding.config import EmbedConfig


def config(folder):
    return EmbedConfig(
        clip="none is needed",
        data={"source": "folder", "path": str(folder), "image_size": 16},
        splits={"train": {"min_size": 8}},
    )


def test_a_folder_of_pictures(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for i, side in enumerate((8, 8, 8, 4, 8)):
        Image.new("RGB", (side, side), (250, 10, 10)).save(data / f"{i}.png")
        if i != 4:
            (data / f"{i}.txt").write_text("red\na red picture" if i else "red")
    (data / "2.png").write_bytes(b"torn")
    said = []
    inspection.inspect(config(data), tmp_path / "work", said.append)
    text = "\n".join(said)
    assert "train: source 'folder', not embedded yet" in text
    assert "4 examples; 4 of them looked at" in text
    assert "besides, 1 that are no examples: no caption" in text
    assert "1 left out for a side below min_size 8" in text
    assert "1 unreadable: its image is damaged (not an image)" in text
    assert "captions: 1.50 per example (1 to 2)" in text
    assert "the most frequent caption, 2 times: 'red'" in text
    sheet = np.asarray(Image.open(tmp_path / "work" / "inspection" / "train.png"))
    red = (sheet[..., 0] > 200) & (sheet[..., 1] < 50)
    assert red.sum() == 2 * 128 * 128  # two pictures, enlarged


def test_embeddings_are_measured():
    image, text = np.eye(3), 2 * np.eye(3)
    examples = [
        {
            "key": f"{i}",
            "caption": f"c{i}",
            "clip_image": image[i],
            "clip_text": text[i],
        }
        for i in range(3)
    ]
    examples[2]["key"] = "1"
    _, lines = inspection.examine(examples)
    text = "\n".join(lines)
    assert "norm of clip_image: 1.000 +- 0.000 (1.000 to 1.000), 3 numbers" in text
    assert "norm of clip_text: 2.000" in text
    assert "cosine of image and caption: 1.000 +- 0.000" in text
    assert "another's caption: 0.000" in text
    assert "1 keys are there more than once" in text
