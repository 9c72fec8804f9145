"""``aos tee``: enclave images, what they will be measured to, and evidence of guests
(docs/spec/12-attestation.md, "Enclave image files")."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aos.cli import voice
from aos.cli.help import Command, Group
from aos.errors import AOSError, ConfigError, RuleViolation, VerificationError

if TYPE_CHECKING:
    from aos.core.attest.eif import EnclaveImage

tee_app = typer.Typer(
    help="Measure enclave images, challenge enclaves.",
    cls=Group,
    epilog="aos tee pcrs aos-worker.eif --expect measurements.json",
    no_args_is_help=True,
)
_MISSING = 12


@tee_app.callback()
def _group() -> None:
    """The group's help is the application's."""


@tee_app.command(
    "pcrs",
    cls=Command,
    short_help="What an enclave image file will be measured to.",
    epilog="""aos tee pcrs aos-worker.eif
aos tee pcrs aos-worker.eif --save measurements.json
aos tee pcrs aos-worker.eif --expect measurements.json --nitro-cli described.json""",
)
def pcrs(
    file: Annotated[Path, typer.Argument(metavar="FILE.eif", help="An enclave image file, version 4.")],
    *,
    expect: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Compare with these measurements, all of them.")
    ] = None,
    nitro_cli: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Compare with what nitro-cli printed about it, or about an enclave."
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the measurements as an expectation.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Check an image file's structure and compute PCR0, PCR1, PCR2, PCR8, its SHA-256 and each section's SHA-384.

    Equal registers do not make equal files: where a section ends is not measured. --expect compares everything.
    Exit codes: 0 as expected, 10 another image or a signature that does not hold, 2 no image file, 12 unreadable, 30
    broken expectation.
    """
    from aos.core.attest.measurements import (
        compare,
        compare_nitro_cli,
        load_measurements,
        measurements_file,
        measurements_of,
    )

    expected = load_measurements(_small(expect)) if expect is not None else None
    printed = _small(nitro_cli) if nitro_cli is not None else None
    image = _image(file)
    measured = measurements_of(image)
    difference = None
    try:
        if expected is not None:
            compare(measured, expected)
        if printed is not None:
            compare_nitro_cli(measured, printed)
    except VerificationError as error:
        difference = error
    compared = [str(path) for path in (expect, nitro_cli) if path is not None]
    if as_json:
        voice.data_json("tee.pcrs", _shown(file, image, compared, difference))
    else:
        _print(file, image)
        if compared and difference is None:
            voice.data(f"AS EXPECTED: {', '.join(compared)}")
    if difference is not None:
        if as_json:
            raise typer.Exit(difference.exit_code)
        raise difference
    if save is not None:
        _write(save, measurements_file(measured))


def _image(file: Path) -> "EnclaveImage":
    from aos.core.attest.eif import read_eif

    try:
        with file.open("rb") as stream:
            return read_eif(stream, os.fstat(stream.fileno()).st_size)
    except OSError as error:
        raise _unreadable(file, error) from error


def _small(path: Path) -> bytes:
    from aos.core.attest.measurements import MAX_BYTES

    try:
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> AOSError:
    refused = RuleViolation(
        "file.unreadable",
        f"{path}: {error.strerror or 'cannot be read'}",
        hint="name a file that is there; scripts/build_enclave.sh makes an image file",
    )
    refused.exit_code = _MISSING
    return refused


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(
            "file.unwritable", f"{path}: {error.strerror}", hint="choose another place"
        ) from error


def _print(file: Path, image: "EnclaveImage") -> None:
    voice.data(f"file      {file}")
    voice.data(f"size      {image.size} bytes, {image.architecture}, {len(image.sections)} sections")
    voice.data(f"SHA-256   {image.sha256.hex()}")
    for name, register in image.registers().items():
        voice.data(f"{name:<9} {register.hex()}")
    if image.signer is None:
        voice.data("PCR8      none: the file is unsigned, the enclave's PCR8 will be zero")
    else:
        voice.data_of_others(
            f"signer    {image.signer.subject}  certificate SHA-256 {image.signer.certificate_sha256.hex()}"
        )
    voice.data(f"cmdline   {image.cmdline}")
    for section in image.sections:
        voice.data(f"section   {section.kind:<9} {section.size:>12}  SHA-384 {section.sha384.hex()}")


