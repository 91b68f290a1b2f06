"""What a notebook is run with: params.yaml, and the arguments of its stage on top."""

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from wavegms.config import load_params
from wavegms.errors import InputError


def parameters_of_stage(
    notebook: Path, arguments: Mapping[str, str], params_file: Path
) -> dict[str, Any]:
    """The parameter file's values, as far as the notebook declares them, and the arguments."""
    params = load_params(params_file).model_dump()
    declared = read_parameters(notebook)
    unknown = sorted(set(arguments) - set(declared))
    if unknown:
        raise InputError(f"{notebook} has no parameter {unknown[0]}: it has {', '.join(declared)}")
    values = {name: value for name, value in params.items() if name in declared}
    return values | {
        name: _as_declared(name, text, declared[name]) for name, text in arguments.items()
    }


def read_parameters(notebook: Path) -> dict[str, Any]:
    """The defaults in a notebook's cell tagged `parameters`, which assigns literals to names."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            if "parameters" in cell["metadata"].get("tags", []):
                return {
                    statement.targets[0].id: ast.literal_eval(statement.value)
                    for statement in ast.parse("".join(cell["source"])).body
                }
    except FileNotFoundError as error:
        raise InputError(f"{notebook} does not exist") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{notebook} is no notebook: restore it with git") from error
    raise InputError(f"{notebook} has no cell tagged parameters")


def _as_declared(name: str, text: str, default: Any) -> Any:
    """An argument of the command line, in the type of the notebook's default."""
    # names in a list are text, whatever they look like: YAML reads 000130 as 88
    numbers = not isinstance(default, list) or any(isinstance(one, int) for one in default)
    loader = yaml.SafeLoader if numbers else yaml.BaseLoader
    try:
        value = text if isinstance(default, str) else yaml.load(text, loader)
    except (yaml.YAMLError, ValueError):  # a date of no calendar, say
        value = None
    if type(value) is not type(default):
        raise InputError(f"-p {name} {text}: expected a {type(default).__name__}, as {default!r}")
    return value
