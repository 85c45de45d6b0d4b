"""What comes with this software beside its code: the recipes (configs/) and the photographs (photos/)."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def bundled(name: str) -> Path:
    """Return the folder or file `name`, such as "photos/test".

    pip puts it into the package's folder; in a clone it lies beside the package.
    """
    inside = _PACKAGE / "bundled" / name
    return inside if inside.exists() else _PACKAGE.parent / name


def recipes() -> dict[str, Path]:
    """Return the recipes by name."""
    return {
        path.stem: path for path in sorted(bundled("configs").glob("*.py")) if path.stem not in ("__init__", "common")
    }
