"""The explorer in headless Chromium against the demo's network: console, hosts, keyboard, a phone's width, live pages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import pytest
from peers.browser import Page, browser
from peers.running_network import follow, submit

from aos.core.encoding import b64u_encode
from aos.core.hashes import job_ref
from aos.local.network import RunningNetwork

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

PAGES = (
    "/ui",
    "/ui/jobs",
    "/ui/operators",
    "/ui/models",
    "/ui/disputes",
    "/ui/attestations",
    "/ui/log",
    "/ui/playground",
)
PROMPT = "What is a receipt?</pre><img src=x onerror=\"document.title='broken in'\">"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture(scope="module")
def job_id(network: RunningNetwork) -> str:
    follow(network, submit(network, "What is AI?", "tee").job_id)
    accepted = submit(network, PROMPT)
    assert follow(network, accepted.job_id) == "verified"
    return accepted.job_id


def job_page(network: RunningNetwork, job_id: str) -> str:
    return f"{network.url}/ui/jobs/{b64u_encode(job_ref(job_id))}"


def all_pages(network: RunningNetwork, job_id: str) -> list[str]:
    text = httpx.get(f"{network.url}/ui/operators", timeout=30).text
    operator = re.search(r'href="(/ui/operators/0x\w+)"', text)
    assert operator is not None
    return [*(network.url + path for path in (*PAGES, operator[1])), job_page(network, job_id)]


def assert_quiet(page: Page, network: RunningNetwork) -> None:
    assert page.errors == []
    assert page.hosts == {network.url.removeprefix("http://")}


def test_every_page_is_quiet_asks_nobody_else_and_fits_a_phone(
    page: Page, network: RunningNetwork, job_id: str
) -> None:
    for scheme, width in (("light", 1280), ("dark", 360)):
        page.scheme(scheme)
        page.size(width)
        for url in all_pages(network, job_id):
            page.open(url)
            assert page.run("document.querySelectorAll('h1').length") == 1, url
            assert page.run("document.documentElement.scrollWidth") <= width, url
            # Opened, what was folded fits as well.
            page.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
            assert page.run("document.documentElement.scrollWidth") <= width, url
            assert page.run("getComputedStyle(document.body).fontFamily").startswith("system-ui"), url
    dark = page.run("getComputedStyle(document.body).backgroundColor")
    page.scheme("light")
    assert page.run("getComputedStyle(document.body).backgroundColor") != dark
    assert_quiet(page, network)


def test_the_keyboard_reaches_everything_in_order_and_the_focus_shows(
    page: Page, network: RunningNetwork, job_id: str
) -> None:
    page.size(1280)
    for url in (job_page(network, job_id), f"{network.url}/ui/log", f"{network.url}/ui/playground"):
        page.open(url)
        wanted = page.run(
            "[...document.querySelectorAll('a[href], button, input, select, textarea, summary, pre[tabindex=\"0\"]')]"
            ".filter(e => e.checkVisibility() && !e.disabled).length"
        )
        page.run("window.seen = []")
        for _ in range(wanted):
            page.key("Tab", 9)
            # The outline is how the style sheet shows the focus; the place in the document is the order.
            assert page.run(
                "(() => { const e = document.activeElement, s = getComputedStyle(e), last = seen.at(-1); seen.push(e);"
                " return s.outlineStyle === 'solid' && parseFloat(s.outlineWidth) >= 2"
                " && (!last || !!(last.compareDocumentPosition(e) & Node.DOCUMENT_POSITION_FOLLOWING)); })()"
            ), page.run("document.activeElement.outerHTML.slice(0, 200)")
        assert page.run("new Set(seen).size") == wanted
    page.open(f"{network.url}/ui")
    page.key("Tab", 9)
    page.key("Enter", 13, "\r")
    page.until("location.hash === '#main'")
    assert_quiet(page, network)


def test_prompt_and_answer_are_shown_to_the_token_as_text_and_kept_nowhere(
    page: Page, network: RunningNetwork, job_id: str
) -> None:
    page.open(job_page(network, job_id))
    assert "onerror" not in page.run("document.documentElement.outerHTML")
    page.run("document.querySelector('[data-content-form] input').focus()")
    page.type(network.token)
    page.key("Enter", 13, "\r")
    page.until("!document.querySelector('[data-shown]').hidden")
    assert page.run("document.querySelector('[data-prompt]').textContent") == PROMPT
    assert page.run("document.querySelector('[data-answer]').textContent")
    assert page.run("document.querySelector('[data-prompt] img')") is None
    assert "broken in" not in page.run("document.title")
    kept = "document.cookie + location.href + JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + name"
    assert network.token not in page.run(kept + " + document.documentElement.outerHTML")
    assert page.run("document.querySelector('[data-content-form] input').value") == ""
    assert_quiet(page, network)


def test_the_verify_page_judges_an_answer_of_this_network(
    page: Page, network: RunningNetwork, job_id: str
) -> None:
    answer = httpx.get(f"{network.url}/v1/aos/jobs/{job_id}/answer", timeout=30)
    assert answer.status_code == 200
    for width in (1280, 360):
        page.size(width)
        page.open(f"{network.url}/ui/verify")
        assert page.run("document.documentElement.scrollWidth") <= width
        download = page.run("document.querySelector('#download').href")
        assert download == f"{network.url}/ui/verify"
    page.run(
        "(() => { const to = new DataTransfer();"
        f" to.items.add(new File([{json.dumps(answer.text)}], 'answer.aos'));"
        f" to.items.add(new File([{json.dumps(network.trust_path.read_text())}], 'trust.json'));"
        " document.body.dispatchEvent(new DragEvent('drop', {bubbles: true, dataTransfer: to})); })()"
    )
    page.until("document.querySelector('#took').textContent !== ''")
    assert page.run("document.querySelector('#verdict').textContent") == "VERIFIED"
    assert_quiet(page, network)


def test_the_playground_streams_an_answer_and_links_to_its_job(page: Page, network: RunningNetwork) -> None:
    page.open(f"{network.url}/ui/playground")
    page.run("document.querySelector('[name=token]').focus()")
    page.type(network.token)
    page.run("document.querySelector('[name=verify]').value = 'redundant:3'")
    page.run("document.querySelector('[data-playground] .main').focus()")
    page.key("Enter", 13, "\r")
    page.until("!document.querySelector('[data-job]').hidden")
    assert page.run("document.querySelector('[data-answer]').textContent.trim().length") > 0
    assert "redundant:3" in page.run("document.querySelector('[data-facts]').textContent")
    before = page.loaded
    page.run("document.querySelector('[data-job]').click()")
    page.until(lambda: page.loaded > before)
    assert "VERIFIED at level" in page.run("document.querySelector('.verdict').textContent")
    assert network.token not in page.run("document.documentElement.outerHTML + location.href")
    assert_quiet(page, network)


def test_the_log_page_follows_the_tree_and_a_job_leads_to_its_leaf(
    page: Page, network: RunningNetwork, job_id: str
) -> None:
    page.size(360)
    page.open(job_page(network, job_id))
    before = page.loaded
    page.run("document.querySelector('a[href^=\"/ui/log?\"]').click()")
    page.until(lambda: page.loaded > before)
    assert page.run("document.querySelector('tr:target td:nth-child(2)').textContent") == "receipt"
    assert page.run("document.documentElement.scrollWidth") <= 360
    page.size(1280)
    page.open(f"{network.url}/ui/log")
    page.until("document.querySelector('[data-live-state]').textContent === 'live'")
    newest = "Number(document.querySelector('tr[id^=leaf-] td').textContent)"
    last = page.run(newest)
    assert page.run("document.querySelector('pre').textContent.split('\\n')[1]") == str(last + 1)
    submit(network, "What is a tree?")
    page.until(f"{newest} > {last}")
    assert_quiet(page, network)


def test_an_open_page_follows_a_job_to_its_end(page: Page, network: RunningNetwork) -> None:
    page.open(f"{network.url}/ui/jobs")
    page.until("document.querySelector('[data-live-state]').textContent === 'live'")
    accepted = submit(network, "What is a TEE?")
    link = f'a[href="/ui/jobs/{b64u_encode(job_ref(accepted.job_id))}"]'
    page.until(f"!!document.querySelector('{link}')")
    page.until(f"document.querySelector('{link}').closest('tr').textContent.includes('results agree')")
    assert page.loaded
    assert_quiet(page, network)
