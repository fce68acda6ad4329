import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from melanoma import storage
from melanoma.catalog import schema
from melanoma.catalog.build import build
from melanoma.catalog.split import split
from melanoma.errors import InputError


@pytest.fixture(scope="module")
def frame(lesions: Path) -> pd.DataFrame:
    return split(build([str(lesions)]), 0.25, 0.25, seed=0)


@pytest.fixture
def uri(frame: pd.DataFrame, tmp_path: Path) -> str:
    schema.write(str(tmp_path / "catalog.parquet"), frame)
    return str(tmp_path / "catalog.parquet")


def test_a_catalog_makes_the_round_trip(frame: pd.DataFrame, uri: str, bucket: str) -> None:
    assert pq.read_schema(uri).remove_metadata() == schema.SCHEMA
    stored = schema.read(uri)
    assert stored.to_dict("records") == frame.to_dict("records")
    remote = f"s3://{bucket}/a b/catalog.parquet"
    assert schema.write(remote, stored) == schema.fingerprint(frame)
    assert schema.read(remote).to_dict("records") == frame.to_dict("records")


def test_the_fingerprint_is_that_of_the_contents(frame: pd.DataFrame) -> None:
    mark = schema.fingerprint(frame)
    assert schema.fingerprint(frame.sample(frac=1, random_state=0)) == mark
    # Where an image lies decides nothing.
    assert schema.fingerprint(frame.assign(uri="elsewhere", source="other")) == mark
    marks = {mark}
    for column in ("label", "split", "sha256", "group_id", "image_id"):
        for value in ("other", None):
            changed = frame.copy()
            changed.at[7, column] = value
            marks.add(schema.fingerprint(changed))
    marks.add(schema.fingerprint(frame.drop(index=7)))
    marks.add(schema.fingerprint(pd.concat([frame, frame.iloc[:1]])))
    assert len(marks) == 13


def test_an_exchange_of_two_labels_is_noticed(frame: pd.DataFrame) -> None:
    changed = frame.copy()
    changed.loc[[0, 35], "label"] = frame.loc[[35, 0], "label"].to_list()
    assert schema.fingerprint(changed) != schema.fingerprint(frame)


@pytest.mark.parametrize(
    "edit",
    [
        lambda frame: frame.assign(split="train"),
        lambda frame: frame.assign(label="MEL"),
        lambda frame: frame.iloc[1:],
        lambda frame: frame.assign(sha256=frame["sha256"].to_list()[::-1]),
    ],
)
def test_an_edited_catalog_is_refused(uri: str, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    table = storage.read_table(uri)
    edited = pa.Table.from_pandas(edit(table.to_pandas()), schema=schema.SCHEMA, preserve_index=False)
    storage.write_table(uri, edited.replace_schema_metadata(table.schema.metadata))
    with pytest.raises(InputError, match=r"was changed after it was written.*make it anew"):
        schema.read(uri)


def test_sorting_and_recompressing_are_no_edit(uri: str, frame: pd.DataFrame) -> None:
    table = storage.read_table(uri)
    pq.write_table(table.sort_by([("sha256", "descending")]), uri, compression="snappy")
    assert len(schema.read(uri)) == len(frame)


@pytest.mark.parametrize(
    "metadata", [None, {"melanoma": "{}"}, {"melanoma": "no json"}, {"melanoma": "[1]"}, {"melanoma": b"\xff"}]
)
def test_a_table_without_a_fingerprint_is_refused(uri: str, metadata: dict[str, str] | None) -> None:
    storage.write_table(uri, storage.read_table(uri).replace_schema_metadata(metadata))
    with pytest.raises(InputError, match="was changed after it was written"):
        schema.read(uri)


def test_what_is_no_catalog(tmp_path: Path, s3: object) -> None:
    path = tmp_path / "x.parquet"
    with pytest.raises(InputError, match=r"does not exist: make one with `melanoma catalog`"):
        schema.read(str(path))
    path.write_bytes(b"path,label\n")
    with pytest.raises(InputError, match="is not a Parquet file"):
        schema.read(str(path))
    pq.write_table(pa.table({"uri": ["x"]}), path)
    with pytest.raises(InputError, match="is not a catalog: it has no column 'image_id'"):
        schema.read(str(path))
    with pytest.raises(InputError, match="cannot be read"):
        schema.read(str(tmp_path))
    with pytest.raises(InputError, match="does not exist"):
        schema.read("s3://no-such-bucket/c.parquet")


def test_columns_of_another_type_are_refused(uri: str) -> None:
    table = storage.read_table(uri)
    mark = {"melanoma": json.dumps({"fingerprint": "x"})}
    wide = table.set_column(6, "width", pa.array(["wide"] * len(table))).replace_schema_metadata(mark)
    storage.write_table(uri, wide)
    with pytest.raises(InputError, match=r"is not a catalog: .*wide"):
        schema.read(uri)
    storage.write_table(uri, table.set_column(9, "sha256", pa.array([b"\xff"] * len(table))))
    with pytest.raises(InputError, match="is not a catalog"):
        schema.read(uri)


def test_usable_images(frame: pd.DataFrame) -> None:
    changed = frame.copy()
    changed.at[0, "label"] = None
    changed.at[1, "error"] = "broken"
    assert len(schema.usable(changed, "all")) == 34
    assert sum(len(schema.usable(changed, name)) for name in schema.SPLITS) == 34
    assert set(schema.usable(changed, "test")["split"]) == {"test"}
