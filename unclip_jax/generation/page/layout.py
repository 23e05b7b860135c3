"""The page: its tabs, the settings beside them, and how images go between tabs."""

from unclip_jax.generation.page import tabs
from unclip_jax.generation.page.forms import PROMPT_MOST, Settings
from unclip_jax.generation.page.jobs import Line
from unclip_jax.generation.page.library import import_gradio
from unclip_jax.generation.page.results import Results
from unclip_jax.generation.unclip import UnCLIP


def make_page(model: UnCLIP, title: str):
    """The page of a model, a gradio.Blocks that is not yet running.

    Tabs that need a part which the model lacks are left out.
    """
    gr = import_gradio()

    names = f"unCLIP: {title}"
    with gr.Blocks(
        title=names, analytics_enabled=False, delete_cache=(3600, 86400)
    ) as page:
        gr.Markdown(f"# {names}\n{_describe(model)}")
        with gr.Row():
            main = gr.Column(scale=3, min_width=320)
            with gr.Column(scale=1, min_width=280):
                has_decoder = "decoder" in model.stack.parts
                settings = Settings(gr, model) if has_decoder else None
        room = tabs.Room(gr, model, Line(), Results(title), settings)
        with main, gr.Tabs(elem_id="tabs") as tab_bar:
            for label, make_tab in _tabs(model).items():
                with gr.Tab(label, id=label):
                    make_tab(room)
        for gallery in room.galleries:
            gallery.connect(tab_bar, room.targets)
        if settings is not None and room.prompt is not None:
            _restore(gr, page, {"prompt": room.prompt, **settings.fields})
    return page


def _tabs(model):
    """Label -> the function that makes a tab, for what the model can do."""
    has = model.stack.parts
    decodes, sees = "decoder" in has, "clip" in has
    sees = sees and bool(model.stack.part("clip").module.vision_depth)
    makers = {}
    if decodes and ("prior" in has or "ar_prior" in has):
        makers["Text to image"] = tabs.text_to_image
    if decodes and sees:
        makers["Variations"] = tabs.variations
        makers["Interpolation"] = tabs.interpolation
        makers["Text diff"] = tabs.text_diff
        makers["Inpainting"] = tabs.inpainting
        if model.stack.statistics is not None:
            makers["Components"] = tabs.components
    if sees:
        makers["Zero-shot"] = tabs.zero_shot
    return makers


def _restore(gr, page, fields) -> None:
    """Fills the fields from the page's address, as `forms.permalink` wrote them."""

    def restore(request: gr.Request):
        query, values = dict(request.query_params), []
        for name, field in fields.items():
            value = query.get(name)
            values.append(gr.skip() if value is None else _parse(gr, field, value))
        return values

    page.load(restore, None, [*fields.values()], show_progress="hidden")


def _parse(gr, field, text: str):
    """The value of a field as the address has it; none of a value it cannot have."""
    if isinstance(field, gr.Textbox):
        return text[:PROMPT_MOST]
    if isinstance(field, gr.Checkbox):
        return text == "true"
    if isinstance(field, gr.Dropdown):
        choices = [value for _, value in field.choices]
        return text if text in choices else gr.skip()
    try:
        value = float(text)
    except ValueError:
        return gr.skip()
    low = getattr(field, "minimum", None)
    high = getattr(field, "maximum", None)
    if not (low or 0) <= value <= (2**32 - 1 if high is None else high):
        return gr.skip()
    return int(value) if value.is_integer() else value


def _describe(model: UnCLIP) -> str:
    parts = ", ".join(sorted(model.stack.parts))
    return f"{model.image_size} x {model.image_size} pixels; parts: {parts}"
