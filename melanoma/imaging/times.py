"""Dates and times as DICOM headers spell them (PS3.5 table 6.2-1, and ACR-NEMA before it) become ISO 8601.

A value that is not wholly a date or a time says nothing: ranges, words, several values, digits that are cut short.
"""

import datetime
import re

_DATE = re.compile(r"(\d{4})([.\-/]?)(\d\d)\2(\d\d)", re.ASCII)
_TIME = re.compile(r"(\d\d)(?:(:?)(\d\d)(?:\2(\d\d)(?:\.\d{1,6})?)?)?", re.ASCII)
_DATE_TIME = re.compile(r"(\d{8}|\d{4}[.\-/]\d\d[.\-/]\d\d)(?:[ T]?(\d\d[\d:.]*))?([+-]\d{4})?", re.ASCII)
_ZONE = re.compile(r"([+-])(\d\d):?(\d\d)", re.ASCII)
_FIRST_YEAR = 1900  # no picture is older: such dates are placeholders


def of_date_and_time(date: str | None, time: str | None, zone: str | None) -> str | None:
    """ISO 8601 of a Date, a Time (where it cannot be understood, of the date alone) and an offset from UTC; None where
    there is no date."""
    day = _date(date or "")
    if day is None:
        return None
    clock = _time(time or "")
    if clock is None:
        return day.isoformat()
    return datetime.datetime.combine(day, clock, _zone(zone or "")).isoformat(timespec="seconds")


def of_date_time(value: str | None, zone: str | None) -> str | None:
    """ISO 8601 of a DateTime, whose own offset from UTC goes before `zone`; None where it is none, or names no day."""
    found = _DATE_TIME.fullmatch(value or "")
    if not found or (found[2] and not _time(found[2])):
        return None
    return of_date_and_time(found[1], found[2], found[3] or zone)


def _date(text: str) -> datetime.date | None:
    found = _DATE.fullmatch(text)
    try:
        day = datetime.date(int(found[1]), int(found[3]), int(found[4])) if found else None
    except ValueError:
        return None
    return day if day and day.year >= _FIRST_YEAR else None


def _time(text: str) -> datetime.time | None:
    found = _TIME.fullmatch(text)
    if not found:
        return None
    seconds = "59" if found[4] == "60" else found[4]  # a leap second
    try:
        return datetime.time(int(found[1]), int(found[3] or 0), int(seconds or 0))
    except ValueError:
        return None


def _zone(text: str) -> datetime.timezone | None:
    found = _ZONE.fullmatch(text)
    if not found or int(found[2]) > 14 or int(found[3]) > 59:
        return None
    offset = datetime.timedelta(hours=int(found[2]), minutes=int(found[3]))
    return datetime.timezone(-offset if found[1] == "-" else offset)
