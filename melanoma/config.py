"""YAML and ``key=value`` overrides become a typed configuration, or one clear error.

The configuration of a job stands beside the job, such as `melanoma.scoring.config`, and is read from its YAML files in
``configs/``. No configuration holds a credential: those are in the environment, see `secret`.
"""

import datetime
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

from melanoma.errors import InputError

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what Keras takes


def _iso_date(value: Any) -> Any:
    if value is None:
        return None
    try:
        return datetime.date.fromisoformat(str(value)).isoformat()  # YAML reads 2026-11-20 as a date
    except ValueError:
        raise ValueError("must be a date such as 2026-11-20") from None


Date = Annotated[str | None, BeforeValidator(_iso_date)]


@dataclass(frozen=True)
class PlaceKind:
    """Marks a string of a configuration as a place: a file or folder that a job reads or writes.

    `on_stores`: whether an s3:// URI may stand there, too. `words` mean something else and are no places.
    """

    on_stores: bool = True
    words: tuple[str, ...] = ()


Place = Annotated[str, PlaceKind()]
"""A local path, or a file:// or s3:// URI. A submitted job refuses a relative one, see `relative_places`."""
LocalPlace = Annotated[str, PlaceKind(on_stores=False)]
"""A local path or a file:// URI: of a file that is appended to, which an object store cannot do."""


def secret(name: str) -> str:
    """A secret of the environment, without the line end that a file around it leaves; empty where there is none."""
    return os.environ.get(name, "").strip("\r\n\ufeff")


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


C = TypeVar("C", bound=Model)


def load(model: type[C], path: str | None, overrides: Sequence[str] | None = None, **values: Any) -> C:
    """Read a configuration; each of the last three arguments overrides those before it.

    Args:
        model: The configuration's type.
        path: A YAML file of it; None for none.
        overrides: Such as "network.width=32": a dotted key, and a value in YAML.
        **values: Values by key, which may be dotted. A value of None counts as not given.

    Returns:
        The whole, validated.

    Raises:
        InputError: With one sentence: which key of which file, what is wrong with it, and the nearest right one.
    """
    tree = _read_yaml(path) if path else {}
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"Override {override!r} is not of the form key=value, such as network.width=32.")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: 2026-13-45 looks like a date and is none
            raise InputError(f"The value of override {override!r} is not valid YAML.") from None
        _set(tree, key.split("."), value, override)
    for key, value in values.items():
        if value is not None:
            _set(tree, key.split("."), value, key)
    return _validated(model, tree, path)


def changed(config: C, values: Mapping[str, Any]) -> C:
    """`config` with the values of dotted keys such as ``network.width``; raises InputError as `load` does."""
    tree = config.model_dump(mode="json")
    for key, value in values.items():
        _set(tree, key.split("."), value, key)
    return _validated(type(config), tree, None)


def relative_places(config: Model) -> Iterator[tuple[str, str, PlaceKind]]:
    """The dotted key, the value and the kind of each place in a configuration that is a relative path."""
    for key, place, kind in _places(config, type(config), ""):
        if place not in kind.words and not place.startswith(("/", "s3://", "file://")):
            yield key, place, kind


def refuse_relative_places(config: Model) -> None:
    """Raise InputError for the first relative place of a submitted job.

    Such a job runs in a copy of the working directory, on one node, which is thrown away when the job ends.
    """
    for key, place, kind in relative_places(config):
        name = key.rpartition(".")[2]
        needed = (
            f"an s3:// URI or an absolute path that every node reaches, such as {key}=s3://bucket/{name}"
            if kind.on_stores
            else f"an absolute path that outlives it, such as {key}=/data/{name}"
        )
        raise InputError(f"The key {key!r} is {place!r}: a submitted job needs {needed}.")


def _places(value: Any, annotation: Any, key: str) -> Iterator[tuple[str, str, PlaceKind]]:
    """The places in a `value` that stands under `key`, as its `annotation` marks them."""
    arguments = get_args(annotation)
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            inner = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            yield from _places(getattr(value, name), inner, f"{key}.{name}" if key else name)
    elif get_origin(annotation) is Annotated:
        kinds = [mark for mark in arguments[1:] if isinstance(mark, PlaceKind)]
        if kinds and isinstance(value, str):
            yield key, value, kinds[0]
        yield from _places(value, arguments[0], key)
    elif get_origin(annotation) in (Union, UnionType):
        for argument in arguments:
            yield from _places(value, argument, key)
    elif isinstance(value, tuple) and get_origin(annotation) is tuple:
        inners = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        for each, inner in zip(value, inners, strict=False):
            yield from _places(each, inner, key)
    elif isinstance(value, Mapping) and len(arguments) == 2:
        for name, each in value.items():
            yield from _places(each, arguments[1], f"{key}.{name}")


def _validated(model: type[C], tree: dict[str, Any], path: str | None) -> C:
    try:
        return model.model_validate(tree)
    except pydantic.ValidationError as error:
        raise InputError(_sentence(model, error, path)) from None


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"The configuration {path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The configuration {path} cannot be read ({type(error).__name__}).") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise InputError(f"The configuration {path} is not valid YAML{where}.") from None
    except (ValueError, RecursionError) as error:  # something that looks like a date and is none
        raise InputError(f"The configuration {path} is not valid YAML: {error}.") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"The configuration {path} is not a mapping of keys to values.")
    return tree


def _set(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            raise InputError(f"Override {override!r}: {key!r} is a value, not a group of keys.")
        tree = child
    tree[keys[-1]] = value


def _sentence(model: type[BaseModel], error: pydantic.ValidationError, path: str | None) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    where = f" in {path}" if path else ""
    if first["type"] == "missing":
        return f"The key {key!r} is missing{where}."
    if first["type"] == "extra_forbidden":
        known = list(_fields(model, first["loc"][:-1]))
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys there are {', '.join(known)}."
        return f"Unknown key {key!r}{where}: {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # of several keys together
        return f"The configuration{where} cannot be used: {message}."
    field = _fields(model, first["loc"][:-1]).get(str(first["loc"][-1]))
    found = repr(first["input"]) if field is None or field.repr else "a value that is not shown"
    return f"The key {key!r}{where} is {found}: {message[0].lower() + message[1:]}."


def _fields(model: type[BaseModel], path: tuple[int | str, ...]) -> dict[str, FieldInfo]:
    """The keys that are known at a place of the tree. In a list of several kinds, the kind is a part of the path."""
    models = [model]
    for part in path:
        fields = [each.model_fields[part] for each in models if part in each.model_fields]
        if fields:
            models = [inner for field in fields for inner in _models(field.annotation)]
        elif isinstance(part, str):
            models = [
                each
                for each in models
                if (part,) in [get_args(field.annotation) for field in each.model_fields.values()]
            ]
    return {name: field for each in models for name, field in each.model_fields.items()}


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation such as ``tuple[A | B, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
