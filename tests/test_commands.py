"""The README's chain of commands on tiny models, and what it says to bad input.

Everything runs in this process through the entry points' own flag parsing.
"""

import importlib
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from unclip_jax import UnCLIP, command_line
from unclip_jax.evaluation.tuning import choose

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("single_device")]
CONFIGS = pathlib.Path(__file__).parents[1] / "configs" / "icons"
NOUNS = ("--config.data.nouns=3", "--config.data.image_size=16")
TINY = {
    "clip": (
        "--config.model.embed_dim=8",
        "--config.model.vision_width=16",
        "--config.model.vision_depth=1",
        "--config.model.text_width=16",
        "--config.model.text_depth=1",
    ),
    "prior": ("--config.model.width=16", "--config.model.depth=1"),
    "decoder": (
        "--config.model.channels=32",
        "--config.model.num_res_blocks=1",
        "--config.model.attention_resolutions=(2,)",
        "--config.model.text_width=16",
        "--config.preview.count=2",
        "--config.stage_options.preview_steps=2",
    ),
}


def command(name, *flags):
    """Runs `python -m unclip_jax.<name> flags`; returns the exit code."""
    module = importlib.import_module(f"unclip_jax.{name}")
    extra = getattr(module, "FLAGS", {})
    has_config = name in ("train", "embed", "evaluate")
    options = {"extra_flags": extra, "argv": [name, *flags]}
    if has_config:
        options["defaults"] = module.defaults
    with pytest.raises(SystemExit) as stop:
        command_line.run(module.main, config=has_config, **options)
    return stop.value.code


def train(stage, root, *flags):
    data = NOUNS
    if stage != "clip":
        data = (f"--config.data.path={root}/records/train",)
    if stage == "prior":
        held_out = f"{root}/records/validation"
        data += (f"--config.evaluators.prior.data.path={held_out}",)
    return command(
        "train",
        f"--config={CONFIGS}/{stage}.py",
        f"--workdir={root}/{stage}",
        "--config.steps=2",
        "--config.batch_size=16",
        *data,
        *TINY[stage],
        *flags,
    )


