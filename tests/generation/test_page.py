"""The page in a real browser, with a tiny model: what is clicked is drawn."""

import importlib.util
import shutil

import numpy as np
import pytest
from PIL import Image

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
    from unclip_jax.generation.page import make_page

    page = make_page(model, "tiny")
    _, address, _ = page.queue().launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True
    )
    yield address
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
