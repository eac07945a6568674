"""What every test has: no network, no keys, seeded randomness, and a ledger's address on both databases."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import offline

ROOT = Path(__file__).parent.parent
CI = bool(os.environ.get("CI"))

offline.install()
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT / "tests" / "offline"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# Nothing of the developer's own account, ledger or proxy reaches a test.
for name in set(os.environ) - {"CANWAIT_NO_POSTGRES"}:
    if name.startswith(("CANWAIT_", "OPENAI_", "ANTHROPIC_")) or name.lower().endswith("_proxy"):
        del os.environ[name]

hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if CI else "dev")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The project's shared folder (recorded exchanges, data sets), beside the repository and not part of it."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no shared folder beside the repository")
    return folder


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """One PostgreSQL server for each test process; the URL of its maintenance database."""
    if os.environ.get("CANWAIT_NO_POSTGRES") == "1" and not CI:
        pytest.skip("CANWAIT_NO_POSTGRES=1")
    import postgres

    with postgres.server() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database of this test's own (20 ms)."""
    import postgres

    with postgres.database(postgres_server) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    url: str = request.getfixturevalue("postgres_url")
    return url
