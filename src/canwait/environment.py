"""Keys and passwords: from the environment, or from a file that the environment names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def secret(name: str, env: Mapping[str, str]) -> str:
    """What `name` holds, or the file named by `{name}_FILE`, without space around it; "" when neither is set.

    Raises ValueError for a file that cannot be used. It says why and shows nothing of the file.
    """
    value, file = env.get(name, ""), env.get(f"{name}_FILE", "")
    if not value and file:
        try:
            value = Path(file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not plain text"
            raise ValueError(f"the file named by {name}_FILE cannot be used: {why}") from None
    return value.strip()
