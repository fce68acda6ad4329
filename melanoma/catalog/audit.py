"""What is wrong with a catalog, or with several together: leaks between splits, contradictory labels, weak classes.

Images are joined for six reasons: the same id, the same bytes, near-duplicate pictures, the same lesion, the same
patient, the same stored group. The first three say that two images are one photograph, so their labels must agree; all
six say that they must not lie in two splits.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from scipy.cluster.hierarchy import DisjointSet

from melanoma import storage, taxonomy
from melanoma.catalog import build, groups, near_duplicates, properties, schema
from melanoma.catalog.near_duplicates import Pair
from melanoma.errors import InputError

IMAGE_REASONS = ("image_id", "sha256", "near-duplicate")
REASONS = (*IMAGE_REASONS, "lesion_id", "patient_id", "group_id")

CLAIMED_RECALL = 0.8
WIDEST_INTERVAL = 0.4
"""A class is too small for a claim where the 95% interval of a recall of 80% would be wider than this."""
LEAST_INDEPENDENT = 0.1
"""A class has no independent support where less than this share of its photographs supports it."""
MOSTLY_CONTAINED = 0.5
"""A class is mostly contained in another where more than this share of its photographs is there, too."""


def read(catalogs: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """All catalogs as one table with a column `catalog` more, and how many rows of it were dropped as repeats.

    A repeat is a row of a file (the same uri and bytes) that says of label, split, lesion and patient nothing but what
    another row of that file says. Its stored group, in another catalog another one, becomes one with that row's.
    `group_id` bears the catalog's name: groups of two catalogs are not one by their name. Raises InputError as
    `melanoma.catalog.schema.read`.
    """
    frame = pd.concat([schema.read(uri).assign(catalog=storage.normalize(uri)) for uri in catalogs], ignore_index=True)
    stored = list(zip(frame["catalog"], frame["group_id"], strict=True))
    merged = DisjointSet(stored)
    numbers = (groups.number_keys(frame, name) for name in ("lesion_id", "patient_id"))
    said = list(zip(frame["label"], frame["split"], *numbers, strict=True))
    repeats: list[int] = []
    known = frame[frame["uri"].notna()]
    for _, rows in known[known.duplicated(["uri", "sha256"], keep=False)].groupby(["uri", "sha256"], dropna=False):
        kept: list[int] = []
        # Rows that say most come first.
        for index in sorted(rows.index.tolist(), key=lambda row: said[row].count(None)):
            same = (
                other
                for other in kept
                if all(word in (None, theirs) for word, theirs in zip(said[index], said[other], strict=True))
            )
            if (other := next(same, None)) is None:
                kept.append(index)
                continue
            repeats.append(index)
            if stored[index][1] and stored[other][1]:
                merged.merge(stored[index], stored[other])
    frame["group_id"] = ["/".join(merged[group]) if group[1] else None for group in stored]
    return frame.drop(index=repeats).reset_index(drop=True), len(repeats)


def read_reference(uri: str) -> dict[str, str]:
    """The label of each image id of a table: ISIC's challenge tables, or any with an image id and a label column.

    Ids that the table gives two labels of no common diagnosis are left out. Raises InputError for what is
    no such table.
    """
    uri = storage.normalize(uri)
    try:
        table = build.read_manifest(uri)
    except OSError as error:
        raise InputError(f"The reference {uri} cannot be read: {error}") from None
    names = build.columns_of(table)
    one_hot = [name for name in build.ONE_HOT if name in table.columns]
    if names["image_id"] is None or (names["label"] is None and not one_hot):
        raise InputError(
            f"The reference {uri} needs a column image_id (or image) and a column label (or one column a class): its "
            f"columns are {', '.join(map(str, table.columns))}."
        )
    labels: dict[str, str] = {}
    disputed: set[str] = set()
    for record in table.to_dict("records"):
        value = record[names["image_id"]]
        label = build.label_of_record(record, names["label"], one_hot, uri)
        if label is None or value is None or value != value:
            continue
        image_id = taxonomy.image_id_of(str(value).strip())
        if _mask(labels.setdefault(image_id, label)) & _mask(label) == 0:
            disputed.add(image_id)
    if not labels:
        raise InputError(f"The reference {uri} has no row with an image id and a label.")
    return {image_id: label for image_id, label in labels.items() if image_id not in disputed}


def split_groups(frame: pd.DataFrame) -> list[str]:
    """The stored groups that lie in more than one split: the quick check before a training run."""
    counts = frame[frame["split"].notna()].groupby("group_id")["split"].nunique()
    return sorted(counts.index[counts > 1])


def examine(frame: pd.DataFrame, reference: Mapping[str, str] | None = None, repeats: int = 0) -> dict[str, Any]:
    """All that is wrong with the images of a catalog, ready for JSON.

    `frame` is one of `read`, or a catalog; `reference` one of `read_reference`. The answer has

    - `summary`: counts of all that follows;
    - `contradictions`: `by_pair`, for each two labels of no common diagnosis the sets of images that have both, the
      images in them, and how many ids, contents (sha256) and sets of near-duplicates have both; and `findings`;
    - `leaks`: `by_splits`, for each two splits how many images of the later one have a relative in the earlier one, by
      reason ("any": by a chain of reasons, too; "picture only": by a near-duplicate, with neither id nor bytes the
      same); and `findings`;
    - `reference`: None, or how many of the ids it knows, `by_pair` of label and reference, and `findings`;
    - `classes`: for each label its images, and of its photographs (images that are the same by id, bytes or picture
      are one photograph) how many are also under another label, are contradicted or confirmed by the reference, and
      how many support it independently: confirmed, or neither contradicted nor under another label;
    - `sizes`: for each label and split the groups, and the exact 95% interval that a recall of about 80% would have;
    - `unreadable`: images with an error; `properties`: see `melanoma.catalog.properties.measure`.

    A finding is one set of images with `by` (its reasons), `splits`, `labels`, `images` and `matches` (pairs of
    near-duplicates in it: places in `images`, how they match, similarity). "SK" and "BKL|SK" may both be said of one
    image. Lesion and patient numbers are numbers of their own source, and go with the photograph: an image has the
    lesion of every other image of its id or bytes.
    """
    frame = frame.reset_index(drop=True).astype(object)
    frame = frame.where(frame.notna(), None)
    joined = _Joined(frame)
    known = _reference_labels(frame, joined.image_ids, reference)
    contradictions = list(_contradictions(frame, joined))
    leaks, leaked = _leaks(frame, joined)
    compared = [
        (row, _mask(label) & _mask(wanted) != 0)
        for row, (label, wanted) in enumerate(zip(frame["label"], known, strict=True))
        if label is not None and wanted is not None
    ]
    disputed, confirmed = ([row for row, agrees in compared if agrees == wanted] for wanted in (False, True))
    describe = _Description(frame, joined, known)
    unreadable = frame[frame["error"].notna()]
    dropped = schema.dropped(frame)
    classes = _classes(frame, joined, contradictions, disputed, confirmed)
    sizes = _sizes(frame, joined)
    measured = properties.measure(frame, joined.group)
    by_reference = defaultdict(list)
    for row in disputed:
        by_reference[joined.image_ids[row]].append(row)
    pairs = joined.pairs
    answer = {
        "contradictions": {
            "by_pair": _by_pair(frame, joined, contradictions),
            "findings": describe.all(contradictions, "label"),
        },
        "leaks": {"by_splits": leaked, "findings": describe.all(leaks, "split")},
        "reference": None
        if reference is None
        else {
            "ids": len({i for i in joined.image_ids if i is not None}),
            "known": len({i for i, label in zip(joined.image_ids, known, strict=True) if label is not None}),
            "by_pair": _by_reference_pair(frame, joined, known, disputed),
            "findings": describe.all([(("reference",), rows, False) for rows in by_reference.values()], "label"),
        },
        "classes": classes,
        "sizes": sizes,
        "unreadable": [
            {"uri": uri, "image_id": image_id, "error": error}
            for uri, image_id, error in zip(unreadable["uri"], unreadable["image_id"], unreadable["error"], strict=True)
        ],
        "properties": measured,
    }
    summary = {
        "catalogs": sorted(set(frame["catalog"])) if "catalog" in frame else [],
        "images": len(frame),
        "photographs": len(np.unique(joined.picture)),
        "groups": len(np.unique(joined.group)),
        "repeats": repeats,
        "contradictions": len(contradictions),
        "contradictory_images": sum(len(rows) for _, rows, _ in contradictions),
        "leaks": len(leaks),
        "reference_contradictions": len(by_reference),
        "near_duplicates": len(pairs),
        "near_duplicates_of_different_ids": sum(
            joined.image_ids[pair.first] != joined.image_ids[pair.second] for pair in pairs
        ),
        "near_duplicates_by_how": dict(sorted(Counter(pair.how for pair in pairs).items())),
        "same_bytes_under_different_ids": _several_ids(joined),
        "unreadable": len(unreadable),
        "unlabelled": int((frame["label"].isna() & ~dropped).sum()),
        "dropped": int(dropped.sum()),
        "small_classes": sum(row["too_small"] for row in sizes),
        "weak_classes": sum(bool(row["warning"]) for row in classes),
        "properties_that_give_away": sum(row["warning"] for row in measured if not row["clinical"]),
    }
    return {"summary": summary, **answer}


def is_clean(answer: Mapping[str, Any]) -> bool:
    """Whether an audit found neither a leak nor a contradiction, the reference's included."""
    summary = answer["summary"]
    return not (summary["leaks"] or summary["contradictions"] or summary["reference_contradictions"])


