"""The browser for tests that look at pages: Chromium of this machine, which asks nobody else."""

import os
import shutil

import pytest
from playwright.sync_api import expect

_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Without a sandbox, which root cannot have, and without asking anyone but the page's server.
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)

# What every test with a browser is marked with.
IN_A_BROWSER = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(
        not _CHROMIUM, reason="no Chromium on PATH, and none named by the variable CHROMIUM"
    ),
]

# On a busy machine.
expect.set_options(timeout=20_000)


def launch(playwright):
    return playwright.chromium.launch(executable_path=_CHROMIUM, args=_FLAGS)
