"""An untrained Hugging Face encoder, small, in a folder as ``save_pretrained`` writes it, and texts for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
POSITIONS = 80
FILLERS = ["the", "novel", "book", "packaging", "delivery", "of", "it", "my", "i", "is", "was", "and", ".", "!"]
TELLING = {
    "negative": ["dreadful", "awful", "hate", "broken"],
    "neutral": ["okay", "average", "usual", "plain"],
    "positive": ["lovely", "excellent", "love", "perfect"],
}


def write(folder: Path, config: str = "BertConfig", head: bool = False, **options: Any) -> Path:
    """Returns the folder. head: save a classifier of its task as well, as those who fine-tune do."""
    tokenizer = wordpieces()
    names = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": POSITIONS,
        "vocab_size": tokenizer.get_vocab_size(),
        "pad_token_id": 0,
    }
    described = getattr(transformers, config)(**names | options)
    kind = transformers.AutoModelForSequenceClassification if head else transformers.AutoModel
    torch.manual_seed(5)
    transformers.utils.logging.disable_progress_bar()
    kind.from_config(described).save_pretrained(folder)
    transformers.utils.logging.enable_progress_bar()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def wordpieces() -> Tokenizer:
    """As BERT's, learned from some texts: their words are whole."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        [text for text, _ in labelled(200)],
        trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def labelled(count: int) -> list[tuple[str, str]]:
    """Texts of which two words tell the label, and their labels."""
    random = np.random.default_rng(3)
    found = []
    for index in range(count):
        label = list(TELLING)[index % len(TELLING)]
        words = [*random.choice(FILLERS, random.integers(3, 10)), *random.choice(TELLING[label], 2)]
        found.append((" ".join(random.permutation(words)), label))
    return found
