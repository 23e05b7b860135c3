"""What side files say of images is followed or refused by name."""

import json

import pytest

from unclip_jax.interop.clip_pixels import read_preprocess_cfg, read_preprocessor
from unclip_jax.models.clip import OPENAI_MEAN, OPENAI_STD

USUAL = {"image_mean": OPENAI_MEAN, "image_std": OPENAI_STD}
PLAIN = {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
HALF = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}


def read(folder, config, file="preprocessor_config.json"):
    (folder / file).write_text(json.dumps(config))
    return read_preprocessor(folder, 28)


@pytest.mark.parametrize(
    "config,expected",
    [
        ({}, USUAL),
        ({"size": 28, "crop_size": 28}, USUAL),
        (
            {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
            USUAL,
        ),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}, HALF),
        ({"do_normalize": False, "image_mean": [0.5] * 3}, PLAIN),
        ({"rescale_factor": 0.00392156862745098, "do_rescale": True}, USUAL),
        ({"image_processor_type": "X", "do_convert_rgb": None, "do_pad": None}, USUAL),
        ({"size": {"shortest_edge": 28}, "default_to_square": True}, USUAL),
        ({"size": 28, "default_to_square": False, "do_convert_rgb": True}, USUAL),
        ({"_valid_processor_keys": ["images"], "do_center_crop": True}, USUAL),
    ],
)
def test_what_is_followed(tmp_path, config, expected):
    assert read(tmp_path, config) == expected


@pytest.mark.parametrize(
    "config,problem",
    [
        ({"size": {"height": 28, "width": 28}}, "size is {'height': 28, 'width': 28}"),
        ({"size": {"shortest_edge": 32}}, "size is {'shortest_edge': 32}, but"),
        ({"size": 32}, "size is 32, but images are prepared here with 28"),
        ({"crop_size": 24}, "crop_size is 24"),
        ({"crop_size": {"height": 28, "width": 30}}, "crop_size is {'height': 28"),
        ({"do_resize": False}, "do_resize is False"),
        ({"do_center_crop": False}, "do_center_crop is False"),
        ({"do_rescale": False}, "do_rescale is False"),
        ({"do_convert_rgb": False}, "do_convert_rgb is False"),
        ({"size": 28, "default_to_square": True}, "default_to_square is True"),
        ({"resample": 2}, "resample is 2"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
        ({"rescale_factor": "x"}, "rescale_factor is 'x'"),
        ({"image_std": [0.0, 1, 1]}, "image_std is .* expected three numbers"),
        ({"image_mean": 0.5}, "image_mean is 0.5; expected three numbers"),
        ({"image_mean": ["a", 1, 2]}, "image_mean is .* expected three numbers"),
        ({"do_pad": True}, "unknown key 'do_pad'"),
        ([], "expected settings by name"),
    ],
)
def test_what_is_refused(tmp_path, config, problem):
    with pytest.raises(ValueError, match=problem) as error:
        read(tmp_path, config)
    assert "preprocessor_config.json" in str(error.value)


def test_no_file_is_openais(tmp_path):
    assert read_preprocessor(tmp_path, 28) == USUAL
    with pytest.raises(FileNotFoundError, match="preprocessor_config.json is missing"):
        read_preprocessor(tmp_path, 28, required=True)


def test_transformers_own_files_are_followed(tmp_path):
    """As the installed version writes them, whatever their name."""
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor.save_pretrained(tmp_path)
    assert read_preprocessor(tmp_path, 28) == HALF
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    both = {"image_processor": config, "processor_class": "CLIPProcessor"}
    assert read(tmp_path, both, "processor_config.json") == HALF


@pytest.mark.parametrize(
    "config,problem",
    [
        ({"resize_mode": "squash"}, "resize_mode is 'squash'"),
        ({"resize_mode": "longest", "fill_color": 0}, "resize_mode is 'longest'"),
        ({"interpolation": "bilinear"}, "interpolation is 'bilinear'"),
        ({"size": [32, 32]}, r"size is \[32, 32\]"),
        ({"size": 32}, "size is 32"),
        ({"mode": "L"}, "mode is 'L'"),
        ({"antialias": False}, "unknown key 'antialias'"),
    ],
)
def test_what_is_refused_of_open_clip(config, problem):
    with pytest.raises(ValueError, match=problem):
        read_preprocess_cfg(config, 28, "open_clip_config.json")


def test_what_is_followed_of_open_clip():
    assert read_preprocess_cfg({}, 28, "x") == USUAL
    half = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": [28, 28], "mode": "RGB"}
    half |= {"interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}
    assert read_preprocess_cfg(half, 28, "x") == HALF
