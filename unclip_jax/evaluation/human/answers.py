"""What raters answered: read from their files, checked, and scored."""

import csv
import dataclasses
import io
import itertools
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.human.study import FORMAT
from unclip_jax.evaluation.metrics import preference
from unclip_jax.files import atomic_write, read_utf8

ANSWERS = ("1", "2", "not sure")  # the first, the second, neither
COLUMNS = ("pair", "answer", "rater")
A, NOT_SURE, B = 0, 1, 2  # columns of counts, see preference.py


@dataclasses.dataclass(frozen=True)
class Answer:
    """One line of a rater's file."""

    pair: str
    answer: str  # one of ANSWERS
    rater: str
    where: str  # file:line


def score_study(
    folder: str | pathlib.Path,
    answers: Sequence[str | pathlib.Path],
    log: Callable[[str], None] = print,
) -> dict:
    """Scores the answers to a study and writes its preferences.json.

    Args:
      folder: a study made by make_study.
      answers: CSV files with the columns pair, answer and rater, as its pages give.
      log: called with each line of text for the user.

    Returns:
      What preferences.json holds.

    Raises:
      UsageError: no study there, or answers to unknown pairs, of unknown words, or of
        one rater twice to one pair; the lines are named.
      FileNotFoundError: a file that is not there.
    """
    folder = pathlib.Path(folder)
    key = _read_key(folder / "key.json")
    rows = list(itertools.chain.from_iterable(map(read_answers, answers)))
    names: dict[str, str] = {}  # a rater's name as it was spelled first
    rows = [
        dataclasses.replace(r, rater=names.setdefault(r.rater.casefold(), r.rater))
        for r in rows
    ]
    check_answers(rows, key["pairs"])
    if not rows:
        raise UsageError(f"there is no answer in {', '.join(map(str, answers))}")
    questions = {}
    for name in dict.fromkeys(pair["question"] for pair in key["pairs"].values()):
        pairs = {k: v for k, v in key["pairs"].items() if v["question"] == name}
        questions[name] = _score(pairs, [row for row in rows if row.pair in pairs])
    results = {
        "format": "unclip_jax preferences",
        "version": 1,
        "study": key["study"],
        "a": key["a"],
        "b": key["b"],
        "questions": questions,
    }
    atomic_write(folder / "preferences.json", json.dumps(results, indent=1) + "\n")
    log(table(results))
    log(f"written: {folder}/preferences.json")
    return results


