"""Faults of servers and nodes under load; see `nats_storm.py` for what is judged.

One minute here; ten by `python plugins/dengine-sm-nats/tests/nats_storm.py --seconds 600`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from nats_storm import assert_sound, storm

pytestmark = [pytest.mark.storm, pytest.mark.timeout(280)]


async def test_nothing_acknowledged_is_lost_or_doubled_whatever_fails(tmp_path: Path) -> None:
    seed = random.Random(SEED).randrange(1 << 30)

    report = await storm(tmp_path, 60, seed, pause_s=4)

    assert_sound(report)
    # On a slow machine a minute is not enough for every kind.
    assert sum(report["faults"].values()) >= 6, report


SEED = 20_261
