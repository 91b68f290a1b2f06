"""The exceptions that speak to the user, in one line each."""

_LONGEST = 2000  # characters


class _Spoken(Exception):
    """Shown in a notebook as one sentence without a traceback, which would help nobody."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class InputError(_Spoken, ValueError):
    """Something handed to the package cannot be used: a file, a folder or a parameter.

    The message is one sentence that names the file or parameter and the way out. The reader has to
    change an input, not the code.

    The message may quote names and values as they came: they can break no line, steer no terminal,
    and fill no screen.
    """

    def __init__(self, message: object):
        super().__init__(_printable(str(message)))


class Stopped(_Spoken):
    """Someone asked for an end. The message says what was saved and how to go on."""


def first_line(error: BaseException) -> str:
    """An error's message as part of a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


def _printable(text: str) -> str:
    if len(text) > _LONGEST:  # the file stands in front, the way out at the end
        text = f"{text[: _LONGEST * 3 // 4]} ... {text[-_LONGEST // 5 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
