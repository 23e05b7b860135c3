"""The tabs: each a form, a function of the model, and what it shows."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.generation.page import forms
from unclip_jax.generation.page.forms import Form, check_prompt, open_image
from unclip_jax.generation.page.gallery import Gallery, Strip, Target
from unclip_jax.generation.page.jobs import Line
from unclip_jax.generation.page.results import Results
from unclip_jax.generation.unclip import UnCLIP
from unclip_jax.images import fit, read_mask

CLIP_TEXT = "a caption, as the model's training captions are written"
LABELS_MOST = 100


@dataclasses.dataclass
class Room:
    """What the tabs share.

    Attributes:
      gr: Gradio.
      model: draws.
      line: the queue of drawings.
      results: their files.
      settings: the fields beside the tabs; None of a model that cannot draw.
      galleries: whose images can be sent on.
      targets: what images can be sent to: label -> (its tab, its field, what makes
        the field's value of a file).
      prompt: the field that the address fills as well.
    """

    gr: Any
    model: UnCLIP
    line: Line
    results: Results
    settings: forms.Settings | None
    galleries: list[Any] = dataclasses.field(default_factory=list)
    targets: dict[str, Target] = dataclasses.field(default_factory=dict)
    prompt: Any = None

    @property
    def fields(self) -> list[Any]:
        """The fields of the settings."""
        return [*self.settings.fields.values()] if self.settings else []

    @property
    def is_small(self) -> bool:
        """Whether images are so small that their pixels are shown as squares."""
        return self.model.image_size < forms.SMALL

    def form(self, name: str, label: str) -> Form:
        """A button that draws, and becomes Stop."""
        return Form(self.gr, self.line, name, label)

    def image(self, label: str, name: str):
        """A field for an image."""
        return forms.image_field(self.gr, label, name, self.is_small)

    def gallery(self, label: str, name: str) -> Gallery:
        """A place for pictures, that can be sent on."""
        self.galleries.append(Gallery(self.gr, label, name, self.is_small))
        return self.galleries[-1]

    def strip(self, name: str, first: str, last: str) -> Strip:
        """A place for a row of pictures."""
        return Strip(self.gr, name, self.is_small, first, last)

    def target(self, label: str, tab: str, field, prepare=str) -> None:
        """Registers a field that images can be sent to."""
        self.targets[label] = tab, field, prepare

    def save(self, mode, images, captions, drawn, name, **options) -> list[str]:
        """Writes drawings, with what they were asked for."""
        settings = {"mode": mode, **options}
        return self.results.save(images, name, drawn.seed, settings, captions)

    def draws(self, form: Form, function: Callable, inputs, outputs, triggers=()):
        """Connects function(progress, settings, *values) -> values of the outputs."""
        settings, count = self.settings, len(inputs)
        if settings is None:
            raise UsageError("the export has no decoder")
        seed = settings.fields["seed"]

        def draw(progress, *values):
            drawn = settings.read(*values[count:])
            return drawn.seed, *function(progress, drawn, *values[:count])

        event = form.connect(draw, [*inputs, *self.fields], [seed, *outputs], triggers)
        if self.prompt is not None:
            names, fields = ["prompt", *settings.fields], [self.prompt, *self.fields]
            event.then(None, fields, None, js=forms.permalink(names))


def text_to_image(room: Room) -> None:
    """Pictures of a prompt."""
    gr, model = room.gr, room.model
    with gr.Row():
        with gr.Column(scale=4, min_width=280):
            prompt = forms.prompt_field(gr, "Prompt", "prompt", CLIP_TEXT)
            forms.examples_row(gr, model, prompt)
        with gr.Column(scale=1, min_width=140):
            form = room.form("draw", "Draw")
    gallery = room.gallery("Pictures", "pictures")
    room.prompt = prompt

    def draw(progress, drawn, prompt):
        prompt = check_prompt(prompt)
        options = {
            **drawn.prior,
            "decoder_guidance": drawn.decoder["guidance"],
            "decoder_guidance_rescale": drawn.decoder["guidance_rescale"],
            "dynamic_threshold": drawn.decoder["dynamic_threshold"],
            "decoder_steps": drawn.steps,
            "decoder_sampler": drawn.sampler,
        }
        prompts = [prompt] * drawn.count
        images = model.text2image(
            prompts, seed=drawn.seed, progress=progress, **options
        )
        files = room.save("text2image", images, prompts, drawn, prompt, **options)
        return [_numbered(files, prompt, drawn.seed)]

    room.draws(form, draw, [prompt], [gallery.component], [prompt.submit])


def variations(room: Room) -> None:
    """Pictures with the content of another."""
    gr, model = room.gr, room.model
    with gr.Row():
        with gr.Column(min_width=240):
            image = room.image("Picture", "vary-image")
        with gr.Column(min_width=240):
            eta = gr.Slider(0, 1, 1, step=0.05, label="eta: noise of the steps")
            form = room.form("vary", "Vary")
    gallery = room.gallery("Variations", "variations")
    room.target("Variations", "Variations", image)

    def vary(progress, drawn, file, eta):
        picture = open_image(file, "a picture")
        options = {"eta": eta, "steps": drawn.steps, **drawn.decoder}
        pictures = [picture] * drawn.count
        images = model.variations(
            pictures, seed=drawn.seed, progress=progress, **options
        )
        names = ["a variation"] * drawn.count
        files = room.save("variations", images, names, drawn, "variation", **options)
        return [_numbered(files, "variation", drawn.seed)]

    room.draws(form, vary, [image, eta], [gallery.component])


def interpolation(room: Room) -> None:
    """The way from one picture to another."""
    gr, model = room.gr, room.model
    with gr.Row():
        a = room.image("From", "from-image")
        b = room.image("To", "to-image")
        with gr.Column(min_width=240):
            frames = gr.Slider(3, 33, 9, step=2, label="Pictures on the way")
            form = room.form("interpolate", "Interpolate")
    strip = room.strip("on-the-way", "from", "to")
    room.target("Interpolation: from", "Interpolation", a)
    room.target("Interpolation: to", "Interpolation", b)

    def interpolate(progress, drawn, a, b, frames):
        a = open_image(a, "a picture to go from")
        b = open_image(b, "a picture to go to")
        options: dict[str, Any]
        options = {"steps": drawn.steps, **drawn.decoder, "noise": "shared"}
        images = model.interpolate(
            [a], [b], int(frames), seed=drawn.seed, progress=progress, **options
        )[0]
        names = [f"t = {t:.2f}" for t in np.linspace(0, 1, int(frames))]
        files = room.save("interpolate", images, names, drawn, "between", **options)
        return strip.show(files, names)

    room.draws(form, interpolate, [a, b, frames], strip.outputs)


def text_diff(room: Room) -> None:
    """A picture changed as a caption changes."""
    gr, model = room.gr, room.model
    with gr.Row():
        with gr.Column(min_width=240):
            image = room.image("Picture", "diff-image")
        with gr.Column(min_width=240):
            source = forms.prompt_field(gr, "What it shows", "diff-source", "a photo")
            target = forms.prompt_field(gr, "What it should show", "diff-target")
        with gr.Column(min_width=240):
            far = gr.Slider(0.05, 1, 0.4, step=0.05, label="How far to go")
            frames = gr.Slider(2, 16, 5, step=1, label="Pictures on the way")
            form = room.form("change", "Change")
    strip = room.strip("changed", "as it is", "changed")
    room.target("Text diff", "Text diff", image)

    def change(progress, drawn, file, source, target, far, frames):
        picture = open_image(file, "a picture")
        target = check_prompt(target, "caption of what it should show")
        source = check_prompt(source or "a photo", "caption of what it shows")
        thetas = np.linspace(0, far, int(frames)).tolist()
        images = model.text_diff(
            [picture], source, target, thetas, steps=drawn.steps, progress=progress
        )[0]
        names = [f"theta = {theta:.2f}" for theta in thetas]
        options = {"source": source, "target": target, "steps": drawn.steps}
        files = room.save("text_diff", images, names, drawn, target, **options)
        return strip.show(files, names)

    inputs = [image, source, target, far, frames]  # without guidance: its own noise
    room.draws(form, change, inputs, strip.outputs)


def inpainting(room: Room) -> None:
    """A picture painted anew under the brush."""
    gr, model = room.gr, room.model
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            editor = gr.ImageEditor(
                label="Picture",
                type="filepath",
                image_mode="RGBA",
                sources=["upload", "clipboard"],
                brush=gr.Brush(colors=["#ffffff"], color_mode="fixed"),
                layers=False,
                transforms=(),
                elem_id="inpaint-image",
                height=420,
            )
        with gr.Column(min_width=240):
            prompt = forms.prompt_field(
                gr, "Prompt (optional)", "inpaint-prompt", "what the picture shows"
            )
            form = room.form("inpaint", "Paint")
            gr.HTML(
                "Give a picture and brush over what is to be drawn anew.",
                padding=False,
                elem_classes=["hint"],
            )
    gallery = room.gallery("Inpainted", "inpainted")
    room.target("Inpainting", "Inpainting", editor, room.results.enlarged)

    def inpaint(progress, drawn, edited, prompt):
        background = (edited or {}).get("background")
        picture = open_image(background, "a picture")
        layers = (edited or {}).get("layers") or []
        masks = [read_mask(layer, [picture]) for layer in layers]
        mask = np.any(masks, axis=0) if masks else np.zeros(picture.shape[:2], bool)
        mask = np.repeat(np.uint8(255) * mask[..., None], 3, axis=-1)
        mask = fit(mask, model.draw_size).mean(-1) > 127
        if not mask.any():
            raise UsageError("paint over what is to be drawn anew first")
        prompt = check_prompt(prompt) if (prompt or "").strip() else None
        options = {"steps": drawn.steps, "sampler": drawn.sampler, **drawn.decoder}
        prior = {key.removeprefix("prior_"): v for key, v in drawn.prior.items()}
        images = model.inpaint(
            [picture] * drawn.count,
            mask,
            prompt,
            drawn.seed,
            prior=prior,
            progress=progress,
            **options,
        )
        name = prompt or "inpainted"
        names = [name] * drawn.count
        files = room.save("inpaint", images, names, drawn, name, **options)
        return [_numbered(files, name, drawn.seed)]

    room.draws(form, inpaint, [editor, prompt], [gallery.component])


def components(room: Room) -> None:
    """A picture from few principal components of its embedding."""
    gr, model = room.gr, room.model
    most = len(model.stack.embedding_statistics().mean)
    with gr.Row():
        with gr.Column(min_width=240):
            image = room.image("Picture", "components-image")
        with gr.Column(min_width=240):
            frames = gr.Slider(2, 16, 8, step=1, label="Pictures in the row")
            form = room.form("components", "Reconstruct")
    strip = room.strip("reconstructed", "few components", f"all {most}")
    room.target("Components", "Components", image)

    def reconstruct(progress, drawn, file, frames):
        picture = open_image(file, "a picture")
        dims = np.unique(np.geomspace(1, most, int(frames)).round().astype(int))
        dims = dims.tolist()
        options = {"steps": drawn.steps, **drawn.decoder}
        images = model.pca_reconstructions(
            [picture], dims, seed=drawn.seed, progress=progress, **options
        )[0]
        names = [f"{n} of {most} components" for n in dims]
        files = room.save("pca", images, names, drawn, "components", **options)
        return strip.show(files, names)

    room.draws(form, reconstruct, [image, frames], strip.outputs)


def zero_shot(room: Room) -> None:
    """Which label CLIP finds likeliest."""
    gr, model = room.gr, room.model
    with gr.Row():
        with gr.Column(min_width=240):
            image = room.image("Picture", "label-image")
        with gr.Column(min_width=240):
            labels = gr.Textbox(
                label="Labels, one per line",
                lines=5,
                elem_id="labels",
                max_length=10000,
            )
            template = gr.Textbox("{}", label='Template, e.g. "a photo of a {}"')
            form = room.form("classify", "Classify")
    bars = gr.Label(label="Probabilities", num_top_classes=20, elem_id="bars")
    room.target("Zero-shot", "Zero-shot", image)

    def classify(progress, file, labels, template):
        progress(0, 1)
        picture = open_image(file, "a picture")
        names = [line.strip() for line in (labels or "").splitlines() if line.strip()]
        names = [check_prompt(name, "label") for name in dict.fromkeys(names)]
        if not names:
            raise UsageError("no labels: write one per line")
        if len(names) > LABELS_MOST:
            raise UsageError(f"{len(names)} labels: {LABELS_MOST} at most")
        template = check_prompt(template, "template")
        odds = model.zero_shot(model.fit_for_clip([picture]), names, [template])[0]
        return [dict(zip(names, map(float, odds), strict=True))]

    form.connect(classify, [image, labels, template], [bars])


def _numbered(files, prompt, seed):
    """A gallery's images, each with its prompt, seed and number."""
    return [(f, f"{prompt}; seed {seed}, number {i}") for i, f in enumerate(files)]
