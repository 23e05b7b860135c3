"""Trains all stages on icons, draws images and measures them, and makes a page of it.

    make demo                      # installs first; the same command goes on
    python launch/demo.py --dry-run

Each step is a few commands of the package, which say themselves how far they are; see
steps.py.
"""

import json
import os
import pathlib
import sys

from steps import (
    ROOT,
    Record,
    Step,
    export,
    install_step,
    module,
    parser,
    print_commands,
    run,
    span,
    train,
)

RUNS, EXPORT = "runs/icons", "exports/icons"
RECORD = f"{RUNS}/demo.json"
PROMPTS = "pretrained/prompts.txt"
# Two images that variations, an interpolation and a text diff start from.
FIRST = "a red heart on a white background"
SECOND = "a blue heart on a white background"
STAGES = ("clip", "prior", "decoder")
PICTURES = ("samples", "variations", "interpolation", "text_diff")
HEADLINES = (
    ("icons/background", "the background is the named colour"),
    ("icons/glyph_colour", "the glyph is the named colour"),
    ("icons/glyph_top1", "the glyph is the named one, of all glyphs"),
)


def steps(python: str, install: str = "") -> list[Step]:
    """The demo. `install` is the command that makes `python`'s environment, if any."""
    configs = "configs/icons"
    records = (f"--config={configs}/embed.py", f"--workdir={RUNS}/records")
    evaluation = (f"--config={configs}/eval.py", f"--workdir={RUNS}/eval")

    def sample(name, *flags):
        out = f"--out={RUNS}/{name}.png", "--overwrite"
        out += ("--scale=3",) * (name in PICTURES)
        return module(python, "sample", f"--model={EXPORT}", *flags, *out)

    first, second = (f"--image={RUNS}/{name}.png" for name in ("first", "second"))
    figures = (
        sample("first", f"--prompt={FIRST}"),
        sample("second", f"--prompt={SECOND}"),
        sample("variations", "--mode=variations", first, "--samples=4", "--columns=4"),
        sample("interpolation", "--mode=interpolate", first, second),
        sample(
            "text_diff",
            *("--mode=text_diff", first, f"--source={FIRST}", f"--target={SECOND}"),
            "--thetas=0,0.2,0.4,0.6,0.8",
        ),
    )
    page = (
        *(f"--run={RUNS}/{stage}" for stage in STAGES),
        *(f"--image={RUNS}/{name}.png" for name in PICTURES),
        f"--link={RUNS}/eval/report.html",
        f"--out={RUNS}/report.html",
    )
    return [
        *install_step(install),
        Step("train clip", train(python, configs, RUNS, "clip"), 3.0),
        Step("embed", (module(python, "embed", *records),), 0.4),
        Step("train prior", train(python, configs, RUNS, "prior"), 2.5),
        Step("train decoder", train(python, configs, RUNS, "decoder"), 6.5),
        Step("export", export(python, RUNS, EXPORT, STAGES), 0.2),
        Step(
            "sample",
            (sample("samples", f"--prompts_file={PROMPTS}", "--columns=8"),),
            0.3,
        ),
        Step("figures", figures, 0.8),
        Step("evaluate", (module(python, "evaluate", *evaluation),), 0.6),
        Step("report", (module(python, "report", *page),), 0.1),
    ]


def finish(record: Record, python: str) -> int:
    """Says what came out, from the evaluation's json; returns the exit code."""
    file = pathlib.Path(RUNS) / "eval" / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        count = results["provenance"]["n"]
        numbers = {name: results["scores"][name]["value"] for name, _ in HEADLINES}
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {file} does not hold what the evaluation writes: {error!r}")
        return 1
    record.write(results={"n": count, **numbers})
    total = record.totals()
    lines = [f"\n{count} captions of combinations never seen in training:"]
    lines += [f"  {100 * numbers[name]:5.1f}%  {text}" for name, text in HEADLINES]
    lines += [
        f"Time {span(total['seconds'])}, peak memory {total['peak_memory_gb']:.1f} GB "
        f"({RECORD}).",
        "Look at:",
        f"  {RUNS}/report.html        what it drew, and how it was trained",
        f"  {RUNS}/eval/report.html   all numbers, with the images",
        "Draw your own:",
        f"  {python} -m unclip_jax.sample --model={EXPORT} --out=mine.png \\",
        '    --prompt="a green moon on a black background"',
    ]
    print("\n".join(lines))
    return 0


def main(argv=None) -> int:
    """Runs the demo, or what is left of it; returns the exit code."""
    args = parser(__doc__).parse_args(argv)
    os.chdir(ROOT)
    table = steps(args.python, args.install)
    if args.dry_run:
        return print_commands(table)
    record = Record(pathlib.Path(RECORD), table)
    minutes = sum(s.minutes for s in table if not record.steps[s.name]["done"])
    print(f"About {minutes:.0f} minutes on two cores.", end=" ")
    print("Ctrl-C stops; the same command goes on.\n", flush=True)
    return run(table, record) or finish(record, args.python)


if __name__ == "__main__":
    sys.exit(main())
