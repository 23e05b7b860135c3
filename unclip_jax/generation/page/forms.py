"""The fields of the page: settings, examples, and the button that draws or stops."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unclip_jax.diffusion.samplers import SAMPLERS
from unclip_jax.errors import UsageError
from unclip_jax.generation.page.jobs import Line, Stopped, status
from unclip_jax.generation.page.style import PERMALINK
from unclip_jax.images import read_image
from unclip_jax.tokenizer import SUFFIX, Tokenizer

PROMPT_MOST = 1000  # characters
SEED_MOST = 2**32 - 1
PICTURES_MOST = 16
EXAMPLES = "prompts.txt"  # in an export's folder: captions to offer, one per line
EXAMPLES_MOST = 8
VOCABULARY_MOST = 5000  # tokens of a vocabulary whose words are offered
WORDS_MOST = 32
SMALL = 256  # pixels; smaller images are shown with their pixels as squares


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The values of the settings, as UnCLIP's methods take them.

    Attributes:
      seed: of all randomness.
      count: pictures.
      prior: arguments of text2image, which no other method has.
      decoder: options of DecoderOptions, without the sampler and the steps.
      steps, sampler: of the decoder.
    """

    seed: int
    count: int
    prior: Mapping[str, Any]
    decoder: Mapping[str, Any]
    steps: int | str
    sampler: str


class Settings:
    """The fields of all tabs, with what the export recommends marked.

    Attributes:
      fields: Gradio's components, by name; `read` takes their values.
    """

    def __init__(self, gr, model):
        most = model.stack.part("decoder").config["diffusion"]["num_steps"]
        usual = model.settings()
        prior = usual.get("prior") or usual.get("ar_prior") or {}
        decoder = usual["decoder"]
        self._steps = decoder["steps"]
        steps = self._steps if isinstance(self._steps, int) else min(50, most)
        self._usual_steps = steps
        self.fields: dict[str, Any] = {}
        with gr.Group():
            self.fields["count"] = gr.Slider(
                1, PICTURES_MOST, 4, step=1, label="Pictures", elem_id="count"
            )
            self.fields["seed"] = gr.Number(
                0, label="Seed", precision=0, minimum=0, elem_id="seed"
            )
            self.fields["random"] = gr.Checkbox(
                False, label="A new seed each time", elem_id="random"
            )
        with gr.Accordion("More settings", open=False, elem_id="settings"):
            if prior:
                self._slider(gr, "prior_guidance", (0, 16), prior["guidance"], 0.25)
            self._slider(gr, "decoder_guidance", (0, 16), decoder["guidance"], 0.25)
            self._slider(
                gr, "decoder_steps", (1, most), steps, 1, f"recommended: {self._steps}"
            )
            if "sampler" in prior:
                self._sampler(gr, "prior_sampler", prior["sampler"])
            self._sampler(gr, "decoder_sampler", decoder["sampler"])
            self._slider(gr, "guidance_rescale", (0, 1), 0, 0.05, "against contrast")
            self._slider(gr, "dynamic_threshold", (0.5, 1), 1, 0.005, "1 is none")

    def read(self, *values) -> Drawn:
        """The values of the fields, in their order; UsageError for a missing one."""
        row = dict(zip(self.fields, values, strict=True))
        for name, value in row.items():
            if value is None:
                raise UsageError(
                    f"the {name.replace('_', ' ')} is missing: enter a number"
                )
        seed = int(row["seed"])
        if not 0 <= seed <= SEED_MOST:
            raise UsageError(f"the seed must be from 0 to {SEED_MOST}, got {seed}")
        if not 1 <= row["count"] <= PICTURES_MOST:
            raise UsageError(f"pictures: from 1 to {PICTURES_MOST}, not {row['count']}")
        threshold = row["dynamic_threshold"]
        steps = int(row["decoder_steps"])
        prior = {k: row[k] for k in ("prior_guidance", "prior_sampler") if k in row}
        return Drawn(
            seed=int(np.random.default_rng().integers(2**31))
            if row["random"]
            else seed,
            count=int(row["count"]),
            prior=prior,
            decoder={
                "guidance": row["decoder_guidance"],
                "guidance_rescale": row["guidance_rescale"],
                "dynamic_threshold": threshold if threshold < 1 else None,
            },
            steps=self._steps if steps == self._usual_steps else steps,
            sampler=row["decoder_sampler"],
        )

    def _slider(self, gr, name, ends, value, step, info=None):
        info = info or f"recommended: {value:g}"
        label = name.replace("_", " ").capitalize()
        self.fields[name] = gr.Slider(*ends, value, step=step, label=label, info=info)

    def _sampler(self, gr, name, recommended):
        self.fields[name] = gr.Dropdown(
            [
                (f"{key} (recommended)" if key == recommended else key, key)
                for key in SAMPLERS
                if key != "consistency" or key == recommended
            ],
            value=recommended,
            label=name.replace("_", " ").capitalize(),
            info="of text to image and inpainting; the other tabs draw by ddim"
            if name == "decoder_sampler"
            else None,
        )


