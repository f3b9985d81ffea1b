"""What the user may say, and what the loader sees."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from dengine_sm_sqlite import SQLiteOptions, dengine_sm_backends

from dengine_sm import Durability


def test_refuses_the_transient_class():
    expected = (
        "durability: expected 'on_flush' or 'per_apply', observed 'transient'; "
        "use the backend 'memory' for that"
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        SQLiteOptions(durability=Durability.TRANSIENT)


@pytest.mark.parametrize(("name", "least"), [("cache_bytes", 262144), ("checkpoint_bytes", 65536)])
def test_refuses_sizes_that_are_too_small(name: str, least: int):
    expected = f"{name}: expected at least {least} bytes, observed {least - 1}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        SQLiteOptions(**{name: least - 1})


def test_declares_the_durability_that_the_options_say():
    (backend,) = dengine_sm_backends()

    assert backend.durability_for(SQLiteOptions()) is Durability.ON_FLUSH
    per_apply = SQLiteOptions(durability=Durability.PER_APPLY)
    assert backend.durability_for(per_apply) is Durability.PER_APPLY


def test_is_listed_without_importing_sqlite3():
    script = (
        "import sys, dengine_sm_sqlite; dengine_sm_sqlite.dengine_sm_backends();"
        "sys.exit('sqlite3' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
