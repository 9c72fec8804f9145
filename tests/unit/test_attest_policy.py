"""Attestation policies, evidence files and ``aos attest verify`` (docs/spec/12-attestation.md)."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from attest_documents import NOW_MS, VECTORS, anchor_of, default_chain, document, members

from aos.cli.attest import exit_code
from aos.core.attest.evidence import judge
from aos.core.attest.nitro import verify_nitro
from aos.core.attest.policy import AttestationPolicy, appraise, load_policy
from aos.core.attest.result import AWS_NITRO, AttestationResult
from aos.core.encoding import b64u_encode
from aos.errors import ConfigError, InvalidMessage

POLICY_FILE = VECTORS.parents[1] / "aos/attest/policy-nitro.json"
BASE: dict[str, Any] = json.loads(POLICY_FILE.read_text())
GENUINE = VECTORS / "nitro/og_2026-02-12_indef.cbor"
GENUINE_MS = 1_770_918_962_724
ROOT = anchor_of(default_chain()[0])
OWN_IMAGE = {f"pcr{n}": bytes([n + 1] * 48).hex() for n in range(3)}
SIMULATED = {"tees": ["simulated"], "simulated_roots": [ROOT.sha256.hex()], "nitro": [OWN_IMAGE]}
RULES = {
    "statuses": ["UpToDate"],
    "rejected_advisories": [],
    "min_tcb_evaluation": 0,
    "dynamic_platform": True,
    "cached_keys": True,
    "smt": True,
}
TURIN = (VECTORS / "snp/turin_report.bin").read_bytes()
SNP_IMAGE = {
    "measurement": TURIN[0x90:0xC0].hex(),
    "product": "Turin",
    "min_fmc": TURIN[0x180],
    "min_bootloader": 1,
    "min_tee": 1,
    "min_snp": 4,
    "min_microcode": 0x51,
    "host_data": TURIN[0xC0:0xE0].hex(),
    "id_key_digest": TURIN[0xE0:0x110].hex(),
    "author_key_digest": TURIN[0x110:0x140].hex(),
}
TD = (VECTORS / "tdx-sgx/tdx_v4_quote.bin").read_bytes()[48:]
TDX_AT = {
    "mrseam": 16,
    "mrtd": 136,
    "mrconfigid": 184,
    "mrowner": 232,
    "mrownerconfig": 280,
    "rtmr0": 328,
    "rtmr1": 376,
    "rtmr2": 424,
    "rtmr3": 472,
}
TDX_IMAGE = {name: TD[at : at + 48].hex() for name, at in TDX_AT.items()}
SGX_IMAGE = {
    "mrenclave": "11" * 32,
    "mrsigner": "11" * 32,
    "isvprodid": 0,
    "min_isvsvn": 0,
    "configid": "00" * 64,
    "configsvn": 0,
}


def policy(**changes: Any) -> AttestationPolicy:
    return load_policy(json.dumps({**BASE, **changes}).encode())


def code(result: AttestationResult) -> str:
    return result.refusal.code if result.refusal is not None else "ACCEPTED"


def genuine(**options: Any) -> AttestationResult:
    return verify_nitro(GENUINE.read_bytes(), roots=[AWS_NITRO], at_ms=GENUINE_MS, **options)


@pytest.mark.parametrize(
    "changes",
    [
        {"tees": []},
        {"tees": ["nitro", "nitro"]},
        {"tees": ["nitro", "sev"]},
        {"nitro": []},
        {"nitro": [{}]},
        {"nitro": [{"pcr0": "11" * 48}]},
        {"nitro": [{**OWN_IMAGE, "pcr1": ""}]},
        {"nitro": [{**OWN_IMAGE, "pcr1": "11" * 32}]},
        {"nitro": [{**OWN_IMAGE, "pcr1": "AA" * 48}]},
        {"nitro": [{**OWN_IMAGE, "pcr1": None}]},
        {"nitro": [{**OWN_IMAGE, "pcr2": "00" * 48}]},
        {"nitro": [{**OWN_IMAGE, "pcr3": "11" * 48}]},
        {"tees": ["nitro", "simulated"]},
        {"simulated_roots": ["11" * 32]},
        {"tees": ["simulated"], "simulated_roots": [AWS_NITRO.sha256.hex()]},
        {"tees": ["nitro", "tdx"], "intel": RULES},
        {"tees": ["nitro", "snp"]},
        {"snp": [{"measurement": "11" * 48, "product": "Milan"}]},
        {"intel": RULES},
        {"models": []},
        {"debug": True},
        {"max_age_ms": 0},
        {"max_age_ms": True},
        {"nonce_required": "yes"},
        {"max_weight_per_device": -1},
        {"v": 1},
        {"v": 3},
        {"tees": ["nvidia"], "nitro": []},
        {"nvidia": [{"driver": "590.12", "vbios": "96.00.A5.00.01"}]},
        {"tees": ["nvidia"], "nitro": [], "nvidia": [{"driver": "590.12"}]},
        {"tees": ["nvidia"], "nitro": [], "nvidia": [{"driver": "", "vbios": "96.00.A5.00.01"}]},
        {"tees": ["nvidia"], "nitro": [], "nvidia": [{"driver": "590.12", "vbios": "96.00.a5.00.01"}]},
        {"tees": ["snp"], "nitro": [], "snp": [{**SNP_IMAGE, "min_fmc": None}]},
        {"tees": ["snp"], "nitro": [], "snp": [{**SNP_IMAGE, "product": "Genoa", "min_fmc": 1}]},
        {"tees": ["snp"], "nitro": [], "snp": [{**SNP_IMAGE, "measurement": "00" * 48}]},
        {"tees": ["snp"], "nitro": [], "snp": [{**SNP_IMAGE, "host_data": ""}]},
        {"tees": ["snp"], "nitro": [], "snp": [{n: v for n, v in SNP_IMAGE.items() if n != "host_data"}]},
        {"tees": ["tdx"], "nitro": [], "intel": RULES, "tdx": [{**TDX_IMAGE, "mrtd": "00" * 48}]},
        {"tees": ["tdx"], "nitro": [], "intel": RULES, "tdx": [{**TDX_IMAGE, "mrowner": ""}]},
        {
            "tees": ["tdx"],
            "nitro": [],
            "intel": RULES,
            "tdx": [{n: v for n, v in TDX_IMAGE.items() if n != "mrconfigid"}],
        },
        {"tees": ["sgx"], "nitro": [], "intel": RULES, "sgx": [{**SGX_IMAGE, "mrsigner": "00" * 32}]},
    ],
    ids=lambda c: json.dumps(c)[:60],
)
def test_an_empty_partial_or_unknown_expectation_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        policy(**changes)
    assert raised.value.code == "attest.policy_invalid"


@pytest.mark.parametrize("statuses", [[], ["OutOfDate"], ["UpToDate", "Revoked"]])
def test_a_policy_cannot_allow_a_status_that_is_never_acceptable(statuses: list[str]) -> None:
    good = {"tees": ["tdx"], "nitro": [], "tdx": [TDX_IMAGE], "intel": RULES}
    assert policy(**good).platform().statuses == ("UpToDate",)
    with pytest.raises(ConfigError):
        policy(**{**good, "intel": {**RULES, "statuses": statuses}})


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", POLICY_FILE.read_bytes() + b"x", b'{"v":1,"v":1}'])
def test_a_file_that_is_no_policy_is_an_error(data: bytes) -> None:
    with pytest.raises(ConfigError):
        load_policy(data)


def test_a_genuine_document_is_accepted_with_its_measurements_and_no_other() -> None:
    assert code(appraise(genuine(), policy(), GENUINE_MS)) == "ACCEPTED"
    ours = next(i for i in BASE["nitro"] if i["pcr0"].startswith("9baef839"))
    for register in ("pcr0", "pcr1", "pcr2"):
        other = {**ours, register: "11" * 48}
        assert code(appraise(genuine(), policy(nitro=[other]), GENUINE_MS)) == "attest.measurement"


def test_registers_of_two_images_are_not_mixed() -> None:
    first, second = BASE["nitro"][0], BASE["nitro"][-1]
    mixed = [{**first, "pcr0": second["pcr0"]}, {**second, "pcr0": first["pcr0"]}]
    assert code(appraise(genuine(), policy(nitro=mixed), GENUINE_MS)) == "attest.measurement"


def test_simulation_counts_only_where_it_is_named_with_its_root() -> None:
    data = document(members())
    assert code(judge(data, policy(**SIMULATED), at_ms=NOW_MS)) == "ACCEPTED"
    assert code(judge(data, policy(nitro=[OWN_IMAGE]), at_ms=NOW_MS)) == "attest.root"
    assert code(judge(GENUINE.read_bytes(), policy(**SIMULATED), at_ms=GENUINE_MS)) == "attest.root"
    result = verify_nitro(data, roots=[ROOT], at_ms=NOW_MS)
    assert code(appraise(result, policy(nitro=[OWN_IMAGE]), NOW_MS)) == "attest.policy_tee"
    other = {**SIMULATED, "simulated_roots": ["11" * 32]}
    assert code(appraise(result, policy(**other), NOW_MS)) == "attest.root"


def test_a_refused_document_is_not_appraised() -> None:
    refused = verify_nitro(b"x", roots=[AWS_NITRO], at_ms=NOW_MS)
    assert appraise(refused, policy(), NOW_MS) is refused


def test_age_nonce_model_and_weight_are_the_policys() -> None:
    live = policy(max_age_ms=300_000)
    assert code(appraise(genuine(), live, GENUINE_MS + 300_000)) == "ACCEPTED"
    assert code(appraise(genuine(), live, GENUINE_MS + 300_001)) == "attest.stale"
    challenged = policy(nonce_required=True)
    nonce = bytes.fromhex("0123456789abcdef0123456789abcdef01234567")
    assert code(appraise(genuine(), challenged, GENUINE_MS)) == "attest.nonce_missing"
    assert code(appraise(genuine(nonce=nonce), challenged, GENUINE_MS)) == "ACCEPTED"
    assert code(appraise(genuine(), policy(), GENUINE_MS, model_id=bytes(32))) == "ACCEPTED"
    assert code(appraise(genuine(), policy(), GENUINE_MS, model_id=b"\x01" * 32)) == "attest.policy_model"
    assert code(appraise(genuine(), policy(), GENUINE_MS, device_weight=1)) == "ACCEPTED"
    assert code(appraise(genuine(), policy(), GENUINE_MS, device_weight=2)) == "attest.policy_weight"


# --- other kinds, as evidence files


def evidence(
    tee: str, document_: str, *, certificates: list[str] | None = None, collateral: str = ""
) -> bytes:
    value = {
        "type": "aos.attest.evidence",
        "v": 1,
        "tee": tee,
        "document": b64u_encode((VECTORS / document_).read_bytes()),
        "certificates": "".join((VECTORS / name).read_text() for name in certificates or []),
        "collateral": (VECTORS / collateral).read_text() if collateral else "",
    }
    return json.dumps(value).encode()


SNP = evidence(
    "snp", "snp/turin_report.bin", certificates=[f"snp/turin_{n}.pem" for n in ("vcek", "ask", "ark")]
)
SNP_AT = 1_780_000_000_000


def snp_policy(**image: Any) -> AttestationPolicy:
    return policy(tees=["snp"], nitro=[], snp=[{**SNP_IMAGE, **image}])


def test_a_guest_is_judged_by_measurement_product_and_least_firmware() -> None:
    assert code(judge(SNP, snp_policy(), at_ms=SNP_AT)) == "ACCEPTED"
    for change in (
        {"measurement": "11" * 48},
        {"product": "Milan", "min_fmc": 0},
        {"min_fmc": TURIN[0x180] + 1},
        {"min_snp": 5},
        {"min_microcode": 0x52},
        {"host_data": "11" * 32},
        {"id_key_digest": "11" * 48},
        {"author_key_digest": "11" * 48},
    ):
        assert code(judge(SNP, snp_policy(**change), at_ms=SNP_AT)) == "attest.measurement"
    assert code(judge(SNP, policy(), at_ms=SNP_AT)) == "attest.policy_tee"


def test_evidence_without_a_time_is_fresh_by_its_challenge_alone() -> None:
    rules = replace(snp_policy(), max_age_ms=300_000)
    assert code(judge(SNP, rules, at_ms=SNP_AT)) == "attest.stale"
    assert code(judge(SNP, rules, at_ms=SNP_AT, challenge=TURIN[0x50:0x90])) == "ACCEPTED"


def test_a_trust_domain_and_an_enclave_are_judged_by_all_their_registers() -> None:
    image = TDX_IMAGE
    data = evidence("tdx", "tdx-sgx/tdx_v4_quote.bin", collateral="tdx-sgx/tdx_v4_collateral.json")
    tdx = {"tees": ["tdx"], "nitro": [], "intel": RULES}
    at_ms = 1_750_500_000_000
    assert code(judge(data, policy(**tdx, tdx=[image]), at_ms=at_ms)) == "ACCEPTED"
    for name in image:
        assert (
            code(judge(data, policy(**tdx, tdx=[{**image, name: "11" * 48}]), at_ms=at_ms))
            == "attest.measurement"
        )
    body = (VECTORS / "tdx-sgx/sgx_v3_quote.bin").read_bytes()[48:]
    enclave = {
        "mrenclave": body[64:96].hex(),
        "mrsigner": body[128:160].hex(),
        "isvprodid": int.from_bytes(body[256:258], "little"),
        "min_isvsvn": int.from_bytes(body[258:260], "little"),
        "configid": body[192:256].hex(),
        "configsvn": int.from_bytes(body[260:262], "little"),
    }
    sgx_data = evidence("sgx", "tdx-sgx/sgx_v3_quote.bin", collateral="tdx-sgx/sgx_v3_collateral.json")
    rules = {**RULES, "statuses": ["ConfigurationAndSWHardeningNeeded"]}
    sgx = {"tees": ["sgx"], "nitro": [], "intel": rules}
    assert code(judge(sgx_data, policy(**sgx, sgx=[enclave]), at_ms=at_ms)) == "ACCEPTED"
    for change in (
        {"mrenclave": "11" * 32},
        {"mrsigner": "11" * 32},
        {"isvprodid": 999},
        {"min_isvsvn": 999},
        {"configid": "11" * 64},
        {"configsvn": 9},
    ):
        changed = policy(**sgx, sgx=[{**enclave, **change}])
        assert code(judge(sgx_data, changed, at_ms=at_ms)) == "attest.measurement"
    with pytest.raises(InvalidMessage, match="other kind"):
        judge(data.replace(b'"tdx"', b'"sgx"'), policy(**sgx, sgx=[enclave]), at_ms=at_ms)


def test_a_gpu_is_never_accepted_whole() -> None:
    entry = json.loads((VECTORS / "nvidia/hopper_evidence.json").read_text())[0]
    value = {
        "type": "aos.attest.evidence",
        "v": 1,
        "tee": "nvidia",
        "document": b64u_encode(base64.b64decode(entry["evidence"])),
        "certificates": base64.b64decode(entry["certificate"]).decode(),
        "collateral": "",
    }
    versions = {"driver": "590.12", "vbios": "96.00.A5.00.01"}

    def judged(**changes: str) -> AttestationResult:
        rules = policy(tees=["nvidia"], nitro=[], nvidia=[versions | changes])
        return judge(json.dumps(value).encode(), rules, at_ms=SNP_AT, challenge=bytes.fromhex(entry["nonce"]))

    result = judged()
    assert code(result) == "ACCEPTED"
    assert exit_code(result) == 11
    for change in ({"driver": "590.13"}, {"driver": "590.1"}, {"vbios": "96.00.A5.00.02"}):
        result = judged(**change)
        assert (code(result), exit_code(result)) == ("attest.measurement", 10)
    old = bytes.fromhex((VECTORS / "nvidia/hopperAttestationReport.txt").read_text().strip())
    value["document"] = b64u_encode(old)
    value["certificates"] = (VECTORS / "nvidia/hopperCertChain.txt").read_text()
    without = policy(tees=["nvidia"], nitro=[], nvidia=[versions])
    assert code(judge(json.dumps(value).encode(), without, at_ms=SNP_AT)) == "attest.measurement"


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"{}",
        SNP.replace(b'"v": 1', b'"v": 2'),
        SNP.replace(b'"snp"', b'"tdx"'),
        SNP.replace(b'"collateral": ""', b'"collateral": "x"'),
        b"{" + bytes(1 << 20),
    ],
)
def test_a_file_that_is_no_evidence_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(InvalidMessage):
        judge(data, snp_policy(), at_ms=SNP_AT)


# --- the command


def aos(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("aos"))
    return subprocess.run(
        [program, "attest", "verify", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_the_command_accepts_a_genuine_document_and_says_why_line_by_line() -> None:
    done = aos(str(GENUINE), "--policy", str(POLICY_FILE))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith("PASS envelope-1")
    assert done.stdout.splitlines()[-1] == (
        'ACCEPTED: the document only: nitro under policy "genuine-samples"; '
        "nothing binds it to a boot, a key or a model"
    )


def test_the_command_refuses_a_debug_enclave_with_its_code_and_no_claims() -> None:
    done = aos(str(VECTORS / "nitro/automata1_2024-08-16_DEBUG.cbor"), "--policy", str(POLICY_FILE), "--json")
    result = json.loads(done.stdout)["result"]
    assert (done.returncode, result["verdict"], result["claims"]) == (10, "REFUSED", None)
    assert result["checks"][-1]["code"] == "attest.debug"


def test_the_command_checks_a_nonce_and_fetches_from_an_address() -> None:
    class Serve(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/report" else 404)
            self.end_headers()
            self.wfile.write(GENUINE.read_bytes())

        def log_message(self, *_: object) -> None:
            """Nothing: the test's output is not the server's."""

    server = HTTPServer(("127.0.0.1", 0), Serve)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/report"
        for nonce, expected in (("0123456789abcdef0123456789abcdef01234567", 0), ("0123", 10)):
            assert aos(url, "--policy", str(POLICY_FILE), "--nonce", nonce).returncode == expected
        assert aos(url + "x", "--policy", str(POLICY_FILE)).returncode == 12
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
