"""Where pictures are shown: in a gallery, or as a row with a slider under it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unclip_jax.errors import UsageError

Target = tuple[str, Any, Callable[[str], Any]]  # a tab, its field, file -> its value


class Gallery:
    """Pictures; a click selects the one that the buttons below send on.

    Attributes:
      component: Gradio's gallery.
    """

    def __init__(self, gr, label: str, name: str, small: bool):
        """Makes an empty one; `small` images are shown with pixels as squares."""
        self._gr = gr
        self.component = gr.Gallery(
            label=label,
            show_label=False,
            elem_id=name,
            format="png",
            interactive=False,
            object_fit="contain",
            buttons=["download", "download_all", "fullscreen"],
            elem_classes=["shown", "small"] if small else ["shown"],
        )
        self._selected = gr.State(0)
        gr.HTML(
            "Click a picture to select it, then take it to another tab:",
            padding=False,
            elem_classes=["hint"],
        )
        self._row = gr.Row(elem_classes=["send"])

        def select(event: gr.SelectData):
            return event.index

        self.component.select(
            select, None, self._selected, queue=False, show_progress="hidden"
        )
        self.component.change(
            lambda: 0, None, self._selected, queue=False, show_progress="hidden"
        )

    def connect(self, tabs, targets: Mapping[str, Target]) -> None:
        """Makes a button per target, which takes the selected picture there."""
        gr = self._gr

        def send(prepare, pictures, selected):
            if not pictures:
                raise gr.Error("draw a picture first")
            return prepare(pictures[min(selected, len(pictures) - 1)][0])

        with self._row:
            for label, (tab, field, prepare) in targets.items():
                button = gr.Button(f"→ {label}", size="sm", elem_classes=["to"])
                button.click(
                    functools.partial(send, prepare),
                    [self.component, self._selected],
                    field,
                    queue=False,
                    show_progress="hidden",
                ).success(
                    lambda tab=tab: gr.Tabs(selected=tab), None, tabs, queue=False
                )


class Strip:
    """A row of pictures, one of them large, and a slider between them.

    Attributes:
      outputs: Gradio's components; `show` returns their values.
    """

    def __init__(self, gr, name: str, small: bool, first: str, last: str):
        """Makes an empty one, with the names of its ends."""
        self._gr = gr
        kind = ["small"] if small else []
        row = gr.State(None)
        frame = gr.Image(
            label="On the way",
            interactive=False,
            elem_id=name,
            format="png",
            elem_classes=["picture", *kind],
            type="filepath",
            height=380,
            buttons=["download", "fullscreen"],
        )
        position = gr.Slider(
            0, 1, 0, label=f"{first} → {last}", elem_id=f"{name}-position", step=0.01
        )
        gallery = gr.Gallery(
            label="All",
            elem_id=f"{name}-all",
            format="png",
            interactive=False,
            columns=9,
            allow_preview=False,
            object_fit="contain",
            buttons=["download_all"],
            elem_classes=["strip", *kind],
        )
        self.outputs = [row, frame, position, gallery]

        def move(row, position):
            if not row:
                return gr.update(value=None, label="On the way")
            file, caption = row[round(position * (len(row) - 1))]
            return gr.update(value=file, label=caption)

        def select(row, event: gr.SelectData):
            return event.index / max(len(row) - 1, 1)

        quick: dict[str, Any] = dict(queue=False, show_progress="hidden")
        position.change(move, [row, position], frame, **quick)
        gallery.select(select, row, position, **quick)

    def show(self, files: Sequence[str], captions: Sequence[str]) -> list[Any]:
        """The values of the outputs for a row of files."""
        if not files:
            raise UsageError("a row without pictures")
        row = [*zip(files, captions, strict=True)]
        return [row, self._gr.update(value=files[0], label=captions[0]), 0, row]
