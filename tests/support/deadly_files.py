"""Pictures that kill or hang the processes that decode them."""

import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "deadly"


def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every Python process that is started from now on, a picture dies that says so: see its sitecustomize.py."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(FOLDER))
