"""Embeddings from any OpenAI-compatible endpoint: a vendor's API, or the URL of a `vllm serve --task embed`.

There are fewer and larger requests than a teacher sends, so they are sent one after the other.
"""

import asyncio
import json
import random
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from curate.endpoints.client import EndpointClient, TransportError
from curate.endpoints.failures import read_failure
from curate.endpoints.settings import EndpointSettings
from store.errors import TeacherError

# The statuses by which servers refuse a request that is too large: bad request, too large, or unprocessable.
TOO_LARGE = (400, 413, 422)
MAX_CHARACTERS = 16_000
# The size of a thousand vectors of 8,192 dimensions, with 20 digits per number.
MAX_BYTES = 160 * 2**20


class OpenAIEmbedder:
    """Requests embeddings for batches of `embed_batch` texts, and for the first MAX_CHARACTERS of each text.

    If the server refuses a batch as too large, the batch is halved.

    The key is read from the environment and nowhere else. Raises TeacherError if a key is needed but not set.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        api_key_env: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 600.0,
        max_retries: int = 6,
        embed_batch: int = 256,
    ) -> None:
        self.model = model
        self.name = f"openai-{re.sub(r'[^A-Za-z0-9.]+', '-', model)}"
        self._batch = embed_batch
        self._settings = EndpointSettings(
            base_url=base_url,
            api_key_env=api_key_env,
            headers=headers,
            timeout_s=timeout_s,
            max_retries=max_retries,
        )
        # A client is made here too, so that a missing key is reported before any other work.
        EndpointClient(self._settings)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return vectors (N, D) in the order of the texts.

        Raises TeacherError if the endpoint refuses or does not answer.
        """
        return asyncio.run(self._embed(texts))

    async def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        client = EndpointClient(self._settings, max_bytes=MAX_BYTES)
        try:
            batches = []
            start = 0
            while start < len(texts):
                batch = [text[:MAX_CHARACTERS] for text in texts[start : start + self._batch]]
                vectors = await self._ask(client, batch)
                if vectors is None:
                    # Later batches start with the size that the server accepted.
                    self._batch = len(batch) // 2
                    continue
                batches.append(vectors)
                start += len(batch)
        finally:
            await client.close()
        if len({batch.shape[1] for batch in batches}) > 1:
            raise TeacherError(f"{client.endpoint.shown} gave embeddings of different lengths by {self.model!r}")
        return np.concatenate(batches)

    async def _ask(self, client: EndpointClient, texts: list[str]) -> NDArray[np.float32] | None:
        """Request the vectors of one batch, with as many tries as the settings allow.

        Returns None if the batch may only be too large.
        """
        # Floats are requested rather than base64, which not every compatible server knows.
        body = {"model": self.model, "input": texts, "encoding_format": "float"}
        where = f"{client.endpoint.shown} gave no embeddings by {self.model!r}"
        tries = 0
        while True:
            wait_s: float | None = None
            try:
                response = await client.post("embeddings", body)
                failure = read_failure(response, client.excerpt)
                if failure is None:
                    return _read_vectors(response.body, len(texts))
                reason, wait_s = str(failure), failure.retry_after_s
                passes = failure.status in (408, 409, 425, 429) or failure.status >= 500
                if failure.status in TOO_LARGE and len(texts) > 1:
                    return None
                if not passes or failure.about_credit:
                    raise TeacherError(f"{where}: {reason}{_advice(failure.status, client.endpoint.key_hint)}")
            except TransportError as error:
                reason = str(error)
            except ValueError as error:
                reason = f"{error}: {client.excerpt(response.body[:10_000].decode(errors='replace'))}"
            tries += 1
            if tries > self._settings.max_retries:
                counted = f"{tries} tries" if tries > 1 else "one try"
                raise TeacherError(f"{where}, after {counted}: {reason}; smaller batches (`embed_batch`) may help")
            if wait_s is None:
                wait_s = self._settings.backoff_s * 2.0 ** (tries - 1) * random.uniform(0.5, 1)
            await asyncio.sleep(min(wait_s, self._settings.max_wait_s))


def _advice(status: int, key_hint: str) -> str:
    if status in (401, 403):
        return f"; {key_hint}"
    if status in (404, 405):
        return "; check the model, and the base URL, which usually ends in /v1"
    return ""


def _read_vectors(body: bytes, texts: int) -> NDArray[np.float32]:
    """Return the vectors (N, D) in the order of the texts.

    Raises ValueError unless there is one vector for each text.
    """
    try:
        answer = json.loads(body)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("the answer contains no embeddings")
    # Some servers send no index, but keep the order.
    by_index = {row.get("index", place): row.get("embedding") for place, row in enumerate(rows)}
    if len(rows) != texts or by_index.keys() != set(range(texts)):
        raise ValueError(f"got {len(rows)} embeddings for {texts} texts, or not one for each text")
    try:
        vectors_N_D = np.array([by_index[index] for index in range(texts)], np.float32)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("the embeddings are not lists of numbers of equal length") from None
    if vectors_N_D.ndim != 2 or not np.isfinite(vectors_N_D).all():
        raise ValueError("the embeddings are not lists of finite numbers of equal length")
    return vectors_N_D