def embed(root, *flags):
    return command(
        "embed",
        f"--config={CONFIGS}/embed.py",
        f"--workdir={root}/records",
        f"--config.clip={root}/clip",
        "--config.batch_size=64",
        *NOUNS,
        *flags,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a tiny CLIP, records, prior, decoder and their export."""
    root = tmp_path_factory.mktemp("icons")
    assert train("clip", root) == 0
    assert embed(root) == 0
    assert train("prior", root, "--config.data.feed=tf") == 0
    assert train("decoder", root) == 0
    for part in ("clip", "prior", "decoder"):
        assert command("export", f"--run={root}/{part}", f"--out={root}/export") == 0
    return root


def test_sentences_become_pictures(root):
    from PIL import Image

    out = root / "heart.png"
    flags = ("--prompt=a red heart on white", "--prior_steps=2", "--decoder_steps=2")
    code = command("sample", f"--model={root}/export", f"--out={out}", *flags)
    assert code == 0
    with Image.open(out) as image:
        assert image.size == (16, 16) and image.mode == "RGB"


def test_the_evaluation_writes_its_numbers(root):
    code = command(
        "evaluate",
        f"--config={CONFIGS}/eval.py",
        f"--workdir={root}/eval",
        f"--config.model={root}/export",
        "--config.count=8",
        "--config.generation.prior_steps=2",
        "--config.generation.decoder_steps=2",
        "--config.generation.batch_size=8",
        "--config.reference.count=40",
        "--config.metrics.r_precision.pool=8",
        *NOUNS,
    )
    assert code == 0
    results = json.loads((root / "eval" / "results.json").read_text())
    for name in ("icons/background", "icons/glyph_colour", "icons/glyph_top1"):
        assert 0 <= results["scores"][name]["value"] <= 1
        assert results["scores"][name]["true_pictures"] == 1.0


def test_tuning_changes_what_the_export_recommends(root, tmp_path, capsys):
    export = tmp_path / "export"
    shutil.copytree(root / "export", export)
    flags = (f"--model={export}", "--count=8", "--batch_size=8")
    flags += (f"--workdir={tmp_path}/tune", f"--records={root}/records/validation")
    scales = ("--decoder_guidance=1.25,2.25", "--prior_guidance=1.75")
    assert command("tune", *flags, *scales) == 0
    told = capsys.readouterr().out
    assert "now recommends prior guidance 1.75" in told
    sweep = json.loads((tmp_path / "tune/decoder/sweep.json").read_text())
    best = choose(sweep["points"])
    settings = UnCLIP.load(export).settings()
    assert settings["prior"] == {
        "sampler": "ddpm",
        "steps": 25,
        "variance": "fixed_small",
        "guidance": 1.75,
    }
    assert settings["decoder"]["guidance"] == best["decoder_guidance"]
    distances = {1.0: 10.1, 2.0: 10.0, 3.0: 10.15, 4.0: 10.3}
    points = [{"g": g, "frechet": d, "clip_score": g} for g, d in distances.items()]
    assert choose(points)["g"] == 3.0  # near the least, and fits better
    # the weights are those of the run
    run = (f"--run={root}/decoder", f"--out={export}")
    assert command("export", *run, "--verify") == 0
    code = command("tune", *flags, "--decoder_guidance=x")
    refused(capsys, code, "--decoder_guidance 'x'", "numbers with commas")


def test_an_export_takes_recommendations_from_flags(root, tmp_path, capsys):
    out = f"--out={tmp_path}/e"
    assert command("export", f"--run={root}/clip", out) == 0
    run = (f"--run={root}/decoder", out)
    assert command("export", *run, "--guidance=3.5", "--sampling_steps=7") == 0
    settings = UnCLIP.load(tmp_path / "e").settings()
    assert settings["decoder"] == {
        "sampler": "ddim",
        "steps": 7,
        "guidance": 3.5,
        "guidance_interval": (250, 999),  # of the config
    }
    refused(capsys, command("export", *run, "--sampler=best"), "sampler", "'best'")
    code = command("export", f"--run={root}/clip", out, "--guidance=2")
    refused(capsys, code, "the clip is not sampled by diffusion")


def test_the_decoder_left_previews(root):
    assert list((root / "decoder" / "previews").glob("*.png"))


def test_running_again_finds_the_work_done(root, capsys):
    assert train("prior", root) == 0  # the other feed is the same run
    assert "finished already" in capsys.readouterr().out
    assert embed(root) == 0
    assert command("export", f"--run={root}/prior", f"--out={root}/export") == 0


def snapshot(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def refused(capsys, code, *words):
    error = capsys.readouterr().err
    assert code not in (0, None) and error.startswith("error: "), (code, error)
    for word in words:
        assert word in error, error


def test_a_mistyped_key_is_refused(root, capsys):
    code = train("prior", root, "--config.optimizer.learnig_rate=1")
    refused(capsys, code, "learnig_rate", "did you mean 'learning_rate'")


def test_missing_data_is_named(root, capsys, tmp_path):
    code = train("prior", tmp_path)
    refused(capsys, code, f"{tmp_path}/records/train")


def test_an_embedding_width_that_does_not_fit_is_named(root, capsys, tmp_path):
    shutil.copytree(root / "records", tmp_path / "records")
    config = CONFIGS / "prior.py"
    wide = tmp_path / "wide.py"
    wide.write_text(
        config.read_text().replace("c.model = dict(", "c.model = dict(embed_dim=768, ")
    )
    code = command(
        "train",
        f"--config={wide}",
        f"--workdir={tmp_path}/wide",
        f"--config.data.path={tmp_path}/records/train",
    )
    refused(capsys, code, "768", "8")


def test_a_truncated_shard_is_named(root, capsys, tmp_path):
    shutil.copytree(root / "records", tmp_path / "records")
    shard = next((tmp_path / "records" / "train").glob("*.array*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    code = train("prior", tmp_path)
    refused(capsys, code, shard.name)


def test_a_workdir_of_another_stage_is_refused_untouched(root, capsys):
    before = snapshot(root / "clip")
    flags = (f"--config.data.path={root}/records/train", *TINY["prior"])
    code = command(
        "train", f"--config={CONFIGS}/prior.py", f"--workdir={root}/clip", *flags
    )
    refused(capsys, code, "another config", "stage ('clip' there, 'prior' now)")
    assert snapshot(root / "clip") == before


def test_an_export_without_a_needed_part_is_named(root, capsys, tmp_path):
    for part in ("clip", "decoder"):
        assert command("export", f"--run={root}/{part}", f"--out={tmp_path}/e") == 0
    code = command(
        "sample", f"--model={tmp_path}/e", "--prompt=a cat", f"--out={tmp_path}/x.png"
    )
    refused(capsys, code, "prior")
    assert not (tmp_path / "x.png").exists()


def test_analytic_variance_is_estimated_and_used(root, capsys, tmp_path):
    model = tmp_path / "export"
    shutil.copytree(root / "export", model)
    draw = (
        f"--model={model}",
        "--prompt=a red heart on white",
        *("--prior_steps=3", "--prior_sampler=ddpm", "--prior_variance=analytic"),
        *("--decoder_steps=3", "--decoder_sampler=ddpm", "--decoder_variance=analytic"),
        f"--out={tmp_path}/x.png",
    )
    code = command("sample", *draw)
    refused(capsys, code, "prior variance 'analytic'", "unclip_jax.estimate_variance")

    def estimate(count):
        flags = (f"--model={model}", f"--records={root}/records/train")
        flags += (f"--count={count}", "--timesteps=3", "--batch_size=8")
        assert command("estimate_variance", *flags) == 0
        return {k: native.read_analytic(model, k) for k in ("prior", "decoder")}

    from unclip_jax.interop import native

    first = estimate(8)
    assert first["prior"]["examples"] == 8
    continued = estimate(16)
    said = capsys.readouterr()
    assert "decoder: from 16 examples at 3 timesteps" in said.out
    left = re.findall(r"0/(\d+) images, \d+s, compiling", said.err)
    assert left == ["8"] * 4  # each time, of each part, eight were left
    for part in ("prior", "decoder"):
        native.write_analytic(model, part, {**first[part], "seed": "another"})
    for part, table in estimate(16).items():
        np.testing.assert_allclose(table["means"], continued[part]["means"], atol=1e-5)
        assert table["examples"] == 16 and np.isfinite(table["means"]).all()
    assert command("sample", *draw) == 0 and (tmp_path / "x.png").is_file()


def test_the_exported_model_is_the_trained_one(root):
    from unclip_jax.generation import UnCLIP
    from unclip_jax.training.checkpoint import load_run

    model = UnCLIP.load(str(root / "export"))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    params, meta = load_run(root / "clip")
    from unclip_jax import models

    clip = models.build("clip", meta["export"]["config"]["model"])
    expected = clip.apply({"params": params}, images, method="encode_image")
    np.testing.assert_allclose(model.encode_image(images), expected, atol=1e-5)
