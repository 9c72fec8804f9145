"""A native build of llama.cpp from the source package of llama-cpp-python, and the driver that times it."""

import subprocess
import sys
import tarfile
from pathlib import Path

PACKAGE = "llama-cpp-python==0.3.36"
DRIVER = Path(__file__).with_name("llama_driver.cpp")
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
)


def build(directory: Path) -> Path:
    """The driver's path; what is built already stays."""
    source, out, driver = directory / "src", directory / "build", directory / "llama_driver"
    directory.mkdir(parents=True, exist_ok=True)
    if not (out / "bin" / "libllama.so").exists():
        if not source.exists():
            download = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--no-binary",
                "llama-cpp-python",
            ]
            _run([*download, "-d", str(directory), PACKAGE])
            (archive,) = directory.glob("llama_cpp_python-*.tar.gz")
            with tarfile.open(archive) as tar:
                tar.extractall(directory / "unpacked", filter="data")
            next((directory / "unpacked").iterdir()).rename(source)
        llama = str(source / "vendor" / "llama.cpp")
        _run(["cmake", "-S", llama, "-B", str(out), "-G", "Ninja", *OPTIONS])
        _run(["cmake", "--build", str(out), "--target", "llama"])
    if not driver.exists() or driver.stat().st_mtime < DRIVER.stat().st_mtime:
        llama_path = source / "vendor" / "llama.cpp"
        includes = [f"-I{llama_path / 'include'}", f"-I{llama_path / 'ggml' / 'include'}"]
        libraries = [f"-L{out / 'bin'}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{out / 'bin'}"]
        _run(["c++", "-O2", "-std=c++17", *includes, str(DRIVER), "-o", str(driver), *libraries])
    return driver


def _run(command: list[str]) -> None:
    print("$", *command, file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr)
