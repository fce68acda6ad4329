"""What the functions of the interface share."""

import html
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from melanoma import config as configurations

    C = TypeVar("C", bound=configurations.Model)

Place = str | os.PathLike[str]
"""A local path, or an s3:// URI."""
Say = Callable[[str], None]
"""Is given one line a step."""
OnImage = Callable[[int, int], None]
"""Called with the number of images done and the total."""


def import_tensorflow() -> None:
    """Import TensorFlow, and Keras with its settings, without what their C++ prints before any logging can be set."""
    from melanoma import quiet

    with quiet.native_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices()
        importlib.import_module("melanoma.model.keras_settings")


def settings(model: "type[C]", given: "C | Place | None", values: Mapping[str, Any]) -> "C":
    """The configuration that is given or read from a YAML file, with other `values` of some keys.

    Raises InputError as `melanoma.config.load` does.
    """
    from melanoma import config

    plain = {key: _without_paths(value) for key, value in values.items()}
    if given is None or isinstance(given, str | os.PathLike):
        return config.load(model, None if given is None else os.fspath(given), **plain)
    return config.load(model, None, **{**dict(given), **plain}) if plain else given


def _without_paths(value: Any) -> Any:
    """`pathlib` paths as strings: a configuration holds no other."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_without_paths(each) for each in value] if isinstance(value, list | tuple) else value


def several(places: Place | Sequence[Place]) -> list[str]:
    return [os.fspath(place) for place in ([places] if isinstance(places, str | os.PathLike) else places)]


def frame(table: "pa.Table") -> "pd.DataFrame":
    """An Arrow table for people: without the dictionaries that a file keeps repeated words in."""
    import pyarrow as pa

    fields = [each.with_type(pa.string()) if pa.types.is_dictionary(each.type) else each for each in table.schema]
    result: pd.DataFrame = table.cast(pa.schema(fields)).to_pandas()
    return result


def figures(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The figures of a ``metrics.json`` by name, each with `value`, `low` and `high`, which may be None."""
    named = {name: value for name, value in metrics.items() if isinstance(value, dict) and "value" in value}
    return named | {f"recall of {label}": value for label, value in metrics.get("recall", {}).items()}


def figures_frame(metrics: Mapping[str, Any]) -> "pd.DataFrame":
    """One row a figure: `value`, `low` and `high`, NaN where it is not defined. `attrs` says of which images."""
    import pandas as pd

    found = figures(metrics)
    result = pd.DataFrame(
        {part: [figure[part] for figure in found.values()] for part in ("value", "low", "high")},
        index=pd.Index(list(found), name="figure", dtype=str),
        dtype=float,
    )
    result.attrs = {name: metrics[name] for name in ("split", "n", "n_melanoma") if name in metrics}
    return result


def figures_html(metrics: Mapping[str, Any]) -> str:
    from melanoma.evaluation.wording import left_out

    counts = f"{metrics['split']}: {metrics['n']} images, {metrics['n_melanoma']} melanomas; intervals of 95%."
    counts = " ".join([counts, *left_out(metrics)])
    warning = f"<p><b>{html.escape(metrics['leak_warning'])}</b></p>" if metrics.get("leak_warning") else ""
    return f"<p>{html.escape(counts)}</p>{warning}{figures_frame(metrics).to_html(float_format='{:.3f}'.format)}"


def html_table(title: str, rows: Mapping[str, str]) -> str:
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows.items())
    return f"<b>{html.escape(title)}</b><table>{cells}</table>"
