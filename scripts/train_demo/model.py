"""The demo model in JAX: a llama with a tied embedding and no bias.

RMSNorm, RoPE on pairs (2i, 2i+1), grouped queries, SwiGLU; weights are named as in the GGUF file.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the network; every matrix row is a multiple of 32 long, as Q8_0 needs."""

    vocab: int = 2048
    width: int = 192
    ff: int = 512
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    head_size: int = 32
    context: int = 2048
    rms_eps: float = 1e-5
    rope_base: float = 10000.0


Params = dict[str, jax.Array]


def matrix_shapes(shape: Shape) -> dict[str, tuple[int, int]]:
    """Name, as in the GGUF file, and (rows, columns) of every matrix; y = W x."""
    q, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    shapes = {"token_embd.weight": (shape.vocab, shape.width)}
    for i in range(shape.layers):
        shapes |= {
            f"blk.{i}.attn_q.weight": (q, shape.width),
            f"blk.{i}.attn_k.weight": (kv, shape.width),
            f"blk.{i}.attn_v.weight": (kv, shape.width),
            f"blk.{i}.attn_output.weight": (shape.width, q),
            f"blk.{i}.ffn_gate.weight": (shape.ff, shape.width),
            f"blk.{i}.ffn_up.weight": (shape.ff, shape.width),
            f"blk.{i}.ffn_down.weight": (shape.width, shape.ff),
        }
    return shapes


def init(shape: Shape, seed: int) -> Params:
    """Draw the first weights: normal, scaled by a row's inputs, smaller into the residual; norms are one."""
    params: Params = {}
    key = jax.random.key(seed)
    for name, (rows, columns) in matrix_shapes(shape).items():
        key, sub = jax.random.split(key)
        scale = 0.02 if name == "token_embd.weight" else columns**-0.5
        if "attn_output" in name or "ffn_down" in name:
            scale /= (2 * shape.layers) ** 0.5
        params[name] = jax.random.normal(sub, (rows, columns), jnp.float32) * scale
    norms = [f"blk.{i}.{n}_norm.weight" for i in range(shape.layers) for n in ("attn", "ffn")]
    for name in [*norms, "output_norm.weight"]:
        params[name] = jnp.ones(shape.width, jnp.float32)
    return params


def _norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def _rope(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    size = x.shape[-1]
    angle = positions[..., None] * base ** (-jnp.arange(0, size, 2) / size)
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


def logits(
    params: Params, shape: Shape, tokens: jax.Array, segments: jax.Array, positions: jax.Array
) -> jax.Array:
    """Return logits [batch, time, vocab]; a token attends to earlier tokens of its own segment only."""
    b, t = tokens.shape
    group = shape.heads // shape.kv_heads
    x = params["token_embd.weight"][tokens]
    mask = jnp.tril(jnp.ones((t, t), bool)) & (segments[:, :, None] == segments[:, None, :])
    for i in range(shape.layers):
        p = f"blk.{i}."
        h = _norm(x, params[p + "attn_norm.weight"], shape.rms_eps)
        q = (h @ params[p + "attn_q.weight"].T).reshape(b, t, shape.heads, shape.head_size)
        k = (h @ params[p + "attn_k.weight"].T).reshape(b, t, shape.kv_heads, shape.head_size)
        v = (h @ params[p + "attn_v.weight"].T).reshape(b, t, shape.kv_heads, shape.head_size)
        q, k = _rope(q, positions, shape.rope_base), _rope(k, positions, shape.rope_base)
        q = q.reshape(b, t, shape.kv_heads, group, shape.head_size)
        scores = jnp.einsum("bqkgd,bskd->bkgqs", q, k) * shape.head_size**-0.5
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e9), axis=-1)
        o = jnp.einsum("bkgqs,bskd->bqkgd", weights, v).reshape(b, t, shape.heads * shape.head_size)
        x = x + o @ params[p + "attn_output.weight"].T
        h = _norm(x, params[p + "ffn_norm.weight"], shape.rms_eps)
        h = jax.nn.silu(h @ params[p + "ffn_gate.weight"].T) * (h @ params[p + "ffn_up.weight"].T)
        x = x + h @ params[p + "ffn_down.weight"].T
    return _norm(x, params["output_norm.weight"], shape.rms_eps) @ params["token_embd.weight"].T


def loss(params: Params, shape: Shape, batch: dict[str, jax.Array]) -> jax.Array:
    """Mean cross-entropy in nats over the answers, newline first and </s> last; questions carry none."""
    out = logits(params, shape, batch["tokens"], batch["segments"], batch["positions"])
    picked = jnp.take_along_axis(jax.nn.log_softmax(out), batch["targets"][..., None], axis=-1)[..., 0]
    return -jnp.sum(picked * batch["weights"]) / jnp.maximum(jnp.sum(batch["weights"]), 1.0)