class Form:
    """The button of a tab, which becomes Stop while its drawing waits or runs."""

    jobs: dict[tuple[str, str], Any]

    def __init__(self, gr, line: Line, name: str, label: str):
        """Makes the buttons and the line that says what goes on."""
        self._gr, self._line, self.name = gr, line, name
        self.button = gr.Button(label, variant="primary", elem_id=name)
        self.stop = gr.Button(
            "Stop", variant="stop", visible=False, elem_id=f"{name}-stop"
        )
        self.status = gr.HTML("", elem_id=f"{name}-status", padding=False)
        self._jobs: dict[str, Any] = {}

    def connect(
        self,
        function: Callable,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        triggers: Sequence[Any] = (),
    ):
        """Draws on a click.

        Args:
          function: (progress, *values of inputs) -> a value per output.
          inputs, outputs: Gradio's components; the outputs are cleared first.
          triggers: other events that draw.
        """
        gr = self._gr
        keep = [gr.skip() for _ in outputs]

        def draw(request: gr.Request, *values):
            session, results = request.session_hash, keep
            said = ""
            try:
                job = self._line.add(lambda progress: function(progress, *values))
                self._jobs[session] = job
                shown = job.status(self._line.before(job))
                swap = gr.update(visible=False), gr.update(visible=True)
                yield *swap, shown, *(self._cleared(o) for o in outputs)
                while not _is_done(job):
                    shown = job.status(self._line.before(job))
                    yield gr.skip(), gr.skip(), shown, *keep
                results = job.result()
            except Stopped:
                said = status("Stopped.")
            except (UsageError, OSError) as error:
                said = status(str(error), error=True)
            except Exception:
                said = status("This is a bug: see the log of the page.", error=True)
                yield gr.update(visible=True), gr.update(visible=False), said, *keep
                raise
            finally:
                self._jobs.pop(session, None)
            yield gr.update(visible=True), gr.update(visible=False), said, *results

        def stop(request: gr.Request):
            if job := self._jobs.get(request.session_hash):
                job.stop()

        self.stop.click(stop, queue=False, show_progress="hidden")
        return gr.on(
            [self.button.click, *triggers],
            draw,
            [*inputs],
            [self.button, self.stop, self.status, *outputs],
            show_progress="hidden",
            api_name=self.name,
        )

    def _cleared(self, output):
        kinds = (self._gr.Gallery, self._gr.Label, self._gr.State)
        return None if isinstance(output, kinds) else self._gr.skip()


def _is_done(job) -> bool:
    """Whether a drawing has ended, after a moment's wait for that."""
    import concurrent.futures

    try:
        job.future.exception(timeout=0.3)
    except concurrent.futures.TimeoutError:
        return False
    return True


def prompt_field(gr, label: str, name: str, placeholder: str = "") -> Any:
    """A field for a caption."""
    return gr.Textbox(
        label=label, placeholder=placeholder, elem_id=name, max_length=PROMPT_MOST
    )


def image_field(gr, label: str, name: str, small: bool = False):
    """A field for an image, given to functions as the file that was dropped there."""
    return gr.Image(
        label=label,
        type="filepath",
        image_mode=None,
        elem_id=name,
        sources=["upload", "clipboard"],
        height=220,
        elem_classes=["picture", "small"] if small else ["picture"],
        buttons=["fullscreen"],
    )


def check_prompt(text: str | None, what: str = "prompt") -> str:
    """The text without blanks around it; UsageError if it is empty or too long."""
    text = (text or "").strip()
    if not text:
        raise UsageError(f"the {what} is empty: write a caption")
    if len(text) > PROMPT_MOST:
        raise UsageError(
            f"the {what} has {len(text)} characters: {PROMPT_MOST} at most"
        )
    return text


def open_image(file: str | None, what: str) -> np.ndarray:
    """Reads an uploaded file as every other; UsageError if there is none."""
    if file is None:
        raise UsageError(f"give {what} first")
    try:
        return read_image(file)
    except OSError as error:
        raise UsageError(f"{what} cannot be read: {error}") from error


def example_prompts(model) -> list[str]:
    """Captions to offer: those that the export brings, else none."""
    path = pathlib.Path(model.stack.origin) / EXAMPLES
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()][:EXAMPLES_MOST]


def known_words(tokenizer) -> list[str]:
    """The commonest words of the captions that a small tokenizer was trained on.

    A word that has a token of its own was frequent, the more the lower the token's
    number. One that ends another may be but a piece of it, and is left out. A large
    vocabulary, such as OpenAI's, knows all common words: then none.
    """
    if not isinstance(tokenizer, Tokenizer) or tokenizer.vocab_size > VOCABULARY_MOST:
        return []
    words = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    known = [
        word
        for i, word in enumerate(words)
        if len(word) > 2 and word.isalpha() and tokenizer.token_id(word + SUFFIX) == i
    ]
    ends = {word[i:] for word in known for i in range(1, len(word))}
    return [word for word in known if word not in ends][:WORDS_MOST]


def examples_row(gr, model, field) -> None:
    """Buttons that write a caption into a field, or add a word of the vocabulary."""
    captions = example_prompts(model)
    words = [] if captions else known_words(model.tokenizer)
    if words:
        gr.HTML("Words that the model knows:", padding=False, elem_classes=["hint"])
    if not captions and not words:
        return
    with gr.Row(elem_classes=["examples"]):
        for text in captions or words:
            button = gr.Button(text, size="sm", variant="secondary")
            new = json.dumps(text)
            js = f"(old) => (old ? old.trimEnd() + ' ' : '') + {new}"
            js = f"() => {new}" if captions else js
            inputs = None if captions else field
            button.click(None, inputs, field, js=js, show_progress="hidden")


def permalink(names: Sequence[str]) -> str:
    """JavaScript that puts values of these names into the address."""
    return PERMALINK % json.dumps([*names])
