"""What may lie in a checkpoint, and how a file gets to disk and back whole.

    replace_file(Path("runs/vision/metrics.json"), lambda file: file.write(text.encode()))
    archive = read_whole(Path("runs/vision/best.pt"))     # for torch.load, every checksum right

Reads and writes the path it is given; `common.amp_ckpt` says which keys a checkpoint has.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from common.cli import UserError


class CheckpointError(UserError):
    """A checkpoint that cannot be written or used; the text names file, found, wanted and the next step."""


def read_regular(path: Path) -> bytes:
    """The content of a file; OSError also for a pipe or a device, which might never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError("not a regular file")
    return path.read_bytes()


def read_whole(path: Path) -> io.BytesIO:
    """The checkpoint, a zip archive, packed anew from its entries after each one's checksum was right.

    Packed anew, because torch reads some archives with a damaged directory without an error and returns other weights.
    A file that is named by a SHA-256, as a registry names them, must have it: these very bytes are checked.
    """
    try:
        data = read_regular(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; train first, or pass the --ckpt of a finished run") from error
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); wanted a file such as best.pt"
        ) from error
    if re.fullmatch("[0-9a-f]{64}", path.stem) and (found := hashlib.sha256(data).hexdigest()) != path.stem:
        raise CheckpointError(f"{path}: its content has the SHA-256 {found[:12]}…, so it was changed; roll back")
    whole = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as found, zipfile.ZipFile(whole, "w") as packed:
            for entry in found.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:  # save_ckpt never does, and it could fill the memory
                    raise zipfile.BadZipFile(f"{entry.filename} is compressed")
                packed.writestr(entry.filename, found.read(entry))
    except Exception as error:  # damaged headers raise nearly anything: struct.error, EOFError, UnicodeDecodeError ...
        raise CheckpointError(
            f"{path}: {len(data)} bytes that are not a whole checkpoint (cut off, damaged or another kind of file: "
            f"{error}); copy it again or train again"
        ) from error
    whole.seek(0)
    return whole


def storable(value: Any, key: str) -> Any:
    """`value` as the file holds it: dicts plain, tensors detached and alone. CheckpointError for anything else."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is Tensor and value.layout is torch.strided:
        part = value.untyped_storage().nbytes() > value.nbytes  # torch.save writes the whole storage of a view
        return value.detach().clone() if part else value.detach()
    if type(value) in (dict, OrderedDict):
        for name in value:
            if type(name) not in (str, int):
                raise CheckpointError(f"{key}: the key {name!r} is a {type(name).__name__}, wanted a str or an int")
        return {name: storable(item, f"{key}.{name}") for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(storable(item, f"{key}[{index}]") for index, item in enumerate(value))
    raise CheckpointError(
        f"{key}: a {type(value).__module__}.{type(value).__qualname__}, which loading would refuse; wanted plain "
        "values and dense tensors: convert it with .detach(), .item(), str() or list()"
    )


def without_tensors(value: Any) -> Any:
    """`value` with text keys, and in place of each tensor its shape and type as text."""
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, dict):
        return {str(key): without_tensors(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_tensors(item) for item in value]
    return value


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write(file)` on a temporary file beside `path`, fsync it, and rename it to `path`.

    A crash leaves the old file or the new one, never half of one. Raises OSError as the disk does.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
