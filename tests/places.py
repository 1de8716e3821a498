"""Where things lie in the checkout."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
CONFIGS = REPOSITORY / "scripts" / "configs"
HELPDESK = REPOSITORY / "data" / "helpdesk"
