"""The explorer: widgets by which a person looks at what a model makes of each image.

What is computed lies in `cases`, what is said and shown of it in `panels`.
Only what is in sight is computed, and the table is filled in pauses, so that everything answers at
once. Nothing is written.
"""

import asyncio
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from time import perf_counter

import ipywidgets as widgets

from wavegms.data.manifest import SPLITS, load_manifest, number_of_folds
from wavegms.errors import InputError
from wavegms.explore.cases import BANDS, TABLE_ROWS, Case, Workbench, find_datasets, read_upload
from wavegms.explore.panels import (
    band_label,
    model_label,
    show_bands,
    show_case,
    show_depths,
    show_filtered,
    sort_keys,
    sort_rows,
    table_lines,
)
from wavegms.explore.pictures import STYLE
from wavegms.training.publish import PublishedModel

_SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}

_TABS = ("All images", "Four depths", "Wavelet bands", "Your own image")

_DEPTHS, _BANDS = 1, 2

_PAUSE_AFTER = 0.1  # seconds that the table may keep a person waiting

_REFRESH_AFTER = 1.0  # seconds between two looks at a table that is being filled

_UPLOAD_NOTE = (
    '<p class="note">Any size, grey or colour; a file above 10 MB does not arrive. It is shown '
    "above with its prediction, goes to the computer that runs this notebook, nowhere else, and is "
    "not kept.</p>"
)


def explore(
    prepared: Path,
    models: Sequence[PublishedModel],
    *,
    dataset: str,
    variant: str,
    seed: int,
    threshold: float,
) -> widgets.Widget:
    """The explorer as one widget, for the last line of a cell, whose event loop fills its table.

    Dataset, variant (or the name of a model of `weights/`) and threshold are those shown first, if
    they are there; the seed is that of the
    draw where a model samples z_MR at inference.
    """
    return Explorer(prepared, models, dataset, variant, seed, threshold).view


