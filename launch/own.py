"""Trains all stages on images of your own, and makes a page of what came out.

    make own DATA=data/mine NAME=mine MINUTES=60    # again: goes on
    python launch/own.py --data=data/mine --name=mine --dry-run

`python -m unclip_jax.init` decides on sizes and steps; everything is in runs/NAME and
exports/NAME.
"""

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

# Shares of the minutes, to say what to expect.
SHARES = {"clip": 0.16, "prior": 0.12, "decoder": 0.5}


def preparation(args) -> list[Step]:
    """What comes before the configs are there."""
    flags = f"--data={args.data}", f"--name={args.name}", f"--minutes={args.minutes:g}"
    init = Step("init", (module(args.python, "init", *flags),), 0.5)
    return [*install_step(args.install), init]


def steps(args) -> list[Step]:
    """What the configs of a name say."""
    python, runs, folder = args.python, f"runs/{args.name}", f"exports/{args.name}"
    configs = f"{runs}/configs"

    def trained(stage):
        commands = train(python, configs, runs, stage)
        return Step(f"train {stage}", commands, SHARES[stage] * args.minutes)

    def one(name, minutes, *flags):
        return Step(name, (module(python, name, *flags),), minutes)

    return [
        trained("clip"),
        one("embed", 0.5, f"--config={configs}/embed.py", f"--workdir={runs}/records"),
        trained("prior"),
        trained("decoder"),
        Step("export", export(python, runs, folder, tuple(SHARES)), 0.5),
        one(
            "tune",
            4.0,
            f"--model={folder}",
            f"--records={runs}/records/validation",
            f"--workdir={runs}/tune",
            "--count=64",
            "--decoder_guidance=1,1.5,2,3",
        ),
        one(
            "sample",
            0.5,
            f"--model={folder}",
            f"--prompts_file={folder}/prompts.txt",
            "--samples=4",
            f"--out={runs}/samples.png",
            "--overwrite",
        ),
        one("evaluate", 1.0, f"--config={configs}/eval.py", f"--workdir={runs}/eval"),
        one(
            "report",
            0.2,
            *(f"--run={runs}/{stage}" for stage in SHARES),
            f"--image={runs}/samples.png",
            f"--link={runs}/eval/report.html",
            f"--out={runs}/report.html",
        ),
    ]


def main(argv=None) -> int:
    """Trains, or does what is left of it; returns the exit code."""
    flags = parser(__doc__)
    flags.add_argument("--data", required=True, help="images with captions")
    flags.add_argument("--name", required=True, help="of runs/NAME and exports/NAME")
    flags.add_argument("--minutes", type=float, default=60.0, help="that it may take")
    args = flags.parse_args(argv)
    os.chdir(ROOT)
    before, table = preparation(args), steps(args)
    if args.dry_run:
        return print_commands([*before, *table])
    runs = pathlib.Path("runs") / args.name
    print("Ctrl-C stops; the same command goes on.\n", flush=True)
    if code := run(before, Record(runs / "prepared.json", before)):
        return code
    record = Record(runs / "own.json", table)  # of the configs that are there now
    if code := run(table, record):
        return code
    total = record.totals()
    print(
        f"Time {span(total['seconds'])}, peak memory "
        f"{total['peak_memory_gb']:.1f} GB.\n"
        f"Look at {runs}/report.html. Draw your own:\n"
        f"  {args.python} -m unclip_jax.sample --model=exports/{args.name} \\\n"
        '    --prompt="..." --out=mine.png'
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
