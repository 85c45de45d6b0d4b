"""Where results go."""

import tempfile
from pathlib import Path

from concertormer_jax.data.safe_names import checked_name
from concertormer_jax.errors import UserError


def require_writable(folder) -> None:
    """Make `folder` if need be and raise UserError unless files can be written into it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder for results.") from error


def restored_path(output, name: str) -> Path:
    """Return where the evaluator writes the restored picture of the pair `name`. Raises UserError for no safe name."""
    checked_name(name, output)
    return Path(output) / "restored" / f"{name}.png"
