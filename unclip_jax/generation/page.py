"""A page in the browser to play with a model: what the app shows and does.

Each tab is a form and a function of a model; `make_page` lays them out with Gradio.
"""

import contextvars
import functools
import importlib.util
import pathlib
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.generation.unclip import UnCLIP
from unclip_jax.images import read_image

CLIP_TEXT = "a caption, as the model's training captions are written"


def make_page(model: UnCLIP, title: str):
    """The page of a model, a gradio.Blocks that is not yet running.

    Tabs that need a part which the model lacks are left out.
    """
    import gradio as gr

    has = model.stack.parts
    with gr.Blocks(title=f"unCLIP: {title}") as page:
        gr.Markdown(f"# unCLIP: {title}\n{_describe(model)}")
        with gr.Accordion("Settings", open=False):
            settings = _settings(gr, model)
        if "prior" in has or "ar_prior" in has:
            with gr.Tab("Text to image"):
                _text_tab(gr, model, settings)
        if "decoder" in has and model.stack.part("clip").module.vision_depth:
            with gr.Tab("Variations"):
                _variations_tab(gr, model, settings)
            with gr.Tab("Interpolation"):
                _interpolation_tab(gr, model, settings)
            with gr.Tab("Text diff"):
                _text_diff_tab(gr, model, settings)
    return page


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
    make_page(model, name).queue(default_concurrency_limit=1).launch(
        server_name=args.host, server_port=args.port, share=False, quiet=True
    )


def _describe(model: UnCLIP) -> str:
    parts = ", ".join(sorted(model.stack.parts))
    return f"{model.image_size} x {model.image_size} pixels; parts: {parts}"


def _settings(gr, model) -> list[Any]:
    """Makes the fields of every tab.

    They are seed, pictures, both guidances, decoder steps, and two remedies against
    large guidance.
    """
    most = model.stack.part("decoder").config["diffusion"]["num_steps"]
    usual = model.settings()
    prior = (usual.get("prior") or usual.get("ar_prior") or {}).get("guidance", 4)
    decoder = usual["decoder"]["guidance"]
    steps = usual["decoder"]["steps"]
    steps = steps if isinstance(steps, int) else min(50, most)  # of a respacing
    with gr.Row():
        common = [
            gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed"),
            gr.Slider(1, 16, 4, step=1, label="Pictures", elem_id="count"),
            gr.Slider(0, 16, prior, step=0.25, label="Prior guidance"),
            gr.Slider(0, 16, decoder, step=0.25, label="Decoder guidance"),
            gr.Slider(1, most, steps, step=1, label="Decoder steps"),
        ]
    with gr.Row():
        return [
            *common,
            gr.Slider(0, 1, 0, step=0.05, label="Guidance rescale"),
            gr.Slider(0.5, 1, 1, step=0.005, label="Dynamic threshold, 1 is none"),
        ]


def _against_guidance(rescale, threshold) -> dict[str, float | None]:
    """The last two of `_settings` as options of Manipulations."""
    threshold = threshold if threshold < 1 else None
    return {"guidance_rescale": rescale, "dynamic_threshold": threshold}


def _text_tab(gr, model, settings):
    prompt = gr.Textbox(label="Prompt", placeholder=CLIP_TEXT, elem_id="prompt")
    button = gr.Button("Draw", variant="primary", elem_id="draw")
    gallery = gr.Gallery(label="Pictures", columns=4, elem_id="pictures")

    bar = gr.Progress()

    def draw(
        prompt, seed, count, prior, decoder, steps, rescale, threshold, progress=bar
    ):
        with _errors(gr):
            images = model.text2image(
                [prompt] * int(count),
                seed=int(seed),
                prior_guidance=prior,
                decoder_guidance=decoder,
                decoder_steps=int(steps),
                decoder_guidance_rescale=rescale,
                dynamic_threshold=threshold if threshold < 1 else None,
                progress=_Report(progress),
            )
            return [
                (image, f"seed {int(seed)}, number {i}")
                for i, image in enumerate(images)
            ]

    inputs = [prompt, *settings]
    button.click(draw, inputs, gallery)
    prompt.submit(draw, inputs, gallery)


