"""The explorer's pictures: arrays drawn by NumPy, which takes milliseconds, and put into HTML.

Each picture has a caption and a description for those who cannot see it. Outlines are those of the
other figures: truth solid cyan, prediction dashed orange, and of several classes the same lines in
their colours. What a prediction found, marked wrongly and missed is white, orange and blue, which
stay apart for colour-blind eyes and in grey; what it took for another class is magenta.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image, ImageColor

from wavegms.explore.cases import Errors
from wavegms.figures.colours import PREDICTION
from wavegms.predict.overlays import draw_contours

FOUND, WRONG, MISSED, MISTAKEN = "#ffffff", "#ff8c1a", "#2a9df4", "#e000a0"

_DRAWN_SIDE = 240  # pixels to which small images are blown up before an outline is drawn

# What no widget's attribute says: JupyterLab takes the arrow keys for its cells unless an element
# asks it not to, and a slider's handle needs a name for those who hear a page. Of the elements that
# a widget may put on a page, a picture that cannot be loaded is one that runs a script.
_SCRIPT = """
const tell = () => {
  const view = this.closest('.wavegms');
  if (!view) return setTimeout(tell, 100);
  view.addEventListener('focusin', ({target}) => {
    target.dataset.lmSuppressShortcuts = '';
    const slider = target.closest('.widget-slider');
    if (slider) target.ariaLabel = slider.querySelector('label').textContent;
  });
};
tell();
"""

# For a widget of class `wavegms`, as HTML.
STYLE = f'<img alt="" src="data:," hidden onerror="{_SCRIPT}">'

STYLE += """<style>
.wavegms figure { margin: 0; width: min-content; }
.wavegms .row { display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; }
.wavegms figure img { display: block; image-rendering: pixelated; background: #777; }
.wavegms figcaption { font-size: 12.5px; line-height: 1.35; padding-top: 3px; }
.wavegms .swatch { display: inline-block; width: 12px; height: 12px; border: 1px solid #555;
  vertical-align: -1px; margin-right: 5px; }
.wavegms .metrics { display: flex; flex-wrap: wrap; gap: 4px 22px; font-size: 14px;
  line-height: 1.4; }
.wavegms .metrics b { font-size: 19px; font-variant-numeric: tabular-nums; }
.wavegms .note { font-size: 13px; line-height: 1.4; opacity: 0.85; margin: 0 0 8px; }
.wavegms .problem { font-size: 14px; line-height: 1.4; padding: 6px 10px; color: #000;
  background: #ffe3c2; border-left: 5px solid #d55e00; }
.wavegms .table select, .wavegms pre { font-family: monospace; font-size: 13px; }
.wavegms .table label { position: absolute; clip-path: inset(50%); }
.wavegms .table select { padding: 0; }
.wavegms .table option { padding: 0 2px; }
.wavegms pre { margin: 0; padding-left: 3px; }
.wavegms .widget-readout { min-width: 40px; }
</style>"""


@dataclass(frozen=True)
class Picture:
    """A picture to show, uint8 (H, W, 3); the description is for those who do not see it."""

    pixels: np.ndarray
    title: str
    description: str
    caption: str = ""  # further HTML under the title

    def html(self, side: int) -> str:
        """An HTML figure whose longer side has that many pixels on the screen."""
        height, width = self.pixels.shape[:2]
        scale = side / max(height, width)
        size = f'width="{max(1, round(width * scale))}" height="{max(1, round(height * scale))}"'
        file = BytesIO()
        Image.fromarray(self.pixels).save(file, "png", compress_level=1)
        data = b64encode(file.getvalue()).decode()
        caption = f"<b>{escape(self.title)}</b> {self.caption}" if self.title else self.caption
        # beside an upright image the caption needs some width too
        return (
            f'<figure style="min-width: {side}px"><img {size} alt="{escape(self.description)}" '
            f'src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
        )


def as_html(pictures: Sequence[Picture], side: int) -> str:
    """Pictures side by side, as many in a row as fit."""
    return f'<div class="row">{"".join(picture.html(side) for picture in pictures)}</div>'


def outline(
    picture: np.ndarray, mask: np.ndarray, colour: str = PREDICTION, classes: Sequence[str] = ()
) -> np.ndarray:
    """A picture, blown up by a whole factor if it is small, with the outline of a mask.

    Where `classes` have colours, the mask is a label map, and the outline of each has its own.
    """
    factor = max(1, -(-_DRAWN_SIDE // max(mask.shape)))
    picture, mask = (
        values.repeat(factor, axis=0).repeat(factor, axis=1) for values in (picture, mask)
    )
    return draw_contours(picture, mask, classes or [colour], dashed=colour == PREDICTION, reach=2)


def paint_errors(picture: np.ndarray, errors: Errors) -> np.ndarray:
    """A darkened grey picture, uint8 (H, W, 3), on which agreement and errors are painted."""
    grey = picture.mean(-1, keepdims=True)
    painted = np.repeat(grey * 0.55, 3, axis=-1)
    for part, colour in zip(errors, (FOUND, WRONG, MISSED, MISTAKEN), strict=True):
        tint = np.array(ImageColor.getrgb(colour))
        painted[part] = (0.72 * tint + 0.28 * grey)[part]
    return painted.astype(np.uint8)


def shade(soft: np.ndarray) -> np.ndarray:
    """Values in [0, 1], (H, W), in grey: uint8 (H, W, 3), white where a mask is sure."""
    return np.repeat(np.round(soft * 255).astype(np.uint8)[..., None], 3, axis=-1)


def legend(colour: str, text: str) -> str:
    """A line of a caption that says what a colour means."""
    return f'<br><span class="swatch" style="background: {colour}"></span>{escape(text)}'
