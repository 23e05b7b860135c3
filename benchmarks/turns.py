"""Several programs timed in turns, each in a process of its own.

One works while the others wait, so they share no threads, and each round's ratio
compares neighbours in time: what other work on the machine costs, it costs all alike.
"""

import dataclasses
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Times:
    """What one of the programs took, per step; ratios are to the first program.

    Each is (median, least, most) over the rounds, of seconds or of a ratio.
    """

    name: str
    seconds: tuple[float, float, float]
    cpu_seconds: tuple[float, float, float]
    ratio: tuple[float, float, float]
    cpu_ratio: tuple[float, float, float]
    about: dict[str, Any]  # what the program says of itself


def _serve(connection, make: Callable, args: Sequence) -> None:
    """Makes a step, then runs as many as it is asked for, until it is asked for 0."""
    step, about = make(*args)
    connection.send(about)
    while count := connection.recv():
        start, work = time.perf_counter(), time.process_time()
        for _ in range(count):
            step()
        connection.send((time.perf_counter() - start, time.process_time() - work))


def in_turns(
    programs: Mapping[str, tuple[Callable, Sequence]],
    rounds: int = 5,
    seconds: float = 4.0,
    say: Callable[[str], None] = print,
) -> list[Times]:
    """Times each program's step, in `rounds` turns of about `seconds`.

    Args:
      programs: name -> (make, args), where make(*args), of a module's top level, is
        called in the program's process and returns (step, about): a function that does
        one step and waits for its end, and what to know of it. The first one is what
        others are compared with.
      rounds, seconds: see above.
      say: takes a line on each program that is ready.

    Each turn begins with a step that does not count.
    """
    context = multiprocessing.get_context("spawn")
    running, counts, about = {}, {}, {}
    taken = {name: [] for name in programs}

    def measure(name, count):
        running[name][0].send(count)
        return running[name][0].recv()

    try:
        for name, job in programs.items():
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, *job), daemon=True)
            running[name] = here, process
            process.start()
            there.close()  # so that a process that dies ends the wait for it
            about[name] = here.recv()
            say(f"{name}: {about[name]}")
        for name in programs:
            measure(name, 1)
            counts[name] = max(1, round(seconds / measure(name, 1)[0]))
        for _ in range(rounds):
            for name, count in counts.items():
                measure(name, 1)
                wall, cpu = measure(name, count)
                taken[name].append((wall / count, cpu / count))
    finally:
        for connection, process in running.values():
            if process.is_alive():
                connection.send(0)
            process.join()
    first = taken[next(iter(programs))]

    def summary(values):
        return statistics.median(values), min(values), max(values)

    def times(name):
        turns = taken[name]
        walls, cpus = zip(*turns, strict=True)
        ratios = [
            [ours[i] / theirs[i] for ours, theirs in zip(turns, first, strict=True)]
            for i in (0, 1)
        ]
        spreads = map(summary, (walls, cpus, *ratios))
        return Times(name, *spreads, about=about[name])

    return [times(name) for name in programs]


def table(results: Sequence[Times]) -> str:
    """A table in Markdown, with the cores that the programs could use."""

    def spread(values, digits):
        middle, least, most = (f"{value:.{digits}f}" for value in values)
        return f"{middle} ({least} to {most})"

    lines = [
        f"On {len(os.sched_getaffinity(0))} core(s):",
        "",
        "| | s a step | CPU s a step | ratio of time | ratio of CPU time |",
        "|---|---|---|---|---|",
    ]
    for row in results:
        numbers = (
            spread(row.seconds, 3),
            spread(row.cpu_seconds, 3),
            spread(row.ratio, 2),
            spread(row.cpu_ratio, 2),
        )
        lines.append(f"| {row.name} | {' | '.join(numbers)} |")
    return "\n".join(lines)
