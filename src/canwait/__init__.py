"""Run LLM work that can wait: priced before it is spent, under a hard budget, from a ledger that survives any crash.

The public names and nothing else (docs/api.md); each is loaded when it is first used, so `import canwait` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors as errors
    from .client import Client as Client
    from .client import JobHandle as JobHandle
    from .client import connect as connect
    from .client import map as map
    from .outcomes import Failed as Failed
    from .outcomes import Ok as Ok
    from .reading import reader as reader
    from .types import Job as Job
    from .types import Plan as Plan

__version__ = "0.1.0"

__all__ = ["Client", "Failed", "Job", "JobHandle", "Ok", "Plan", "connect", "errors", "map", "reader"]

_HOME = {  # the module each name lives in
    **dict.fromkeys(("Client", "JobHandle", "connect", "map"), "client"),
    **dict.fromkeys(("Failed", "Ok"), "outcomes"),
    **dict.fromkeys(("Job", "Plan"), "types"),
    "errors": "errors",
    "reader": "reading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_HOME[name]}", __name__)
    return module if name == _HOME[name] else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
