"""From files to masks with a trained model."""

from typing import Literal

Plane = Literal["axial", "coronal", "sagittal"]
