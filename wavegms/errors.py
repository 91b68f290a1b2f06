"""The exceptions that speak to the user."""


class _Spoken(Exception):
    """Shown in a notebook as one sentence without a traceback, which would help nobody."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class InputError(_Spoken, ValueError):
    """Something handed to the package cannot be used: a file, a folder or a parameter.

    The message is one sentence that names the file or parameter and the way out. The reader has to
    change an input, not the code.
    """


class Stopped(_Spoken):
    """Someone asked for an end. The message says what was saved and how to go on."""
