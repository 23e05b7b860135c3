"""Compares two models by human preference (unCLIP, section 5).

    python -m unclip_jax.compare --study=study --a=samples/ours --b=samples/theirs \\
        --question=photorealism --question=caption
    python -m unclip_jax.compare --study=study --answers=alice.csv --answers=bob.csv

The first command pairs the images of two folders and writes pages that ask which one is
better (study/pages, for raters: each file is complete, and works offline) and the key
(study/key.json, not for them). The second reads the files that raters download from the
pages: how often A is preferred, with its 95% interval.
"""

from unclip_jax import command_line
from unclip_jax.errors import UsageError

FLAGS = {
    "study": (command_line.REQUIRED, "folder of the study"),
    "a": (str, "folder of images of model A"),
    "b": (str, "folder of images of model B, paired with A's by name or number"),
    "question": (
        [],
        "photorealism, caption or diversity; may be repeated (default the first two)",
    ),
    "captions": (str, "text file with a caption per pair, if the images carry none"),
    "count": (int, "comparisons per question, drawn at random (default 1000)"),
    "grid": (int, "diversity: rows and columns of a grid (default 4)"),
    "page": (int, "comparisons per page (default 50)"),
    "seed": (int, "seed of selection, order and sides (default 0)"),
    "answers": ([], "CSV file with the answers of a rater; may be repeated"),
}


MAKING = ("a", "b", "question", "captions", "count", "grid", "page", "seed")


def main(args):
    """Makes a study of --a and --b, or scores --answers to one."""
    from unclip_jax.evaluation.human import answers, study

    given = {k: v for k in MAKING if (v := getattr(args, k)) not in (None, [])}
    if args.answers:
        if given:
            raise UsageError(
                f"--{next(iter(given))} is not used with --answers, which scores a "
                "study that was made before"
            )
        answers.score_study(args.study, args.answers)
        return
    if missing := [name for name in ("a", "b") if name not in given]:
        raise UsageError(
            f"--{missing[0]} is missing: give --a=FOLDER and --b=FOLDER to make a "
            "study, or --answers=FILE to score one"
        )
    folders = given.pop("a"), given.pop("b"), given.pop("captions", "")
    if "question" in given:
        given["questions"] = tuple(given.pop("question"))
    study.make_study(args.study, *folders, study.StudyOptions(**given))


if __name__ == "__main__":
    command_line.run(main, config=False, extra_flags=FLAGS)
