"""llama.cpp behind the engine port, through ``xllamacpp``: any architecture it knows, not canonical.

Implements docs/spec/07-inference.md, "The llama.cpp engine". Results repeat run to run on one machine and
build; they are not the same bits elsewhere, so they can be neither replayed nor disputed. Text, stop
strings and limits are this project's own (aos.engine.text), so that both engines end a run by the same
rules; only logits and sampling are llama.cpp's.

xllamacpp serves requests over a loopback socket of its own. It gets a random key here and is spoken to
directly.
"""

import http.client
import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from aos.core.arithmetic.sampler import philox4x32_10
from aos.core.manifest import Manifest
from aos.core.statements import Prompt
from aos.engine.conversation import Conversations
from aos.engine.gguf import GGUF, read_gguf
from aos.engine.manifest import Progress, manifest_of
from aos.engine.params import check_params
from aos.engine.text import OutputText
from aos.engine.tokenizer import Tokenizer, read_vocabulary
from aos.engine.tokenizer.bpe import BYTE_OF
from aos.engine.tokenizer.vocabulary import NORMAL, USER_DEFINED
from aos.errors import ConfigError, InvalidMessage, RuleViolation, Unavailable
from aos.ports import MILLION, FinishReason, Generation, SamplingParams, TokenEvent

MAX_CONTEXT = 8192
"""Cap on the context where the caller names none: a file's own may need more memory than the machine has."""

REQUEST_TIMEOUT_S = 600.0
_SEED_MASK = 0x7FFFFFFF


