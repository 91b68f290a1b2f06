"""The one exception that speaks to the user."""


class InputError(ValueError):
    """Something handed to the package cannot be used: a file, a folder or a parameter.

    The message is one sentence that names the file or parameter and the way out. In a notebook
    it is shown alone, without a traceback: the reader has to change an input, not the code.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython prints instead of a traceback."""
        return [f"InputError: {self}"]
