"""melanoma alerts: which nights it lists, as one list, and how it prints them."""

import csv
import datetime
import fcntl
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import termios
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

import melanoma as m
from melanoma import storage
from melanoma.scoring import layout
from tests.support.nights import ARCHIVE, write_night
from tests.support.refusal import sentence

Run = Callable[..., Any]
LONG = "s3://dermatology/archive/2026/11/exports of the ward/camera 3/IMG_20261120_101112_left_shoulder_0123.jpg"


def shown_on(out: Path, run_id: str, at: str) -> None:
    """The note of the command, which has today's date, with that of a test."""
    storage.write_json(layout.shown(str(out), run_id), {"at": f"{at}+00:00"})


def listed(command: Run, out: Path, *options: str) -> list[str]:
    """The dates of the runs that the command lists alerts of, each once."""
    rows = json.loads(command("alerts", out, "--json", *options).out)
    return sorted({row["run_date"] for row in rows})


def dates(first: str, count: int) -> Iterable[str]:
    day = datetime.date.fromisoformat(first)
    return ((day + datetime.timedelta(days=number)).isoformat() for number in range(count))


# --- which nights ----------------------------------------------------------------------------------------------------


def resumed_night(out: Path) -> None:
    """A night that died, was finished by the next night's command, and the empty night of that command."""
    write_night(out, "2026-11-20", [0.9, 0.8, 0.7], finished="2026-11-21T08:10:00")
    write_night(out, "2026-11-21", [], begun="2026-11-21T08:10:01", finished="2026-11-21T08:11:00", seconds=10)


def test_a_night_that_was_resumed_on_the_next_date_is_listed_with_that_ones(command: Run, tmp_path: Path) -> None:
    resumed_night(tmp_path)
    for _ in range(2):  # the list stays until the next night is there
        said = command("alerts", tmp_path)
        assert (said.code, said.err) == (0, "")
        old, new, *_, last = said.out.splitlines()
        assert old == (
            f"The run of 2026-11-20 over {ARCHIVE} was cut off and finished on 2026-11-21 at 08:10 UTC: 1,011 images "
            "scored, 0 rejected, 3 alerts."
        )
        assert new.startswith(f"The run of 2026-11-21 over {ARCHIVE} finished on 2026-11-21 at 08:11 UTC: ")
        assert last == "3 alerts, 3 of them new."
        assert len(m.alerts(tmp_path)) == 3
    shown_on(tmp_path, "2026-11-20", "2026-11-21T09:00:00")
    write_night(tmp_path, "2026-11-22", [0.6])
    assert listed(command, tmp_path) == ["2026-11-22"]
    assert listed(command, tmp_path, "--date", "2026-11-20") == ["2026-11-20"]


def test_what_nobody_was_shown_is_listed_until_a_newer_night_is_there(command: Run, tmp_path: Path) -> None:
    friday, saturday, sunday, monday, tuesday = dates("2026-11-20", 5)
    write_night(tmp_path, friday, [0.9])
    assert listed(command, tmp_path) == [friday]
    for date in (saturday, sunday, monday):
        write_night(tmp_path, date, [0.9])
    shown_on(tmp_path, friday, f"{friday}T08:00:00")
    assert m.alerts(tmp_path)["run_date"].tolist() == [saturday, sunday, monday]  # which notes nothing
    assert listed(command, tmp_path) == [saturday, sunday, monday]
    assert listed(command, tmp_path) == [saturday, sunday, monday]
    for date in (saturday, sunday, monday):
        shown_on(tmp_path, date, f"{monday}T08:00:00")
    write_night(tmp_path, tuesday, [0.9])
    assert listed(command, tmp_path) == [tuesday]


def test_an_image_that_several_nights_have_raised_is_listed_once(command: Run, tmp_path: Path) -> None:
    uri = f"{ARCHIVE}/again.jpg"
    write_night(tmp_path, "2026-11-20", [{"image_uri": uri, "p_melanoma": 0.7, "first_raised": None}, 0.6])
    write_night(tmp_path, "2026-11-21", [{"image_uri": uri, "p_melanoma": 0.9, "first_raised": "2026-11-20"}])
    first, second = json.loads(command("alerts", tmp_path, "--json", "--new").out)
    assert (first["image_uri"], first["p_melanoma"], first["run_date"]) == (uri, pytest.approx(0.9), "2026-11-21")
    assert first["first_raised"] is None, "the first of these nights was the first to raise it"
    assert (second["rank"], second["run_date"]) == (2, "2026-11-20")