class Explorer:
    """The widgets and what they do; `view` is all of them, :func:`explore` makes it."""

    case: Case  # in sight
    filling: asyncio.Task  # of the table

    def __init__(
        self,
        prepared: Path,
        models: Sequence[PublishedModel],
        dataset: str,
        variant: str,
        seed: int,
        threshold: float,
    ):
        self._prepared, self._models = Path(prepared), list(models)
        self._bench = Workbench(prepared, seed)
        self._reacting = True  # until it is filled
        self._upload: tuple[str, bytes] | None = None
        self._rows: list[dict] = []
        self._build(threshold)
        self._connect()
        names = find_datasets(self._prepared)
        # a notebook's own default may not be there, where others were prepared
        self.dataset.options = names
        self.dataset.value = dataset if dataset in names else names[0]
        labels = [model_label(model) for model in self._models]
        self.model.options = [(label, place) for place, label in enumerate(labels)]
        self._take_model_for(variant)
        self._reacting = False

    def _build(self, threshold: float) -> None:
        self.dataset = _dropdown("Dataset", 220)
        self.split = _dropdown("Split", 200)
        self.model = _dropdown("Model", 430)
        self.image = _dropdown("Image", 220)
        self.previous, self.next = _button("‹ previous", 100), _button("next ›", 100)
        self.threshold = widgets.FloatSlider(
            threshold, min=0, max=1, step=0.01, description="Threshold", layout=_width(400)
        )
        self.message, self.heading, self.pictures, self.metrics, self.table_note = _texts(5)
        self.table_head, self.depths, self.filtered = _texts(3)

        self.sort = _dropdown("Sort by", 270, list(sort_keys().items()))
        self.order = _dropdown("Order", 190, ["lowest first", "highest first"])
        whole_width = widgets.Layout(width="100%")
        self.table = widgets.Select(rows=12, description="Images", layout=whole_width)
        self.table.add_class("table")
        ordered = _line(self.sort, self.order, self.table_note)

        self.thumbnails = dict(zip(BANDS, _texts(len(BANDS)), strict=True))
        shared = {"max": 100, "step": 5, "style": {"description_width": "120px"}}
        shared["layout"] = _width(242)
        self.bands = {
            band: widgets.IntSlider(100, description=band_label(band), **shared) for band in BANDS
        }
        self.whole = _button("all bands whole", 150)
        cells = [_line(self.thumbnails[band], self.bands[band]) for band in BANDS]
        three = widgets.Layout(grid_template_columns="repeat(3, 1fr)")  # a row for each level
        grid = widgets.GridBox([*cells, self.whole], layout=three)

        self.upload = widgets.FileUpload(
            accept="image/*", description="choose an image", layout=_width(200)
        )
        self.back = _button("back to the dataset", 200)
        self.back.disabled = True

        self.tabs = widgets.Tab(
            [
                widgets.VBox([ordered, self.table_head, self.table]),
                self.depths,
                widgets.VBox([self.filtered, grid]),
                widgets.VBox([widgets.HTML(_UPLOAD_NOTE), _line(self.upload, self.back)]),
            ],
            titles=_TABS,
        )
        self.view = widgets.VBox(
            [
                widgets.HTML(STYLE),
                _line(self.dataset, self.split, self.model),
                _line(self.image, self.previous, self.next, self.heading),
                self.message,
                self.pictures,
                _line(self.threshold, self.metrics),
                self.tabs,
            ]
        )
        self.view.add_class("wavegms")

    def _connect(self) -> None:
        self._react(self.dataset, self._change_dataset)
        self._react(self.split, self._open_split)
        self._react(self.model, self._open_model)
        self._react(self.image, lambda: self._show_case(self.image.value))
        self._react(self.threshold, self._show_anew)
        self._react(self.tabs, self._show_tab, "selected_index")
        for widget in (self.sort, self.order):
            self._react(widget, self._show_table)
        self._react(self.table, lambda: self._show_case(self.table.value))
        for slider in self.bands.values():
            self._react(slider, self._show_tab)
        self._react(self.upload, self._take_upload)
        self.previous.on_click(lambda _: self._answer(lambda: self._step(-1)))
        self.next.on_click(lambda _: self._answer(lambda: self._step(1)))
        self.whole.on_click(lambda _: self._answer(self._keep_all_bands))
        self.back.on_click(lambda _: self._answer(lambda: self._show_case(self.image.value)))

    def _react(
        self, widget: widgets.Widget, handler: Callable[[], None], trait: str = "value"
    ) -> None:
        """Calls a handler when a person changes a widget, not when another handler does.

        What cannot be used is said in one sentence, and the widget goes back to what could.
        """

        def react(change: dict) -> None:
            if self._reacting or self._answer(handler):
                return
            problem, self._reacting = self.message.value, True
            widget.set_trait(trait, change["old"])
            self._answer(handler)
            self.message.value = problem

        widget.observe(react, trait)

    def _answer(self, handler: Callable[[], None]) -> bool:
        self._reacting = True
        try:
            handler()
            self.message.value = ""
        except InputError as error:
            self._say(error)
            return False
        finally:
            self._reacting = False
        return True

    def _say(self, error: InputError) -> None:
        self.message.value = f'<div class="problem" role="alert">{escape(str(error))}</div>'

    # What a person changed, and what follows from it.

    def _change_dataset(self) -> None:
        """A model trained on the other dataset comes with it, if there is one of its variant."""
        self._take_model_for(self._models[self.model.value].card.variant)

    def _take_model_for(self, variant: str) -> None:
        """The best match that knows the dataset's classes, or else the one now.

        That is kept by that name; for the dataset with the variant, any; the one now; any.
        """
        cards = [model.card for model in self._models]
        places = [model.folder.parts[-3:-1] for model in self._models]
        named = [n for n, place in enumerate(places) if place == ("kept", variant)]
        own = [n for n, card in enumerate(cards) if card.dataset == self.dataset.value]
        same = [n for n in own if cards[n].variant == variant]
        now = self.model.value or 0
        classes = load_manifest(self._prepared / self.dataset.value)["classes"][0].split()
        best = [*named, *same, *own, now, *range(len(cards))]
        fitting = (n for n in best if cards[n].parameters.get("classes", []) == classes)
        self.model.value = next(fitting, now)
        self._bench.open_model(self._models[self.model.value])
        self._open_dataset()

    def _open_dataset(self) -> None:
        manifest = load_manifest(self._prepared / self.dataset.value)
        sizes = manifest["split"].value_counts()
        if number_of_folds(manifest):
            sizes["test"] = len(manifest)
        names = [name for name in SPLITS if name in sizes]
        self.split.options = [(f"{_SPLIT_NAMES[name]} ({sizes[name]})", name) for name in names]
        self.split.value = "test" if "test" in names else names[0]
        self._open_split()

    def _open_split(self) -> None:
        self._bench.open_split(self.dataset.value, self.split.value)
        self.image.options = [(name, place) for place, name in enumerate(self._bench.data.ids)]
        chosen, keys = self.sort.value, sort_keys(self._bench.data.classes)
        self.sort.options = list(keys.items())
        self.sort.value = chosen if chosen in keys.values() else "dsc"
        self._show_case(0)
        self._fill_table()

    def _open_model(self) -> None:
        self._bench.open_model(self._models[self.model.value])
        if self.case.index is None:
            self.case = self._read_upload(*self._upload)  # another model, perhaps another size
        self._show_anew()

    def _show_anew(self) -> None:
        self._show()
        self._fill_table()

    def _step(self, by: int) -> None:
        self._show_case((self.image.value + by) % len(self.image.options))

    def _show_case(self, place: int) -> None:
        self.case = self._bench.case(place)
        self.image.value = place
        self._show()

    def _take_upload(self) -> None:
        if self.upload.value:
            file = self.upload.value[0]
            self.upload.value = ()  # the same file may come again
            upload = file["name"], bytes(file["content"])
            self.case, self._upload = self._read_upload(*upload), upload
            self._show()

    def _read_upload(self, name: str, content: bytes) -> Case:
        pipeline = self._bench.pipeline
        return read_upload(name, content, pipeline.config.image_size, pipeline.scale)

    def _keep_all_bands(self) -> None:
        for slider in self.bands.values():
            slider.value = 100
        self._show_tab()

    # What is in sight.

    def _show(self) -> None:
        panel = show_case(self._bench, self.case, self.threshold.value)
        self.heading.value, self.pictures.value, self.metrics.value = panel
        self.back.disabled = self.case.index is not None
        self._choose_row()
        self._show_tab()

    def _show_tab(self) -> None:
        """Only the open tab is computed: what nobody sees takes no time."""
        if self.tabs.selected_index == _DEPTHS:
            self.depths.value = show_depths(self._bench, self.case, self.threshold.value)
        elif self.tabs.selected_index == _BANDS:
            kept = {band: slider.value / 100 for band, slider in self.bands.items()}
            for band, html in show_bands(self.case, kept).items():
                self.thumbnails[band].value = html
            self.filtered.value = show_filtered(self._bench, self.case, self.threshold.value, kept)

    # The table.

    def _fill_table(self) -> None:
        if hasattr(self, "filling"):
            self.filling.cancel()
        self.filling = asyncio.get_running_loop().create_task(self._score_in_pauses())

    async def _score_in_pauses(self) -> None:
        rows: list[dict] = []
        paused = refreshed = perf_counter()
        try:
            for row in self._bench.rows(self.threshold.value):
                rows.append(row)
                if perf_counter() - refreshed > _REFRESH_AFTER:
                    self._take_rows(rows)
                    refreshed = perf_counter()
                if perf_counter() - paused > _PAUSE_AFTER:
                    await asyncio.sleep(0.02)  # whoever waits has their turn
                    paused = perf_counter()
        except InputError as error:
            self._say(error)
        self._take_rows(rows)

    def _take_rows(self, rows: list[dict]) -> None:
        self._rows, self._reacting = list(rows), True
        self._show_table()
        self._reacting = False

    def _show_table(self) -> None:
        rows = sort_rows(self._rows, self.sort.value, self.order.value == "highest first")
        head, lines = table_lines(rows)
        self.table_head.value = f"<pre>{head}</pre>"
        self.table.options = [(line, row["index"]) for line, row in zip(lines, rows, strict=True)]
        self._choose_row()
        count = len(self._bench.data)
        text = f"{len(rows)} of {count} images scored"
        if count > TABLE_ROWS:
            text += f"; the table ends at {TABLE_ROWS}"
        self.table_note.value = f'<span class="note">{text}</span>'

    def _choose_row(self) -> None:
        places = {row["index"] for row in self._rows}
        self.table.value = self.case.index if self.case.index in places else None


def _dropdown(
    label: str, width: int, options: Sequence[str | tuple[str, str]] = ()
) -> widgets.Dropdown:
    return widgets.Dropdown(
        options=options,
        description=label,
        style={"description_width": "initial"},
        layout=_width(width),
    )


def _button(label: str, width: int) -> widgets.Button:
    return widgets.Button(description=label, layout=_width(width))


def _width(pixels: int) -> widgets.Layout:
    return widgets.Layout(width=f"{pixels}px")


def _texts(count: int) -> list[widgets.HTML]:
    return [widgets.HTML() for _ in range(count)]


def _line(*items: widgets.Widget) -> widgets.HBox:
    layout = widgets.Layout(flex_flow="row wrap", align_items="center")
    return widgets.HBox(items, layout=layout)
