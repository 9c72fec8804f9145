"""OpenAI's API as stock clients use it, and the SDK's documented examples, against the real network."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from peers.running_network import judge

from aos.client import connect, connect_async, verify_webhook
from aos.core.encoding import b64u_decode
from aos.core.hashes import job_ref
from aos.core.receipt import verify_answer
from aos.core.statements import Acceptance, verify_signed
from aos.core.trust import load_policy, read_trust
from aos.errors import RuleViolation
from aos.local.network import RunningNetwork

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

SDK = Path(__file__).parents[2] / "docs" / "sdk.md"
MESSAGES: list[Any] = [{"role": "user", "content": "What is AI?"}]
SAMPLING: dict[str, Any] = {"top_p": 0.5, "max_tokens": 200}


@pytest.fixture(scope="module")
def client(network: RunningNetwork) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{network.url}/v1", api_key=network.token, max_retries=0) as made:
        yield made


def chat(client: openai.OpenAI, network: RunningNetwork, **more: Any) -> Any:
    return client.chat.completions.create(
        **{"model": network.model_name, "messages": MESSAGES, **SAMPLING, **more}  # type: ignore[call-overload]
    )


def saved(network: RunningNetwork, job_id: str) -> Any:
    with network.client() as own:
        return json.loads(own.answer(job_id))


# --- the stock client


def test_the_stock_client_s_answer_has_a_receipt_that_verifies_offline(
    client: openai.OpenAI, network: RunningNetwork
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=network.model_name, messages=MESSAGES, extra_body={"aos": {"verify": "redundant:3"}}, **SAMPLING
    )
    answer: Any = raw.parse()
    job_id = raw.headers["x-receipt-id"]
    pair = json.loads(b64u_decode(raw.headers["x-aos-acceptance"]))
    accepted = verify_signed(Acceptance, pair, address=network.dispatcher, where="acceptance").statement
    assert accepted.job_ref == job_ref(job_id)
    report = judge(network, job_id)
    assert (report.verdict, "redundant:3" in report.levels) == ("VERIFIED", True)
    file = saved(network, job_id)
    assert answer.choices[0].message.content == file["text"]
    assert answer.choices[0].finish_reason == file["receipt"]["core"]["finish_reason"]
    assert answer.usage.completion_tokens == file["receipt"]["core"]["n_out"] == len(file["tokens"])
    assert answer.system_fingerprint == file["receipt"]["core"]["engine"] == "aos-canonical/1"
    assert answer.aos["job_id"] == job_id
    assert answer.aos["claimed"] == ["signed", "redundant:3"]
    assert answer.aos["nonce_source"] == "dispatcher"
    request = json.loads(file["request"])
    assert request["job"]["prompt"] == MESSAGES
    assert request["nonce_source"] == "dispatcher"


def test_a_streamed_answer_is_the_receipt_s_and_ends_with_aos(
    client: openai.OpenAI, network: RunningNetwork
) -> None:
    chunks = list(chat(client, network, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    job_id = chunks[0].aos["job_id"]
    assert chunks[0].aos["provisional"] is True
    assert chunks[-1].aos["provisional"] is False
    assert chunks[-1].aos["status"] == "verified"
    assert len(chunks) > 4
    file = saved(network, job_id)
    assert text == file["text"]
    assert chunks[-1].usage.completion_tokens == file["receipt"]["core"]["n_out"]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert judge(network, job_id).verdict == "VERIFIED"


def test_raw_prompts_seeds_and_stop_strings(client: openai.OpenAI, network: RunningNetwork) -> None:
    texts = set()
    for stream in (False, True):
        answer = client.completions.create(
            model=network.model_name,
            prompt="What is AI?",
            seed=11,
            stop=["."],
            max_tokens=100,
            stream=stream,  # type: ignore[call-overload]
        )
        texts.add("".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text)
    assert len(texts) == 1
    assert "." not in texts.pop()


def test_an_enclave_s_answer_is_simulated_and_never_attested(
    client: openai.OpenAI, network: RunningNetwork
) -> None:
    answer = chat(client, network, extra_body={"aos": {"verify": "simulated"}})
    assert answer.aos["claimed"] == ["signed", "simulated"]
    assert judge(network, answer.aos["job_id"]).verdict == "VERIFIED"
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, network, extra_body={"aos": {"verify": "attested"}})
    assert refused.value.code == "assurance.unavailable"


@pytest.mark.parametrize("stream", [False, True])
def test_blind_seats_are_heard_after_they_committed(
    client: openai.OpenAI, network: RunningNetwork, stream: bool
) -> None:
    answer = chat(client, network, stream=stream, extra_body={"aos": {"blind": True}})
    text = (
        "".join(c.choices[0].delta.content or "" for c in answer)
        if stream
        else answer.choices[0].message.content
    )
    assert len(text) > 20


def test_errors_reach_the_stock_client_as_its_own(client: openai.OpenAI, network: RunningNetwork) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        chat(client, network, model="gpt-none")
    assert (missing.value.code, missing.value.param) == ("model.unknown", "model")
    with pytest.raises(openai.BadRequestError) as unsupported:
        chat(client, network, logprobs=True)
    assert (unsupported.value.code, unsupported.value.param) == ("param.unsupported", "logprobs")
    with pytest.raises(openai.BadRequestError) as long:
        chat(client, network, messages=[{"role": "user", "content": "What is AI? " * 2000}])
    assert long.value.code == "engine.prompt_too_long"
    stranger = openai.OpenAI(base_url=f"{network.url}/v1", api_key="x" * 43, max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as nobody:
        stranger.models.list()
    assert nobody.value.code == "token.invalid"


def test_a_streamed_call_that_fails_raises_in_the_stock_client(
    client: openai.OpenAI, network: RunningNetwork
) -> None:
    with pytest.raises(openai.APIError) as error:
        list(
            chat(client, network, stream=True, messages=[{"role": "user", "content": "What is AI? " * 2000}])
        )
    assert error.value.code == "engine.prompt_too_long"


def test_the_models_have_digests_and_say_what_they_offer(
    client: openai.OpenAI, network: RunningNetwork
) -> None:
    (model,) = client.models.list().data
    about: Any = model.aos  # type: ignore[attr-defined]
    assert model.id == network.model_name
    assert (about["chat"], about["arithmetic"]) == (True, 1)
    assert set(about["digests"]) >= {"file_sha256", "weights_root", "tokenizer", "chat_template"}
    assert about["verify"] == ["signed", "redundant:3", "simulated"]
    assert client.models.retrieve(network.model_name).id == model.id


async def test_the_stock_asynchronous_client(network: RunningNetwork) -> None:
    async with openai.AsyncOpenAI(base_url=f"{network.url}/v1", api_key=network.token) as client:
        stream = await client.chat.completions.create(
            model=network.model_name, messages=MESSAGES, stream=True, **SAMPLING
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert len(text) > 20


def test_langchain(network: RunningNetwork) -> None:
    if importlib.util.find_spec("langchain_openai") is None and not os.environ.get("AOS_CI"):
        pytest.skip("langchain-openai is not installed; make test installs it")
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        base_url=f"{network.url}/v1",
        api_key=network.token,  # type: ignore[arg-type]
        model=network.model_name,
        temperature=0,
        max_tokens=200,  # type: ignore[call-arg]
        extra_body={"aos": {"verify": "redundant:2"}},
    )
    answer = model.invoke([("system", "Be kind."), ("human", "What is AI?")])
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 10
    assert answer.response_metadata["system_fingerprint"] == "aos-canonical/1"
    streamed = "".join(str(chunk.content) for chunk in model.stream("What is AI?"))
    assert streamed == answer.content


def test_curl(network: RunningNetwork) -> None:
    url = f"{network.url}/v1/chat/completions"
    body = json.dumps({"model": network.model_name, "messages": MESSAGES, "stream": True, **SAMPLING})
    command = ["curl", "-sS", "-N", "-D", "-", url, "-H", "content-type: application/json", "-d", body]
    done = subprocess.run(
        [*command, "-K", "-"],
        input=f'header = "authorization: Bearer {network.token}"',
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    head, _, stream = done.stdout.replace("\r\n", "\n").partition("\n\n")
    assert "200" in head.splitlines()[0]
    job_id = re.findall(r"^x-receipt-id: (.*)$", head, re.MULTILINE)[0]
    lines = [line for line in stream.splitlines() if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    last = json.loads(lines[-2].removeprefix("data: "))
    assert last["aos"]["job_id"] == job_id


def test_the_readme_s_example_runs_with_this_network_s_address_and_key(network: RunningNetwork) -> None:
    text = (SDK.parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = [
        block for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if "openai" in block
    ]
    mine = code.replace("http://127.0.0.1:20009", network.url).replace('"TOKEN"', json.dumps(network.token))
    assert mine.count(network.url) == mine.count(network.token) == 1
    done = subprocess.run(
        [sys.executable, "-c", mine], capture_output=True, text=True, timeout=120, check=True
    )
    job_id = done.stdout.split()[-1]
    assert "redundant:3" in judge(network, job_id).levels


# --- the SDK


@pytest.fixture
def state(network: RunningNetwork, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where a person would be who reads the page: the network's state directory is named, the work is elsewhere."""
    for name in [name for name in os.environ if name.startswith("AOS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AOS_STATE_DIR", str(network.trust_path.parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examples() -> list[Any]:
    blocks = re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```$", SDK.read_text(encoding="utf-8"), re.M | re.S)
    return [pytest.param(code, id=re.sub(r"\W+", "-", title.lower())) for title, code in blocks]


@pytest.mark.parametrize("code", examples())
def test_the_sdk_page_s_examples_run_as_they_are_printed(
    state: Path, network: RunningNetwork, code: str
) -> None:
    environment = dict(os.environ) | {"AOS_WEBHOOK_SECRET": network.webhook_secret}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_sdk_sends_its_own_nonce_and_the_answer_verifies(state: Path) -> None:
    with connect() as own:
        stream = own.stream(MESSAGES, operators=3, **SAMPLING)
        with pytest.raises(RuleViolation):
            _ = stream.answer
        text = "".join(stream)
        answer = stream.answer
    assert text == answer.text
    assert not stream.superseded
    report = answer.verify()
    assert (report.verdict, "redundant:3" in report.levels) == ("VERIFIED", True)
    request = json.loads(json.loads(answer.data)["request"])
    assert (request["nonce_source"], request["job"]["prompt"]) == ("client", MESSAGES)
    assert answer.verify(policy="production").policy == "production"


async def test_the_asynchronous_client_asks_several_at_once(state: Path) -> None:
    async with connect_async() as own:
        answers = await asyncio.gather(*(own.ask("What is AI?", seed=seed, **SAMPLING) for seed in (1, 1)))
    assert answers[0].text == answers[1].text
    assert {answer.verify().verdict for answer in answers} == {"VERIFIED"}


def test_progress_is_resumed_where_it_was_left(network: RunningNetwork) -> None:
    with network.client() as own:
        job_id = own.stream("What is AI?", model=network.model_name, **SAMPLING).job_id
        events = own.events(job_id)
        first = next(events)
        events.close()  # type: ignore[attr-defined]
        rest = list(own.events(job_id, after=first.id))
    assert int(rest[0].id) == int(first.id) + 1
    assert rest[-1].kind == "done"


def test_a_webhook_tells_of_the_end_and_the_answer_can_be_fetched(network: RunningNetwork) -> None:
    came = threading.Event()
    told: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            told.append(verify_webhook(network.webhook_secret, dict(self.headers.items()), body))
            self.send_response(204)
            self.end_headers()
            came.set()

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with network.client() as own:
            url = f"http://127.0.0.1:{server.server_port}/"
            stream = own.stream("What is AI?", model=network.model_name, webhook=url, **SAMPLING)
            assert came.wait(90)
            event = told[0]["data"]
            assert (event["job_id"], event["status"], event["outcome"]) == (
                stream.job_id,
                "verified",
                "agreed",
            )
            trust = read_trust(network.trust_path.read_bytes())
            report = verify_answer(own.answer(event["job_id"]), trust=trust, policy=load_policy("dev"))
            assert report.verdict == "VERIFIED"
    finally:
        server.shutdown()
        server.server_close()
