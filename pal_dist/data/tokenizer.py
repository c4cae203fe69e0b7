"""The tokenizer of a model folder: the Rust one, used without importing Transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pal_dist.core.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The Rust tokenizer of a BERT folder, without padding or truncation of its own.

    Raises UserError where the folder has neither tokenizer.json nor vocab.txt.
    """
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif (folder / "vocab.txt").is_file():
        settings = folder / "tokenizer_config.json"
        lowercase = json.loads(settings.read_text()).get("do_lower_case", True) if settings.is_file() else True
        tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lowercase)._tokenizer
    else:
        raise UserError(
            f"{folder}: expected tokenizer.json or vocab.txt, found neither; copy the model's tokenizer there"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
