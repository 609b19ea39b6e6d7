"""Where the store is when nobody says otherwise."""

import os
from pathlib import Path

VARIABLE = "RTGEN_STORE"


def default_root() -> Path:
    """``$RTGEN_STORE``, else ``engines/`` of the source tree rtgen runs from, else the user's data folder."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "engines").is_dir():
        return checkout / "engines"
    from platformdirs import user_data_dir

    return Path(user_data_dir("rtgen", appauthor=False))
