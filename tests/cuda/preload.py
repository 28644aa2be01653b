"""Builds and loads no_cuda.cpp. Import it before torch, which looks for its CUDA hooks only once."""

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("no_cuda.cpp")


def load() -> ctypes.CDLL:
    """The library, built once per source and installation of torch."""
    assert "torch" not in sys.modules
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch_home = Path(spec.origin).parent
    key = hashlib.sha256(SOURCE.read_bytes() + str(torch_home).encode() + _version(torch_home)).hexdigest()[:16]
    library = Path(tempfile.gettempdir(), f"bertmon_no_cuda_{os.getuid()}_{key}.so")
    if not library.exists():
        _build(torch_home, library)
    ctypes.CDLL(str(torch_home / "lib" / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _version(torch_home: Path) -> bytes:
    return (torch_home / "version.py").read_bytes()


def _build(torch_home: Path, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder, "built.so")
        lib = torch_home / "lib"
        command = ["g++", "-O0", "-shared", "-fPIC", "-std=c++20", f"-I{torch_home / 'include'}", str(SOURCE)]
        command += ["-o", str(built), f"-L{lib}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{lib}"]
        subprocess.run(command, check=True)
        built.replace(library)  # if two processes build it, the last one wins


LIBRARY = load()