def _shown(
    file: Path, image: "EnclaveImage", compared: list[str], difference: VerificationError | None
) -> dict[str, Any]:
    signer = image.signer
    return {
        "file": str(file),
        "size": image.size,
        "sha256": image.sha256.hex(),
        "architecture": image.architecture,
        "default_memory_bytes": image.default_memory_bytes,
        "default_cpus": image.default_cpus,
        "cmdline": image.cmdline,
        "registers": {name: register.hex() for name, register in image.registers().items()},
        "signer": None
        if signer is None
        else {
            "subject": signer.subject,
            "certificate_sha256": signer.certificate_sha256.hex(),
            "valid_from": signer.valid_from,
            "valid_until": signer.valid_until,
        },
        "sections": [
            {"kind": s.kind, "offset": s.offset, "size": s.size, "sha384": s.sha384.hex()}
            for s in image.sections
        ],
        "compared": compared,
        "as_expected": None if not compared else difference is None,
        "difference": None
        if difference is None
        else {"code": difference.code, "field": difference.field, "message": difference.message},
    }


@tee_app.command(
    "measure",
    cls=Command,
    short_help="What an image of this installation executes.",
    epilog="""aos tee measure
aos tee measure --json > manifest.json
aos tee measure --expect manifest.json""",
)
def measure(
    *,
    expect: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Compare with what --json printed elsewhere.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole manifest.")] = False,
) -> None:
    """Hash the project's files, the native engine, Python with its library and every package that an enclave uses.

    Equal manifests run equal code above the operating system. Run it in the image and beside it to see that the one was
    made from the other (docs/operator-guide.md); what a platform will state is in PCR0 to PCR2: aos tee pcrs. Exit
    codes: 0, 10 another manifest than expected, 30 a broken installation.
    """
    from aos.adapters.installed import image_manifest, image_manifest_digest
    from aos.core.encoding import canonical_json

    manifest = image_manifest()
    digest = image_manifest_digest(manifest).hex()
    if expect is not None:
        _compare_manifests(manifest, _small(expect))
    if as_json:
        voice.data_json("tee.measure", {"digest": digest, "manifest": manifest})
        return
    python = manifest["python"]
    voice.data(f"manifest  {digest}")
    voice.data(f"files     {len(manifest['files'])} of this project, native engine included")
    voice.data(f"python    {python['version']}  {python['executable']}  library {python['library']}")
    for name, version, package in manifest["packages"]:
        voice.data(f"package   {name} {version}  {package}")
    voice.data(f"{len(canonical_json(manifest))} bytes of canonical JSON; --json prints them")


def _compare_manifests(manifest: dict[str, Any], expected: bytes) -> None:
    from aos.core.encoding import parse_json_strict
    from aos.errors import InvalidMessage

    try:
        value = parse_json_strict(expected, max_bytes=len(expected))
        other = value["result"]["manifest"] if isinstance(value, dict) else None  # type: ignore[index,call-overload]
    except (InvalidMessage, KeyError, TypeError):
        other = None
    if not isinstance(other, dict) or set(other) != set(manifest):
        raise ConfigError(
            "installed.expected",
            "the expected manifest is not what `aos tee measure --json` prints",
            hint="make it anew where the expected installation is",
        )
    for part in ("python", "packages", "start", "files", "type", "v"):
        if manifest[part] != other[part]:
            raise VerificationError(
                "installed.manifest",
                f"this installation has other {part} than the expected one",
                field=part,
                hint="compare the two manifests; install the versions of constraints.txt with `make setup`",
            )


