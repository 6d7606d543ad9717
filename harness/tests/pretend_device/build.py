"""Compile the pretend device, with g++ and the headers that torch has."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

SOURCE = Path(__file__).with_name("pretend_device.cpp")


def build(folder: Path) -> Path | None:
    """Return the compiled library in `folder`, compiled if it is not there yet; None without a C++ compiler."""
    if shutil.which("g++") is None:
        return None
    version = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = folder / f"pretend_device_{version}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        compiled = Path(made, "pretend_device.so")
        libraries = Path(torch.__file__).parent / "lib"
        command = ["g++", "-std=c++20", "-shared", "-fPIC", "-O0", "-w", str(SOURCE), "-o", str(compiled)]
        command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
        command += [f"-I{path}" for path in include_paths()]
        command += [f"-L{libraries}", "-lc10", "-ltorch_cpu", "-ltorch"]
        subprocess.run(command, check=True)
        os.replace(compiled, library)
    return library
