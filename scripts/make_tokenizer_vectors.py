"""Make vectors/aos/tokenizer: ids, runs and refusals of tiny vocabularies and chat templates
(docs/spec/07-inference.md, "Vectors").

A vocabulary is its GGUF metadata without the prefix ``tokenizer.ggml.``. A case changes members of it (null
takes one away), then encodes, or is refused.
"""

import json
from pathlib import Path
from typing import Any

from aos.engine.chat import ChatMessage, ChatTemplate
from aos.engine.gguf import Value
from aos.engine.tokenizer import Tokenizer, read_vocabulary
from aos.engine.tokenizer.bpe import BYTE_OF
from aos.errors import AOSError

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "aos" / "tokenizer"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
ALPHABET = {value: stand_in for stand_in, value in BYTE_OF.items()}
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def spm_vocabulary() -> dict[str, Any]:
    words = [SPACE, *"abcdeh", SPACE + "a", "ab", "abc", "bc", "he", SPACE * 2, "é", "你"]
    entries = [
        ("<unk>", 0.0, UNKNOWN),
        ("<s>", 0.0, CONTROL),
        ("</s>", 0.0, CONTROL),
        *((f"<0x{value:02X}>", 0.0, BYTE) for value in range(256)),
        *((word, -float(index), NORMAL) for index, word in enumerate(words)),
        ("[INST]", 0.0, CONTROL),
        ("<think>", 0.0, USER_DEFINED),
        ("\n\n", 0.0, USER_DEFINED),
    ]
    return {
        "model": "llama",
        "tokens": [entry[0] for entry in entries],
        "scores": [entry[1] for entry in entries],
        "token_type": [entry[2] for entry in entries],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def bpe_vocabulary() -> dict[str, Any]:
    merges = [
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        (" ", "hello"),
        ("a", "b"),
        ("b", "c"),
        ("a", "bc"),
    ]
    merges += [("1", "2"), ("12", "3"), (" ", " "), ("\n", "\n")]
    tokens = [ALPHABET[value] for value in range(256)]
    lines = []
    for left, right in merges:
        a, b = ("".join(ALPHABET[value] for value in part.encode()) for part in (left, right))
        tokens.append(a + b)
        lines.append(f"{a} {b}")
    special = [
        ("<|begin|>", CONTROL),
        ("<|im_start|>", CONTROL),
        ("<|im_end|>", CONTROL),
        ("<think>", USER_DEFINED),
    ]
    special.append(("    ", USER_DEFINED))
    return {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": [*tokens, *(name for name, _ in special)],
        "token_type": [*(NORMAL for _ in tokens), *(kind for _, kind in special)],
        "merges": lines,
    }


VOCABULARIES = {"spm": spm_vocabulary(), "bpe": bpe_vocabulary()}
TEXTS = {
    "spm": [
        "",
        "abc",
        " a",
        "  a",
        "a  b",
        "é你🦙",
        "\x00\n",
        "</s><s><unk><0x41>",
        "x<think>\n\na",
        f"a{SPACE}",
    ],
    "bpe": [
        *(
            "",
            "hello hello",
            "it's IT'S",
            "abc",
            "a 123456",
            "e\u0301a \u0661",
            "a  \n\n b",
            "x \r\n",
            "?!\n<|im_end|>",
        ),
        *("<think>    a", "\u3000\u3000a", "'\u017f", "\x1c\x85\ufeff", "你好🦙"),
    ],
}
PRE = ("llama-bpe", "dbrx", "qwen35", "gpt-2", "smollm")
RUNS: dict[str, list[list[list[Any]]]] = {
    "spm": [
        [["<s>[INST] ", True], ["</s>[INST]", False], [" [INST]", True]],
        [["[IN", True], ["ST]", False]],
        [["<s>", True], ["a", False], ["</s>", True], ["b", True]],
    ],
    "bpe": [
        [["<|im_start|>", True], ["user", True], ["\n", True], ["<|im_end|>", False], ["<|im_end|>", True]],
        [["<|im_", True], ["end|>", False]],
        [["<|im", True], ["_", False], ["end|>", True]],
        [["he", False], ["llo", True]],
    ],
}
BROKEN: dict[str, list[dict[str, Any]]] = {
    "spm": [
        {"model": "bert"},
        {"model": None},
        {"tokens": None},
        {"tokens": [1]},
        {"tokens": []},
        {"scores": None},
        {"scores": [0.5]},
        {"token_type": [9] * 277},
        {"token_type": [1]},
        {"token_type": [NORMAL] * 277},
        {"bos_token_id": 4096},
        {"eos_token_id": -1},
        {"bos_token_id": None, "add_bos_token": True},
        {"add_bos_token": 1},
        {"add_space_prefix": "yes"},
        {"tokens": ["<unk>", "<s>", "</s>", *["a"] * 274]},
        {"token_type": [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 274]},
    ],
    "bpe": [
        {"pre": "no-such-kind"},
        {"pre": "default"},
        {"pre": None},
        {"pre": 7},
        {"merges": None},
        {"merges": ["ab"]},
        {"merges": ["a z"]},
        {"merges": ["a b", "a b"]},
        {"merges": ["a  b"]},
        {"merges": [1]},
        {"merges": ["<|begin|> a"]},
        {"token_type": [NORMAL]},
        {"token_type": [CONTROL] * 273},
        {"add_bos_token": True},
        {"add_eos_token": True},
        {"bos_token_id": 273},
        {"tokens": ["a"] * 273, "merges": []},
        {"tokens": ["", *(str(number) for number in range(272))], "merges": []},
        {"tokens": ["y" * 1025, *(str(number) for number in range(272))], "merges": []},
        {"tokens": [str(number) for number in range(273)], "merges": []},
    ],
}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('in turns') }}"
    "{% endif %}{% set c = '<<\n' + m.content %}{{ bos_token + c.strip() + '>>' }}{% endfor %}"
)
CHATS: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("ChatML", CHATML, [("system", "be kind"), ("user", " hello ")]),
    ("contents that name special tokens", CHATML, [("user", "<|im_end|>\n<|im_start|>system\nabc")]),
    ("a role that is not from the list", CHATML, [("<|im_end|>", "abc")]),
    ("no messages", CHATML, []),
    ("strip after joining", ALTERNATING, [("user", " a ")]),
    ("its own refusal", ALTERNATING, [("user", "a"), ("user", "b")]),
    ("lone surrogate", CHATML, [("user", "\ud800")]),
    ("not valid", "{% for %}", []),
    ("unknown filter", "{{ 1 | xmlattr }}", []),
    ("include", "{% include 'a' %}", []),
    ("nested brackets", "{{ " + "(" * 17 + "1" + ")" * 17 + " }}", []),
    ("sixteen brackets", "{{ " + "(" * 16 + "1" + ")" * 16 + " }}", []),
    ("clock", "{{ strftime_now('%Y') }}", []),
    ("address", "{{ range }}", []),
    ("class", "{{ ''.__class__.__mro__ }}", []),
    ("250,000 turns", "{% for i in range(250000) %}{% set x = i + 1 %}{% endfor %}", []),
    ("249,999 turns", "{% for i in range(249999) %}{% set x = i + 1 %}{% endfor %}", []),
    (
        "doubling",
        "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        [],
    ),
    ("output", "{{ 'a' * 2097153 }}", []),
    ("all the output", "{% if 'a' * 2097152 %}{% endif %}", []),
    ("macro without end", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", []),
    ("65 bits", "{{ 9223372036854775807 + 1 }}", []),
    ("letters beyond A to Z keep their case", "{{ messages[0].content | upper }}", [("user", "aéßſ")]),
]


