"""What can go wrong for a user: one class a cause, one exit code a class, a message that says the mend.

Exit codes 1 (something that was checked does not hold) and 2 (usage) are the conventional ones.
``EXIT_CODES`` lists them all; the README's table is checked against it.
"""

from __future__ import annotations

from qvlfp8.redaction import redact
from qvlfp8.untrusted import harmless

EXIT_UNEXPECTED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class QvlError(Exception):
    """A mistake or fault that ends the command with one clear sentence and :attr:`exit_code`."""

    exit_code = EXIT_UNEXPECTED
    meaning = "a stage ended otherwise than expected"

    def __init__(self, problem: str, *, mend: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.mend = mend

    def __str__(self) -> str:
        said = self.problem if self.mend is None else f"{self.problem}\n  mend: {self.mend}"
        # What a command has said of secrets in files is out of it already; no error opens these files.
        return harmless(redact(said, of_files=False))


class UsageError(QvlError):
    """Options that do not fit together, or name nothing."""

    exit_code = EXIT_USAGE
    meaning = "usage: an option or argument that does not fit"


class CheckpointError(QvlError):
    """A folder that is not a readable checkpoint."""

    exit_code = 3
    meaning = "not a checkpoint: config.json or weights missing or unreadable"


class HubError(CheckpointError):
    """A checkpoint on the Hugging Face hub that cannot be had: none such, no access, or no network."""


class UnknownModelError(QvlError):
    """A checkpoint of a kind that the project does not know, or of which nothing was recorded."""

    exit_code = 4
    meaning = "an unknown kind of checkpoint: nothing was recorded of it in the versions asked for"


class FileFormatError(QvlError):
    """matrix.yaml or a recipe that is not valid."""

    exit_code = 5
    meaning = "matrix.yaml or a recipe is not valid"


class LockError(QvlError):
    """An environment's lock file is missing or does not belong to matrix.yaml any more."""

    exit_code = 6
    meaning = "an environment's lock is missing, out of date, or cannot be resolved"


class UnresolvableError(LockError):
    """No versions of the packages fit together; the resolver's reason."""


class RecipeError(QvlError):
    """A recipe that this model or this ModelOpt cannot honour."""

    exit_code = 7
    meaning = "the recipe cannot be honoured: it matches no module, or this ModelOpt cannot do it"


class IndexUnreachableError(QvlError):
    """The package index does not answer."""

    exit_code = 8
    meaning = "the package index cannot be reached"


class PackageMissingError(QvlError):
    """The package index answers but has not got what the lock names."""

    exit_code = 9
    meaning = "the package index has not got a locked version or file"


class BuildError(QvlError):
    """An environment could not be built for another reason."""

    exit_code = 10
    meaning = "an environment could not be built"


class WorkerError(QvlError):
    """A worker crashed, was killed, or ran past its time limit."""

    exit_code = 11
    meaning = "a worker crashed, was killed or ran past its time limit"


class StoreBusyError(QvlError):
    """Another run holds the store."""

    exit_code = 12
    meaning = "another run is using the store"


class StoreWriteError(QvlError):
    """The store cannot be written: no space, read-only, no permission."""

    exit_code = 13
    meaning = "the store or the output folder cannot be written (full, read-only, no permission)"


class DaemonError(QvlError):
    """No Docker daemon answers, or it went away."""

    exit_code = 14
    meaning = "no Docker daemon answers"


class DaemonPermissionError(QvlError):
    """The Docker daemon's socket is there and not for this user."""

    exit_code = 15
    meaning = "no permission to use the Docker daemon"


class ImageError(QvlError):
    """An image that is needed is not there, or is for another machine or Python."""

    exit_code = 16
    meaning = "an image is missing, or is for another architecture or Python"


class GpuRuntimeError(QvlError):
    """The Docker daemon cannot give a container a GPU."""

    exit_code = 17
    meaning = "the Docker daemon has no NVIDIA runtime"


class RepairError(QvlError):
    """A checkpoint with a fault that no copy mends."""

    exit_code = 18
    meaning = "a checkpoint cannot be mended without quantizing it again"


class DatasetError(QvlError):
    """A data set that cannot be calibrated on."""

    exit_code = 19
    meaning = "a data set cannot be calibrated on: unreadable, too small, or too much of it unusable"


class ClusterError(QvlError):
    """No Ray cluster, or one that cannot carry out a plan as this driver would."""

    exit_code = 20
    meaning = "no Ray cluster answers, or one of its nodes cannot be used (another qvlfp8, no shared store)"


class SharedStoreError(QvlError):
    """The store that all nodes of a cluster reach cannot be used."""

    exit_code = 21
    meaning = "the store that all nodes reach cannot be read or written, or what is in it is damaged"


class DamagedEntryError(SharedStoreError):
    """A file of a finished step is gone, or not what was written there."""


def _all_errors() -> list[type[QvlError]]:
    return sorted(QvlError.__subclasses__(), key=lambda kind: kind.exit_code)


EXIT_CODES: dict[int, str] = {
    0: "everything asked for ended as expected",
    EXIT_UNEXPECTED: QvlError.meaning,
    **{kind.exit_code: kind.meaning for kind in _all_errors()},
    EXIT_INTERRUPTED: "interrupted (Ctrl-C); finished work is kept",
}
"""Every exit code of the command line and what it means."""
