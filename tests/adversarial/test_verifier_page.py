"""The browser verifier against the Python one, in headless Chromium, from disk: check by check, word by word.

Files are the vectors, every attack and lie of the receipt's tests under its own trust and policy, and the mutations of
test_receipt_fields. What Python refuses the page refuses with the same code; nothing is a PASS there that is none here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import test_receipt_conditions as conditions
import test_receipt_fields as fields
from peers.browser import Page, browser
from test_receipt_attacks import Attack

from aos.cli.verify import report_json
from aos.core.answer import write_answer
from aos.core.attest.result import AWS_NITRO
from aos.core.codec import encode
from aos.core.encoding import b64u_encode, canonical_json
from aos.core.receipt import CHECKS, verify_answer
from aos.core.trust import Trust, load_policy, read_trust
from aos.errors import AOSError

pytestmark = pytest.mark.timeout(300)

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "src/aos/dispatcher/ui/verify.html"
VECTORS = json.loads((REPOSITORY / "vectors/aos/receipt/answers.json").read_text())
BATCH = 50
STEP = 41
"""Of the changed values every 41st is compared: each costs a whole verification in both."""

JUDGE = """
(items, bases) => {
  const encoder = new TextEncoder(), trusts = new Map();
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  window.bases ??= [];
  for (const base of bases) window.bases.push(bytes(base));
  return items.map(([base, head, tail, middle, trust, policy]) => {
    const from = window.bases[base], put = bytes(middle);
    const data = new Uint8Array(head + put.length + tail);
    data.set(from.subarray(0, head));
    data.set(put, head);
    data.set(from.subarray(from.length - tail), head + put.length);
    if (trust !== null && !trusts.has(trust)) trusts.set(trust, aosVerifier.readTrust(encoder.encode(trust)));
    const found = aosVerifier.verifyAnswer(data, trusts.get(trust) ?? null, aosVerifier.loadPolicy(policy));
    return [found.checks.map((c) => [c.id, c.status, c.text, c.detail, c.code]), found.verdict, found.levels,
            found.missing, found.exitCode, found.headline];
  });
}
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        page.send("DOM.enable")
        yield page
        assert page.errors == []
        assert page.hosts == set()


@pytest.fixture
def page(tab: Page) -> Page:
    """The page, freshly opened from disk, without a network."""
    tab.send(
        "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
    )
    tab.size(1280)
    tab.open(PAGE.as_uri())
    return tab


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    label: str
    data: bytes
    trust: Trust | None = None
    policy: str = "dev"


def told(item: Item) -> list[Any]:
    """What Python says, in the shape in which the page says it."""
    report = verify_answer(item.data, trust=item.trust, policy=load_policy(item.policy))
    checks = [[c.id, c.status, c.text, c.detail, c.code] for c in report.checks]
    return [
        checks,
        report.verdict,
        list(report.levels),
        list(report.missing),
        report.exit_code,
        report.headline,
    ]


