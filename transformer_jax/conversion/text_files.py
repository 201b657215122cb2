"""Tokenizers of language models as files that Transformers reads, and GPT-2's from such files."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from transformer_jax.conversion.tensors import read_json
from transformer_jax.data.byte_level import FIRST, SPECIAL, ByteLevelTokenizer
from transformer_jax.data.text_tokenizers import TextTokenizer, save_text_tokenizer
from transformer_jax.data.tokenizers import EOS, UNK
from transformer_jax.errors import UserError

END = "<|endoftext|>"
SPACE = "▁"


def text_tokenizer_files(tokenizer: TextTokenizer, end_begins: bool, max_length: int) -> dict[str, bytes]:
    """Files by name. Where documents begin with their end the ids are GPT-2's own, else they are those here.

    Raises: UserError for a tokenizer whose ids cannot be GPT-2's.
    """
    if end_begins:
        if not isinstance(tokenizer, ByteLevelTokenizer):
            raise UserError(
                f"tokenizer.kind is {tokenizer.kind!r}; with model.end_begins=True GPT-2 can only express 'byte_bpe'."
            )
        size = tokenizer.vocab_size - FIRST
        vocab = {piece: number - FIRST for piece, number in tokenizer.vocab.items()} | {END: size}
        merges = "".join(f"{a} {b}\n" for a, b in tokenizer.merges)
        settings: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": max_length}
        settings |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)
        return {
            "vocab.json": json.dumps(vocab, ensure_ascii=False).encode(),
            "merges.txt": f"#version: 0.2\n{merges}".encode(),
            "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
        }
    engine = BUILDERS[tokenizer.kind](tokenizer)
    engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    names = dict(zip(("pad_token", "eos_token", "unk_token", "bos_token"), SPECIAL, strict=True))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length, **names}
    settings["clean_up_tokenization_spaces"] = False
    return {
        "tokenizer.json": engine.to_str(pretty=True).encode(),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
    }


def _with_special(pieces: Mapping[str, int]) -> dict[str, int]:
    return {name: i for i, name in enumerate(SPECIAL)} | dict(pieces)


def _characters(tokenizer: Any) -> tokenizers.Tokenizer:
    characters = tokenizer.serialize().decode("utf-8", "surrogatepass")
    vocab = _with_special({character: i for i, character in enumerate(characters, FIRST)})
    engine = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=SPECIAL[UNK]))
    engine.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    engine.decoder = decoders.Fuse()
    return engine


def _bytes(tokenizer: Any) -> tokenizers.Tokenizer:
    # GPT-2 writes a byte that cannot be printed as the next unused character from 256 on.
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    names = {byte: chr(byte) for byte in printed} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    engine = tokenizers.Tokenizer(models.BPE(_with_special({name: FIRST + b for b, name in names.items()}), []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    return engine


def _byte_bpe(tokenizer: Any) -> tokenizers.Tokenizer:
    engine = tokenizers.Tokenizer(models.BPE(_with_special(tokenizer.vocab), tokenizer.merges))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    return engine


def _pieces(tokenizer: Any) -> tokenizers.Tokenizer:
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.serialize())
    names = [processor.id_to_piece(i) for i in range(tokenizer.vocab_size)]
    if tokenizer.kind == "unigram":
        scored = [(name, processor.get_score(i)) for i, name in enumerate(names)]
        engine = tokenizers.Tokenizer(models.Unigram(scored, UNK, byte_fallback=True))
    else:
        vocab = {name: i for i, name in enumerate(names)}
        usual = [name for i, name in enumerate(names) if i >= FIRST and not processor.is_byte(i)]
        splits = [(p[:cut], p[cut:]) for p in sorted(usual, key=vocab.__getitem__) for cut in range(1, len(p))]
        merges = [(a, b) for a, b in splits if a in vocab and b in vocab]
        engine = tokenizers.Tokenizer(
            models.BPE(vocab, merges, unk_token=SPECIAL[UNK], byte_fallback=True, fuse_unk=True)
        )
    engine.normalizer = normalizers.Replace(" ", SPACE)
    engine.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    # Line ends stand alone, as they do in training.
    engine.add_tokens([AddedToken("\n", normalized=False)])
    return engine


BUILDERS: dict[str, Callable[[Any], tokenizers.Tokenizer]] = {
    "character": _characters,
    "byte": _bytes,
    "byte_bpe": _byte_bpe,
    "bpe": _pieces,
    "unigram": _pieces,
}


def vocabulary(tokenizer: TextTokenizer) -> list[str]:
    """The name of every id in the files of `text_tokenizer_files`."""
    named = {number: piece for piece, number in BUILDERS[tokenizer.kind](tokenizer).get_vocab().items()}
    return [named.get(i, f"<unused {i}>") for i in range(tokenizer.vocab_size)]


class ReadTokenizer(NamedTuple):
    """GPT-2's tokenizer. ``end``: the id there of the token that ends documents."""

    tokenizer: ByteLevelTokenizer
    end: int

    def save(self, directory: Path) -> None:
        save_text_tokenizer(self.tokenizer, directory)


def read_byte_level(folder: Path, there: Mapping[str, Any]) -> ReadTokenizer:
    """The byte-level BPE of a GPT-2 folder: from vocab.json and merges.txt, or from tokenizer.json.

    Raises: UserError for missing files, another kind of tokenizer, or one that does not fit config.json.
    """
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocab = read_json(folder / "vocab.json")
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    elif (folder / "tokenizer.json").is_file():
        whole = read_json(folder / "tokenizer.json")
        model, before = whole.get("model", {}), json.dumps(whole.get("pre_tokenizer"))
        if model.get("type") != "BPE" or "ByteLevel" not in before:
            raise UserError(f"{folder}/tokenizer.json is not byte-level BPE, which is what is read for GPT-2.")
        added = {token["content"]: token["id"] for token in whole.get("added_tokens", [])}
        vocab = model["vocab"] | added
        merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    else:
        raise UserError(f"{folder} has neither vocab.json and merges.txt nor tokenizer.json: download them too.")
    size, end = there["vocab_size"], vocab.pop(END, there.get("eos_token_id"))
    if end is None or not 0 <= end < size or max(vocab.values()) >= size or len(set(vocab.values())) != len(vocab):
        raise UserError(f"{folder}: its tokenizer does not fit the vocab_size of its config.json, {size}.")
    ours = {piece: number + FIRST - (number > end) for piece, number in vocab.items() if number != end}
    if any(len(pair) != 2 or pair[0] + pair[1] not in ours for pair in merges):
        raise UserError(f"{folder}/merges.txt does not fit its vocab.json: download both again.")
    made = ByteLevelTokenizer.make(ours, [(pair[0], pair[1]) for pair in merges], size - 1 + FIRST)
    assert EOS == 1
    return ReadTokenizer(made, end)
