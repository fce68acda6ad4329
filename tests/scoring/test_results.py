"""Reading results back is light."""

import subprocess
import sys

import pytest

_HEAVY = ("boto3", "keras", "matplotlib", "pandas", "ray", "scipy", "sklearn", "tensorflow")


@pytest.mark.parametrize("module", ["results", "alerts", "deliver"])
def test_who_only_reads_imports_nothing_heavy(module: str) -> None:
    words = f"import sys, melanoma.scoring.{module}; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert set(ended.stdout.split()).isdisjoint(_HEAVY)
