"""What an archive holds: prefixes, manifests and S3 inventories say it alike."""

import csv
import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pandas as pd
import pyarrow as pa
import pyarrow.orc
import pytest

from melanoma import storage, table_files
from melanoma.catalog import manifest
from melanoma.demo.local_s3 import LocalS3
from melanoma.errors import InputError
from melanoma.scoring import listing
from melanoma.storage import ObjectInfo
from tests.support.faulty_proxy import faulty_proxy

STORE = storage.Store(1)
NAMES = ["a.jpg", "sub/b c.jpg", "sub/100%+1.jpg", "皮膚.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        path = tmp_path / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(number + 1))
    return tmp_path / "archive"


@pytest.fixture
def prefix(folder: Path, s3: LocalS3, bucket: str) -> str:
    folder.rename(s3.root / bucket / "archive")
    return f"s3://{bucket}/archive"


def by_uri(infos: Iterable[ObjectInfo]) -> list[ObjectInfo]:
    return sorted(infos, key=lambda info: info.uri)


def test_several_places_are_listed_one_after_the_other(folder: Path) -> None:
    found = list(listing.objects([str(folder / "sub"), str(folder / "a.jpg")], STORE))
    assert [info.uri for info in found] == [*(f"{folder}/{name}" for name in sorted(NAMES[1:3])), f"{folder}/a.jpg"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_manifest_lists_what_the_folder_lists(folder: Path, tmp_path: Path, suffix: str) -> None:
    listed = by_uri(storage.list_objects(str(folder)))
    path = tmp_path / f"manifest.{suffix}"
    tables = {
        "uri": pd.DataFrame({"uri": [info.uri for info in listed], "note": "x"}),
        "relative path": pd.DataFrame({"path": [f"archive/{name}" for name in NAMES]}),
        "known": pd.DataFrame([{"image_uri": info.uri, "size": info.size, "etag": info.etag} for info in listed]),
        # As pandas writes it: 2.0 where another row has none. A column that is nobody's business may hold anything.
        "known in part": pd.DataFrame(
            [
                {"image_uri": info.uri, "size": info.size if row else None, "etag": info.etag, "box": [row]}
                for row, info in enumerate(listed)
            ]
        ),
    }
    for frame in tables.values():
        frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
        assert by_uri(listing.objects([str(path)], STORE)) == listed


def test_a_manifest_of_a_spreadsheet_keeps_names_that_look_like_numbers(tmp_path: Path) -> None:
    (tmp_path / "001").write_bytes(b"x")
    (tmp_path / "manifest.csv").write_text("path,note\n001,\n", encoding="utf-8-sig")
    assert [info.uri for info in listing.objects([str(tmp_path / "manifest.csv")], STORE)] == [f"{tmp_path}/001"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("LIST.CSV", b"path\na.jpg\nb.jpg\n"),
        ("list.tsv", b"path\tlabel\na.jpg\tMEL\nb.jpg\tNV"),
        ("HAM10000_metadata.tab", b'"image_id"\t"path"\n"a"\t"a.jpg"\n"b"\t"b.jpg"\n'),
        ("list.csv.gz", gzip.compress(b"path\na.jpg\nb.jpg\n", mtime=0)),
        ("list.csv", b"\n \nlabel;path;\r\nMEL; a.jpg ;;\r\n\r\n;;\r\nNV;b.jpg\r\n"),
        ("list.csv", b"\xef\xbb\xbfpath,label\na.jpg,MEL,\nb.jpg,NV,,\n"),
        ("list.csv", b"path , label\r a.jpg, MEL\rb.jpg  ,NV\r"),
        ("list.csv", b'path,label\n"a.jpg" , "MEL"\n "b.jpg","5"" wide"\n'),
        ("list.csv", "path\tlabel\na.jpg\tä\nb.jpg\t\n".encode("utf-16")),
        ("list.csv", b"label,file_name\n,a.jpg\n,sub/../b.jpg\n"),
        ("list.csv", b"URI,path,label\na.jpg,x.jpg,MEL\nb.jpg,y.jpg,NV\n"),
        ("list.csv", b"Path\na.jpg\nb.jpg\n"),
        ("list.csv", b"Filename\na.jpg\nb.jpg\n"),
        ("list.csv", b"label,File Name\n,a.jpg\n,b.jpg\n"),
        ("list.csv", b"label,file-name\n,a.jpg\n,b.jpg\n"),
        ("list.csv", b"sep=;\r\npath;label\r\na.jpg;MEL\r\nb.jpg;NV\r\n"),
        ("list.csv", b'\xef\xbb\xbf"sep=;"\r\npath;label\r\na.jpg;1,5\r\nb.jpg;NV\r\n'),
        ("sub/list.csv", b"path\n../a.jpg\n./../b.jpg\n"),
        ("list.csv", b"path\na.jpg\nfile://FOLDER/b.jpg\n"),
        ("list.csv", b"URI,path\na.jpg,\nb.jpg,x\n"),
        ("list.csv", b"File Name,label\na.jpg,MEL\nb.jpg,\n"),
    ],
    ids=repr,
)
def test_a_manifest_is_read_by_score_and_catalog_alike(
    tmp_path: Path, lesion: Callable[..., bytes], name: str, content: bytes
) -> None:
    for seed, image in enumerate(("a.jpg", "b.jpg")):
        (tmp_path / image).write_bytes(lesion(seed=seed))
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.replace(b"FOLDER", str(tmp_path).encode()))
    wanted = [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]
    assert [info.uri for info in listing.objects([str(path)], STORE)] == wanted
    table = manifest.read(str(path))
    assert [row["uri"] for row in manifest.rows(str(path), {**table, "label": [None, None]})] == wanted


