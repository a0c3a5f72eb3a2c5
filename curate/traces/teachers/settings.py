"""Settings of teachers, apart from the libraries that they need."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from store.settings import check, option

StructuredOutput = Literal["auto", "json_schema", "json_object", "off"]


@dataclass(frozen=True, slots=True)
class OpenAISettings:
    """Where the endpoint is and how patient to be with it.

    base_url: such as http://127.0.0.1:8000/v1; None means the variable OPENAI_BASE_URL, else OpenAI itself.
    api_key_env: the environment variable that holds the key; no key is ever a setting.
    max_retries: further tries of one request after its first. backoff_s: the first wait between tries, doubled each
    time. max_wait_s: the longest, whatever the server asks. timeout_s: the longest silence of the server.
    price_per_million_*: US dollars; where both are None, no cost is told.
    structured_output: "auto" begins with json_schema and takes json_object, then nothing, where the server refuses.
    extra_body: fields added to each request, such as {"top_k": 20} for vLLM.
    """

    model: str = option(help="Name of the model that the endpoint serves.", group="Endpoint")
    base_url: str | None = option(
        None,
        help="Base URL of the endpoint, such as http://127.0.0.1:8000/v1. Default: the variable OPENAI_BASE_URL, or "
        "OpenAI.",
        group="Endpoint",
    )
    api_key_env: str = "OPENAI_API_KEY"
    max_retries: int = 6
    backoff_s: float = 1.0
    max_wait_s: float = 60.0
    timeout_s: float = 120.0
    max_connections: int = 512
    price_per_million_prompt_tokens: float | None = option(
        None, help="Price of a million prompt tokens, in US dollars.", low=0.0, group="Endpoint", flag="prompt_price"
    )
    price_per_million_completion_tokens: float | None = option(
        None,
        help="Price of a million completion tokens, in US dollars.",
        low=0.0,
        group="Endpoint",
        flag="completion_price",
    )
    structured_output: StructuredOutput = "auto"
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)
