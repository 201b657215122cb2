"""SentencePiece models whose ids are those of a vocabulary beside them, as Marian's checkpoints have it."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from transformer_jax.conversion.tensors import read_json
from transformer_jax.data.tokenizers import BOS, TokenizerConfig, TokenizerPair, pair_of_models
from transformer_jax.errors import UserError

schema: Any = sentencepiece_model_pb2  # its classes are made when it is imported
SPECIAL = ("<pad>", "</s>", "<unk>", "<s>")
SPACE = "▁"
LANGUAGE = re.compile(r">>.+<<$")
"""A token that names the language to translate into, at the beginning of a source."""
KINDS = {schema.TrainerSpec.UNIGRAM: "unigram", schema.TrainerSpec.BPE: "bpe"}


def renumbered(model: bytes, names: Sequence[str], is_target: bool) -> bytes:
    """The model with piece i called names[i], cutting text as before.

    Of pieces that only the vocabulary has, single characters are found in a text, for no other piece has them; longer
    ones never are, though the target's can be decoded. Pieces that only the model has come after the vocabulary: their
    ids are unknown tokens.
    """
    proto = schema.ModelProto.FromString(model)
    kind = schema.ModelProto.SentencePiece
    own = {piece.piece: piece for piece in proto.pieces if piece.type not in (kind.CONTROL, kind.UNKNOWN)}
    rarest = min((piece.score for piece in own.values()), default=0.0) - 10.0
    types = (kind.CONTROL, kind.CONTROL, kind.UNKNOWN, kind.CONTROL)
    made = [kind(piece=name, score=0.0, type=t) for name, t in zip(SPECIAL, types, strict=True)]
    for name in names[BOS + 1 :]:
        if name in own:
            made.append(own.pop(name))
        elif LANGUAGE.match(name.removeprefix(SPACE)):
            made.append(kind(piece=name, score=0.0, type=kind.USER_DEFINED))
        elif len(name) == 1:
            made.append(kind(piece=name, score=rarest, type=kind.NORMAL))
        else:
            made.append(kind(piece=name, score=0.0, type=kind.UNUSED if is_target else kind.CONTROL))
    del proto.pieces[:]
    proto.pieces.extend([*made, *(piece for name, piece in own.items() if name not in SPECIAL)])
    trainer = proto.trainer_spec
    trainer.pad_id, trainer.eos_id, trainer.unk_id, trainer.bos_id = range(4)
    trainer.pad_piece, trainer.eos_piece, trainer.unk_piece, trainer.bos_piece = SPECIAL
    trainer.vocab_size = len(proto.pieces)
    return proto.SerializeToString()


def read_pieces(folder: Path, names: Sequence[str]) -> TokenizerPair:
    """source.spm and target.spm of a folder, with the ids that ``names`` gives the pieces of both.

    Raises: UserError for files that are missing or no SentencePiece models.
    """
    models, kinds = [], set()
    for side in ("source", "target"):
        file = folder / f"{side}.spm"
        try:
            content = file.read_bytes()
            kinds.add(schema.ModelProto.FromString(content).trainer_spec.model_type)
            models.append(renumbered(content, names, is_target=side == "target"))
        except FileNotFoundError as error:
            raise UserError(f"{file} is missing: download it too.") from error
        except ValueError as error:  # what protobuf's DecodeError is
            raise UserError(f"{file} is no SentencePiece model ({error}): download it again.") from error
    if len(kinds) > 1 or not kinds <= KINDS.keys():
        raise UserError(f"{folder}: its SentencePiece models must both be unigram models, or both BPE.")
    config = TokenizerConfig(
        kind=KINDS[kinds.pop()], vocab_size=len(names), joint=True, character_coverage=1.0, sampling=0.0
    )
    return pair_of_models(config, models[:1] if models[0] == models[1] else models)


def piece_files(tokenizers: TokenizerPair, special: Mapping[str, str], numbers: Sequence[int]) -> dict[str, bytes]:
    """The files of a ``MarianTokenizer``.

    Args:
      special: names of special tokens there, as in tokenizer_config.json.
      numbers: ids here, in the order of the ids there; of one vocabulary for both sides, or of as many.
    Raises: UserError for tokenizers without SentencePiece models.
    """
    if tokenizers.config.kind == "byte":
        raise UserError("tokenizer.kind is 'byte'; Marian's tokenizer can only express 'bpe' or 'unigram'.")
    files = {"source.spm": tokenizers.source.serialize(), "target.spm": tokenizers.target.serialize()}
    files["vocab.json"] = _vocabulary(tokenizers.source.pieces(numbers), special)
    if not tokenizers.config.joint:
        names = tokenizers.target.pieces(range(tokenizers.target.vocab_size))
        files["target_vocab.json"] = _vocabulary(names, special)
    settings: dict[str, Any] = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": not tokenizers.config.joint}
    files["tokenizer_config.json"] = json.dumps(settings | dict(special), indent=2).encode()
    return files


def _vocabulary(pieces: Sequence[str], special: Mapping[str, str]) -> bytes:
    names = [_theirs(piece) for piece in pieces]
    if special["pad_token"] not in names:  # what decoding starts from is padding, too
        names[-1] = special["pad_token"]
    return json.dumps({name: i for i, name in enumerate(names)}, ensure_ascii=False, indent=0).encode()


def _theirs(piece: str) -> str:
    bare = piece.removeprefix(SPACE)
    return bare if LANGUAGE.match(bare) else piece


def read_names(folder: Path) -> dict[str, int]:
    """vocab.json: the id there of each piece."""
    found = read_json(folder / "vocab.json")
    if sorted(found.values()) != list(range(len(found))) or SPECIAL[2] not in found:
        raise UserError(f"{folder}/vocab.json must number its pieces from 0 on, <unk> among them: download it again.")
    return found
