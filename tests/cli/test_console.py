"""What the console makes of words of others, whichever command prints them."""

import csv
import datetime
import io
import json
import re

import pytest
from rich.table import Table

from melanoma.cli import console

HOSTILE = "a[red]b\x1b[31mc\x9bd\u202ee:smile:f\x00g\x07"
HARMLESS = r"a[red]b\x1b[31mc\x9bd\u202ee:smile:f\x00g\x07"


@pytest.mark.parametrize("width", [40, 80, 1000])
def test_a_table_has_whole_and_harmless_cells_on_every_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    name = "IMG_20261120_101112_left_shoulder_with_a_name_that_is_longer_than_the_terminal_is_wide_0123.jpg"
    monkeypatch.setattr(console.answer, "_width", width)
    table = Table("rank", "image", title=HOSTILE)
    table.add_row("1", name)
    table.add_row("2", HOSTILE)
    console.answer.print(table)
    said = capsys.readouterr().out
    cells = "".join(re.split(r"\s*│\s*", line)[2] for line in said.splitlines() if "│" in line)
    assert cells == name + HARMLESS
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", said)


def test_lines_on_both_streams_are_harmless_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(HOSTILE + "x" * 2000)
    console.answer.print(f"{HOSTILE}{'x' * 2000}\nsecond line")
    said = capsys.readouterr()
    assert said.err == f"{HARMLESS}{'x' * 2000}\n"
    assert said.out == f"{HARMLESS}{'x' * 2000}\nsecond line\n"


def test_json_is_the_same_value_in_harmless_characters(capsys: pytest.CaptureFixture[str]) -> None:
    when = datetime.datetime(2026, 11, 20, 1, 2, 3, tzinfo=datetime.UTC)
    value = {HOSTILE: [HOSTILE, "läsion\u2028", 1.5, None], "at": when, "on": when.date()}
    console.print_json(value)
    said = capsys.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202a-\u202e]", said)
    assert json.loads(said) == {**value, "at": "2026-11-20T01:02:03+00:00", "on": "2026-11-20"}


def test_csv_has_no_formula_and_numbers_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    formulas = ["=1+1", "+1", "-1", "@A1", "  =1", "\t@A1", "\r=1", "\n=1", "\uff0b1"]
    console.print_csv(["words", "number"], [{"words": words, "number": -1.5} for words in [*formulas, "a=b", "", None]])
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))[1:]
    assert [row[1] for row in rows] == ["-1.5"] * len(rows)
    assert [row[0] for row in rows[len(formulas) :]] == ["a=b", "", ""]
    assert all(row[0].startswith("'") for row in rows[: len(formulas)])
