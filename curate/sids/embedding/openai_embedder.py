"""Embeddings from any OpenAI-compatible endpoint: a vendor's, or `vllm serve --task embed` reached by its URL.

Unlike a teacher's requests, these are few and large, so the client library's own retries serve.
"""

import os
import re
from collections.abc import Sequence

import numpy as np
import openai
from numpy.typing import NDArray

from store.errors import TeacherError

BATCH_TEXTS = 256
MAX_CHARACTERS = 16_000
MESSAGE_LENGTH = 300


class OpenAIEmbedder:
    """Asks an embeddings endpoint for batches of texts, of each the first MAX_CHARACTERS.

    The key is read from OPENAI_API_KEY and nowhere else. Raises TeacherError where no key is set though one is needed.
    """

    def __init__(self, model: str, base_url: str | None = None, *, max_retries: int = 6) -> None:
        self.model = model
        self.name = f"openai-{re.sub(r'[^A-Za-z0-9.]+', '-', model)}"
        self._url = base_url or os.environ.get("OPENAI_BASE_URL")
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not key and self._url is None:
            raise TeacherError(
                "there is no key for OpenAI's embeddings: set the variable OPENAI_API_KEY, or give the `base_url` of a "
                "server that needs none, such as http://127.0.0.1:8000/v1"
            )
        self._client = openai.OpenAI(api_key=key or "none", base_url=self._url, max_retries=max_retries)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (N, D), in the order of the texts. Raises TeacherError where the endpoint refuses or is silent."""
        batches = [
            self._ask([text[:MAX_CHARACTERS] for text in texts[start : start + BATCH_TEXTS]])
            for start in range(0, len(texts), BATCH_TEXTS)
        ]
        return np.concatenate(batches)

    def _ask(self, texts: list[str]) -> NDArray[np.float32]:
        try:
            # Floats rather than base64, which not every compatible server knows.
            answer = self._client.embeddings.create(model=self.model, input=texts, encoding_format="float")
        except openai.OpenAIError as error:
            where = self._url or "OpenAI"
            raise TeacherError(
                f"{where} gave no embeddings by {self.model!r}: {str(error)[:MESSAGE_LENGTH]}"
            ) from error
        if len(answer.data) != len(texts):
            raise TeacherError(f"{self._url} gave {len(answer.data)} embeddings for {len(texts)} texts")
        rows = sorted(answer.data, key=lambda row: row.index)
        return np.array([row.embedding for row in rows], np.float32)