def test_looking_at_a_date_is_not_being_shown_the_newest(command: Run, tmp_path: Path) -> None:
    write_night(tmp_path, "2026-11-20", [0.9])
    assert listed(command, tmp_path, "--date", "2026-11-20") == ["2026-11-20"]
    assert not (tmp_path / "shown").exists()


def test_what_was_delivered_was_seen(command: Run, tmp_path: Path) -> None:
    first, second, third, fourth = dates("2026-11-20", 4)
    for date, state in ((first, "delivered"), (second, "refused"), (third, "delivered")):
        run_id = write_night(tmp_path, date, [0.9])
        note = {"state": state, "alerts": 1, "at": f"{date}T03:01:00+00:00"}
        storage.write_json(layout.delivery(str(tmp_path), run_id, "webhook"), note)
    write_night(tmp_path, fourth, [0.9])
    assert listed(command, tmp_path) == [second, fourth]


@pytest.mark.parametrize(
    "nights",
    [
        # Begun before midnight, every night.
        [("2026-11-20T23:00:00", "2026-11-21T05:00:00"), ("2026-11-21T23:00:00", "2026-11-22T05:00:00")],
        # Both scored by hand on a later day.
        [("2026-11-26T09:00:00", "2026-11-26T09:10:00"), ("2026-11-26T10:00:00", "2026-11-26T10:10:00")],
    ],
)
def test_a_night_that_was_not_resumed_is_not_listed_with_the_next(
    command: Run, tmp_path: Path, nights: list[tuple[str, str]]
) -> None:
    for date, (begun, finished) in zip(("2026-11-20", "2026-11-21"), nights, strict=True):
        took = datetime.datetime.fromisoformat(finished) - datetime.datetime.fromisoformat(begun)
        write_night(tmp_path, date, [0.9], begun=begun, finished=finished, seconds=took.total_seconds())
    shown_on(tmp_path, "2026-11-20", nights[0][1])
    said = command("alerts", tmp_path)
    assert (said.out.splitlines()[-1], "cut off" in said.out) == ("1 alerts, 1 of them new.", False)


def test_a_first_look_at_several_nights_is_at_all(command: Run, tmp_path: Path) -> None:
    for date in ("2026-11-20", "2026-11-21", "2026-11-22"):
        write_night(tmp_path, date, [0.9])
    assert listed(command, tmp_path) == ["2026-11-20", "2026-11-21", "2026-11-22"]


def test_a_first_look_at_a_hundred_nights_is_at_the_last_thirty_days(command: Run, tmp_path: Path) -> None:
    for date in dates("2026-08-01", 100):
        write_night(tmp_path, date, [0.9])
    said = command("alerts", tmp_path)
    assert said.out.splitlines()[-1] == "31 alerts, 31 of them new."
    not_listed = "Not listed, though never shown here: 69 earlier runs, of 2026-08-01 to 2026-10-08; "
    assert said.err == f"{not_listed}--date lists those of a day.\n"
    write_night(tmp_path, "2026-12-10", [0.9])
    said = command("alerts", tmp_path)
    assert (said.out.splitlines()[-1], said.err) == ("1 alerts, 1 of them new.", "")


def test_after_a_month_away_the_last_thirty_days_are_listed(command: Run, tmp_path: Path) -> None:
    first, *others = dates("2026-10-01", 40)
    write_night(tmp_path, first, [0.9])
    shown_on(tmp_path, first, f"{first}T08:00:00")
    for date in others:
        write_night(tmp_path, date, [0.9])
    said = command("alerts", tmp_path)
    assert said.out.splitlines()[-1] == "31 alerts, 31 of them new."
    assert "Not listed, though never shown here: 8 earlier runs, of 2026-10-02 to 2026-10-09" in said.err


def test_an_output_that_cannot_be_written_to_is_said(command: Run, tmp_path: Path) -> None:
    write_night(tmp_path, "2026-11-20", [0.9])
    (tmp_path / "shown").write_text("in the way")
    said = command("alerts", tmp_path)
    assert (said.code, said.out.splitlines()[-1]) == (0, "1 alerts, 1 of them new.")
    assert re.fullmatch(r"That these runs were shown could not be noted: .*\n", said.err)


# --- several archives ------------------------------------------------------------------------------------------------


