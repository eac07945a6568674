"""What a job file names as `package.module:name`: the user's own code."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType


def imported(module_name: str, base_dir: Path) -> ModuleType:
    """A module, looked for beside the job file first. Raises ValueError, also for whatever the module raises."""
    folder = str(base_dir.resolve())
    sys.path.insert(0, folder)
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's code, and may raise anything
        raise ValueError(f"'{module_name}' cannot be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(folder)
    here = base_dir.joinpath(*module_name.split(".")).with_suffix(".py")
    if here.exists() and not (module.__file__ and here.samefile(module.__file__)):
        raise ValueError(f"'{module_name}' is already imported from {module.__file__}, so {here} cannot be")
    return module
