"""Keys as text, and keys that everybody knows (docs/spec/02-signing.md, "Keys").

Keys printed in documentation are no secrets: outside a development network they are refused. Storing keys is
``aos.adapters.keystore``'s; whether a network is for development is the configuration's.
"""

import re

from aos.errors import ConfigError

KEY_BYTES = 32
_KEY = re.compile(r"(?:0x)?([0-9a-fA-F]{64})\Z", re.ASCII)

PUBLISHED_KEYS = frozenset(
    bytes.fromhex(key)
    for key in (
        # the original operator's configuration template
        "77f4b2fbf3f32687f03d84d323bd5cb443f53b0fc338b51c24e319a520c87217",
        # the ten accounts of "test test test test test test test test test test test junk" (Hardhat, Anvil)
        "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
        "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
        "5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
        "7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
        "47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
        "8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba",
        "92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e",
        "4bbbf85ce3377467afe5d46f804f221813b2bb87f24d81f60f1fcdbf7cbf4356",
        "dbda1821b80551c9d65939329250298aa3472ba22feea921c0cf5d620ea67b97",
        "2a871d0798f97d79848a013d4936a73bf4cc922c825d33c1cf7073dff6d409c6",
    )
)


def parse_key(text: str, *, name: str = "key") -> bytes:
    """32 bytes from 64 hex digits, with or without 0x. The message never repeats the text.

    Raises ConfigError ``key.format``.
    """
    match = _KEY.match(text)
    if match is None:
        raise ConfigError(
            "key.format", f"{name} must be 64 hex digits", field=name, hint="make one with: aos keys new"
        )
    return bytes.fromhex(match.group(1))


def is_published(key: bytes) -> bool:
    """Whether the key is printed in public documentation, or so small that anybody finds it."""
    return key in PUBLISHED_KEYS or int.from_bytes(key, "big") < 2**64
