"""What else may happen to a run than being killed: one function for each.

Each is called with a folder of its own, the cache of compiled programs, the result of a
run that nothing disturbed, and the command's flags. It raises AssertionError if the
fault does harm, and returns why it was not tried, if it was not.
"""

import contextlib
import os
import pathlib
import resource
import signal
import subprocess
import time

from tests.soak import Run, differences


def two_runs(place, cache, expected, args):
    """The second start in a workdir is refused, the first does not notice it."""
    first = Run(place / "run", cache).start(pause=0.3)
    assert first.wait_for("t"), first.printed()
    second = Run(place / "run", cache)
    second.output = place / "second.txt"
    assert second.start(_no_patience).finish() == 2, second.printed()
    said = f"is in use by another run (process {first.pid} on"
    assert said in second.printed(), second.printed()
    _ends_well(first, expected)


def read_only(place, cache, expected, args):
    """A workdir that cannot be written is named; one that can be again goes on."""
    run = Run(place / "disk" / "run", cache)
    run.output = place / "run.txt"
    (place / "disk").mkdir()
    run.start()
    assert run.wait_for("s"), run.printed()
    run.send(signal.SIGKILL)
    run.finish()
    with _read_only(place / "disk") as reason:
        if reason:
            return reason
        assert run.start().finish() == 2, run.printed()
        assert "Read-only" in run.printed() or "denied" in run.printed()
        assert str(run.folder) in run.printed() and "Traceback" not in run.printed()
    _ends_well(run.start(), expected)
    return ""


def few_descriptors(place, cache, expected, args):
    """`ulimit -n 64` is enough."""

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    _ends_well(Run(place / "run", cache).start(limit), expected)


def full_disk(place, cache, expected, args):
    """A disk of two megabytes is full; when it has room again the run goes on."""
    disk = place / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        return "not tried: needs root, to mount a small disk"
    try:
        run = Run(disk / "run", cache)
        run.output = place / "run.txt"
        run.start(pause=0.05)
        assert run.wait_for("s"), run.printed()
        filler = open(disk / "filler", "wb", 0)
        with contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        assert run.finish() == 2, run.printed()
        assert "No space left" in run.printed(), run.printed()
        filler.close()
        os.unlink(filler.name)
        _ends_well(run.start(), expected)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return ""


def stopped(place, cache, expected, args):
    """SIGSTOP for a while, as a laptop's lid or a debugger: it goes on."""
    run = Run(place / "run", cache).start(pause=0.05)
    assert run.wait_for("s"), run.printed()
    run.send(signal.SIGSTOP)
    time.sleep(args.stopped)
    run.send(signal.SIGCONT)
    _ends_well(run, expected)


def clock_goes_back(place, cache, expected, args):
    """The time of day goes back by an hour in the middle, and at the next start."""

    def an_hour_less():
        _shift_clock(-3600)

    def back_after_a_second():
        import threading

        threading.Timer(1.0, an_hour_less).start()

    run = Run(place / "run", cache).start(back_after_a_second, pause=0.1)
    assert run.wait_for("s", 3), run.printed()
    run.send(signal.SIGKILL)
    run.finish()
    _ends_well(run.start(an_hour_less), expected)


FAULTS = {
    function.__name__: function
    for function in (
        two_runs,
        read_only,
        few_descriptors,
        full_disk,
        stopped,
        clock_goes_back,
    )
}


def _ends_well(run, expected):
    assert run.finish() == 0, run.printed()
    wrong = differences(expected, run.result())
    assert not wrong, wrong


def _no_patience():
    from unclip_jax.training import run_folder

    run_folder.PATIENCE = 0.2


def _shift_clock(seconds):
    """In this process: Python's own time of day, which all of training asks."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 10**9)


@contextlib.contextmanager
def _read_only(folder: pathlib.Path):
    """Makes a folder read-only, for root too; yields why it could not be done."""
    if os.geteuid():
        modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}
        for path in modes:
            path.chmod(modes[path] & ~0o222)
        yield ""
        for path, mode in modes.items():
            path.chmod(mode)
        return
    bind = ["mount", "--bind", str(folder), str(folder)]
    if subprocess.run(bind, capture_output=True).returncode:
        yield "not tried: the folder cannot be mounted"
        return
    try:
        remount = ["mount", "-o", "remount,ro,bind", str(folder)]
        subprocess.run(remount, check=True, capture_output=True)
        yield ""
    finally:
        subprocess.run(["umount", str(folder)], check=True)