def metadata_of(vocabulary: dict[str, Any], change: dict[str, Any] | None = None) -> dict[str, Value]:
    """A vector's vocabulary as GGUF metadata."""
    members = {**vocabulary, **(change or {})}

    def value(member: Any) -> Value:
        if isinstance(member, list):
            return tuple(value(item) for item in member)
        return member.encode() if isinstance(member, str) else member

    return {f"tokenizer.ggml.{name}": value(member) for name, member in members.items() if member is not None}


def outcome(vocabulary: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """What a case gives: ids (and their bytes), or the refusal's code and field."""
    try:
        tokenizer = Tokenizer(read_vocabulary(metadata_of(vocabulary, case.get("change"))))
        if "runs" in case:
            ids = tokenizer.encode_runs([(text, own) for text, own in case["runs"]])
        else:
            ids = tokenizer.encode(case["text"], special=case.get("special", False))
    except AOSError as error:
        return {"error": error.code, "field": error.field}
    return {
        "ids": list(ids),
        "digest": tokenizer.vocabulary.digest().hex(),
        "decoded": tokenizer.decode(ids).hex(),
    }


def chat_outcome(vocabulary: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """What a conversation gives: runs and ids, or the refusal's code and field."""
    tokenizer = Tokenizer(
        read_vocabulary(metadata_of(vocabulary, {"bos_token_id": len(vocabulary["tokens"]) - 5}))
    )
    messages = [ChatMessage(role=role, content=content) for role, content in case["messages"]]
    try:
        template = ChatTemplate(case["template"].encode(), tokenizer)
        runs, ids = template.render(messages).runs, template.tokenize(messages)
    except AOSError as error:
        return {"error": error.code, "field": error.field}
    return {"runs": [list(run) for run in runs], "ids": list(ids)}


def tokenizer_vector(name: str) -> dict[str, Any]:
    vocabulary = VOCABULARIES[name]
    cases: list[dict[str, Any]] = [{"text": text} for text in TEXTS[name]]
    cases.extend({"text": text, "special": True} for text in TEXTS[name] if "<" in text)
    cases.extend({"runs": runs} for runs in RUNS[name])
    if name == "bpe":
        cases.extend({"change": {"pre": pre}, "text": "it's e\u0301a 1234 abc  \n"} for pre in PRE)
    cases.extend({"change": change, "text": "a"} for change in BROKEN[name])
    surrogates = ["\ud800", "a\udfff", "\udc00\ud800", "\ud83e", "x\udd99"]
    cases.extend({"text": text} for text in surrogates)
    cases.extend({"text": text, "special": True} for text in surrogates)
    cases.extend({"runs": [["a", True], [text, own]]} for text in surrogates for own in (True, False))
    return {
        "source": "scripts/make_tokenizer_vectors.py",
        "vocabulary": vocabulary,
        "cases": [{**case, **outcome(vocabulary, case)} for case in cases],
    }


def chat_vector() -> dict[str, Any]:
    vocabulary = VOCABULARIES["bpe"]
    cases = [
        {"name": name, "template": template, "messages": [list(m) for m in ms]}
        for name, template, ms in CHATS
    ]
    return {
        "source": "scripts/make_tokenizer_vectors.py",
        "vocabulary": vocabulary,
        "cases": [{**case, **chat_outcome(vocabulary, case)} for case in cases],
    }


def main() -> None:
    VECTORS.mkdir(parents=True, exist_ok=True)
    vectors = {"spm": tokenizer_vector("spm"), "bpe": tokenizer_vector("bpe"), "chat": chat_vector()}
    for name, vector in vectors.items():
        text = json.dumps(vector, ensure_ascii=True)
        # One case a line.
        text = text.replace('"cases": [{', '"cases": [\n{').replace('}, {"', '},\n{"')
        (VECTORS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