@pytest.mark.parametrize(
    ("words", "uri"),
    [
        ("x.jpg", "s3://bucket/a//b/x.jpg"),
        ("sub//x.jpg", "s3://bucket/a//b/sub//x.jpg"),
        ("./x.jpg", "s3://bucket/a//b/x.jpg"),
        ("../x.jpg", "s3://bucket/a//x.jpg"),
        ("../../../x.jpg", "s3://bucket/x.jpg"),
        ("s3://other/a//b/../x.jpg", "s3://other/a//b/../x.jpg"),
        ("s3://other/folder/", "s3://other/folder/"),
        ("/data//x.jpg", "/data/x.jpg"),
    ],
)
def test_keys_of_a_bucket_are_kept_as_they_are(words: str, uri: str) -> None:
    assert table_files.place("s3://bucket/a//b/list.csv", words) == uri


def test_a_table_in_a_folder_without_a_name() -> None:
    assert table_files.place("s3://bucket/x//list.csv", "b.jpg") == "s3://bucket/x//b.jpg"
    assert table_files.place("s3://bucket/list.csv", "b.jpg") == "s3://bucket/b.jpg"


def test_sizes_and_etags_are_known_however_they_are_spelled(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("Path,Size,ETag\na.jpg,7,e\n")
    found = list(listing.objects([str(tmp_path / "list.csv")], STORE))
    assert found == [ObjectInfo(f"{tmp_path}/a.jpg", 7, "e")]


def test_a_path_that_leads_out_of_the_bucket_is_a_sentence() -> None:
    with pytest.raises(InputError, match=r"names '\.\./\.\./x.jpg', which leads out of the bucket bucket"):
        table_files.place("s3://bucket/a/list.csv", "../../x.jpg")


@pytest.mark.parametrize("rows", [30_000, pytest.param(400_000, marks=pytest.mark.slow)])
def test_quoted_line_breaks_are_read_however_many_there_are(tmp_path: Path, rows: int) -> None:
    """More than one block of any reader."""
    note = "first line\r\nsecond line, with a comma\n" * (3 if rows < 100_000 else 1)
    with (tmp_path / "list.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["note", "path", "size", "etag"])
        writer.writerows([note, f"{number}.jpg", 10, f"e{number}"] for number in range(rows))
    tracemalloc.start()
    found = 0
    for found, info in enumerate(listing.objects([str(tmp_path / "list.csv")], STORE)):
        assert info == ObjectInfo(f"{tmp_path}/{found}.jpg", 10, f"e{found}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == rows - 1
    assert peak < 60 * 2**20


def test_what_cannot_be_looked_up_for_now_is_looked_up_again(
    prefix: str, s3: LocalS3, bucket: str, quick_retries: None
) -> None:
    storage.write_bytes(f"s3://{bucket}/manifest.csv", b"path\narchive/a.jpg\narchive/sub/b c.jpg\n")
    busy = iter(["busy"] * 12)

    def decide(method: str, path: str) -> str:
        return next(busy, "") if method == "HEAD" else ""

    with faulty_proxy(s3.endpoint, decide) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        storage.forget_client()
        found = list(listing.objects([f"s3://{bucket}/manifest.csv"], storage.Store(30)))
        assert [info.size for info in found] == [1, 2]
        busy = iter(["busy"] * 1000)
        with pytest.raises(storage.UnavailableError):
            list(listing.objects([f"s3://{bucket}/manifest.csv"], storage.Store(0)))
    storage.forget_client()


def test_what_a_manifest_names_and_is_not_there_is_listed_all_the_same(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("path\narchive/a.jpg\narchive/nowhere.jpg\n")
    found = list(listing.objects([str(tmp_path / "manifest.csv")], STORE))
    assert found[1] == ObjectInfo(f"{folder}/nowhere.jpg", 0, "")
    assert found[0].size == 1


def test_a_manifest_in_a_bucket(prefix: str, s3: LocalS3, bucket: str) -> None:
    listed = by_uri(storage.list_objects(prefix))
    storage.write_bytes(
        f"s3://{bucket}/manifest.csv", "\n".join(["path", *(f"archive/{name}" for name in NAMES)]).encode()
    )
    assert by_uri(listing.objects([f"s3://{bucket}/manifest.csv"], STORE)) == listed


def inventory(bucket: str, listed: list[ObjectInfo], file_format: str, **manifest: object) -> str:
    """As S3 writes it: the objects, an older version of one of them, and one that was deleted."""
    names = {"CSV": ["Bucket", "Key", "VersionId", "IsLatest", "IsDeleteMarker", "Size", "ETag"]}.get(
        file_format, ["bucket", "key", "version_id", "is_latest", "is_delete_marker", "size", "e_tag"]
    )
    keys = [info.uri.removeprefix(f"s3://{bucket}/") for info in listed]
    rows: list[tuple[Any, ...]] = [
        (bucket, key, f"v{number}", True, False, info.size, info.etag)
        for number, (key, info) in enumerate(zip(keys, listed, strict=True))
    ]
    rows += [
        (bucket, keys[0], "older", False, False, 7, "older"),
        (bucket, "gone.jpg", "marker", True, True, None, None),
    ]
    key = f"inventory/data/1.{ {'CSV': 'csv.gz', 'ORC': 'orc', 'Parquet': 'parquet'}[file_format] }"
    frame = pd.DataFrame(rows, columns=names)
    frame[names[5]] = frame[names[5]].astype("Int64")
    uri = f"s3://{bucket}/{key}"
    if file_format == "CSV":
        frame["Key"] = [quote_plus(each, safe="/") for each in frame["Key"]]
        frame["IsLatest"], frame["IsDeleteMarker"] = (
            frame[name].map({True: "true", False: "false"}) for name in ("IsLatest", "IsDeleteMarker")
        )
        text = frame.to_csv(index=False, header=False, quoting=1)
        storage.write_bytes(uri, gzip.compress(text.encode(), mtime=0))
    elif file_format == "ORC":
        sink = pa.BufferOutputStream()
        pyarrow.orc.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink)
        storage.write_bytes(uri, sink.getvalue().to_pybytes())
    else:
        storage.write_table(uri, pa.Table.from_pandas(frame, preserve_index=False))
    manifest = {
        "sourceBucket": bucket,
        "destinationBucket": f"arn:aws:s3:::{bucket}",
        "version": "2016-11-30",
        "fileFormat": file_format,
        "fileSchema": ", ".join(names),
        "files": [{"key": key, "size": 1, "MD5checksum": ""}],
        **manifest,
    }
    place = f"s3://{bucket}/inventory/2026-11-20T00-00Z/manifest.json"
    storage.write_bytes(place, json.dumps(manifest).encode())
    return place


@pytest.mark.parametrize("file_format", ["CSV", "ORC", "Parquet"])
def test_an_inventory_lists_what_the_bucket_lists(prefix: str, bucket: str, file_format: str) -> None:
    listed = by_uri(storage.list_objects(prefix))
    assert len(listed) == len(NAMES)
    assert by_uri(listing.objects([inventory(bucket, listed, file_format)], STORE)) == listed


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"image,label\nx,MEL\n", "has none of the columns uri, image_uri, path, file"),
        ("a.csv", b"path,label\n,MEL\n", "has a row without path"),
        ("a.csv", b"path,size,etag\nx,big,1\n", "The size 'big' in a manifest is not a number of bytes"),
        ("a.csv", b'path,label\n"x,MEL\ny,NV\n', "is not a readable CSV table: a quote is not closed"),
        ("a.csv", b"path,label\nx,y.jpg,MEL\n", "has a row of 3 fields, which begins with 'x', and a header of 2"),
        ("a.csv", b"path,label,path\nx,MEL,y\n", "has two columns 'path'"),
        ("a.csv", b"", "is not a readable CSV table: it is empty"),
        ("a.csv", b"path\nx\xff.jpg\n", r"is not a readable CSV table in UTF-8: save it as such \(in"),
        ("a.csv", "Datei;Diagnose\r\nx.jpg;Nävus\r\n".encode("cp1252"), r"is not a readable CSV table in UTF-8"),
        ("a.csv", b"path,Path\nx.jpg,y.jpg\n", "has two columns that are one, 'path' and 'Path': rename one of them"),
        (
            "a.csv.gz",
            gzip.compress(b"path\nx.jpg\n" * 1000, mtime=0)[:-20],
            "is not a readable CSV table, or a damaged one",
        ),
        ("a.parquet", b"not a table", "a.parquet is not a Parquet file, or a damaged one"),
        ("manifest.json", b'{"files": 3}', "is not the manifest of an S3 Inventory"),
        (
            "manifest.json",
            b'{"destinationBucket": "b", "files": [], "fileFormat": "CSV", "fileSchema": null}',
            "is not",
        ),
        ("manifest.json", b"{", "is not the manifest of an S3 Inventory"),
    ],
    ids=str,
)
def test_what_cannot_be_understood_is_a_sentence(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        list(listing.objects([str(tmp_path / name)], STORE))


def test_an_inventory_without_etags_is_a_sentence(prefix: str, bucket: str) -> None:
    listed = by_uri(storage.list_objects(prefix))
    uri = inventory(bucket, listed, "CSV", fileSchema="Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, Other")
    with pytest.raises(InputError, match="lacks ETag: add it to its optional fields"):
        list(listing.objects([uri], STORE))
