"""Weights on the Hugging Face Hub, as `hf://USER/NAME[/FILE]`: fetched into its cache, and uploaded with a model card.

The package huggingface-hub does the work. It reads the token, the cache's folder and the Hub's address from its own
environment variables (`HF_TOKEN`, `HF_HOME`, `HF_ENDPOINT`).
"""

import contextlib
import importlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import write_text
from concertormer_jax.runtime.paths import HUB, AnyPath

WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.json", "README.md"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_ADDRESS = re.compile(rf"{HUB}({_PART}/{_PART})(?:/((?:{_PART}/)*{_PART}))?")


class Address(NamedTuple):
    """repository: USER/NAME; file: a path in it, None if none was given."""

    repository: str
    file: str | None


def is_address(text: AnyPath) -> bool:
    """Whether `text` names something on the Hub."""
    return os.fspath(text).startswith(HUB)


def address(text: AnyPath, name: str = "") -> Address:
    """Return the parts of `text`. name: the flag that gave it. Raises UserError if it is not `hf://USER/NAME[/FILE]`."""
    found = _ADDRESS.fullmatch(os.fspath(text))
    if found is None:
        raise UserError(f"{f'{name}=' if name else ''}{text}: must be {HUB}USER/NAME or {HUB}USER/NAME/FILE")
    return Address(found[1], found[2])


def fetch(text: AnyPath, name: str = "") -> epath.Path:
    """Return the weights file of `text`, without FILE `model.safetensors`, in the cache, fetching it if need be.

    name: the flag that gave it. Raises UserError when the package is missing, and when there is no such repository or
    file, or no network.
    """
    hub = _package()
    repository, file = address(text, name)
    with _failures(hub, os.fspath(text)):
        try:
            return epath.Path(hub.hf_hub_download(repository, file or WEIGHTS_FILE))
        except hub.errors.RemoteEntryNotFoundError as error:
            has = ", ".join(sorted(hub.HfApi().list_repo_files(repository))[:20]) or "none"
            raise UserError(f"{text}: has no file {file or WEIGHTS_FILE}; name one of its files ({has})") from error


def upload(text: AnyPath, write_weights: Callable[[Path], object], config: dict, card: str) -> str:
    """Upload weights with their config and card, in one commit, into a repository that is made if need be.

    write_weights: called with the path of the weights file to write. Returns the address of the repository's page.
    Raises UserError when the package or a token is missing, the token does not suffice, or there is no network.
    """
    hub = _package()
    repository, file = address(text, "DESTINATION")
    if file:
        raise UserError(f"{text}: names a file; give the repository, {HUB}{repository}")
    if hub.get_token() is None:
        raise UserError(
            f"{text}: there is no token; run `hf auth login` or set HF_TOKEN to a token that may write "
            "(huggingface.co/settings/tokens)"
        )
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder, WEIGHTS_FILE))
        write_text(Path(folder, CONFIG_FILE), json.dumps(config, indent=2) + "\n")
        write_text(Path(folder, CARD_FILE), card)
        with _failures(hub, os.fspath(text)):
            api = hub.HfApi()
            page = api.create_repo(repository, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload weights")
    return str(page)


def _package() -> Any:
    try:
        importlib.import_module("huggingface_hub.errors")
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UserError(
            f"{HUB} addresses need huggingface-hub, which is not installed: pip install 'huggingface-hub>=1.0' (the "
            "extra `hub`)"
        ) from error


@contextlib.contextmanager
def _failures(hub: Any, text: str) -> Generator[None]:
    """Turn the failures of huggingface-hub into a UserError on `text`."""
    # httpx or its successor: what huggingface-hub uses depends on its version.
    client = importlib.import_module(type(hub.get_session()).__module__.partition(".")[0])
    unreachable = f"{text}: the Hub cannot be reached, nor is this in the cache; check the network and HF_ENDPOINT"
    try:
        yield
    except hub.errors.HFValidationError as error:
        raise UserError(f"{text}: is no name of a repository ({' '.join(str(error).split())[:300]})") from error
    except hub.errors.LocalEntryNotFoundError as error:
        raise UserError(unreachable) from error
    except hub.errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{text}: there is no such repository, or it is private or gated and the token (HF_TOKEN, `hf auth login`) "
            "may not read it"
        ) from error
    except hub.errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(f"{text}: the token (HF_TOKEN, `hf auth login`) does not allow this ({status})") from error
        raise UserError(f"{text}: the Hub refuses ({' '.join(str(error).split())[:300]})") from error
    except (client.HTTPError, hub.errors.OfflineModeIsEnabled) as error:
        raise UserError(unreachable) from error