def read_answers(path: str | pathlib.Path) -> list[Answer]:
    """The lines of a rater's file.

    Raises:
      UsageError: other columns, an unknown word for an answer, a rater without name.
      FileNotFoundError: no such file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--answers {str(path)!r} does not exist")
    rows = []
    reader = csv.DictReader(io.StringIO(read_utf8(path), newline=""))
    try:
        if missing := [c for c in COLUMNS if c not in (reader.fieldnames or ())]:
            raise UsageError(
                f"{path} has no column {missing[0]!r}: expected {','.join(COLUMNS)}, "
                "with commas"
            )
        for line in reader:
            rows.append(_read_line(line, f"{path}:{reader.line_num}"))
    except csv.Error as error:
        where = f"{path}:{reader.line_num}"
        raise UsageError(f"{where}: not a file that a page gives: {error}") from None
    return rows


def _read_line(line, where) -> Answer:
    values = {name: " ".join((line[name] or "").split()) for name in COLUMNS}
    values["answer"] = values["answer"].lower()
    if values["answer"] not in ANSWERS:
        raise UsageError(
            f"{where}: answer {values['answer']!r}: expected one of "
            f"{', '.join(ANSWERS)}"
        )
    if not values["rater"]:
        raise UsageError(f"{where}: the answer has no rater")
    return Answer(**values, where=where)


def check_answers(rows: Sequence[Answer], pairs) -> None:
    """Raises UsageError for answers to no pair of `pairs`, or given twice."""
    unknown = [f"{row.where} ({row.pair!r})" for row in rows if row.pair not in pairs]
    if unknown:
        raise UsageError(
            f"answers to pairs that the study does not have: {_few(unknown)}; are they "
            "of another study?"
        )
    first, twice = {}, []
    for row in rows:
        earlier = first.setdefault((row.pair, row.rater), row)
        if earlier is not row:
            twice.append(f"{row.pair} by {row.rater!r} ({earlier.where}, {row.where})")
    if twice:
        raise UsageError(
            f"pairs that one rater has answered twice: {_few(twice)}; give only the "
            "last file that a rater has downloaded of a page"
        )


def _score(pairs, rows) -> dict:
    """The results of one question; those of preference are None without answers."""
    numbers = {identity: i for i, identity in enumerate(pairs)}
    counts = np.zeros((len(pairs), 3), int)
    raters: dict[str, dict] = {}
    for row in rows:
        column = _column(row.answer, pairs[row.pair]["first"])
        counts[numbers[row.pair], column] += 1
        blank = {"a": 0, "not sure": 0, "b": 0, "first": 0}
        tally = raters.setdefault(row.rater, blank)
        tally[("a", "not sure", "b")[column]] += 1
        tally["first"] += row.answer == "1"
    answered = counts.sum(1) > 0
    scored, total = counts[answered], counts.sum(0).tolist()
    overall = decided = agreed = None
    if answered.any():
        overall = preference.preference(scored)
        decided = preference.decided_preference(scored)
        agreed = preference.agreement(scored)
    return {
        "preference": overall and dataclasses.asdict(overall),
        "decided": decided and dataclasses.asdict(decided),
        "answers": dict(zip(("a", "not sure", "b"), total, strict=True)),
        "first": sum(row.answer == "1" for row in rows),
        "pairs": len(pairs),
        "missing": [name for name, i in numbers.items() if not answered[i]],
        "raters": raters,
        "agreement": agreed,
    }


def _column(answer, first):
    if answer == "not sure":
        return NOT_SURE
    return A if (answer == "1") == (first == "a") else B


def table(results) -> str:
    """The results as text."""
    lines = [f"A: {results['a']}", f"B: {results['b']}"]
    for name, scores in results["questions"].items():
        answers = scores["answers"]
        total, missing = sum(answers.values()), scores["missing"]
        lines.append("")
        if not total:
            lines.append(f"{name}: no answers to any of {scores['pairs']} pairs")
            continue
        lines += [
            f"{name}: A over B {_percent(scores['preference'])} "
            f"({_percent(scores['decided'])} of the decided)",
            f"  {answers['a']} A, {answers['not sure']} not sure, {answers['b']} B; "
            f"{scores['pairs'] - len(missing)} of {scores['pairs']} pairs answered",
        ]
        decided = total - answers["not sure"]
        if decided:
            share = scores["first"] / decided
            lines.append(f"  the first image was chosen {share:.1%} of the time")
        if missing:
            lines.append(f"  no answer to {_few(missing)}")
        for rater, tally in sorted(scores["raters"].items()):
            lines.append(
                f"  {rater}: {tally['a']} A, {tally['not sure']} not sure, "
                f"{tally['b']} B"
            )
        if agreed := scores["agreement"]:
            lines.append(
                f"  two raters of a pair agree {agreed['observed']:.1%} of the time, "
                f"alpha {agreed['alpha']:.2f} ({agreed['n']} pairs)"
            )
    lines.append("\n± is the 95% normal interval; not sure counts half for each model")
    return "\n".join(lines)


def _percent(estimate) -> str:
    if estimate is None:
        return "-"
    return f"{100 * estimate['value']:.1f}% ± {100 * estimate['half_width']:.1f}"


def _few(names, most=5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _read_key(path):
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: make the study with --a=FOLDER --b=FOLDER first"
        )
    try:
        key = json.loads(read_utf8(path))
    except json.JSONDecodeError:
        key = None
    complete = isinstance(key, dict) and {"study", "a", "b", "pairs"} <= key.keys()
    if not complete or (key.get("format"), key.get("version")) != (FORMAT, 1):
        raise UsageError(
            f"{path} is not the whole key of a study of this version: take it from a "
            "copy, or make another study"
        )
    return key
