"""The import of Gradio, which is only needed by the page."""

import contextlib
import inspect
from collections.abc import Generator
from unittest import mock


def import_gradio():
    """Imports Gradio without the stubs for editors that it writes at each import.

    They took half of the import's seconds, and change files of the installation.
    """
    with _without_stubs():
        import gradio
    return gradio


@contextlib.contextmanager
def _without_stubs() -> Generator[None]:
    """Within it Gradio's components are of no file: it writes no stubs of such."""
    original = inspect.getfile

    def getfile(thing):
        if type(thing).__module__ == "gradio.component_meta":
            raise OSError(f"no file is looked for of {thing}")
        return original(thing)

    with mock.patch.object(inspect, "getfile", getfile):
        yield
