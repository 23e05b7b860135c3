"""The page's queue, its guard and what it offers, without a browser."""

import asyncio
import time

import numpy as np
import pytest
from PIL import Image

from unclip_jax.errors import UsageError
from unclip_jax.generation.page.forms import check_prompt, known_words, open_image
from unclip_jax.generation.page.guard import BODY_MOST, Guard
from unclip_jax.generation.page.jobs import Line, Stopped
from unclip_jax.images import read_image
from unclip_jax.tokenizer import train_tokenizer


def answer(served="127.0.0.1", method="GET", path="/config", **headers) -> int:
    """The status with which a page `served` on a host answers a request."""
    sent = []

    async def app(scope, receive, send):
        sent.append(200)

    async def send(message):
        sent.append(message.get("status", message.get("code")))

    names = {key.replace("_", "-"): value for key, value in headers.items()}
    raw = [(key.encode(), str(value).encode()) for key, value in names.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    asyncio.run(Guard(app, served)(scope, None, send))
    return sent[0]


@pytest.mark.parametrize("port", ["", ":7860"])
@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "box"])
def test_names_of_ours_are_answered(name, port):
    host = name + port
    assert answer("box", host=host) == 200
    assert answer("box", host=host, origin=f"http://{host}") == 200


@pytest.mark.parametrize(
    "host", ["evil.com", "evil.com:7860", "localhost.evil.com", "10.0.0.1", "", "[::"]
)
def test_other_names_are_not(host):
    assert answer(host=host) == 403


def test_other_sites_are_not_answered():
    for origin in ("http://evil.com", "null", "http://localhost:9999"):
        assert answer(host="localhost:7860", origin=origin) == 403


def test_a_page_for_all_answers_addresses_but_no_names():
    assert answer("0.0.0.0", host="10.1.2.3:7860") == 200
    assert answer("0.0.0.0", host="evil.com") == 403


def test_bodies_are_bounded():
    post = {"method": "POST", "host": "localhost", "path": "/gradio_api/queue/join"}
    assert answer(**post, content_length=BODY_MOST) == 200
    assert answer(**post, content_length=BODY_MOST + 1) == 413
    assert answer(**post) == 411
    post["path"] = "/gradio_api/upload"  # which Gradio bounds
    assert answer(**post, content_length=BODY_MOST + 1) == 200


def forever(progress):
    while True:
        progress.step("decoder", 3, 10)
        time.sleep(0.01)


def test_a_queue_is_bounded_and_each_can_stop():
    line = Line(most=3)
    jobs = [line.add(forever) for _ in range(3)]
    with pytest.raises(UsageError, match="3 drawings wait already"):
        line.add(forever)
    assert [line.before(job) for job in jobs] == [0, 1, 2]
    assert "number 3 in the queue" in jobs[2].status(2)
    for job in jobs[::-1]:
        job.stop()
    for job in jobs:
        with pytest.raises(Stopped):
            job.result()
    assert line.add(lambda progress: 5).result() == 5


def test_what_a_drawing_raises_is_raised():
    def fail(progress):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        Line().add(fail).result()


def test_a_drawing_says_how_far_it_is():
    job = Line().add(forever)
    assert "Compiling" in job.status(0) or "step 4 of 10" in job.status(0)
    while "step 4 of 10" not in job.status(0):
        time.sleep(0.01)
    job(2, 8)
    assert "2 of 8 pictures" in job.status(0)
    job.stop()


def test_a_drawing_that_nobody_looks_at_ends(monkeypatch):
    monkeypatch.setattr("unclip_jax.generation.page.jobs.PATIENCE", 0.05)
    with pytest.raises(Stopped):
        Line().add(forever).result()


def test_words_of_the_vocabulary_are_offered():
    captions = ["a red heart on a white background", "a blue heart"] * 20
    tokenizer = train_tokenizer(captions, None, 600, 12)
    words = known_words(tokenizer)
    assert {"red", "heart", "white", "background", "blue"} <= {*words}
    assert not {"backgr", "ground", "ound", "eart"} & {*words}, "pieces of words"
    assert known_words(None) == []


@pytest.mark.parametrize("name", ["layer.png", "gray.png", "palette.gif"])
def test_uploads_are_read_as_other_files(tmp_path, name):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[16:48, 16:48] = [255, 0, 0, 255]
    image = {
        "layer.png": Image.fromarray(pixels),
        "gray.png": Image.fromarray(np.linspace(0, 65535, 64)[None].astype(np.uint16)),
        "palette.gif": Image.fromarray(pixels[..., :3]).quantize(8),
    }[name]
    image.save(tmp_path / name)
    picture = open_image(str(tmp_path / name), "a picture")
    assert picture.dtype == np.uint8 and picture.shape[-1] == 3
    np.testing.assert_array_equal(picture, read_image(tmp_path / name))
    if name == "layer.png":
        assert picture[0, 0].tolist() == [255, 255, 255]  # not black


def test_what_is_no_upload_is_refused(tmp_path):
    with pytest.raises(UsageError, match="give a picture first"):
        open_image(None, "a picture")
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(UsageError, match="not a readable image"):
        open_image(str(tmp_path / "x.png"), "a picture")


def test_prompts_are_bounded():
    assert check_prompt("  a red heart \n") == "a red heart"
    for text in ("", " \n", None):
        with pytest.raises(UsageError, match="the prompt is empty"):
            check_prompt(text)
    with pytest.raises(UsageError, match="2000 characters: 1000 at most"):
        check_prompt("x" * 2000)
