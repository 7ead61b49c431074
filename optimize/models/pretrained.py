"""A Hugging Face text encoder (BERT, DistilBERT, RoBERTa, ELECTRA, ...) from a local folder; nothing is downloaded.

    encoder = PretrainedEncoder(Path("bert-base-uncased"), share=0.5)    # the lower half of its layers
    features = encoder(tokens, meant)                                    # (batch, time, encoder.width)

The folder is what ``save_pretrained`` writes: config.json and the weights. Attention is written out in plain products
(``eager``), so that the export can trace it and fuse/ and quantize/ recognise it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optimize.errors import UserError

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


class PretrainedEncoder(nn.Module):
    """An encoder with its pretrained weights in float32.

    share: of its layers, at least one, from the lowest: a good start for a student (Sajjad et al., 2020,
    https://arxiv.org/abs/2004.03844). longest: how many subwords it must be able to read. What lies above the last
    layer, such as BERT's pooler or the head of a task, is left out.

    It has width, of a feature, and vocabulary: the numbers below it are subwords.

    Raises UserError: transformers is not installed, the folder lacks something, it holds no text encoder or one with
    fewer positions than asked for.
    """

    def __init__(self, folder: Path, share: float = 1.0, longest: int = 8) -> None:
        super().__init__()
        transformers = _transformers()
        _require_files(folder)
        with _quiet(transformers):
            try:
                config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                if share != 1:
                    config.num_hidden_layers = max(1, round(share * config.num_hidden_layers))
                self.encoder, loading = transformers.AutoModel.from_pretrained(
                    folder,
                    config=config,
                    local_files_only=True,
                    trust_remote_code=False,
                    attn_implementation="eager",
                    dtype=torch.float32,
                    output_loading_info=True,
                )
            except Exception as error:  # of json, safetensors, torch or its own
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise UserError(
                    f"encoder '{folder}' cannot be loaded by transformers {transformers.__version__}: {reason}; "
                    "expected what save_pretrained writes of a text encoder, such as BERT's"
                ) from None
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None
        if missing := sorted(set(loading["missing_keys"]) & self.encoder.state_dict().keys()):
            raise UserError(
                f"encoder '{folder}': its weights lack {len(missing)} tensors that config.json asks for, such as "
                f"{', '.join(missing[:3])}; save the whole model again with save_pretrained"
            )
        self.width, self.vocabulary = int(config.hidden_size), int(getattr(config, "vocab_size", None) or 0)
        self.padding = int(getattr(config, "pad_token_id", None) or 0)
        self._try(folder, longest)

    def forward(self, tokens: Tensor, meant: Tensor) -> Tensor:
        """tokens (batch, time) int64 and meant (batch, time) bool, which of them count, to (batch, time, width).

        At least one of each row must count, and those that do come first. Where none is meant, and for numbers that are
        no subword's, the padding stands in: neither harms anything else in the batch.
        """
        known = meant & (tokens >= 0) & (tokens < self.vocabulary)
        tokens = torch.where(known, tokens, self.padding)
        features: Tensor = self.encoder(input_ids=tokens, attention_mask=meant.long()).last_hidden_state
        return features

    @torch.inference_mode()
    def _try(self, folder: Path, longest: int) -> None:
        """Raise UserError unless it gives each subword a feature, the first knows of the last, and so many have one."""
        nature = f"'{folder}' holds no text encoder, such as BERT, DistilBERT or RoBERTa"
        if not self.vocabulary:
            raise UserError(f"{nature}: its config.json has no vocab_size")
        self.eval()
        tokens = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]]) % self.vocabulary
        try:
            features = self(tokens, torch.ones_like(tokens, dtype=torch.bool))
        except (TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise UserError(f"{nature}: it does not read subwords alone ({error})") from None
        if torch.equal(features[0, 0], features[1, 0]):
            raise UserError(f"{nature}: its first feature does not know of the last subword, as in a decoder")
        try:
            self(torch.zeros(1, longest, dtype=torch.int64), torch.ones(1, longest, dtype=torch.bool))
        except (RuntimeError, IndexError):
            raise UserError(f"encoder '{folder}' has fewer than {longest} positions; take shorter texts") from None
        self.train()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("a Hugging Face encoder needs transformers; pip install -e '.[huggingface]'") from None
    return transformers


def _require_files(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(
            f"encoder '{folder}' is no folder; give one with what save_pretrained writes (nothing is downloaded)"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"encoder '{folder}' has no config.json; expected what save_pretrained writes")
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        raise UserError(f"encoder '{folder}' has no weights; expected {' or '.join(WEIGHTS)} beside config.json")


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the list of weights that were not used and the bar; what is missing is an error of ours."""
    logging = transformers.utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
