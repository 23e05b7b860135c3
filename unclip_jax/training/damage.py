"""Checkpoints that cannot be read, or not as they were saved: one line for each."""

import gc
import logging
import sys
from collections.abc import Callable

from unclip_jax.errors import UsageError

SET_ASIDE = "set_aside_"  # beside checkpoints/: those that a run did not go on from


def compare(name: str, found: str, saved_sums, step: int, folder) -> None:
    """Raises UsageError if the checksum `found` is not the one saved under `name`."""
    if saved_sums.get(name, found) != found:
        raise damaged(step, folder, f"its {name!r} is not what was saved")


def guarded(read: Callable, step: int, folder):
    """What `read()` returns; raises UsageError if it cannot."""
    try:
        return read()
    except Exception as error:  # Orbax raises many kinds for a damaged checkpoint
        reason = " ".join(str(error).split())[:300]
    _forget_failed_reads()
    raise damaged(step, folder, reason)


def _forget_failed_reads():
    """Collects Orbax's abandoned reads without their pages of traceback.

    They would drown the one line that says what is wrong.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda *_: None
    logger = logging.getLogger("asyncio")
    disabled, logger.disabled = logger.disabled, True
    try:
        gc.collect()
    finally:
        sys.unraisablehook, logger.disabled = hook, disabled


def damaged(step: int, folder, reason: str) -> UsageError:
    """The error for a checkpoint, with what can be done."""
    return UsageError(
        f"the checkpoint {folder / str(step)} cannot be restored: {reason}. If it is "
        "damaged, go on from an earlier one with --restore_step=N (those saved are the "
        f"numbers in {folder}); newer ones are then moved to {SET_ASIDE}N, not deleted"
    )
