"""The page in a real browser, with a tiny model: what is clicked is drawn."""

import importlib.util
import shutil
import socket
import time
import types

import numpy as np
import pytest
from PIL import Image

from unclip_jax.images import read_image, read_metadata

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None
        or importlib.util.find_spec("playwright") is None,
        reason="needs requirements-app.txt and playwright",
    ),
]


@pytest.fixture(scope="module")
def url(model):
    """The address of the running page."""
    from unclip_jax.generation import page as page_room

    page = page_room.make_page(model, "tiny")
    yield page_room.launch(page)
    page.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
        browser = playwright.chromium.launch(**options)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, url):
    page = browser.new_page()
    page.set_default_timeout(60_000)
    failures = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(url)
    yield page
    page.close()
    assert not failures


@pytest.fixture
def picture(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "picture.png"
    Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
    return str(path)


def test_a_prompt_becomes_pictures(tab):
    tab.locator("#prompt textarea").fill("a red heart")
    tab.locator("#draw").click()
    tab.wait_for_selector("#pictures img")
    assert tab.locator("#pictures .grid-container img").count() == 4
    assert "seed 0, number 3" in tab.locator("#pictures").inner_text()


def test_the_pixels_drawn_are_what_one_downloads(tab, model, tmp_path):
    tab.locator("#prompt textarea").fill("a red heart ❤")
    tab.locator("#draw").click()
    tab.wait_for_selector("#pictures img")
    sources = tab.locator("#pictures .grid-container img").all()
    response = tab.request.get(sources[2].get_attribute("src"))
    (tmp_path / "x.png").write_bytes(response.body())
    assert response.body().startswith(b"\x89PNG")
    expected = model.text2image(["a red heart ❤"] * 4, seed=0)[2]
    difference = read_image(tmp_path / "x.png").astype(int) - expected
    assert np.abs(difference).max() <= 1
    metadata = read_metadata(tmp_path / "x.png")
    assert metadata["prompt"] == "a red heart ❤" and metadata["index"] == "2"
    assert sources[2].bounding_box()["width"] >= 256


def test_refusals_carry_their_text(tab):
    tab.locator("#draw").click()
    tab.get_by_text("the prompt is empty").wait_for()
    tab.locator("#prompt textarea").fill("a red heart")
    tab.locator("#seed input").fill("")
    tab.locator("#draw").click()
    tab.get_by_text("the seed is missing").wait_for()
    assert tab.locator("#pictures .grid-container img").count() == 0


def test_draw_becomes_stop_and_others_wait(tab, browser, url, model, monkeypatch):
    def slow(prompts, progress, **options):
        while True:
            progress.step("decoder", 1, 10)
            time.sleep(0.05)

    monkeypatch.setattr(model, "text2image", slow)
    tab.locator("#prompt textarea").fill("a red heart")
    tab.locator("#draw").click()
    tab.locator("#draw-stop").wait_for()
    tab.get_by_text("decoder, step 2 of 10").wait_for()
    assert not tab.locator("#draw").count() or not tab.locator("#draw").is_visible()
    other = browser.new_page()
    other.goto(url)
    other.locator("#prompt textarea").fill("a blue cat")
    other.locator("#draw").click()
    other.get_by_text("number 2 in the queue").wait_for()
    other.locator("#draw-stop").click()
    tab.locator("#draw-stop").click()
    for page in (tab, other):
        page.get_by_text("Stopped.").wait_for()
        page.locator("#draw").wait_for()
    other.close()


def test_the_address_has_the_settings(tab, browser):
    tab.locator("#prompt textarea").fill("a red heart")
    tab.locator("#seed input").fill("7")
    tab.locator("#draw").click()
    tab.wait_for_selector("#pictures img")
    tab.wait_for_url("**seed=7**")
    other = browser.new_page()
    other.goto(tab.url)
    other.wait_for_function(
        "document.querySelector('#prompt textarea')?.value == 'a red heart'"
    )
    assert other.locator("#seed input").input_value() == "7"
    other.close()


def test_a_picture_is_sent_to_another_tab(tab):
    tab.locator("#prompt textarea").fill("a red heart")
    tab.locator("#draw").click()
    tab.wait_for_selector("#pictures img")
    tab.locator("button.to:visible", has_text="Variations").click()
    tab.wait_for_selector("#vary-image img")
    assert tab.locator("#vary").is_visible()


def test_a_telephone_shows_all_of_it(browser, url):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(url)
    page.locator("#draw").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


@pytest.mark.slow
def test_a_brush_says_what_is_painted_anew(tab):
    tab.locator("#prompt textarea").fill("a red heart")
    tab.locator("#draw").click()
    tab.wait_for_selector("#pictures img")
    tab.locator("button.to:visible", has_text="Inpainting").click()
    canvas = tab.locator("#inpaint-image canvas").first
    canvas.wait_for()
    tab.wait_for_timeout(2500)  # the editor has no sign that it is ready
    tab.locator("#inpaint").click()
    tab.get_by_text("paint over what is to be drawn anew first").wait_for()
    tab.locator("#inpaint-image button[aria-label='Brush']").click()
    tab.wait_for_timeout(1000)
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.mouse.move(x - 60, y)
    tab.mouse.down()
    tab.mouse.move(x + 60, y, steps=5)
    tab.mouse.move(x, y + 50, steps=5)
    tab.mouse.up()
    tab.wait_for_timeout(2500)
    tab.locator("#inpaint").click()
    tab.wait_for_selector("#inpainted img")
    assert tab.locator("#inpainted .grid-container img").count() == 4


def test_probabilities_are_bars(tab, picture):
    tab.get_by_role("tab", name="Zero-shot").click()
    tab.locator("#label-image input[type=file]").set_input_files(picture)
    tab.wait_for_selector("#label-image img")
    tab.locator("#labels textarea").fill("a cat\na dog")
    tab.locator("#classify").click()
    tab.wait_for_selector("#bars .bar")
    assert tab.locator("#bars .bar").count() == 2


def test_a_picture_is_varied(tab, picture):
    tab.get_by_role("tab", name="Variations").click()
    tab.locator("#vary").click()
    tab.get_by_text("give a picture first").wait_for()
    tab.locator("#vary-image input[type=file]").set_input_files(picture)
    tab.wait_for_selector("#vary-image img")
    tab.locator("#vary").click()
    tab.wait_for_selector("#variations img")
    assert tab.locator("#variations .grid-container img").count() == 4


def test_two_pictures_are_joined_by_a_slider(tab, picture):
    tab.get_by_role("tab", name="Interpolation").click()
    for name in ("from", "to"):
        tab.locator(f"#{name}-image input[type=file]").set_input_files(picture)
        tab.wait_for_selector(f"#{name}-image img")
    tab.locator("#interpolate").click()
    tab.wait_for_selector("#on-the-way img")


def test_a_page_without_a_prior_has_no_prompt(stack):
    import dataclasses

    from unclip_jax.generation import UnCLIP
    from unclip_jax.generation.page import make_page

    parts = {k: p for k, p in stack.parts.items() if "prior" not in k}
    page = make_page(UnCLIP(dataclasses.replace(stack, parts=parts)), "no prior")
    labels = {getattr(block, "label", None) for block in page.blocks.values()}
    assert "Variations" in labels and "Text to image" not in labels


def test_a_port_in_use_is_said(model, monkeypatch):
    from unclip_jax.generation.page import server

    monkeypatch.setattr(server.UnCLIP, "load", lambda *args, **options: model)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        args = types.SimpleNamespace(
            model="exports/tiny", dtype="float32", batch_size=8, host="127.0.0.1"
        )
        args.port = taken.getsockname()[1]
        with pytest.raises(ValueError, match="choose another --port"):
            server.serve(args)