@tee_app.command(
    "challenge",
    cls=Command,
    short_help="Make a running enclave prove what it is.",
    epilog="""aos tee challenge --cid 16 --port 5005 --policy policy.json
aos tee challenge --socket enclave.sock --policy dev-policy.json   # a SIMULATED one""",
)
def challenge(
    *,
    policy: Annotated[Path, typer.Option(help="Policy file: what is believed.")],
    cid: Annotated[int | None, typer.Option(min=3, max=2**32 - 2, help="The enclave's CID.")] = None,
    port: Annotated[
        int, typer.Option(min=1, max=2**32 - 2, help="The vsock port that it listens on.")
    ] = 5005,
    socket: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Instead: the Unix socket of a SIMULATED enclave.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Send a fresh nonce to an enclave that nobody has connected to yet, and judge the document that it answers with.

    Exit codes are those of aos attest verify; 20 where it does not answer.
    """
    import asyncio
    import time

    from aos.cli.attest import conclude, policy_of
    from aos.core.attest.nitro import verify_nitro
    from aos.core.attest.policy import appraise
    from aos.workers.challenge import challenge as ask

    if (cid is None) == (socket is None):
        raise voice.usage("give --cid or --socket, one of them", hint="aos tee challenge -h has examples")
    rules = policy_of(policy)
    where = str(socket) if cid is None else f"vsock {cid}:{port}"
    nonce, document = asyncio.run(ask(where if cid is None else (cid, port)))
    at_ms = time.time_ns() // 1_000_000
    # A Nitro document, whatever it says of itself: an enclave chooses no other verifier.
    result = appraise(verify_nitro(document, roots=rules.anchors(), at_ms=at_ms, nonce=nonce), rules, at_ms)
    raise typer.Exit(conclude([result], file=where, policy=rules.name, as_json=as_json))


@tee_app.command(
    "report",
    cls=Command,
    short_help="Evidence of the TDX or SEV-SNP guest that this runs in.",
    epilog="""aos tee report --boot HEX --output evidence.json
aos tee report --report-data HEX --collateral collateral.json --output evidence.json""",
)
def report(
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the evidence file goes.")
    ],
    boot: Annotated[
        str | None, typer.Option(metavar="HEX", help="Hash of the boot statement to be bound, 32 bytes.")
    ] = None,
    report_data: Annotated[
        str | None, typer.Option(metavar="HEX", help="Instead of it: the 64 bytes themselves.")
    ] = None,
    collateral: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TDX: the quote's collateral, dcap-qvl's JSON.")
    ] = None,
    certificates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="SEV-SNP: VCEK, ASK, ARK as PEM, where the host gives none."),
    ] = None,
    privilege_level: Annotated[int | None, typer.Option(min=0, max=3, help="SEV-SNP: the VMPL.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Ask the kernel (configfs-tsm) for a quote or report over the boot statement, and write an evidence file.

    aos attest verify judges it: pass its --nonce the report data that this command prints.
    """
    from aos.adapters.tsm import collect
    from aos.core.attest.guest import boot_report_data, guest_evidence
    from aos.core.codec import encode
    from aos.core.encoding import canonical_json

    if (boot is None) == (report_data is None):
        raise voice.usage("give --boot or --report-data, one of them", hint="aos tee report -h has examples")
    asked = (
        boot_report_data(_hex("--boot", boot, 32))
        if boot is not None
        else _hex("--report-data", report_data, 64)
    )
    found = collect(asked, privilege_level=privilege_level)
    evidence = guest_evidence(
        found,
        certificates_pem=_small(certificates) if certificates is not None else b"",
        collateral=_small(collateral) if collateral is not None else b"",
    )
    _write(output, canonical_json(encode(evidence)) + b"\n")
    if as_json:
        shown = {"tee": evidence.tee, "report_data": asked.hex(), "evidence": str(output)}
        voice.data_json("tee.report", shown)
        return
    voice.data(f"tee         {evidence.tee}")
    voice.data(f"report data {asked.hex()}")
    voice.data(f"evidence    {output}")


def _hex(name: str, text: str | None, length: int) -> bytes:
    try:
        data = bytes.fromhex(text or "")
    except ValueError:
        data = b""
    if len(data) != length:
        raise voice.usage(
            f"{name} must be {length} bytes in hexadecimal", hint="aos tee report -h has examples"
        )
    return data
