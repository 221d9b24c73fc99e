"""Makes the root of the payload image, inside of the build and without network.

    assemble.py runtime|application BUILD IMAGE

The runtime is the wheels, the interpreter with its standard library, and the shared libraries that these
need: nothing else of the base image, so no shell, no package manager, no setuid program. The application is
in its place already, and is compiled. The same input gives the same bytes: compiled in a fixed order, every
time stamp equal.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

SHARDS = 4
"""Compiled side by side. A fixed number: what an interpreter compiled before shows in its next .pyc."""

NOT_IN_STDLIB = (
    "__pycache__",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "config-*",
)
# Headers and stubs to build against, and a C compiler's library that TensorFlow only lists.
NOT_IN_SITE = (
    "__pycache__",
    "*.h",
    "*.hpp",
    "*.a",
    "*.pyi",
    "tensorflow/include",
    "clang",
    "bin",
    "libclang-*",
)
COMPILE = """
import py_compile, sys
MODE = py_compile.PycInvalidationMode.UNCHECKED_HASH
for path in sys.stdin.read().splitlines():
    try:
        py_compile.compile(path, dfile=path.removeprefix(sys.argv[1]), doraise=True, invalidation_mode=MODE)
    except py_compile.PyCompileError:
        pass  # a template or a test of syntax, which nobody imports
"""


def main(part: str, build: Path, image: Path) -> None:
    if part == "runtime":
        add_runtime(build, image)
        compile_python(image, image)
    else:
        compile_python(image / "app/site/enclave_payload", image)
    normalise(image, int(os.environ["SOURCE_DATE_EPOCH"]))


def add_runtime(build: Path, image: Path) -> None:
    site = image / "app/site"
    install_wheels(build, site)
    for pattern in NOT_IN_SITE:
        for path in list(site.rglob(pattern) if "/" not in pattern else site.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    copy_interpreter(image)
    copy_shared_libraries(image)
    for folder in ("tmp", "dev", "proc", "sys", "run", "var"):
        (image / folder).mkdir(exist_ok=True)


def install_wheels(build: Path, site: Path) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--no-index", f"--find-links={build / 'wheelhouse'}"),
            *("--require-hashes", "--no-compile", "--no-cache-dir", "--disable-pip-version-check", "--quiet"),
            *("--root-user-action=ignore", f"--target={site}", f"--requirement={build / 'requirements.txt'}"),
        ],
        check=True,
    )


def copy_interpreter(image: Path) -> None:
    interpreter = Path(sys.executable).resolve()
    copy_file(interpreter, image)
    (image / "app").mkdir(exist_ok=True)
    (image / "app/python").symlink_to(interpreter)
    for kind in ("stdlib", "platstdlib"):
        library = Path(sysconfig.get_path(kind, "posix_prefix"))
        shutil.copytree(
            library,
            inside(image, library),
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns(*NOT_IN_STDLIB, "site-packages", "dist-packages"),
        )
    # Where the loader finds libraries outside of its own folders.
    if (cache := Path("/etc/ld.so.cache")).exists():
        copy_file(cache, image)


def copy_shared_libraries(image: Path) -> None:
    interpreter = Path(sys.executable).resolve()
    programs = [interpreter, *(path for path in sorted(image.rglob("*.so*")) if path.is_file())]
    for library in sorted(set(needed_by(programs))):
        if not library.is_relative_to(image):
            copy_file(library, image)


def needed_by(programs: Iterable[Path]) -> Iterator[Path]:
    loader = next(path for folder in ("/lib64", "/lib") for path in Path(folder).glob("ld-linux-*"))
    yield loader
    for program in programs:
        listed = subprocess.run([loader, "--list", program], capture_output=True, text=True, check=False)
        for line in listed.stdout.splitlines():
            for word in line.split():
                if word.startswith("/"):
                    yield Path(word)


def copy_file(source: Path, image: Path) -> None:
    """With its path in the base; a link is followed, so that the file stands under the name asked for."""
    target = inside(image, source)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def inside(image: Path, path: Path) -> Path:
    return image / path.relative_to("/")


def compile_python(folder: Path, image: Path) -> None:
    paths = sorted(str(path) for path in folder.rglob("*.py"))
    # Compiled with the path that it will have, which stands in every traceback and in the .pyc itself.
    workers = [
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", COMPILE, str(image)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"PYTHONHASHSEED": "0"},
        )
        for _ in range(SHARDS)
    ]
    for index, worker in enumerate(workers):
        worker.stdin.write("\n".join(paths[index::SHARDS]))
        worker.stdin.close()
    if any(worker.wait() for worker in workers):
        sys.exit("can't compile the Python files")


def normalise(image: Path, epoch: int) -> None:
    for path in sorted(image.rglob("*"), reverse=True):
        now = path.lstat()
        mode = 0o755 if stat.S_ISDIR(now.st_mode) or now.st_mode & stat.S_IXUSR else 0o644
        # Untouched where it is right already: a change would copy the file into another layer.
        if not path.is_symlink() and stat.S_IMODE(now.st_mode) != mode:
            path.chmod(mode)
        if now.st_mtime != epoch:
            os.utime(path, (epoch, epoch), follow_symlinks=False)
    os.utime(image, (epoch, epoch))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
