"""Runs the page."""

import importlib.util
import pathlib

from unclip_jax.errors import UsageError
from unclip_jax.generation.page.guard import Guard
from unclip_jax.generation.page.layout import make_page
from unclip_jax.generation.page.library import import_gradio
from unclip_jax.generation.page.style import CSS
from unclip_jax.generation.unclip import UnCLIP

UPLOAD_MOST = "20mb"
EVENTS_MOST = 64  # that Gradio keeps; drawings have a queue of their own


def serve(args) -> None:
    """What `python -m unclip_jax.app` does, until it is interrupted.

    Args:
      args: the flags of unclip_jax.app.

    Raises UsageError or FileNotFoundError: no such model, no Gradio, a port in use.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("the page needs Gradio: pip install -r requirements-app.txt")
    model = UnCLIP.load(args.model, dtype=args.dtype, batch_size=args.batch_size)
    name = pathlib.Path(args.model).resolve().name
    page = make_page(model, name)
    try:
        address = launch(page, args.host, args.port)
    except OSError as error:
        raise UsageError(
            f"cannot listen on port {args.port} of {args.host!r}, which may be in use: "
            f"choose another --port ({error})"
        ) from error
    print(f"{address} shows {name}; Ctrl-C ends it", flush=True)
    page.block_thread()


def launch(page, host: str = "127.0.0.1", port: int | None = None) -> str:
    """Starts to serve a page, in threads of its own; returns its address.

    Args:
      page: a gradio.Blocks.
      host: the address to listen on.
      port: to listen on; by default the first free one from 7860.
    """
    gr = import_gradio()
    from starlette.middleware import Middleware

    theme = gr.themes.Soft(  # fonts of the system: nothing is fetched from elsewhere
        primary_hue="indigo",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    page.queue(max_size=EVENTS_MOST, default_concurrency_limit=None)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=UPLOAD_MOST,
        theme=theme,
        css=CSS,
        footer_links=[],
        app_kwargs={"middleware": [Middleware(Guard, host=host)]},
    )
    return address
