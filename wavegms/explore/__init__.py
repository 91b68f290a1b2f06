"""The explorer: every case of a run, image by image, with sliders."""
