"""What nbval does not compare."""


def pytest_collectstart(collector):
    """Leaves out what a cell writes to stderr: progress bars, with the time that was left."""
    if collector.path.suffix == ".ipynb":
        collector.skip_compare += ("stderr",)
