"""A study's page in chromium: keys, going on where it was left, the download."""

import importlib.util
import shutil

import numpy as np
import pytest

from unclip_jax.evaluation.human import answers
from unclip_jax.evaluation.human.study import StudyOptions, make_study
from unclip_jax.images import save_image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason="needs playwright"
    ),
]


def test_a_rater_answers_leaves_and_goes_on(tmp_path):
    from playwright.sync_api import sync_playwright

    for name in "ab":
        for i in range(3):
            image = np.full((8, 8, 3), 80 * i, np.uint8)
            caption = {"prompt": f"<b>number</b> {i}"}
            save_image(tmp_path / name / f"{i}.png", image, caption)
    options = StudyOptions(("caption",))
    folders = tmp_path / "a", tmp_path / "b"
    key = make_study(tmp_path / "s", *folders, options=options, log=len)
    pairs = list(key["pairs"])
    address = (tmp_path / "s/pages/caption_01.html").as_uri()
    with sync_playwright() as playwright:
        launch = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
        browser = playwright.chromium.launch(**launch)
        phone = browser.new_context(viewport={"width": 390, "height": 844})
        tab = phone.new_page()
        failures, asked = [], []
        tab.on("pageerror", lambda error: failures.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        tab.fill("#rater", 'Ann "A"')
        tab.keyboard.press("Enter")
        assert tab.inner_text("#ask .caption") == key["pairs"][pairs[0]]["caption"]
        tab.keyboard.press("ArrowLeft")
        tab.wait_for_function("at === 1")
        tab.keyboard.press("Backspace")  # thinks again
        tab.keyboard.press("2")
        tab.wait_for_function("at === 1")
        tab.click("button >> text=Not sure")
        tab.wait_for_function("at === 2")
        size = "[document.documentElement.scrollWidth, innerWidth]"
        assert len(set(tab.evaluate(size))) == 1  # fits a phone

        tab.goto(address)  # later
        tab.click("button >> text=Start")
        assert tab.inner_text("#progress") == "3 of 3"
        tab.click("figure >> nth=0")
        tab.wait_for_selector("#done:not([hidden])")
        with tab.expect_download() as download:
            tab.click("button >> text=Download answers")
        download.value.save_as(tmp_path / "ann.csv")
        browser.close()
    assert not failures
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}
    rows = answers.read_answers(tmp_path / "ann.csv")
    assert [(r.pair, r.answer) for r in rows] == list(
        zip(pairs, ("2", "not sure", "1"), strict=True)
    )
    assert {row.rater for row in rows} == {'Ann "A"'}
