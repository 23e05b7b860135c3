"""Studies: pairing, blinding, the data of pages; answers read, refused and scored."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from unclip_jax import command_line, compare
from unclip_jax.evaluation.human import answers, study
from unclip_jax.evaluation.human.study import StudyOptions, make_study
from unclip_jax.evaluation.metrics import preference
from unclip_jax.images import save_image

CAPTIONS = [f"caption {i // 4}" for i in range(12)]  # four samples of each of three


def image(seed, size=8):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


@pytest.fixture
def folders(tmp_path):
    """Two folders as unclip_jax.sample writes them."""
    for name in "ab":
        for i, caption in enumerate(CAPTIONS):
            path = tmp_path / name / f"{i:06d}.png"
            about = {"prompt": caption, "settings": f"the secret of {name}"}
            save_image(path, image((ord(name), i)), about)
        save_image(tmp_path / name / "grid.png", image(0, 32))
    return tmp_path / "a", tmp_path / "b"


def page_data(path):
    text = path.read_text()
    return json.loads(re.search(r'<script type="application/json".*?>(.*?)</', text)[1])


def pixels(uri):
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    found = Image.open(io.BytesIO(data))
    assert not found.info  # no prompt, no settings
    return np.asarray(found)


def test_pages_hold_the_pairs_that_the_key_names(folders, tmp_path):
    options = StudyOptions(page=5, seed=3)
    key = make_study(tmp_path / "s", *folders, options=options, log=len)
    pages = sorted((tmp_path / "s/pages").iterdir())
    assert [p.name for p in pages] == [
        f"{q}_{n:02d}.html" for q in ("caption", "photorealism") for n in (1, 2, 3)
    ]
    seen = {}
    for page in pages:
        text = page.read_text()
        assert "secret" not in text and str(tmp_path) not in text
        assert not re.search(r'(src|href)="', text) and "://" not in text
        seen |= {p["id"]: p for p in page_data(page)["pairs"]}
    assert seen.keys() == key["pairs"].keys() and len(seen) == 24
    for identity, shown in seen.items():
        about = key["pairs"][identity]
        order = "ab" if about["first"] == "a" else "ba"
        for name, uri in zip(order, shown["images"], strict=True):
            (file,) = about[name]
            np.testing.assert_array_equal(
                pixels(uri), image((ord(name), int(file.removesuffix(".png"))))
            )
        assert about["a"] == about["b"]  # of the same caption
        caption = about["caption"] if about["question"] == "caption" else ""
        assert shown["caption"] == caption
    assert json.loads((tmp_path / "s/key.json").read_text()) == key


def test_order_and_sides_are_shuffled_by_the_seed(folders, tmp_path):
    def make(name, seed):
        options = StudyOptions(("photorealism",), seed=seed)
        key = make_study(tmp_path / name, *folders, options=options, log=len)
        return [(p["a"][0], p["first"]) for p in key["pairs"].values()]

    first, again, other = make("1", 0), make("2", 0), make("3", 1)
    assert first == again != other
    assert [name for name, _ in first] != sorted(name for name, _ in first)
    assert [side for _, side in first].count("a") == 6  # as often as b
    options = StudyOptions(("photorealism",), count=5)
    few = make_study(tmp_path / "4", *folders, options=options, log=len)["pairs"]
    assert len({p["a"][0] for p in few.values()}) == 5
    with pytest.raises(ValueError, match="holds a study already"):
        make("1", 0)


def test_diversity_compares_grids_of_one_caption(folders, tmp_path):
    options = StudyOptions(("diversity",), grid=2)
    key = make_study(tmp_path / "s", *folders, options=options, log=len)
    (page,) = (tmp_path / "s/pages").iterdir()
    data = page_data(page)
    assert data["grid"] and len(data["pairs"]) == 3
    for shown in data["pairs"]:
        about = key["pairs"][shown["id"]]
        i = 4 * int(about["caption"].split()[1])
        assert about["b"] == [f"{i + k:06d}.png" for k in range(4)]
        assert shown["caption"] == about["caption"]
        grid = pixels(shown["images"][about["first"] != "a"])
        assert grid.shape == (8 + 6 + 8, 8 + 6 + 8, 3)
        np.testing.assert_array_equal(grid[:8, 14:], image((ord("a"), i + 1)))
        np.testing.assert_array_equal(grid[14:, :8], image((ord("a"), i + 2)))
    with pytest.raises(ValueError, match="no caption has more than 4.*--samples=9"):
        options = StudyOptions(("diversity",), grid=3)
        make_study(tmp_path / "t", *folders, options=options, log=len)
    assert not (tmp_path / "t").exists()


def test_a_page_ends_before_it_is_too_large(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "PAGE_BYTES", 1)
    options = StudyOptions(("photorealism",), count=3)
    make_study(tmp_path / "s", *folders, options=options, log=len)
    pages = sorted((tmp_path / "s/pages").iterdir())
    assert [len(page_data(page)["pairs"]) for page in pages] == [1, 1, 1]


def test_folders_of_other_programs_pair_by_number(folders, tmp_path):
    """JPEG or PNG, without captions: one per line of a file."""
    (tmp_path / "glide").mkdir()
    for i in range(12):
        file = tmp_path / "glide" / f"sample-{i}.jpg"
        Image.fromarray(image(i)).save(file)
    pairs = study.match_images(folders[0], tmp_path / "glide")
    assert [(a.name, b.name) for a, b in pairs] == [
        (f"{i:06d}.png", f"sample-{i}.jpg") for i in range(12)
    ]
    lines = tmp_path / "captions.txt"
    lines.write_text("\n".join(CAPTIONS))
    foreign = (tmp_path / "glide", tmp_path / "other")
    shutil.copytree(*foreign)
    asked = StudyOptions(("caption",))
    key = make_study(tmp_path / "s", *foreign, lines, asked, log=len)
    assert {p["caption"] for p in key["pairs"].values()} == set(CAPTIONS)
    with pytest.raises(ValueError, match="needs captions.*--captions=FILE"):
        make_study(tmp_path / "t", *foreign, options=asked, log=len)
    lines.write_text("\n".join(CAPTIONS[1:]))
    with pytest.raises(ValueError, match="11 lines that are not blank for 12 pairs"):
        make_study(tmp_path / "t", *foreign, lines, asked, log=len)
    lines.write_text("\n".join(CAPTIONS[::-1]))
    with pytest.raises(ValueError, match="different captions.*'caption 2'.*000000.png"):
        make_study(tmp_path / "t", *folders, lines, asked, log=len)
    (tmp_path / "glide/sample-5.jpg").unlink()
    with pytest.raises(ValueError, match="12 images.*and the 11 of.*no partner"):
        study.match_images(folders[0], tmp_path / "glide")


def test_pairs_of_different_captions_are_refused(folders, tmp_path):
    save_image(folders[1] / "000007.png", image(1), {"prompt": "another"})
    with pytest.raises(ValueError, match="'caption 1'.*b/000007.png: 'another'"):
        make_study(tmp_path / "s", *folders, log=len)
    assert not (tmp_path / "s").exists()


# --- answers -----------------------------------------------------------------------


@pytest.fixture
def made(folders, tmp_path):
    make_study(tmp_path / "s", *folders, options=StudyOptions(), log=len)
    return tmp_path / "s"


def write_answers(path, rater, chosen):
    """A file of {pair: "a", "b" or "not sure"}, as a page would give it."""
    key = json.loads((path.parent / "s/key.json").read_text())["pairs"]
    lines = ["pair,answer,rater"]
    for pair, model in chosen.items():
        side = {"a": "1", "b": "2"} if key[pair]["first"] == "a" else {}
        side = side or {"b": "1", "a": "2"}
        lines.append(f'{pair},{side.get(model, model)},"{rater}"')
    path.write_text("\n".join(lines) + "\n")
    return path


def pairs_of(folder, question):
    key = json.loads((folder / "key.json").read_text())
    return [k for k, v in key["pairs"].items() if v["question"] == question]


def test_answers_are_read_through_the_key(made, tmp_path):
    pairs = pairs_of(made, "photorealism")
    said = ["a"] * 6 + ["not sure"] * 2 + ["b"] * 3  # and one is missing
    alice = write_answers(
        tmp_path / "alice.csv", "Alice", dict(zip(pairs[:11], said, strict=True))
    )
    bob = write_answers(tmp_path / "bob.csv", "Bob, R.", {pairs[0]: "a", pairs[1]: "b"})
    lines = []
    results = answers.score_study(made, [alice, bob], lines.append)
    found = results["questions"]["photorealism"]
    counts = np.eye(3, dtype=int)[np.repeat([0, 1, 2], [6, 2, 3])]
    counts[0] += [1, 0, 0]
    counts[1] += [0, 0, 1]
    want = preference.preference(counts)
    assert found["preference"]["value"] == pytest.approx(want.value)
    assert found["preference"]["half_width"] == pytest.approx(want.half_width)
    assert found["preference"]["n"] == 11 and found["decided"]["n"] == 9
    assert found["answers"] == {"a": 7, "not sure": 2, "b": 4}
    assert found["missing"] == [pairs[11]] and found["pairs"] == 12
    assert found["raters"]["Bob, R."]["b"] == 1
    assert found["agreement"]["observed"] == pytest.approx(0.5)
    assert results["questions"]["caption"]["preference"] is None
    assert json.loads((made / "preferences.json").read_text()) == results
    text = "\n".join(lines)
    assert f"photorealism: A over B {100 * want.value:.1f}% ± " in text
    assert "7 A, 2 not sure, 4 B; 11 of 12 pairs answered" in text
    assert f"no answer to {pairs[11]}" in text
    assert "caption: no answers to any of 12 pairs" in text


def test_wrong_answers_are_named(made, tmp_path):
    pair = pairs_of(made, "caption")[0]
    file = tmp_path / "x.csv"

    def fails(match, *lines, header="pair,answer,rater"):
        file.write_text("\n".join([header, *lines]) + "\n")
        with pytest.raises(ValueError, match=match):
            answers.score_study(made, [file], len)

    fails("x.csv:2: answer 'left'", f"{pair},left,Alice")
    fails("x.csv:3: the answer has no rater", f"{pair},1,Alice", f"{pair},1,")
    fails("does not have.*x.csv:2 \\('pair-9'\\).*another study", "pair-9,1,Alice")
    twice = (f"{pair},1,Alice", f"{pair},2,Alice")
    fails(f"twice: {pair} by 'Alice' \\(.*x.csv:2, .*x.csv:3\\)", *twice)
    respelled = (f"{pair},1,Alice  B", f"{pair},2, alice b")
    fails(f"twice: {pair} by 'Alice B' \\(.*x.csv:2, .*x.csv:3\\)", *respelled)
    fails("no column 'rater'", f"{pair},1", header="pair,answer")
    fails("there is no answer in")
    fails("no column 'pair'.*with commas", f"{pair};1;Al", header="pair;answer;rater")
    fails("x.csv:.: not a file that a page gives", '"' + 200_000 * "x")
    file.write_text(f"pair,answer,rater\n{pair},1,Zoë\n", "utf-16")
    with pytest.raises(ValueError, match="x.csv is not UTF-8"):
        answers.score_study(made, [file], len)
    with pytest.raises(FileNotFoundError, match="none.csv"):
        answers.score_study(made, [tmp_path / "none.csv"], len)
    with pytest.raises(FileNotFoundError, match="make the study with --a"):
        answers.score_study(tmp_path / "none", [file], len)
    assert not (made / "preferences.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "unclip_jax comparison"}'])
def test_a_broken_key_is_named(made, tmp_path, text):
    file = write_answers(tmp_path / "alice.csv", "Alice", {})
    (made / "key.json").write_text(text)
    with pytest.raises(ValueError, match="key.json is not the whole key"):
        answers.score_study(made, [file], len)


def test_pages_of_a_study_that_was_not_finished_do_not_stay(folders, tmp_path):
    broken = folders[1] / "000007.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    with pytest.raises(ValueError, match="000007.png' is not a readable image"):
        make_study(tmp_path / "s", *folders, options=StudyOptions(page=1), log=len)
    assert len(list((tmp_path / "s/pages").iterdir())) < 12
    (tmp_path / "s/pages/photorealism_12.html").write_text("of another time")
    broken.write_bytes(whole)
    make_study(tmp_path / "s", *folders, log=len)
    pages = {path.name for path in (tmp_path / "s/pages").iterdir()}
    assert pages == {"photorealism_01.html", "caption_01.html"}


def command(*flags):
    with pytest.raises(SystemExit) as stop:
        argv = ["compare", *flags]
        command_line.run(
            compare.main, config=False, extra_flags=compare.FLAGS, argv=argv
        )
    return stop.value.code


def test_the_command_makes_and_scores(folders, tmp_path, capsys):
    at = f"--study={tmp_path / 's'}"
    both = [f"--a={folders[0]}", f"--b={folders[1]}"]
    asked = ["--question=diversity", "--grid=2", "--seed=4"]
    assert command(at, *both, *asked) == 0
    assert "diversity: 3 comparisons" in capsys.readouterr().out
    (pair, *_) = pairs_of(tmp_path / "s", "diversity")
    file = write_answers(tmp_path / "alice.csv", "Alice", {pair: "b"})
    assert command(at, f"--answers={file}") == 0
    assert "diversity: A over B 0.0% ± 0.0" in capsys.readouterr().out
    for flags, message in (
        ([], "--a is missing"),
        ([*both, "--question=beauty"], "unknown key 'beauty' in --question"),
        ([*both, "--count=0"], "--count must be at least 1"),
        ([*both, "--seed=-1"], "--seed must be at least 0, got -1"),
        ([both[0], f"--b={folders[0]}"], "--a and --b are the same folder"),
        ([both[0], f"--b={file}"], "alice.csv' is not a folder"),
        ([*both, f"--captions={folders[0]}/grid.png"], "grid.png is not UTF-8"),
        ([*both, f"--answers={file}"], "--a is not used with --answers"),
    ):
        assert command(f"--study={tmp_path / 't'}", *flags) == 2
        assert message in capsys.readouterr().err
