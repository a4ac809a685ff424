"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`, and move it onto `path` when the block ends without an error.

    For writers that take a path themselves, such as `safetensors.torch.save_file`. An error inside the block removes
    the temporary file and leaves the old file as it was.

    Args:
        path: where the file belongs; its folder must exist. A symbolic link is followed, so that the link stays.

    Yields:
        The temporary path; the block must create a file there.

    Raises:
        OSError: the file cannot be written, or the block created none.
    """
    target = Path(path).resolve()
    # In the same folder, because only within one file system is the move atomic.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file under a temporary name in the same folder and move it into place; a failure leaves the old file.

    Args:
        path: where the file belongs; its folder must exist.
        content: text, written as UTF-8, or bytes.

    Raises:
        OSError: the folder is missing or cannot be written to.

    Equivalent to `Path(path).write_bytes(content)`, but for what an interrupted write leaves behind.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