class LlamaCppEngine:
    """``aos.ports.Engine`` over one model loaded by llama.cpp, on the CPU."""

    def __init__(
        self,
        path: str | Path,
        *,
        cache_dir: Path | None = None,
        progress: Progress | None = None,
        threads: int = 1,
        n_ctx: int | None = None,
    ) -> None:
        """Raises InvalidMessage (``gguf.*``, ``tokenizer.unsupported``, ``engine.load``) and ConfigError
        (``engine.threads``).
        """
        if not 1 <= threads <= 256:
            raise ConfigError("engine.threads", f"{threads} threads are not in 1..256", field="threads")
        file = read_gguf(path)
        self._tokenizer = _own_tokenizer(file)
        self._conversations = Conversations(self._tokenizer, file.metadata)
        self._pieces = _pieces(file, self._tokenizer)
        self._specials = _special_ids(file)
        self.manifest: Manifest = manifest_of(file, cache_dir=cache_dir, progress=progress)
        self._model_id = self.manifest.model_id
        trained = file.metadata.get(f"{self.manifest.architecture}.context_length")
        known = trained if type(trained) is int and trained > 0 else MAX_CONTEXT
        self._n_ctx = n_ctx or min(known, MAX_CONTEXT)
        self._server = _Server(Path(path), threads=threads, n_ctx=self._n_ctx)

    @property
    def profile(self) -> str:
        return f"llama.cpp/xllamacpp-{self._server.version}"

    @property
    def canonical(self) -> bool:
        return False

    @property
    def model_id(self) -> bytes:
        return self._model_id

    @property
    def n_ctx(self) -> int:
        return self._n_ctx

    def tokenize(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids of a raw prompt or of a conversation. Raises InvalidMessage ``tokenizer.text``, ``chat.*``."""
        if not isinstance(prompt, str):
            return self._conversations.tokenize(prompt)
        if self._tokenizer is not None:
            return self._tokenizer.encode(prompt)
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidMessage("tokenizer.text", "the text is not valid Unicode", field="prompt") from None
        answer = self._server.post(
            "/tokenize", {"content": prompt, "add_special": True, "parse_special": False}
        )
        return tuple(cast(list[int], answer["tokens"]))

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        salt: bytes,
        on_token: Callable[[TokenEvent], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Generation:
        """Run ``prompt`` to its end (see ``aos.ports.Engine``).

        Raises InvalidMessage ``engine.params``, ``engine.empty_prompt``, ``engine.prompt_too_long``,
        ``tokenizer.text``, ``chat.*``, and Unavailable ``engine.failed``.
        """
        if len(salt) != 32:
            raise InvalidMessage("engine.salt", "the salt is not 32 bytes", field="salt")
        check_params(params)
        prompt_tokens = self.tokenize(prompt)
        if not prompt_tokens:
            raise InvalidMessage(
                "engine.empty_prompt", "the prompt is empty and the model has no BOS", field="prompt"
            )
        if len(prompt_tokens) >= self._n_ctx:
            raise InvalidMessage(
                "engine.prompt_too_long",
                f"the prompt's {len(prompt_tokens)} tokens leave no room in the context of {self._n_ctx}",
                field="prompt",
            )
        limit = min(params.max_tokens, self._n_ctx - len(prompt_tokens))
        text = OutputText(params.stop)
        tokens: list[int] = []
        finish: FinishReason = "cancelled"
        while finish == "cancelled" and not (cancelled is not None and cancelled()):
            token, ended = self._next([*prompt_tokens, *tokens], params, len(tokens))
            tokens.append(token)
            if ended:
                finish = "stop"
            else:
                text.push(self._pieces[token])
                if text.stopped:
                    finish = "stop"
                elif len(tokens) == limit:
                    finish = "length"
            if finish != "cancelled":
                text.finish()
            if on_token is not None:
                on_token(TokenEvent(index=len(tokens) - 1, token=token, text=text.release()))
        text.finish()
        return Generation(
            prompt_tokens=prompt_tokens,
            tokens=tuple(tokens),
            text=text.text,
            finish_reason=finish,
            state_root=None,
        )

    def replay(
        self,
        prompt: Prompt,
        tokens: Sequence[int],
        params: SamplingParams,
        *,
        salt: bytes,
        cancelled: bool = False,
    ) -> Generation:
        """Refused: RuleViolation ``engine.not_canonical``."""
        raise RuleViolation(
            "engine.not_canonical",
            "llama.cpp's results are not the same bits everywhere, so a replay would prove nothing",
            hint="replay with the reference engine",
        )

    def _next(self, context: list[int], params: SamplingParams, step: int) -> tuple[int, bool]:
        """One token after ``context``, and whether it ends the generation.

        The first request of a run computes the whole prompt, whatever is in llama.cpp's cache, so that a
        run does not depend on the one before it. Each step has a seed of its own, made from the run's and
        the step.
        """
        answer = self._server.post(
            "/completion",
            {
                "prompt": context,
                "n_predict": 1,
                "return_tokens": True,
                "cache_prompt": step > 0,
                "seed": philox4x32_10(params.seed, (step, 0, 0, 0))[0] & _SEED_MASK,
                "samplers": ["penalties", "temperature", "top_k", "min_p", "top_p"],
                "temperature": params.temperature / MILLION,
                "top_k": params.top_k,
                "top_p": params.top_p / MILLION,
                "min_p": params.min_p / MILLION,
                "repeat_penalty": params.repeat_penalty / MILLION,
                "repeat_last_n": self._n_ctx,
            },
        )
        chosen = answer.get("tokens")
        if not (isinstance(chosen, list) and len(chosen) == 1 and 0 <= chosen[0] < len(self._pieces)):
            raise Unavailable("engine.failed", "llama.cpp answered without a token")
        return chosen[0], answer.get("stop_type") == "eos" or chosen[0] in self._specials


class _Server:
    """One xllamacpp server with one slot, and the connection to it."""

    def __init__(self, path: Path, *, threads: int, n_ctx: int, flash: bool | None = None) -> None:
        """``flash`` forces flash attention on or off; None leaves it to llama.cpp."""
        import xllamacpp

        self.version = str(xllamacpp.__version__)
        self._key = secrets.token_urlsafe(32)
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = n_ctx
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.fit_params = False
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        if flash is not None:
            params.flash_attn_type = int(flash)
        params.warmup = False
        params.verbosity = -1
        params.cache_ram_mib = 0
        params.n_ctx_checkpoints = 0
        params.ctx_shift = False
        params.api_keys = [self._key]
        params.ui = False
        params.endpoint_slots = False
        params.endpoint_props = False
        params.n_threads_http = 1
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise InvalidMessage("engine.load", f"llama.cpp cannot load {path.name}: {error}") from error
        self._address = urlsplit(self._server.listening_address)
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        # Nobody else can reach the socket once the engine is dropped.
        if hasattr(self, "_connection"):
            self.close()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request. Raises Unavailable ``engine.failed``."""
        kept = self._connection is not None
        try:
            status, answer = self._exchange(path, body)
        except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected) as error:
            # The server closes a connection that was idle for some seconds; a request has no effect of its own.
            if not kept:
                raise _silent(error) from error
            try:
                status, answer = self._exchange(path, body)
            except (OSError, http.client.HTTPException, ValueError) as again:
                raise _silent(again) from again
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _silent(error) from error
        if status != http.client.OK or not isinstance(answer, dict):
            raise Unavailable("engine.failed", f"llama.cpp refused a request with status {status}")
        return answer

    def _exchange(self, path: str, body: dict[str, Any]) -> tuple[int, object]:
        """Status and answer of one request, over the connection that is kept, or a new one."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(
                self._address.hostname or "127.0.0.1", self._address.port, timeout=REQUEST_TIMEOUT_S
            )
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        try:
            self._connection.request("POST", path, json.dumps(body), headers)
            response = self._connection.getresponse()
            return response.status, json.loads(response.read())
        except BaseException:
            self.close()
            raise


def _silent(error: Exception) -> Unavailable:
    return Unavailable("engine.failed", f"llama.cpp does not answer: {error}")


def _own_tokenizer(file: GGUF) -> Tokenizer | None:
    """None for byte-pair vocabularies whose way to split text is not known here."""
    try:
        vocabulary = read_vocabulary(file.metadata)
    except InvalidMessage as error:
        if error.code != "tokenizer.pre":
            raise
        return None
    return Tokenizer(vocabulary)


def _special_ids(file: GGUF) -> frozenset[int]:
    found = (file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return frozenset(token for token in found if type(token) is int)


def _pieces(file: GGUF, tokenizer: Tokenizer | None) -> tuple[bytes, ...]:
    """The bytes of every token: the tokenizer's, or those of a byte-pair vocabulary that it does not cover."""
    if tokenizer is not None:
        return tuple(tokenizer.piece(token) for token in range(len(tokenizer.vocabulary.pieces)))
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    kinds = file.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, tuple) or not isinstance(kinds, tuple) or len(tokens) != len(kinds):
        raise InvalidMessage(
            "tokenizer.length",
            "tokenizer.ggml.tokens and token_type are not lists of one length",
            field="tokenizer.ggml.tokens",
        )
    return tuple(_piece(token, kind) for token, kind in zip(tokens, kinds, strict=True))


def _piece(token: object, kind: object) -> bytes:
    if not isinstance(token, bytes) or kind not in (NORMAL, USER_DEFINED):
        return b""
    text = token.decode("utf-8", "replace")
    if kind == USER_DEFINED or any(c not in BYTE_OF for c in text):
        return token
    return bytes(BYTE_OF[c] for c in text)
