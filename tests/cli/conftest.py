"""What the tests of the commands share."""

from pathlib import Path

import pytest

from melanoma.catalog import build, schema
from melanoma.catalog import split as splitting


@pytest.fixture(scope="session")
def catalogs(lesions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the catalog of `lesions`, before and after its split. Not to be written to."""
    folder = tmp_path_factory.mktemp("catalogs")
    schema.write(str(folder / "unsplit.parquet"), build.build([str(lesions)]))
    frame = schema.read(str(folder / "unsplit.parquet"))
    schema.write(str(folder / "catalog.parquet"), splitting.split(frame, validation=0.25, test=0.25, seed=0))
    return folder
