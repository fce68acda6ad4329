"""The version of this program, which bundles, reports and commit records name."""

from importlib.metadata import PackageNotFoundError, version


def program_version() -> str:
    try:
        return version("melanoma")
    except PackageNotFoundError:  # run from a working directory that `ray job submit` uploaded
        return "0.0.0+source"
