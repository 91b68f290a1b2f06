"""The colours of truth and prediction, wherever they are drawn; matplotlib takes half a second."""

TRUTH = "#00d5ff"

PREDICTION = "#ff8c1a"
