"""Make an enclave's ramdisks and its image file so that equal input gives equal bytes (docs/operator-guide.md).

    python scripts/pack_enclave.py ramdisk --file init=blobs/init:755 --file nsm.ko=blobs/nsm.ko:755 \\
        --directory dev -o boot.cpio
    python scripts/pack_enclave.py ramdisk --tar rootfs.tar --prefix rootfs --line cmd=/opt/aos/bin/python \\
        -o application.cpio
    python scripts/pack_enclave.py image --kernel blobs/bzImage --cmdline-file blobs/cmdline \\
        --ramdisk boot.cpio --ramdisk application.cpio --name aos-tee-worker --version 0.1.0 -o aos-worker.eif

No time, owner, inode number or order of the machine that builds gets into the output. Nothing is signed here.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from aos.core.attest.eif_build import CpioEntry, ImageParts, Source, write_cpio, write_eif
from aos.errors import AOSError, InvalidMessage

_DIRECTORIES_OF_INIT = ("dev", "proc", "run", "sys", "tmp", "var")
"""What AWS's init mounts things on, below the application's root."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    ramdisk = commands.add_parser("ramdisk", help="a cpio archive (newc)")
    ramdisk.add_argument("--tar", type=Path, help="a file system as a tar archive")
    ramdisk.add_argument("--prefix", default="", help="where the tar's files go")
    ramdisk.add_argument("--file", action="append", default=[], metavar="NAME=SOURCE:MODE")
    ramdisk.add_argument("--directory", action="append", default=[], metavar="NAME")
    ramdisk.add_argument(
        "--line",
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="a line of a text file; again for more",
    )
    ramdisk.add_argument("-o", "--output", type=Path, required=True)
    image = commands.add_parser("image", help="an enclave image file, version 4")
    image.add_argument("--kernel", type=Path, required=True)
    image.add_argument("--cmdline-file", type=Path, required=True)
    image.add_argument("--ramdisk", type=Path, action="append", required=True)
    image.add_argument("--name", required=True)
    image.add_argument("--version", required=True)
    image.add_argument("--architecture", choices=("x86_64", "aarch64"), default="x86_64")
    image.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    try:
        with ExitStack() as open_files:
            if arguments.command == "ramdisk":
                _ramdisk(arguments, open_files)
            else:
                _image(arguments, open_files)
    except AOSError as error:
        print(f"error: {error}\n  hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except (OSError, tarfile.TarError) as error:
        print(f"error: {error} [file.unreadable]", file=sys.stderr)
        return 20
    return 0


def _source(path: Path, files: ExitStack) -> Source:
    stream = files.enter_context(path.open("rb"))
    return Source(stream=stream, size=os.fstat(stream.fileno()).st_size)


def _ramdisk(arguments: argparse.Namespace, files: ExitStack) -> None:
    entries: dict[str, CpioEntry] = {}
    for name in arguments.directory:
        entries[name] = CpioEntry(name=name, kind="directory", permissions=0o755)
    if arguments.tar is not None:
        archive = files.enter_context(tarfile.open(arguments.tar, "r:"))  # noqa: SIM115
        for entry in _of_tar(archive, arguments.prefix):
            entries[entry.name] = entry
        if arguments.prefix:
            for name in ("", *_DIRECTORIES_OF_INIT):
                path = f"{arguments.prefix}/{name}".rstrip("/")
                entries.setdefault(path, CpioEntry(name=path, kind="directory", permissions=0o755))
    for text in arguments.file:
        name, _, rest = text.partition("=")
        source, _, mode = rest.rpartition(":")
        entries[name] = CpioEntry(
            name=name, kind="file", permissions=int(mode, 8), content=_source(Path(source), files)
        )
    lines: dict[str, list[str]] = {}
    for text in arguments.line:
        name, _, line = text.partition("=")
        lines.setdefault(name, []).append(line)
    for name, texts in lines.items():
        data = "".join(f"{line}\n" for line in texts).encode()
        content = Source(stream=io.BytesIO(data), size=len(data))
        entries[name] = CpioEntry(name=name, kind="file", permissions=0o644, content=content)
    with arguments.output.open("wb") as out:
        write_cpio(out, entries.values())


def _of_tar(archive: tarfile.TarFile, prefix: str) -> Iterator[CpioEntry]:
    for member in archive.getmembers():
        inner = "/".join(part for part in member.name.split("/") if part not in ("", "."))
        name = "/".join(part for part in (prefix, inner) if part)
        if not inner or inner.partition("/")[0] == "dev":
            continue  # /dev is the kernel's; archives of containers have nodes there
        permissions = member.mode & 0o777  # no setuid program has a use in an enclave of one process
        if inner.endswith(".pyc"):
            raise InvalidMessage(
                "eif.input",
                f"{inner}: compiled Python holds times of the machine that built it",
                field="tar",
                hint="set PYTHONDONTWRITEBYTECODE=1 and remove __pycache__ in the image",
            )
        if member.isdir():
            yield CpioEntry(name=name, kind="directory", permissions=permissions)
        elif member.issym():
            yield CpioEntry(name=name, kind="link", permissions=0o777, target=member.linkname)
        elif member.isfile() or member.islnk():
            stream = archive.extractfile(member)
            assert stream is not None  # noqa: S101 - a file, or a hard link to one
            size = archive.getmember(member.linkname).size if member.islnk() else member.size
            yield CpioEntry(
                name=name, kind="file", permissions=permissions, content=Source(stream=stream, size=size)
            )
        else:
            raise InvalidMessage(
                "eif.input", f"{inner}: devices, pipes and the like have no place in an image", field="tar"
            )


def _image(arguments: argparse.Namespace, files: ExitStack) -> None:
    parts = ImageParts(
        kernel=_source(arguments.kernel, files),
        cmdline=arguments.cmdline_file.read_text(encoding="ascii").strip("\n"),
        ramdisks=[_source(path, files) for path in arguments.ramdisk],
        architecture=arguments.architecture,
        metadata={
            "ImageName": arguments.name,
            "ImageVersion": arguments.version,
            "BuildMetadata": {
                "BuildTime": "1970-01-01T00:00:00+00:00",
                "BuildTool": "aos-pack-enclave",
                "BuildToolVersion": "1",
                "OperatingSystem": "Linux",
                "KernelVersion": "Unknown",
            },
            "DockerInfo": None,
            "CustomMetadata": None,
        },
    )
    # Beside its place and moved there whole: a build that fails leaves no half image.
    unfinished = arguments.output.with_name(arguments.output.name + ".part")
    try:
        with unfinished.open("w+b") as out:
            write_eif(out, parts)
        unfinished.replace(arguments.output)
    finally:
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
