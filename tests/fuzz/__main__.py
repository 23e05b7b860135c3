"""Runs mutations of every border, and counts what came of them.

    python -m tests.fuzz --mutations=20000 --border=exports --seed=0

Prints the faults and a table; exits with 1 if there was a fault.
"""

import argparse
import collections
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests import fuzz  # noqa: E402


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mutations", type=int, default=20_000, help="of all borders")
    parser.add_argument("--border", choices=fuzz.BORDERS, action="append")
    parser.add_argument("--seed", type=int, default=0, help="the first mutation")
    args = parser.parse_args()
    names, faults = args.border or fuzz.BORDERS, 0
    count = -(-args.mutations // len(names))
    for name in names:
        outcomes, start = collections.Counter(), time.perf_counter()
        with tempfile.TemporaryDirectory() as root:
            border = fuzz.Border(name, pathlib.Path(root) / name)
            for seed in range(args.seed, args.seed + count):
                try:
                    outcomes[border.run(seed)] += 1
                except fuzz.FaultError as error:
                    outcomes["fault"] += 1
                    faults += 1
                    print(f"FAULT {error}", flush=True)
        seconds = time.perf_counter() - start
        listed = ", ".join(f"{n:,} {what}" for what, n in sorted(outcomes.items()))
        print(f"{name}: {count:,} mutations: {listed}; {seconds:.0f} s", flush=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
