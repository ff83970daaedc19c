"""Versions of installed packages, for results and `--version`."""

from importlib import metadata

RECORDED = ("evidence", "pyro-ppl", "torch", "torchvision", "arviz")


def version_of(package: str) -> str:
    """The installed version, or "not installed" (this package run from its sources alone)."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
