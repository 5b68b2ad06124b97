"""A checkpoint on the Hugging Face hub, opened by its JSON files and safetensors headers: no weight is read.

What was fetched lies in a temporary folder and is read by the same code, with the same checks, as a
checkpoint on disk: each weight file is a file of the full length with a hole where the data are. The holes
are removed once the headers are read, so that nobody takes their zeros for values: reading a scale fails.

``huggingface_hub`` does the talking: ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE`` and ``SSL_CERT_FILE``
count. It is imported only when a model of the hub is asked for.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from qvlfp8.checkpoint import CONFIG, HF_QUANT_CONFIG, INDEX, Checkpoint, NotACheckpoint, read
from qvlfp8.errors import HubError
from qvlfp8.tensorfile import MAX_HEADER_BYTES, of_headers
from qvlfp8.untrusted import read_object

if TYPE_CHECKING:
    import httpx
    from huggingface_hub import ModelInfo

__all__ = ["HubId", "Remote", "opened", "parse_id"]

JSON_FILES = (CONFIG, HF_QUANT_CONFIG, INDEX, "preprocessor_config.json", "tokenizer_config.json")
"""The files that are fetched whole, where they exist; of all others the name is enough."""

CONNECTIONS = 16
"""Files that are asked for at a time."""

SECONDS = 20.0
"""How long the hub may be silent."""

MAX_JSON_BYTES = MAX_HEADER_BYTES

_NOTHING_THERE = 416
_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_ID = re.compile(rf"({_PART}/{_PART})(?:@([^\s@]+))?", re.ASCII)


@dataclass(frozen=True)
class HubId:
    """A model of the hub, and the branch, tag or commit that is meant; None: the main branch."""

    model: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.model if self.revision is None else f"{self.model}@{self.revision}"


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A checkpoint of the hub: ``commit`` is what was read, ``files`` the names of all files beside it.

    Values of tensors are not there (:func:`qvlfp8.tensorfile.values` raises) unless ``cached``: then the
    checkpoint is a folder of the hub's cache on this machine, and whole.
    """

    id: HubId
    checkpoint: Checkpoint
    files: frozenset[str]
    commit: str | None
    cached: bool = False


def parse_id(text: str) -> HubId | None:
    """Read ``org/name`` or ``org/name@revision``; None if it is none, or a folder on this machine."""
    found = _ID.fullmatch(text)
    return None if found is None or Path(text).exists() else HubId(found[1], found[2])


@contextmanager
def opened(wanted: HubId) -> Iterator[Remote]:
    """Open a checkpoint of the hub; what was fetched is gone afterwards.

    Offline (``HF_HUB_OFFLINE``) it is the copy in the hub's cache.

    Raises:
        HubError: no such model or revision, no access, no network, or ``huggingface_hub`` is not installed.
        NotACheckpoint: it is there, and is no checkpoint; the file is named as ``org/name/file``.
    """
    try:
        from huggingface_hub import constants
    except ImportError:
        raise HubError(
            f"{wanted}: huggingface_hub is not installed", mend="pip install 'qvlfp8[hub]', or give a folder"
        ) from None
    if constants.HF_HUB_OFFLINE:
        yield _from_cache(wanted)
        return
    with tempfile.TemporaryDirectory(prefix="qvlfp8-hub-") as folder:
        yield _fetched(wanted, Path(folder))


def _from_cache(wanted: HubId) -> Remote:
    from huggingface_hub import snapshot_download

    try:
        root = Path(snapshot_download(wanted.model, revision=wanted.revision, local_files_only=True))
    except (OSError, ValueError):
        raise HubError(
            f"{wanted}: HF_HUB_OFFLINE is set, and the hub's cache on this machine has not got it",
            mend=f"unset HF_HUB_OFFLINE, or fetch it first: hf download {wanted.model}",
        ) from None
    files = frozenset(path.name for path in root.iterdir())
    return Remote(id=wanted, checkpoint=read(root), files=files, commit=root.name, cached=True)


def _fetched(wanted: HubId, folder: Path) -> Remote:
    with _explained(wanted):
        info = _info(wanted)
        commit = info.sha or wanted.revision
        # Only files of the model's own folder: a name with a slash is never written.
        names = frozenset(file.rfilename for file in info.siblings or () if "/" not in file.rfilename)
        source = _Source(HubId(wanted.model, commit), folder)
        try:
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                list(pool.map(source.fetch_json, names.intersection(JSON_FILES)))
                list(pool.map(source.fetch_header, _weights(folder, names)))
            checkpoint = read(folder)
        except NotACheckpoint as error:
            named = Path(wanted.model) / error.file.relative_to(folder)
            raise NotACheckpoint(named, error.problem, error.mend) from None
    for file in checkpoint.weight_files:
        (folder / file).unlink()
    return Remote(id=wanted, checkpoint=checkpoint, files=names, commit=commit)


