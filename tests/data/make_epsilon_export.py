"""Trains what tests/data/epsilon_export holds: a decoder of the paper's kind, tiny.

    python -m tests.data.make_epsilon_export --workdir=runs/epsilon

Five minutes on two CPU cores. CLIP and decoder learn 8x8 icons; the decoder by the
paper's recipe (epsilon, learned sigma, cosine, T = 1000, unit embeddings), with the
project's own stages, optimizer and EMA. The commands are those that users type; a
finished one ends at once.
"""

import argparse
import pathlib
import subprocess
import sys

OUT = pathlib.Path(__file__).parent / "epsilon_export"
CLASSES = {"nouns": 8, "colours": 6, "backgrounds": 6}
DATA = {f"data.{key}": value for key, value in {"image_size": 8, **CLASSES}.items()}
CLIP = {
    **DATA,
    "data.vocab_size": 520,
    "data.context_length": 12,
    "model.embed_dim": 32,
    "model.patch_size": 2,
    "model.vision_width": 32,
    "model.vision_depth": 2,
    "model.vision_heads": 2,
    "model.text_width": 32,
    "model.text_depth": 1,
    "model.text_heads": 2,
    "steps": 600,
}
DECODER = {
    "model.channels": 32,
    "model.channel_mult": "(1,)",
    "model.num_res_blocks": 1,
    "model.attention_resolutions": "(8,)",
    "model.head_channels": 16,
    "model.patch_size": 1,
    "model.learned_sigma": True,
    "model.text_width": 32,
    "model.text_depth": 1,
    "diffusion.prediction": "epsilon",
    "stage_options.embedding": "unit_scaled",
    "steps": 1200,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/epsilon")
    parser.add_argument("--out", default=str(OUT))
    options = parser.parse_args()
    work = pathlib.Path(options.workdir)

    def run(name, changes=None, **flags):
        changes = {f"config.{key}": value for key, value in (changes or {}).items()}
        flags = [f"--{key}={value}" for key, value in {**flags, **changes}.items()]
        subprocess.run([sys.executable, "-m", f"unclip_jax.{name}", *flags], check=True)

    configs = {stage: f"configs/icons/{stage}.py" for stage in ("clip", "decoder")}
    run("train", CLIP, config=configs["clip"], workdir=work / "clip")
    records = {**DATA, "clip": work / "clip"}
    place = work / "records"
    run("embed", records, config="configs/icons/embed.py", workdir=place)
    decoder = {**DECODER, "data.path": place / "train"}
    run("train", decoder, config=configs["decoder"], workdir=work / "decoder")
    for part in ("clip", "decoder"):
        run("export", run=work / part, out=options.out, dtype="bfloat16")


if __name__ == "__main__":
    main()
