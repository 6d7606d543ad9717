"""A file that is written whole or not at all, whatever interrupts the writing and whoever else writes it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that becomes `path` when the block ends without an error; otherwise `path` stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False) as partial:
        try:
            yield partial
            partial.flush()
            os.fsync(partial.fileno())
            partial.close()
            os.chmod(partial.name, 0o644)
            os.replace(partial.name, path)
        finally:
            Path(partial.name).unlink(missing_ok=True)