def _info(wanted: HubId) -> ModelInfo:
    from huggingface_hub import HfApi, constants, errors

    try:
        return HfApi().model_info(wanted.model, revision=wanted.revision, timeout=SECONDS)
    except errors.HFValidationError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise HubError(
            f"{wanted}: {constants.ENDPOINT} answers, but not as a hub does",
            mend="check HF_ENDPOINT, and whether a proxy wants a login",
        ) from None


def _weights(folder: Path, names: Collection[str]) -> list[str]:
    """The weight files that the index names, else all; what it names in vain ``read`` complains of."""
    if INDEX not in names:
        return sorted(name for name in names if name.endswith(".safetensors"))
    file = folder / INDEX
    named = read_object(file, of_headers(), "upload the file again").get("weight_map")
    shards = {name for name in named.values() if isinstance(name, str)} if isinstance(named, dict) else set()
    return sorted(shards.intersection(names))


@dataclass(frozen=True)
class _Source:
    """One commit of a model, and the folder to put files into."""

    id: HubId
    folder: Path

    def fetch_json(self, name: str) -> None:
        """Fetch a whole file."""
        with self._get(name, None) as response:
            self._save(name, _at_most(response, MAX_JSON_BYTES, name))

    def fetch_header(self, name: str) -> None:
        """Fetch the header of a weight file, and make a file of the same length that begins with it."""
        with self._get(name, (0, 8)) as response:
            size = _size(response, name)
            prefix = _at_most(response, 8, name) if size else b""
        length = min(int.from_bytes(prefix, "little"), max(size - 8, 0))
        header = b""
        # What cannot be a header's length is left to the reader to refuse.
        if 0 < length <= MAX_HEADER_BYTES:
            with self._get(name, (8, 8 + length)) as response:
                _size(response, name)
                header = _at_most(response, length, name)
        self._save(name, prefix + header, size)

    def _save(self, name: str, content: bytes, size: int | None = None) -> None:
        file = self.folder / name
        try:
            with file.open("wb") as stream:
                stream.write(content)
                stream.truncate(size)
        except OSError as error:
            raise NotACheckpoint(
                file, f"cannot be laid out on this machine ({error.strerror})", "free some space in TMPDIR"
            ) from None

    @contextmanager
    def _get(self, name: str, span: tuple[int, int] | None) -> Iterator[httpx.Response]:
        from huggingface_hub import constants, get_session, get_token, hf_hub_url, hf_raise_for_status

        # Packed on the way, a part of a file would not be that part.
        headers = {"Accept-Encoding": "identity"}
        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if span is not None:
            headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
        url = hf_hub_url(self.id.model, name, revision=self.id.revision)
        with get_session().stream(
            "GET", url, headers=headers, timeout=SECONDS, follow_redirects=True
        ) as response:
            if response.is_error and response.status_code != _NOTHING_THERE:
                response.read()
                hf_raise_for_status(response)
            yield response


def _size(response: httpx.Response, name: str) -> int:
    """The length of the whole file that a part was taken from; of an empty one there is no part."""
    if response.status_code == _NOTHING_THERE and response.headers.get("Content-Range") == "bytes */0":
        return 0
    found = re.fullmatch(r"bytes \d+-\d+/(\d{1,18})", response.headers.get("Content-Range", ""))
    if found is None:
        raise HubError(
            f"{name}: the hub sends no parts of files (status {response.status_code})",
            mend="point HF_ENDPOINT to one that does, or download the model and give its folder",
        )
    return int(found[1])


def _at_most(response: httpx.Response, limit: int, name: str) -> bytes:
    """The body; one that is longer is not read to its end."""
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > limit:
            raise HubError(f"{name}: more than the {limit} bytes that were to come")
    return bytes(content)


@contextmanager
def _explained(wanted: HubId) -> Iterator[None]:
    """Say what went wrong between here and the hub in one sentence."""
    import httpx
    from huggingface_hub import constants, errors

    def fail(problem: str, mend: str) -> NoReturn:
        raise HubError(f"{wanted}: {problem}", mend=mend) from None

    where = constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError:
        fail("access has to be granted first", f"ask for it at {where}/{wanted.model}, and set HF_TOKEN")
    except errors.RevisionNotFoundError:
        fail(f"{where} has no such revision", "name a branch, a tag or a commit after the @")
    except errors.RepositoryNotFoundError:
        fail(f"{where} has no such model, or not for you", "check the name; for a private one set HF_TOKEN")
    except errors.HFValidationError as error:
        fail(f"is no name of a model ({error})", "give org/name, or a folder that is there")
    except errors.HfHubHTTPError as error:
        fail(f"{where} answers {error.response.status_code}", "try again later, or set HF_TOKEN")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(
            f"{where} cannot be reached ({error or type(error).__name__})",
            "check the network, HF_ENDPOINT, and SSL_CERT_FILE behind a company proxy; HF_HUB_OFFLINE=1 takes"
            " the copy in the cache",
        )
