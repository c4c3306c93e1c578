"""Where the files lie that come with the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
PARENT: Final = FOLDER / "college-parent.gguf"
