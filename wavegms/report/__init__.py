"""One HTML file of a run, model cards, and folders to share."""