def common(a: bytes, b: bytes) -> int:
    """Length of the common beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        half = (low + high + 1) // 2
        low, high = (half, high) if a[:half] == b[:half] else (low, half - 1)
    return low


def compared(page: Page, base: bytes, items: list[Item]) -> int:
    """Judge every item in both verifiers; returns how many were refused. ``base`` is what most of them differ little from."""
    trusts: dict[int, str] = {}
    refused = 0
    page.run("delete window.bases")
    for start in range(0, len(items), BATCH):
        some = items[start : start + BATCH]
        sent = []
        for item in some:
            head = common(base, item.data)
            tail = common(base[head:][::-1], item.data[head:][::-1])
            middle = base64.b64encode(item.data[head : len(item.data) - tail]).decode()
            trust = None
            if item.trust is not None:
                trust = trusts.setdefault(id(item.trust), canonical_json(encode(item.trust)).decode())
            sent.append([0, head, tail, middle, trust, item.policy])
        bases = [] if start else [base64.b64encode(base).decode()]
        found = page.run(f"({JUDGE})({json.dumps(sent)}, {json.dumps(bases)})")
        for item, there in zip(some, found, strict=True):
            here = told(item)
            assert there == here, item.label
            refused += here[4] != 0
    return refused


def test_the_page_makes_the_same_checks_in_the_same_order(page: Page) -> None:
    item = Item(label="genuine", data=fields.GENUINE["opml"], trust=fields.TRUST)
    assert compared(page, item.data, [item]) == 0
    assert [line[0] for line in told(item)[0]] == [name for name, _ in CHECKS]


def test_every_vector_is_judged_alike(page: Page) -> None:
    trust = read_trust(json.dumps(VECTORS["trust"]).encode())
    items = []
    for case in VECTORS["cases"]:
        document = json.loads(VECTORS["files"][case["file"]])
        for path, value in case["changes"]:
            place = fields.at(document, tuple(path[:-1]))
            if value == {"absent": True}:
                del place[path[-1]]
            else:
                place[path[-1]] = value
        data = canonical_json(document)
        for given, policy in ((trust, case["policy"]), (None, "production")):
            items.append(Item(label=f"{case['name']}, {policy}", data=data, trust=given, policy=policy))
    refused = compared(page, VECTORS["files"]["three"].encode(), items)
    assert refused > len(items) // 2


def attack_item(attack: Attack) -> Item:
    data, trust, _ = conditions.material(attack.name)
    return Item(label=attack.name, data=data, trust=trust, policy=attack.policy)


def test_every_attack_and_lie_is_judged_alike(page: Page) -> None:
    """Those that only a re-execution finds are left to ``aos verify --replay``: here ``local-1`` is a SKIP in both."""
    attacks = [attack for attack in conditions.BY_NAME.values() if attack.replay is None]
    assert len(attacks) > 180
    assert (
        compared(page, fields.GENUINE["opml"], [attack_item(attack) for attack in attacks])
        >= len(attacks) - 2
    )


def mutations(name: str) -> Iterator[tuple[str, bytes]]:
    document = json.loads(fields.GENUINE[name])
    number = 0
    for path, value in fields.members(name):
        if isinstance(path[-1], str):
            yield f"without {path}", fields.changed(document, path, fields.drop)
        if isinstance(value, dict):
            yield f"{path} with more", fields.changed(document, (*path, "zzz"), fields.put("1"))
        for wrong in (None, True, 7, "7", [], {}):
            number += 1
            if type(wrong) is not type(value) and number % 5 == 0:
                yield f"{path} = {wrong!r}", fields.changed(document, path, fields.put(wrong))
        for other in fields.other_values(path, value):
            number += 1
            if number % STEP == 0:
                yield f"{path} = {other!r:.40}", fields.changed(document, path, fields.put(other))


@pytest.mark.parametrize("name", fields.GENUINE)
def test_every_mutation_of_a_member_is_judged_alike(page: Page, name: str) -> None:
    items = [Item(label=label, data=data, trust=fields.TRUST) for label, data in mutations(name)]
    # Without its log a file is as good as one of before there was a log: policy dev does not ask for it.
    left_out = sum(item.label == "without ('log',)" for item in items)
    assert compared(page, fields.GENUINE[name], items) == len(items) - left_out > 100


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda data: data[:-1],
    "empty": lambda _: b"",
    "a line end": lambda data: data + b"\n",
    "two values": lambda data: data + data,
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "no UTF-8": lambda data: data.replace(b"What", b"Wh\xe4t"),
    "an overlong form": lambda data: data.replace(b"What", b"Wh\xc1\xa1t"),
    "a surrogate in UTF-8": lambda data: data.replace(b"What", b"Wh\xed\xa0\x80t"),
    "too deep": lambda data: b"[" * 17 + data,
    "deep in a string": lambda data: data.replace(b"AI is", b"[[[[[[[[[[[[[[[[[[[[[[AI is"),
    "a quote that never ends": lambda data: data[:-2] + b"[[[[[[[[[[[[[[[[[[[[[[",
    "an array": lambda data: b"[" + data + b"]",
    "null": lambda _: b"null",
    "a word": lambda _: b"nul",
    "a resolution of null": lambda data: data.replace(b',"text"', b',"resolution":null,"text"'),
    "indented": lambda data: json.dumps(json.loads(data), indent=1).encode(),
    "an escape": lambda data: data.replace(b"AI is", b"\\u0041I is"),
    "a lone surrogate": lambda data: data.replace(b"AI is", b"\\ud800I is"),
    "a pair of escapes": lambda data: data.replace(b"AI is", b"\\ud83d\\ude00I is"),
    "a bad escape": lambda data: data.replace(b"AI is", b"\\xI is"),
    "a short escape": lambda data: data.replace(b"AI is", b"\\u00g1 is"),
    "a control character": lambda data: data.replace(b"AI is", b"\x01I is"),
    "a slash escaped": lambda data: data.replace(b"AI is", b"\\/I is"),
    "a name of the prototype": lambda data: data[:-1] + b',"zz__proto__":{}}',
    "the prototype": lambda data: b'{"__proto__":1,' + data[1:],
    "an unknown name of every kind": lambda data: data[:-1] + ',"z\'\u00e9\\n\u2028\U0001f600":1}'.encode(),
    "a comma too many": lambda data: data[:-1] + b",}",
    "a twin of a name": lambda data: data[:-1] + b',"tokens":[]}',
    "a twin by an escape": lambda data: data[:-1] + b',"\\u0074okens":[]}',
}
NUMBERS = (
    b"1.0",
    b"1e0",
    b"10e-1",
    b"01",
    b"+1",
    b"-1",
    b"-0",
    b"0x1",
    b"1_0",
    b"NaN",
    b"-Infinity",
    b"Infinity",
    b"-Inf",
    b"1.",
    b".1",
    b"1e400",
    b"true",
    b'"1"',
    b"9007199254740992",
    b"99999999999999999999",
    b"-9007199254740992",
    b"1" + b"0" * 5000,
    "\u0661".encode(),
    b"2",
    b"0",
)


def test_every_form_of_json_is_read_alike(page: Page) -> None:
    genuine = fields.GENUINE["opml"]
    items = [Item(label=name, data=form(genuine), trust=fields.TRUST) for name, form in FORMS.items()]
    for member in (b'"type":"aos.answer","v":', b'"attempt":'):
        at = genuine.index(member) + len(member)
        assert genuine[at : at + 1] == b"1"
        items += [
            Item(label=repr(number[:30]), data=genuine[:at] + number + genuine[at + 1 :], trust=fields.TRUST)
            for number in NUMBERS
        ]
    assert compared(page, genuine, items) == len(items)
    large = Item(label="too large", data=genuine.ljust((8 << 20) + 1), trust=fields.TRUST)
    assert told(large)[0][0][4] == page.run(
        "aosVerifier.verifyAnswer(new Uint8Array((8 << 20) + 1), null, aosVerifier.loadPolicy('dev')).checks[0].code"
    )


BROKEN_TRUST: tuple[bytes, ...] = (b"", b"{}", b"[1]", b"\xff", b'{"type":"aos.trust","v":2}', b"null")


def test_a_trust_file_is_refused_alike(page: Page) -> None:
    genuine = encode(fields.TRUST)
    root = {"tee": "simulated", "root": "A" * 43}
    aws = {"tee": "simulated", "root": b64u_encode(AWS_NITRO.sha256)}
    zero = {**genuine["tee_measurements"][0], "pcr1": "0" * 96}
    changes: list[dict[str, Any]] = [
        {"tee_roots": [], "tee_measurements": genuine["tee_measurements"]},
        {"tee_measurements": []},
        {"tee_roots": [root, root]},
        {"tee_roots": [*genuine["tee_roots"], aws]},
        {"tee_measurements": [*genuine["tee_measurements"], zero]},
        {"dispatchers": genuine["dispatchers"] * 2},
        {"epoch_ms": 0},
        {"beacon": {**genuine["beacon"], "length": (1 << 20) + 1}},
        {"policy": "x" * 65},
        {"log_key": "x"},
        {"log_key": genuine["log_key"][:-2] + "A="},
        {"log_key": genuine["log_key"].replace("+", " +", 1)},
        {"log_key": genuine["witnesses"][0]},
        {"witnesses": [genuine["log_key"]]},
        {"witnesses": [genuine["witnesses"][0]] * 2},
        {"witnesses": genuine["witnesses"][:1], "witness_quorum": 2},
        {"witness_quorum": 65},
        {"witnesses": None},
        {"more": 1},
    ]
    files = [*BROKEN_TRUST, *(json.dumps({**genuine, **change}).encode() for change in changes)]
    for data in files:
        with pytest.raises(AOSError) as refusal:
            read_trust(data)
        said = page.run(
            "(() => { try { aosVerifier.readTrust(Uint8Array.from(atob('"
            + base64.b64encode(data).decode()
            + "'), c => c.charCodeAt(0))); return 'read'; } catch (error) { return [error.code, error.message]; } })()"
        )
        assert said == [refusal.value.code, refusal.value.message], data[-200:]
    accepted = json.dumps(genuine, indent=2).encode()
    assert read_trust(accepted) == fields.TRUST
    assert page.run(
        f"aosVerifier.readTrust(Uint8Array.from(atob('{base64.b64encode(accepted).decode()}'), c => c.charCodeAt(0))).network"
    ) == (fields.TRUST.network)


# --- the page around it


def choose(page: Page, selector: str, path: Path) -> None:
    document = page.send("DOM.getDocument")["root"]["nodeId"]
    node = page.send("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
    page.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


def shown(page: Page) -> list[str]:
    found: list[str] = page.run(
        "[...document.querySelectorAll('#checks li')].map(l => l.className + ' ' + l.querySelector('.mono').textContent)"
    )
    return found


def settled(page: Page, verdict: str) -> None:
    page.until(
        f"document.querySelector('#verdict').textContent === {verdict!r}"
        " && document.querySelector('#took').textContent !== ''"
    )


def files_in(directory: Path) -> tuple[Path, Path]:
    answer, trust = directory / "answer.aos", directory / "trust.json"
    answer.write_bytes(fields.GENUINE["opml"])
    trust.write_text(json.dumps(encode(fields.TRUST), indent=2))
    return answer, trust


def test_two_files_are_chosen_and_every_line_is_shown(page: Page, tmp_path: Path) -> None:
    answer, trust = files_in(tmp_path)
    for width, scheme in ((1280, "light"), (360, "dark")):
        page.size(width)
        page.scheme(scheme)
        page.open(PAGE.as_uri())
        assert page.run("document.querySelectorAll('h1').length") == 1
        choose(page, "#answer-file", answer)
        settled(page, "PARTIAL")
        choose(page, "#trust-file", trust)
        settled(page, "VERIFIED")
        report = verify_answer(answer.read_bytes(), trust=fields.TRUST, policy=load_policy("dev"))
        assert shown(page) == [f"{check.status} {check.id}" for check in report.checks]
        page.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run("[...document.querySelectorAll('.about')].every(e => e.textContent.length > 20)")
    page.run("document.querySelector('#policy').value = 'production'")
    page.run("document.querySelector('#policy').dispatchEvent(new Event('change'))")
    page.until("document.querySelector('#policy-note').textContent.startsWith('production')")
    answer.write_bytes(fields.GENUINE["opml"].replace(b"AI is", b"AJ is"))
    choose(page, "#answer-file", answer)
    settled(page, "NOT VERIFIED")
    assert "FAIL io-2" in shown(page)
    assert page.run("!document.querySelector('#unproven').hidden")
    trust.write_text("{}")
    choose(page, "#trust-file", trust)
    page.until("!document.querySelector('#problem').hidden")
    assert page.run("document.querySelector('#result').hidden")
    assert "trust.invalid" in page.run("document.querySelector('#problem').textContent")


def test_both_files_are_dropped_anywhere_and_told_apart(page: Page, tmp_path: Path) -> None:
    answer, trust = (base64.b64encode(path.read_bytes()).decode() for path in files_in(tmp_path))
    page.run(
        "(() => { const bytes = (t) => Uint8Array.from(atob(t), c => c.charCodeAt(0)); const to = new DataTransfer();"
        f" to.items.add(new File([bytes('{trust}')], 'a.json')); to.items.add(new File([bytes('{answer}')], 'b.aos'));"
        " document.querySelector('h1').dispatchEvent(new DragEvent('drop', {bubbles: true, dataTransfer: to})); })()"
    )
    settled(page, "VERIFIED")
    assert page.run("document.querySelector('#trust-state').textContent").startswith("a.json: network")


def test_text_in_a_file_is_never_markup(page: Page, tmp_path: Path) -> None:
    evil = (
        "</pre><img src=x onerror=\"document.title='broken in'\"><script>document.title='broken in'</script>"
    )
    data = write_answer(fields.NETWORK.run(min_operators=1, prompt=evil)).replace(
        b"AI is", json.dumps(evil)[1:-1].encode()
    )
    (tmp_path / "evil.aos").write_bytes(data)
    choose(page, "#answer-file", tmp_path / "evil.aos")
    settled(page, "NOT VERIFIED")
    assert evil in page.run("document.querySelector('#text').textContent")
    assert page.run("document.querySelector('#prompt').textContent") == evil
    assert page.run("document.querySelector('main img')") is None
    assert "broken" not in page.run("document.title")


def test_the_saved_report_is_the_one_of_the_command(page: Page, tmp_path: Path) -> None:
    answer, trust = files_in(tmp_path)
    choose(page, "#trust-file", trust)
    choose(page, "#answer-file", answer)
    settled(page, "VERIFIED")
    page.run(
        "window.saved = new Promise(r => { URL.createObjectURL = (blob) => { blob.text().then(r); return '#'; }; }); 0"
    )
    page.run("document.querySelector('#save').click()")
    report = verify_answer(answer.read_bytes(), trust=fields.TRUST, policy=load_policy("dev"))
    assert json.loads(page.run("window.saved")) == {
        "schema": "aos.cli.verify/1",
        "result": report_json(report, file="answer.aos"),
    }


def test_the_keyboard_reaches_everything_in_order_and_the_focus_shows(page: Page, tmp_path: Path) -> None:
    answer, trust = files_in(tmp_path)
    choose(page, "#trust-file", trust)
    choose(page, "#answer-file", answer)
    settled(page, "VERIFIED")
    wanted = page.run(
        "[...document.querySelectorAll('a[href], button, input, select, summary, pre[tabindex=\"0\"]')]"
        ".filter(e => e.checkVisibility()).length"
    )
    assert wanted > len(CHECKS)
    page.run("window.seen = []; document.activeElement?.blur()")
    for _ in range(wanted):
        page.key("Tab", 9)
        assert page.run(
            "(() => { const e = document.activeElement, s = getComputedStyle(e); seen.push(e);"
            " return s.outlineStyle === 'solid' && parseFloat(s.outlineWidth) >= 2; })()"
        ), page.run("document.activeElement.outerHTML.slice(0, 200)")
    assert page.run("new Set(seen).size") == wanted
    page.run("document.querySelector('#checks summary').focus()")
    page.key("Enter", 13, "\r")
    assert page.run("document.querySelector('#checks details').open")