def _variations_tab(gr, model, settings):
    with gr.Row():
        image = _image_input(gr, "Picture", "vary-image")
        with gr.Column():
            eta = gr.Slider(0, 1, 1, step=0.05, label="eta: noise of the steps")
            button = gr.Button("Vary", variant="primary", elem_id="vary")
    gallery = gr.Gallery(label="Variations", columns=4, elem_id="variations")

    bar = gr.Progress()

    def vary(
        image, eta, seed, count, _, decoder, steps, rescale, threshold, progress=bar
    ):
        with _errors(gr):
            return list(
                model.variations(
                    [_picture(image, "a picture")] * int(count),
                    seed=int(seed),
                    eta=eta,
                    guidance=decoder,
                    steps=int(steps),
                    progress=_Report(progress),
                    **_against_guidance(rescale, threshold),
                )
            )

    button.click(vary, [image, eta, *settings], gallery)


def _interpolation_tab(gr, model, settings):
    with gr.Row():
        a = _image_input(gr, "From", "from-image")
        b = _image_input(gr, "To", "to-image")
    frames = gr.Slider(3, 33, 9, step=2, label="Pictures on the way")
    button = gr.Button("Interpolate", variant="primary", elem_id="interpolate")
    row = gr.State(None)
    position = gr.Slider(0, 1, 0, label="From 0 to 1", elem_id="position")
    shown = gr.Image(label="On the way", interactive=False, elem_id="on-the-way")

    bar = gr.Progress()

    def interpolate(
        a, b, frames, seed, _, __, decoder, steps, rescale, threshold, progress=bar
    ):
        with _errors(gr):
            drawn = model.interpolate(
                [_picture(a, "a picture to go from")],
                [_picture(b, "a picture to go to")],
                steps=int(frames),
                noise="shared",
                seed=int(seed),
                guidance=decoder,
                decoder_steps=int(steps),
                progress=_Report(progress),
                **_against_guidance(rescale, threshold),
            )[0]
            return drawn, drawn[0], 0

    def show(row, position):
        return None if row is None else row[round(position * (len(row) - 1))]

    inputs = [a, b, frames, *settings]
    button.click(interpolate, inputs, [row, shown, position])
    position.change(show, [row, position], shown)


def _text_diff_tab(gr, model, settings):
    image = _image_input(gr, "Picture", "diff-image")
    with gr.Row():
        source = gr.Textbox(label="What it shows", placeholder="a photo")
        target = gr.Textbox(label="What it should show")
    farthest = gr.Slider(0.05, 1, 0.4, step=0.05, label="How far to go")
    button = gr.Button("Change", variant="primary", elem_id="change")
    gallery = gr.Gallery(label="On the way", columns=5, elem_id="changed")

    bar = gr.Progress()

    def change(image, source, target, far, count, steps, progress=bar):
        with _errors(gr):
            thetas = np.linspace(0, far, max(int(count), 2))
            drawn = model.text_diff(
                [_picture(image, "a picture")],
                source,
                target,
                thetas=thetas,
                steps=int(steps),
                progress=_Report(progress),
            )[0]
            return [(x, f"theta {t:.2f}") for x, t in zip(drawn, thetas, strict=True)]

    _, count, _, _, steps, *_ = settings  # the picture's own noise, without guidance
    inputs = [image, source, target, farthest, count, steps]
    button.click(change, inputs, gallery)


def _image_input(gr, label: str, name: str):
    """A field for an image, given to functions as the file that was dropped there."""
    return gr.Image(label=label, type="filepath", image_mode=None, elem_id=name)


def _picture(file, what: str) -> np.ndarray:
    if file is None:
        raise UsageError(f"give {what} first")
    return read_image(file)


class _Report:
    """The page's progress bar as the `progress` of UnCLIP's methods."""

    def __init__(self, bar):
        self._bar = bar
        self._context = contextvars.copy_context()  # it says whose bar it is

    def __call__(self, done: int, total: int):
        self._bar((done, total), unit="pictures")

    def step(self, what: str, step: int, steps: int):
        """Called by another thread than the page's."""
        show = functools.partial(self._bar, (step, steps), desc=what, unit="steps")
        self._context.copy().run(show)


class _errors:
    """Mistakes in what was asked are shown on the page, others logged as well."""

    def __init__(self, gr):
        self._gr = gr

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, UsageError | OSError):
            raise self._gr.Error(str(error)) from error
        return False
