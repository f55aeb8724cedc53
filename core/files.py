"""Files that are written whole or not at all."""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the new name outlives a power cut too
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole.

    Raises:
        UserError: the disk is full or the folder read-only; what `path` held before is still there.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}; free the disk or choose another folder") from error


def reason(error: Exception) -> str:
    """What the system said, without the library's wrapping; HDF5 puts it in the middle of a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    quoted = re.search(r"error message = '([^']*)'", str(error))
    return quoted[1] if quoted else " ".join(str(error).split()) or type(error).__name__


def check_writable(folder: Path) -> None:
    """Make `folder` and try it with a small file; one that was just made is removed again when that fails.

    Raises:
        UserError: it cannot be made or written to.
    """
    new = not folder.exists()
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(4096))
        probe.unlink(missing_ok=True)
    except OSError as error:
        if folder.is_dir():
            probe.unlink(missing_ok=True)
            if new:
                folder.rmdir()
        raise UserError(f"cannot write to {folder}: {reason(error)}; free it or choose another folder") from error


@contextmanager
def locked(path: Path, holder: str) -> Iterator[None]:
    """Hold a lock file while the block runs. The system frees it when the process ends, however it ends.

    Args:
        holder: what this process does, for the error of another one.

    Raises:
        UserError: another process holds it, or it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}; free the disk or choose another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UserError(
                f"{path.parent} is in use: {file.read().strip() or 'another process'} holds {path.name}; "
                "wait for it to end, or choose another folder"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()}, {holder}")
        file.flush()
        yield


def remove_leftovers(folder: Path) -> None:
    """Remove what a kill left of files that were being written. Only who holds the folder's lock may do so."""
    for pattern in (
        ".*.????????",
        ".tmp??????",
        ".probe-*",
    ):  # ours, safetensors' own beside them, and `check_writable`'s
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A hidden temporary folder in `parent`, on its file system, removed at the end."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