# --- which images belong together ------------------------------------------------------------------------------------

_Keys = Sequence[Any]  # one value a row; None joins nothing
_Set = tuple[tuple[str, ...], list[int], bool]  # reasons, rows, whether only a chain of images joins the two sides


class _Joined:
    """For each row of a catalog what joins it to others, and the components that follow: int [rows] each.

    `picture`: same photograph, by id, bytes or near-duplicate. `group`: for any of the six reasons.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self.image_ids = groups.image_keys(frame)
        self.sha256 = [value or None for value in frame["sha256"]]
        self.pairs: list[Pair] = near_duplicates.find(frame)
        stored = [value or None for value in frame["group_id"]]
        lesion, patient = (groups.number_keys(frame, name) for name in ("lesion_id", "patient_id"))
        count = len(frame)
        same = groups.components(count, [self.image_ids, self.sha256])
        # Those that are joined by pictures only: what has the same bytes is no near-duplicate.
        self._near = groups.components(count, [self.sha256], self.pairs)
        self.picture = groups.components(count, [self.image_ids, self.sha256], self.pairs)
        self.group = groups.components(count, [self.image_ids, self.sha256, lesion, patient, stored], self.pairs)
        paired = {int(self._near[place]) for pair in self.pairs for place in (pair.first, pair.second)}
        self._keys: dict[str, Sequence[tuple[Any, ...]]] = {
            "image_id": _single(self.image_ids),
            "sha256": _single(self.sha256),
            "near-duplicate": [(key,) if key in paired else () for key in self._near.tolist()],
            "lesion_id": _carried(same, lesion),
            "patient_id": _carried(same, patient),
            "group_id": _single(stored),
        }
        self._pairs_of: dict[int, list[Pair]] = defaultdict(list)
        for pair in self.pairs:
            self._pairs_of[int(self.picture[pair.first])].append(pair)

    def relatives(self, rows: Iterable[int], reason: str) -> list[list[int]]:
        """The sets of at least two of these rows that are joined for this very reason."""
        members: dict[Any, list[int]] = defaultdict(list)
        for row in rows:
            for key in self._keys[reason][row]:
                members[key].append(row)
        return [found for found in members.values() if len(found) > 1]

    def related(self, first: int, second: int, reason: str) -> bool:
        """Whether two rows that `relatives` gives are so indeed: near-duplicates have other bytes."""
        return reason != "near-duplicate" or self.sha256[first] is None or self.sha256[first] != self.sha256[second]

    def known(self, row: int, reason: str) -> list[str]:
        """The lesions or patients of a row, without the source that a number counts in."""
        return [str(key).partition("/")[2] or str(key) for key in self._keys[reason][row]]

    def pairs_among(self, rows: Iterable[int]) -> list[Pair]:
        wanted = set(rows)
        found = [pair for number in {int(self.picture[row]) for row in wanted} for pair in self._pairs_of[number]]
        return sorted(pair for pair in found if pair.first in wanted and pair.second in wanted)


def _single(values: _Keys) -> list[tuple[Any, ...]]:
    return [() if value is None else (value,) for value in values]


def _carried(same: np.ndarray, values: _Keys) -> list[tuple[Any, ...]]:
    """The values of all rows of the same component, for each row."""
    found: dict[int, set[Any]] = defaultdict(set)
    for component, value in zip(same.tolist(), values, strict=True):
        if value is not None:
            found[component].add(value)
    return [tuple(sorted(found.get(component, ()))) for component in same.tolist()]


def _sets(components: np.ndarray, chosen: np.ndarray) -> Iterator[list[int]]:
    """The rows of each component among those chosen (bool [components]), in the order of the rows."""
    rows = np.flatnonzero(chosen[components])
    order = rows[np.argsort(components[rows], kind="stable")]
    yield from (part.tolist() for part in np.split(order, np.flatnonzero(np.diff(components[order])) + 1) if len(part))


# --- one photograph, several labels ----------------------------------------------------------------------------------


def _mask(label: str) -> int:
    return sum(1 << taxonomy.CODES.index(code) for code in taxonomy.codes_of(label))


def _masks(frame: pd.DataFrame) -> np.ndarray:
    """The diagnoses that the label of each row leaves open, as bits: int64 [rows]."""
    every = (1 << len(taxonomy.CODES)) - 1
    masks = {label: _mask(label) for label in frame["label"].dropna().unique()}
    return np.array([masks.get(label, every) for label in frame["label"]], dtype=np.int64)


def _contradictions(frame: pd.DataFrame, joined: _Joined) -> Iterator[_Set]:
    masks = _masks(frame)
    common = np.full(joined.picture.max(initial=-1) + 1, -1, dtype=np.int64)
    np.bitwise_and.at(common, joined.picture, masks)
    for rows in _sets(joined.picture, common == 0):
        labelled = [row for row in rows if frame["label"].iat[row] is not None]
        reasons = tuple(
            reason
            for reason in IMAGE_REASONS
            if any(
                np.bitwise_and.reduce(masks[found]) == 0
                and any(masks[a] != masks[b] and joined.related(a, b, reason) for a, b in combinations(found, 2))
                for found in joined.relatives(labelled, reason)
            )
        )
        yield reasons or _any_reason(joined, rows), rows, not reasons


def _any_reason(joined: _Joined, rows: list[int]) -> tuple[str, ...]:
    return tuple(reason for reason in REASONS if joined.relatives(rows, reason))


def _label_pairs(labels: Iterable[str | None]) -> list[tuple[str, str]]:
    """The pairs of these labels that have no diagnosis in common."""
    known = sorted({label for label in labels if label is not None})
    return [(a, b) for a, b in combinations(known, 2) if _mask(a) & _mask(b) == 0]


def _by_pair(frame: pd.DataFrame, joined: _Joined, contradictions: list[_Set]) -> list[dict[str, Any]]:
    labels = frame["label"].tolist()
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for _, rows, _ in contradictions:
        for pair in _label_pairs(labels[row] for row in rows):
            counts[pair]["sets"] += 1
            counts[pair]["images"] += sum(labels[row] in pair for row in rows)
        for reason, name in zip(IMAGE_REASONS, ("ids", "contents", "near_duplicates"), strict=True):
            for found in joined.relatives(rows, reason):
                for pair in _label_pairs(labels[row] for row in found):
                    sides = ([row for row in found if labels[row] == label] for label in pair)
                    counts[pair][name] += any(joined.related(a, b, reason) for a, b in product(*sides))
    names = ("sets", "images", "ids", "contents", "near_duplicates")
    return [
        {"labels": list(pair), **{name: count[name] for name in names}}
        for pair, count in sorted(counts.items(), key=lambda item: (-item[1]["sets"], item[0]))
    ]


def _reference_labels(
    frame: pd.DataFrame, identities: Sequence[str | None], reference: Mapping[str, str] | None
) -> list[str | None]:
    """What the reference says of each row. A number that several photographs of a catalog bear is not looked up."""
    if reference is None:
        return [None] * len(frame)
    bearers: dict[str, set[str | None]] = defaultdict(set)
    for image_id, identity in zip(frame["image_id"], identities, strict=True):
        if image_id in reference:
            bearers[image_id].add(identity)
    return [reference[i] if len(bearers.get(i, ())) == 1 else None for i in frame["image_id"]]


def _by_reference_pair(
    frame: pd.DataFrame, joined: _Joined, known: Sequence[str | None], disputed: list[int]
) -> list[dict[str, Any]]:
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in disputed:
        members[str(frame["label"].iat[row]), str(known[row])].append(row)
    return [
        {"label": label, "reference": wanted, "images": len(rows), "ids": len({joined.image_ids[r] for r in rows})}
        for (label, wanted), rows in sorted(members.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


# --- one photograph, lesion or patient, several splits ---------------------------------------------------------------


def _leaks(frame: pd.DataFrame, joined: _Joined) -> tuple[list[_Set], list[dict[str, Any]]]:
    splits = frame["split"].tolist()
    bits = np.array([0 if split is None else 1 << schema.SPLITS.index(split) for split in splits], dtype=np.int64)
    present = np.zeros(joined.group.max(initial=-1) + 1, dtype=np.int64)
    np.bitwise_or.at(present, joined.group, bits)
    affected: dict[tuple[str, str], dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    findings: list[_Set] = []
    for rows in _sets(joined.group, (present & (present - 1)) != 0):
        here: dict[str, set[int]] = defaultdict(set)
        for pair, _, late in _sides(rows, splits):
            affected[pair]["any"].update(late)
        for reason in REASONS:
            for found in joined.relatives(rows, reason):
                for pair, early, late in _sides(found, splits):
                    leaked = {row for row in late if any(joined.related(other, row, reason) for other in early)}
                    affected[pair][reason] |= leaked
                    here[reason] |= leaked
        direct = tuple(reason for reason in REASONS if here[reason])
        # The stored group is a reason only where nothing else explains it.
        reasons = tuple(reason for reason in direct if reason != "group_id") or direct
        findings.append((reasons or _any_reason(joined, rows), rows, not reasons))
    table = []
    for (first, second), by in sorted(affected.items(), key=lambda item: [schema.SPLITS.index(s) for s in item[0]]):
        by["picture only"] = by["near-duplicate"] - by["image_id"] - by["sha256"]
        counts = {name: len(by[name]) for name in ("any", *REASONS, "picture only")}
        table.append({"splits": [first, second], "images": splits.count(second), "by": counts})
    return findings, table


def _sides(rows: Sequence[int], splits: Sequence[str | None]) -> Iterator[tuple[tuple[str, str], list[int], list[int]]]:
    """For each two splits that these rows lie in: their names, the rows of the earlier and those of the later one."""
    members = {name: [row for row in rows if splits[row] == name] for name in schema.SPLITS}
    for first, second in combinations(schema.SPLITS, 2):
        if members[first] and members[second]:
            yield (first, second), members[first], members[second]


def _several_ids(joined: _Joined) -> int:
    ids: dict[str, set[str]] = defaultdict(set)
    for digest, image_id in zip(joined.sha256, joined.image_ids, strict=True):
        if digest is not None and image_id is not None:
            ids[digest].add(image_id)
    return sum(len(found) > 1 for found in ids.values())


# --- classes ---------------------------------------------------------------------------------------------------------


def _classes(
    frame: pd.DataFrame, joined: _Joined, contradictions: list[_Set], disputed: list[int], confirmed: list[int]
) -> list[dict[str, Any]]:
    labels = frame["label"].tolist()
    also: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for _, rows, _ in contradictions:
        for a, b in _label_pairs(labels[row] for row in rows):
            also[a][b].add(int(joined.picture[rows[0]]))
            also[b][a].add(int(joined.picture[rows[0]]))
    denied, affirmed = defaultdict[str, set[int]](set), defaultdict[str, set[int]](set)
    for verdict, rows in ((denied, disputed), (affirmed, confirmed)):
        for row in rows:
            verdict[labels[row]].add(int(joined.picture[row]))
    answer = []
    for label in sorted({label for label in labels if label is not None}):
        rows = [row for row, value in enumerate(labels) if value == label]
        photographs = set(joined.picture[rows].tolist())
        elsewhere = set().union(*also[label].values())
        independent = len((photographs - elsewhere | affirmed[label]) - denied[label])
        others = {other: len(found) for other, found in sorted(also[label].items(), key=lambda i: (-len(i[1]), i[0]))}
        warnings = []
        if independent < LEAST_INDEPENDENT * len(photographs):
            warnings.append("no independent support" if not independent else "hardly any independent support")
        warnings += [
            f"mostly contained in {other}" for other, n in others.items() if n > MOSTLY_CONTAINED * len(photographs)
        ]
        answer.append(
            {
                "label": label,
                "images": len(rows),
                "photographs": len(photographs),
                "under_another_label": len(elsewhere),
                "others": others,
                "contradicted_by_reference": len(denied[label]),
                "confirmed_by_reference": len(affirmed[label] - denied[label]),
                "independent": independent,
                "warning": ", ".join(warnings) or None,
            }
        )
    return answer


def _sizes(frame: pd.DataFrame, joined: _Joined) -> list[dict[str, Any]]:
    """Groups of each label in each split, of usable images; one row of split None where there are no splits.

    A label that is in no split, where others are, takes no part.
    """
    usable = schema.usable(frame, "all")
    splits = [name for name in schema.SPLITS if (usable["split"] == name).any()]
    if splits:
        usable = usable[usable["split"].notna()]
    answer = []
    for label in sorted(usable["label"].unique()):
        of_label = usable[usable["label"] == label]
        for split in splits or (None,):
            rows = of_label if split is None else of_label[of_label["split"] == split]
            groups = len(np.unique(joined.group[rows.index]))
            hits = round(CLAIMED_RECALL * groups)
            interval = stats.binomtest(hits, groups).proportion_ci(0.95, "exact") if groups else None
            low, high = (float(interval.low), float(interval.high)) if interval else (0.0, 1.0)
            answer.append(
                {
                    "label": label,
                    "split": split,
                    "images": len(rows),
                    "groups": groups,
                    "recall": hits / groups if groups else None,
                    "low": low,
                    "high": high,
                    # Nothing is claimed of what is trained on.
                    "too_small": split != "train" and high - low > WIDEST_INTERVAL,
                }
            )
    return answer


# --- findings in words -----------------------------------------------------------------------------------------------


class _Description:
    def __init__(self, frame: pd.DataFrame, joined: _Joined, known: Sequence[str | None]) -> None:
        self._frame, self._joined, self._known = frame, joined, known
        self._cells = {
            name: frame[name].tolist() for name in ("uri", "image_id", "source", "label", "split", "sha256", "error")
        }

    def all(self, sets: Iterable[_Set], among: str) -> list[dict[str, Any]]:
        """The findings, in an order that does not depend on that of the rows; `among` is what differs in each."""
        found = [self._finding(*item, among) for item in sets]
        return sorted(found, key=lambda f: (f[f"{among}s"], f["by"], [i["uri"] or "" for i in f["images"]]))

    def _finding(self, reasons: tuple[str, ...], rows: list[int], chain: bool, among: str) -> dict[str, Any]:
        cells = self._cells
        order = sorted(
            rows, key=lambda row: (cells[among][row] is None, str(cells[among][row]), str(cells["uri"][row]))
        )
        # One of each comes first: a page that shows but a few of them shows what differs.
        turns = Counter[Any]()
        turn = {}
        for row in order:
            turn[row] = turns[cells[among][row]]
            turns[cells[among][row]] += 1
        order.sort(key=turn.__getitem__)
        places = {row: place for place, row in enumerate(order)}
        return {
            "by": list(reasons),
            "chain": chain,
            "labels": sorted({label for row in rows if (label := cells["label"][row]) is not None}),
            "splits": [name for name in schema.SPLITS if name in {cells["split"][row] for row in rows}],
            "images": [
                {
                    **{name: cells[name][row] for name in cells},
                    "lesion_id": self._joined.known(row, "lesion_id"),
                    "patient_id": self._joined.known(row, "patient_id"),
                    "reference": self._known[row],
                }
                for row in order
            ],
            "matches": [
                {
                    "first": places[pair.first],
                    "second": places[pair.second],
                    "how": pair.how,
                    "similarity": round(float(pair.similarity), 4),
                }
                for pair in self._joined.pairs_among(rows)
            ],
        }
