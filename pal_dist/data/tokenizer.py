"""The tokenizer of a model folder: the Rust one, used without importing Transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pal_dist.core.documents import load_mapping
from pal_dist.core.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The Rust tokenizer of a BERT folder, without padding or truncation of its own.

    Raises UserError where the folder has neither tokenizer.json nor vocab.txt, or one that cannot be read.
    """
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    if (folder / "tokenizer.json").is_file():
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the Rust library has no kind of its own
            raise UserError(f"{folder / 'tokenizer.json'}: not readable as a tokenizer: {error}") from None
    elif (folder / "vocab.txt").is_file():
        settings = folder / "tokenizer_config.json"
        lowercase = bool(load_mapping(settings).get("do_lower_case", True)) if settings.is_file() else True
        try:
            tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lowercase)._tokenizer
        except Exception as error:
            raise UserError(f"{folder / 'vocab.txt'}: not readable as a vocabulary: {error}") from None
    else:
        raise UserError(
            f"{folder}: expected tokenizer.json or vocab.txt, found neither; copy the model's tokenizer there"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
