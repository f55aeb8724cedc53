"""Datasets of Minari's remote servers."""

import io
import warnings
from contextlib import redirect_stdout
from pathlib import Path

from core.data.storage import Dataset, _declare_namespaces, _minari_root, _swap, list_datasets, read_dataset
from core.errors import UserError
from core.files import check_writable, reason, scratch_folder


def download_minari(dataset_id: str, root: Path, *, overwrite: bool = False) -> tuple[Dataset, list[str]]:
    """Download a dataset into `root`; it appears whole, and only if it can be read. Returns it, and notes.

    dataset_id: an id such as "D4RL/pen/human-v2", or with its server, such as "hf://farama-minari/D4RL/pen/human-v2".

    Raises:
        UserError: it exists and `overwrite` is False, there is no such dataset, no network, or it cannot be used.
    """
    import minari
    from minari.dataset.minari_dataset import parse_dataset_id

    name = dataset_id.split("://")[-1].partition("/")[2] if "://" in dataset_id else dataset_id
    try:
        namespace = parse_dataset_id(name)[0]
    except (ValueError, TypeError) as error:
        raise UserError(f"malformed dataset id {dataset_id!r}: use the form namespace/name-v0") from error
    root = root.resolve()
    if (root / name).exists() and not overwrite:
        raise UserError(f"dataset {name} already exists in {root}: pass overwrite=true to download it again")
    check_writable(root)
    with scratch_folder(root) as scratch:
        with _minari_root(scratch), warnings.catch_warnings(record=True) as warned, redirect_stdout(io.StringIO()):
            warnings.simplefilter("always", UserWarning)
            try:
                minari.download_dataset(dataset_id)
            except Exception as error:  # each of the libraries that Minari downloads with has its own
                raise UserError(_failure(dataset_id, error, root)) from error
        dataset = _read(name, scratch)
        try:
            for part in list_datasets(scratch):  # a combined dataset brings those that it is made of
                if part == name or not (root / part).exists():
                    _swap(scratch / part, root / part, scratch / "replaced")
        except OSError as error:
            raise UserError(f"cannot write dataset {name} to {root}: {reason(error)}") from error
    if namespace:
        _declare_namespaces(namespace, root)
    return dataset, [str(warning.message).strip() for warning in warned if issubclass(warning.category, UserWarning)]


def _read(name: str, scratch: Path) -> Dataset:
    """What was downloaded into a scratch folder, of which an error does not speak."""
    try:
        return read_dataset(name, scratch)
    except UserError as error:
        said = str(error).replace(f" in {scratch}", "")
        raise UserError(f"what was downloaded cannot be used, and is removed again: {said}") from error


def _failure(dataset_id: str, error: Exception, root: Path) -> str:
    """What failed and how to mend it."""
    said = f"cannot download {dataset_id}: {reason(error).rstrip('.')}"
    if isinstance(error, ImportError):  # it names what to install
        return said
    if isinstance(error, ValueError):
        return f"{said}; minari list remote names what there is"
    return f"{said}; mend the network, or copy the dataset from a machine that has one to {root}, under the same id"
