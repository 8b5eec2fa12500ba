"""Tests of the ColossalAI engine. Those that need it are a tier of their own.

The skip is for a checkout without the extra, which is by design. Under REQUIRE_ALL=1 scripts/test installs
it first, and a skip is a failure.
"""

import pytest

from opensora_launch.doctor.engine_packages import engine_problems
from opensora_launch.schema.config import Engine

MISSING = engine_problems(Engine.colossalai)
WITH_COLOSSALAI = [
    pytest.mark.colossalai,
    pytest.mark.skipif(bool(MISSING), reason=MISSING[0] if MISSING else "it is there"),
]
