"""Embeddings from any Hugging Face encoder or decoder, local or from the hub, on a GPU if there is one.

It pools the last hidden states. If a model needs an instruction in front of each text, the caller adds it.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from store.errors import InputError

Pooling = Literal["mean", "last", "cls"]


class HfEmbedder:
    """Unit vectors from the last hidden states of a model.

    model: a folder or a name on the hub. pooling: "mean" over all tokens, which most encoders are trained for; "last",
    the last token, for decoders; or "cls", the first token. batch_size: texts per batch. max_tokens: longer texts are
    truncated.

    Raises InputError on an unknown pooling, or if transformers cannot load the model.
    """

    def __init__(self, model: str, pooling: str = "mean", *, batch_size: int = 64, max_tokens: int = 512) -> None:
        if pooling not in get_args(Pooling):
            raise InputError(f"`pooling` is {pooling!r}; it must be mean, last or cls")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="right")
            loaded = AutoModel.from_pretrained(model, dtype="auto")
        except (OSError, ValueError) as error:
            raise InputError(f"transformers cannot load {model!r}: {error}") from error
        if self._tokenizer.pad_token is None:
            # Any token will do, because padding is masked.
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = loaded.eval().to(self._device)
        self._pooling = pooling
        self._batch_size = batch_size
        self._max_tokens = min(max_tokens, getattr(loaded.config, "max_position_embeddings", max_tokens))
        self.name = f"hf-{re.sub(r'[^A-Za-z0-9.]+', '-', model).strip('-')}-{pooling}"

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors (N, D), float32, one per text."""
        vectors_N_D = np.zeros((len(texts), self._model.config.hidden_size), np.float32)
        # Batches of texts with similar lengths need little padding.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            tokens = self._tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            ).to(self._device)
            states_B_T_D = self._model(**tokens).last_hidden_state.float()
            pooled_B_D = _pool(states_B_T_D, tokens["attention_mask"], self._pooling)
            vectors_N_D[rows] = torch.nn.functional.normalize(pooled_B_D, dim=1).cpu().numpy()
        return vectors_N_D


def _pool(states_B_T_D: Tensor, mask_B_T: Tensor, pooling: str) -> Tensor:
    """Return one vector (B, D) per text, from states that are padded on the right."""
    if pooling == "mean":
        weights_B_T = mask_B_T / mask_B_T.sum(dim=1, keepdim=True).clamp_min(1)
        return (states_B_T_D * weights_B_T[..., None]).sum(dim=1)
    # With padding on the right, the last real token is at the number of tokens minus one.
    last_B = (mask_B_T.sum(dim=1) - 1).clamp_min(0) if pooling == "last" else torch.zeros_like(mask_B_T[:, 0])
    return states_B_T_D[torch.arange(len(last_B), device=last_B.device), last_B]
