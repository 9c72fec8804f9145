"""Write a checkpoint as a GGUF file: matrices Q8_0, norms F32, tokenizer included. Same input, same bytes.

python scripts/train_demo/export.py --checkpoint build/train/checkpoint.npz \
    --tokenizer build/train/tokenizer.model --out models/aos-demo.Q8_0.gguf
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import gguf
import numpy as np
import sentencepiece as spm
from gguf.quants import quantize
from model import Shape, matrix_shapes

DESCRIPTION = (
    "Trained from scratch on questions and answers written for the AOS project. "
    "It has memorised a few pages and knows nothing else; for demonstration."
)
CHAT_TEMPLATE = "{{ messages[-1]['content'] + '\\n' }}"
"""It was trained on single questions, each followed by a line break and its answer."""


def export(checkpoint: Path, tokenizer: Path, out: Path, shape: Shape) -> str:
    """Write ``out`` and return its SHA-256."""
    sp = spm.SentencePieceProcessor(model_file=str(tokenizer))
    if sp.vocab_size() != shape.vocab:
        raise ValueError(f"the tokenizer has {sp.vocab_size()} pieces, the model {shape.vocab}")
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name("AOS demo")
    writer.add_description(DESCRIPTION)
    writer.add_license("Apache-2.0")
    writer.add_author("The AOS contributors")
    writer.add_languages(["en"])
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ff)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    def kind(i: int) -> gguf.TokenType:
        if sp.is_unknown(i):
            return gguf.TokenType.UNKNOWN
        if sp.is_control(i):
            return gguf.TokenType.CONTROL
        return gguf.TokenType.BYTE if sp.is_byte(i) else gguf.TokenType.NORMAL

    ids = range(shape.vocab)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([sp.id_to_piece(i).encode() for i in ids])
    writer.add_token_scores([sp.get_score(i) for i in ids])
    writer.add_token_types([kind(i) for i in ids])
    writer.add_bos_token_id(sp.bos_id())
    writer.add_eos_token_id(sp.eos_id())
    writer.add_unk_token_id(sp.unk_id())
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    writer.add_chat_template(CHAT_TEMPLATE)

    with np.load(checkpoint) as saved:
        matrices = matrix_shapes(shape)
        for name in sorted(
            saved.files, key=lambda n: (n != "token_embd.weight", n == "output_norm.weight", n)
        ):
            tensor = saved[name].astype(np.float32)
            if name in matrices:
                packed = quantize(tensor, gguf.GGMLQuantizationType.Q8_0)
                writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            else:
                writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return hashlib.sha256(out.read_bytes()).hexdigest()


def main() -> None:
    """Export and print the digest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    print(export(args.checkpoint, args.tokenizer, args.out, Shape()), args.out)


if __name__ == "__main__":
    main()