@pytest.fixture
def two_wards(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    write_night(out, "2026-11-20", [0.9, 0.7, 0.5], archive="s3://north/archive", name="-north")
    write_night(out, "2026-11-20", [0.8, 0.6], archive=["/south/archive", "s3://east/x.zip"], name="-south")
    return out


def test_alerts_of_several_archives_are_one_list_that_says_of_which_each_is(command: Run, two_wards: Path) -> None:
    rows = json.loads(command("alerts", two_wards, "--json").out)
    assert [(row["rank"], row["p_melanoma"]) for row in rows] == [
        (rank, pytest.approx(p, abs=1e-6)) for rank, p in enumerate((0.9, 0.8, 0.7, 0.6, 0.5), 1)
    ]
    north, south = "s3://north/archive", "/south/archive"
    assert [row["archive"] for row in rows] == [north, south, north, south, north]
    table = list(csv.DictReader(io.StringIO(command("alerts", two_wards, "--csv").out)))
    assert [(row["rank"], row["archive"]) for row in table] == [(str(row["rank"]), row["archive"]) for row in rows]
    assert m.alerts(two_wards)[["rank", "archive"]].to_dict("records") == [
        {"rank": row["rank"], "archive": row["archive"]} for row in rows
    ]
    lines = [re.split(r"\s*│\s*", line) for line in command("alerts", two_wards).out.splitlines() if "│" in line]
    assert [(line[1], line[10]) for line in lines] == [
        (str(rank), name) for rank, name in enumerate(["north/archive", "south/archive"] * 2 + ["north/archive"], 1)
    ]


@pytest.mark.parametrize("spelled", ["/south/archive", "/south/archive/", "file:///south/archive", "south/archive"])
def test_one_archive_is_chosen_as_it_was_spelled(command: Run, two_wards: Path, spelled: str) -> None:
    rows = json.loads(command("alerts", two_wards, "--archive", spelled, "--json").out)
    assert [(row["rank"], row["archive"]) for row in rows] == [(1, "/south/archive"), (2, "/south/archive")]
    assert m.alerts(two_wards, archive=spelled)["rank"].tolist() == [1, 2]
    # The run has another archive, of which nothing was shown.
    assert not (two_wards / "shown").exists()


def test_an_archive_that_has_no_run_is_refused_with_those_that_have(command: Run, two_wards: Path) -> None:
    refused = sentence(command("alerts", two_wards, "--archive", "s3://west"))
    assert refused.endswith(
        "no finished run of the archive s3://west: there are /south/archive, s3://east/x.zip, s3://north/archive."
    )


def test_the_newest_night_of_an_archive_may_be_older_than_that_of_another(command: Run, two_wards: Path) -> None:
    write_night(two_wards, "2026-11-21", [0.4], archive="s3://north/archive")
    assert listed(command, two_wards) == ["2026-11-20", "2026-11-21"]
    assert listed(command, two_wards, "--archive", "/south/archive") == ["2026-11-20"]


# --- how it is printed -----------------------------------------------------------------------------------------------


def on_a_terminal(words: Sequence[str | Path], columns: int, environment: dict[str, str]) -> str:
    """What the program writes on a terminal of so many columns."""
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(words, env=environment, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        said = b""
        try:
            while some := os.read(screen, 65536):
                said += some
        except OSError:  # the other end is closed
            pass
    os.close(screen)
    assert process.returncode == 0, said
    return re.sub(r"\x1b\[[0-9;]*m", "", said.decode()).replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [40, 80, 130, 300])
def test_the_name_of_an_image_is_whole_on_every_terminal(
    program: str, program_environment: dict[str, str], tmp_path: Path, columns: int
) -> None:
    alert = {"image_uri": LONG, "patient_id": "IP_1234567", "first_raised": "2026-11-19", "copies": ["s3://ward/b.jpg"]}
    write_night(tmp_path, "2026-11-20", [alert, 0.4])
    said = on_a_terminal([program, "alerts", tmp_path], columns, program_environment)
    assert f"{LONG} (+1)" in said
    assert "IP_1234567" in said
    assert "2026-11-19" in said
    assert ("┃" in said) is (columns == 300)


def test_a_long_list_is_whole_in_json_and_csv_and_short_on_the_terminal(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("melanoma.cli.alerts._MOST_ROWS", 3)
    for module in ("alerts", "console"):
        monkeypatch.setattr(f"melanoma.cli.{module}._ROWS_AT_ONCE", 2)
    patients = ["P1", "P2", None, "P2", "P1", None, "P3"]
    write_night(
        tmp_path,
        "2026-11-20",
        [
            {
                "p_melanoma": 0.9 - place / 10,
                "patient_id": patient,
                "first_raised": "2026-11-19" if place == 1 else None,
            }
            for place, patient in enumerate(patients)
        ],
    )

    def ranks(*options: str) -> list[int]:
        rows = json.loads(command("alerts", tmp_path, "--json", *options).out)
        found = csv.DictReader(io.StringIO(command("alerts", tmp_path, "--csv", *options).out))
        assert [int(row["rank"]) for row in found] == [row["rank"] for row in rows]
        return [row["rank"] for row in rows]

    assert ranks() == [1, 2, 3, 4, 5, 6, 7]
    assert ranks("--new") == [1, 3, 4, 5, 6, 7]
    assert ranks("--by-patient") == [1, 5, 2, 4, 3, 6, 7]
    assert ranks("--by-patient", "--new") == [1, 5, 3, 4, 6, 7]
    said = command("alerts", tmp_path).out.splitlines()
    assert said[-2:] == ["7 alerts, 6 of them new.", "These are the first 3: --csv and --json list all."]
    assert command("alerts", tmp_path, "--new").out.splitlines()[-2] == "6 alerts, 6 of them new."


@pytest.mark.parametrize("options", [(), ("--json",), ("--csv",), ("--by-patient",)])
def test_who_reads_only_the_beginning_has_not_been_shown_it(
    program: str, program_environment: dict[str, str], tmp_path: Path, options: tuple[str, ...]
) -> None:
    write_night(tmp_path, "2026-11-20", [1 - rank / 3000 for rank in range(1500)])  # more than a pipe holds
    words = [program, "alerts", str(tmp_path), *options]
    with subprocess.Popen(words, env=program_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert not (tmp_path / "shown").exists()


def test_words_of_others_move_no_cursor_and_are_no_formula(command: Run, tmp_path: Path) -> None:
    hostile = {
        "image_uri": "s3://ward/archive/[red]:smile:\x1b[2J\x9b31m\u202egpj.exe\n\r  1  urgent.jpg",
        "patient_id": '=HYPERLINK("http://x")\x1b]0;title\x07',
    }
    formulas = ["+1", "-1+1", "@SUM(A1)", " =1", "\t=1", "\r=1", "\uff1d1", "4711"]
    write_night(tmp_path, "2026-11-20", [hostile, *({"patient_id": words} for words in formulas)])
    unsafe = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
    for options in ((), ("--csv",), ("--json",), ("--by-patient",)):
        said = command("alerts", tmp_path, *options)
        assert (said.code, unsafe.findall(said.out + said.err)) == (0, [])
    table = command("alerts", tmp_path).out
    assert r"s3://ward/archive/[red]:smile:\x1b[2J\x9b31m\u202egpj.exe\n\r  1  urgent.jpg" in table
    rows = list(csv.DictReader(io.StringIO(command("alerts", tmp_path, "--csv").out)))
    by_rank = {int(row["rank"]): row["patient_id"] for row in rows}
    assert sorted(by_rank.values())[:-1] == sorted(
        [
            "'+1",
            "'-1+1",
            "'@SUM(A1)",
            "' =1",
            r"'\t=1",
            r"'\r=1",
            "'\uff1d1",
            r"""'=HYPERLINK("http://x")\x1b]0;title\x07""",
        ]
    )
    assert "4711" in by_rank.values()
    assert {float(row["p_melanoma"]) for row in rows} == {0.5}
    # Programs get what is there.
    raw = {row["patient_id"]: row["image_uri"] for row in json.loads(command("alerts", tmp_path, "--json").out)}
    assert raw[hostile["patient_id"]] == hostile["image_uri"]
    assert set(formulas) <= set(raw)


def test_an_error_about_a_hostile_name_is_one_harmless_line(command: Run, tmp_path: Path) -> None:
    refused = sentence(command("alerts", tmp_path / "a\x1b[31m\nb"))
    assert r"a\x1b[31m" in refused


def test_times_are_iso_8601(command: Run, tmp_path: Path) -> None:
    write_night(tmp_path, "2026-11-20", [0.9])
    (row,) = json.loads(command("alerts", tmp_path, "--json").out)
    assert row["scored_at"] == "2026-11-20T01:02:03+00:00"
    (row,) = csv.DictReader(io.StringIO(command("alerts", tmp_path, "--csv").out))
    assert row["scored_at"] == "2026-11-20T01:02:03+00:00"


def test_what_an_earlier_version_wrote_is_listed(command: Run, tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[1] / "scoring" / "data" / "before", tmp_path / "out")
    said = command("alerts", tmp_path / "out")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(
        "The run of 2026-11-18 over s3://before/archive.csv finished on 2026-11-18 at 02:00 UTC: "
    )
    assert said.out.splitlines()[-1] == "1 alerts, 1 of them new."
