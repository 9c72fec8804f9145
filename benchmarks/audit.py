"""What a layer audit costs: bytes and time of both sides beside the generation that it audits (docs/spec/14-audit.md, "Cost").

``python benchmarks/audit.py --model FILE --prompt 128 --output 64 --layers 1`` for a model file of real size; its weights may be
random (``benchmarks/random_models.py``).
"""

import argparse
import gc
import time
from dataclasses import asdict
from pathlib import Path

from aos.core.dispute.audit import AuditBundle, AuditRequest
from aos.core.statements import Params, ReceiptCore
from aos.engine.audit import Auditor, Disclosed, make_bundle
from aos.engine.gguf import read_gguf
from aos.engine.manifest import tensor_leaves
from aos.engine.native import NativeEngine
from aos.engine.trace import known_run
from aos.ports import SamplingParams

SALT = bytes(range(32))
BEACON = bytes(range(32, 64))


class Clock:
    """Prints what each step takes, and its share of the first one."""

    def __init__(self) -> None:
        self.first = 0.0
        self.at = time.perf_counter()

    def __call__(self, what: str) -> None:
        seconds = time.perf_counter() - self.at
        self.first = self.first or seconds
        print(f"{what:<44} {seconds:8.2f} s {seconds / self.first:8.1%}", flush=True)
        self.at = time.perf_counter()


def measure(path: Path, prompt_tokens: int, output: int, layers: int, threads: int) -> None:
    """One run, its bundle and its audit."""
    engine = NativeEngine(path, threads=threads)
    leaves, _ = tensor_leaves(read_gguf(path), threads=threads)
    prompt = _prompt(engine, prompt_tokens)
    params = SamplingParams(temperature=800_000, top_p=950_000, max_tokens=output, seed=7)
    clock = Clock()
    run = engine.run(prompt, params, salt=SALT)
    engine._drive(run, None, None)
    clock(f"generate {len(run.prompt)} + {len(run.tokens)} positions (is 100 %)")
    known, text = known_run(run, engine.manifest), run.result().text
    request = AuditRequest(state_root=known.tree.root, beacon=BEACON, layers=layers)
    clock.at = time.perf_counter()
    engine.replayed(prompt, run.tokens, params, salt=SALT)
    clock("replay in one prefill")
    data = make_bundle(known, engine, leaves, request)
    clock("operator: make the bundle (with its prefill)")
    header = known.tree.header
    print(f"{'bundle':<44} {len(data):,} bytes, {len(data) / header.n_positions:,.0f} a position")
    manifest = engine.manifest
    del engine, run
    gc.collect()
    clock.at = time.perf_counter()
    bundle = AuditBundle.read(data, request, manifest.model_id)
    clock("auditor: openings")
    disclosed = Disclosed(
        core=_core(known.tree.root, header),
        nonce=SALT,
        params=Params(**{**asdict(params), "seed": str(params.seed)}),
        prompt=prompt,
        tokens=tuple(known.tokens[header.n_prompt :]),
        text=text,
    )
    auditor = Auditor(bundle, disclosed, path, threads=threads)
    auditor.run_is_the_receipts()
    clock("auditor: tokenizer, header, tokens, end, text")
    found = [auditor.embedding()]
    clock("auditor: embedding")
    for layer in auditor.plan.layers:
        found.append(auditor.layer(layer))
        clock(f"auditor: layer {layer}")
    found.append(auditor.tail())
    clock("auditor: tail")
    if any(difference is not None for difference in found):
        raise SystemExit(f"an honest run was refused: {found}")


def _prompt(engine: NativeEngine, tokens: int) -> str:
    """A text of about so many tokens."""
    text = ""
    while len(engine.tokenize(text)) < tokens:
        text += "What is the meaning of the thing? "
    return text


def _core(state_root: bytes, header: object) -> ReceiptCore:
    """A receipt of the run: what an audit reads of it."""
    core = object.__new__(ReceiptCore)
    members = ("model_id", "prompt_tokens_hash", "n_prompt", "n_out", "finish_reason", "tokens_hash")
    values = {name: getattr(header, name) for name in (*members, "response_hash", "sampling_seed")}
    for name, value in (values | {"state_root": state_root}).items():
        object.__setattr__(core, name, value)
    return core


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    measure(options.model, options.prompt, options.output, options.layers, options.threads)


if __name__ == "__main__":
    main()
