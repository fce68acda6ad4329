"""melanoma catalog, split, audit."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from melanoma.cli import console, options

if TYPE_CHECKING:
    import pandas as pd


def catalog(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...",
            help="Folders with a sub-folder a class or a table of their images; CSV/Parquet manifests.",
        ),
    ],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The catalog to write (Parquet); needed without --propose.")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(help="Table that knows lesion, patient, age, sex or site of images by ISIC id. May be repeated."),
    ] = None,
    rules_file: Annotated[
        str | None, typer.Option("--resolve", metavar="RULES", help="YAML of repairs, such as configs/isic9.yaml.")
    ] = None,
    words: Annotated[
        str | None, typer.Option("--map", metavar="MAP", help="YAML of what the sources' columns and words mean.")
    ] = None,
    propose: Annotated[
        str | None, typer.Option(metavar="MAP", help="Write a draft of such a map, and no catalog.")
    ] = None,
    unlabelled: Annotated[
        bool,
        typer.Option("--unlabelled", help="Take images whose word for the diagnosis is not known, without a label."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """List images with their labels, digests and groups, as one Parquet table; repair it by rule."""
    from melanoma import api
    from melanoma.catalog import draft
    from melanoma.errors import InputError

    if propose is not None:
        draft.write(sources, propose)
        console.say(f"A draft of the map: {propose}. Look at every line, then give it as --map.")
        return
    if output is None:
        raise InputError("Say where the catalog is written: --output FILE.")
    with console.bar("Reading images") as bar:
        frame = api.build_catalog(
            sources,
            output,
            metadata=metadata or (),
            rules=rules_file,
            words=words,
            unlabelled=unlabelled,
            on_image=bar,
            say=console.say,
        )
    if as_json:
        console.print_json(_summary(frame))
    else:
        _print_catalog(frame, output, is_repaired=rules_file is not None)


def _print_catalog(frame: "pd.DataFrame", output: str, is_repaired: bool) -> None:
    from melanoma.catalog import schema

    summary = _summary(frame)
    _print_distribution(frame)
    console.answer.print(
        f"{summary['images']} images in {summary['groups']} groups, {summary['unusable']} unusable, "
        f"{summary['unlabelled']} without a label: {output}"
    )
    if summary["unusable"]:
        console.answer.print(f"Unusable: {schema.reasons_in_words(frame.to_dict('records'))}.")
    if is_repaired:
        console.answer.print(f"{summary['changed']} images changed by rule, {summary['dropped']} of them dropped.")


def split(
    source: Annotated[str, typer.Argument(metavar="CATALOG")],
    output: Annotated[str, typer.Option("--output", "-o", help="The catalog to write (Parquet).")],
    validation: Annotated[float, typer.Option(help="Share of the images for validation.")] = 0.15,
    test: Annotated[
        float | None, typer.Option(help="Share for test; default 0.15, or 0 where a brought test split is kept.")
    ] = None,
    given_test: Annotated[
        Literal["keep", "aside"],
        typer.Option(help="A test split that the catalog brings is kept, or its groups are in no split."),
    ] = "keep",
    seed: Annotated[int, typer.Option(help="Decides which group goes where.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Deal the groups of a catalog to train, validation and test, stratified by source and label, and freeze it."""
    from melanoma import api

    frame = api.split_catalog(
        source, output, validation=validation, test=test, given_test=given_test, seed=seed, say=console.say
    )
    summary = _summary(frame)
    if as_json:
        console.print_json(summary)
        return
    _print_distribution(frame)
    aside = int((frame["split"].isna() & frame["error"].isna() & frame["label"].notna()).sum())
    if aside:
        console.answer.print(
            f"{aside} images are set aside: they belong to groups of the test split that the catalog brings."
        )
    console.answer.print(f"Frozen with fingerprint {summary['fingerprint'][:16]}: {output}")


def _summary(frame: "pd.DataFrame") -> dict[str, Any]:
    from melanoma.catalog import schema

    dropped = schema.dropped(frame)
    return {
        "images": len(frame),
        "groups": int(frame["group_id"].nunique()),
        "unusable": int(frame["error"].notna().sum()),
        "unusable_reasons": schema.reasons(frame.to_dict("records")),
        "unlabelled": int((frame["label"].isna() & ~dropped).sum()),
        "dropped": int(dropped.sum()),
        "changed": int(frame["changes"].notna().sum()),
        "labels": {str(k): int(v) for k, v in frame["label"].value_counts().sort_index().items()},
        "splits": {str(k): int(v) for k, v in frame["split"].value_counts().sort_index().items()},
        "fingerprint": schema.fingerprint(frame),
    }


def _print_distribution(frame: "pd.DataFrame") -> None:
    """How many images each label has in each split."""
    from rich.table import Table

    from melanoma import taxonomy

    splits = [*[s for s in ("train", "validation", "test") if (frame["split"] == s).any()], "none"]
    table = Table("label", *splits, "all")
    for label in sorted(frame["label"].dropna().unique()):
        rows = frame[frame["label"] == label]
        counts = [int((rows["split"] == s).sum()) for s in splits[:-1]] + [int(rows["split"].isna().sum())]
        table.add_row(f"{label} ({taxonomy.name_of(label)})", *map(str, counts), str(len(rows)))
    console.answer.print(table)


def audit(
    catalogs: Annotated[list[str], typer.Argument(metavar="CATALOG...", help="Looked at as one set of images.")],
    reference: Annotated[
        str | None, typer.Option(help="Table of image ids and labels that the catalog's labels are compared with.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder or s3:// URI for audit.html and audit.json.")] = None,
    as_json: options.Json = False,
) -> int:
    """Look for leaks, contradictory labels, weak classes and what gives a label away; exit 1 on the first two."""
    from melanoma import storage
    from melanoma.catalog import audit as auditing
    from melanoma.catalog import audit_page, audit_terminal
    from melanoma.catalog import reference as references

    if out is not None:
        storage.check_writable(out)
    known = None if reference is None else references.read(reference)
    frame, repeats = auditing.read(catalogs)
    found = auditing.examine(frame, known, repeats)
    if out is not None:
        with console.bar("Fetching pictures") as bar:
            audit_page.write(out, found, bar)
    if as_json:
        console.print_json(found)
    else:
        audit_terminal.show(console.answer, found, out)
    return 0 if auditing.is_clean(found) else 1
