"""Trains all stages on icons, draws pictures from sentences and measures them.

    make demo                      # installs first; the same command goes on
    python launch/demo.py --dry-run

Each step is one command of the package in a process of its own. A finished step finds
its work done and ends at once, an interrupted one goes on from its last checkpoint.
Standard library only: it runs before anything is installed.
"""

import argparse
import json
import os
import pathlib
import shlex
import sys

from runner import Runner, Step, span

ROOT = pathlib.Path(__file__).resolve().parents[1]
RUNS, EXPORT = "runs/icons", "exports/icons"
PROMPTS = (
    "a red heart on a white background",
    "a yellow star on a blue background",
    "a black cat on an orange background",
    "a white airplane on a blue background",
    "a green fish on a yellow background",
    "a purple umbrella on a white background",
    "an orange key on a black background",
    "a blue house on a green background",
)
HEADLINES = (
    ("icons/background", "the background is the named colour"),
    ("icons/glyph_colour", "the glyph is the named colour"),
    ("icons/glyph_top1", "the glyph is the named one, of all glyphs"),
)


def steps(python: str, install: str = "") -> list[Step]:
    """The demo. `install` is the command that makes `python`'s environment, if any."""

    def module(name, *options):
        return (python, "-m", f"unclip_jax.{name}", *options)

    def train(stage):
        config = f"--config=configs/icons/{stage}.py"
        return (module("train", config, f"--workdir={RUNS}/{stage}"),)

    records = ("--config=configs/icons/embed.py", f"--workdir={RUNS}/records")
    evaluation = ("--config=configs/icons/eval.py", f"--workdir={RUNS}/eval")
    exports = [
        module("export", f"--run={RUNS}/{part}", f"--out={EXPORT}")
        for part in ("clip", "prior", "decoder")
    ]
    sample = module(
        "sample",
        f"--model={EXPORT}",
        "--mode=text2image",
        *(f"--prompt={prompt}" for prompt in PROMPTS),
        "--samples=4",
        "--prior_guidance=2",
        "--decoder_guidance=3",
        "--prior_steps=25",
        "--decoder_steps=25",
        f"--out={RUNS}/samples.png",
    )
    first = [Step("install", (tuple(shlex.split(install)),), 2.0, paced=False)]
    return [
        *(first if install else []),
        Step("train clip", train("clip"), 3.7),
        Step("embed", (module("embed", *records),), 0.4),
        Step("train prior", train("prior"), 2.3),
        Step("train decoder", train("decoder"), 7.5),
        Step("export", tuple(exports), 0.2),
        Step("sample", (sample,), 0.2),
        Step("evaluate", (module("evaluate", *evaluation),), 0.6),
    ]


def finish(demo: Runner, python: str) -> int:
    """Says what came out, from the evaluation's json; returns the exit code."""
    file = pathlib.Path(RUNS) / "eval" / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        count = results["provenance"]["n"]
        numbers = {name: results["scores"][name]["value"] for name, _ in HEADLINES}
    except (OSError, ValueError, KeyError) as error:
        demo.say(f"error: {file} does not hold what the evaluation writes: {error!r}")
        return 1
    demo.record.write(results={"n": count, **numbers})
    total = demo.record.totals()
    lines = [f"\n{count} captions of combinations never seen in training:"]
    lines += [f"  {100 * numbers[name]:5.1f}%  {text}" for name, text in HEADLINES]
    lines += [
        f"Time {span(total['seconds'])}, peak memory {total['peak_memory_gb']:.1f} GB "
        f"({RUNS}/demo.json).",
        "Look at:",
        f"  {RUNS}/samples.png        pictures drawn from sentences",
        f"  {RUNS}/eval/samples.png   held-out captions, beside the true pictures",
        f"  {RUNS}/eval/report.html   all numbers, with the pictures",
        "Draw your own:",
        f"  {python} -m unclip_jax.sample --model={EXPORT} --out=mine.png \\",
        '    --prompt="a green moon on a black background"',
    ]
    demo.say("\n".join(lines))
    return 0


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=".venv/bin/python", help="runs the steps")
    parser.add_argument("--install", default="", help="a first step: this command")
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would run"
    )
    args = parser.parse_args(argv)
    os.chdir(ROOT)
    table = steps(args.python, args.install)
    if args.dry_run:
        for step in table:
            for command in step.commands:
                print(shlex.join(command))
        return 0
    demo = Runner(table, pathlib.Path(RUNS) / "demo.json")
    demo.say(
        f"Training on {os.cpu_count()} cores; about {demo.seconds_left() / 60:.0f} "
        "minutes. Ctrl-C stops; the same command goes on."
    )
    return demo.run() or finish(demo, args.python)


if __name__ == "__main__":
    sys.exit(main())
