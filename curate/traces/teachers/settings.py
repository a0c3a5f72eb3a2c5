"""Settings of teachers, without the libraries that teachers need."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from curate.endpoints.settings import EndpointSettings, check_object
from store.settings import option

STRUCTURED_OUTPUT = ("auto", "json_schema", "json_object", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAISettings(EndpointSettings):
    """The model of an endpoint, and how its requests are made.

    price_per_million_*: US dollars; if both are None, no cost is reported.
    structured_output: "auto" begins with json_schema, and falls back to json_object and then to no format if the server
    refuses. top_p: None leaves it to the server. seed: whether requests carry a seed. extra_body: fields added to each
    request, such as {"top_k": 20} for vLLM.
    """

    model: str = option(help="Name of the model that the endpoint serves.", group="Endpoint")
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
    structured_output: str = option(
        "auto",
        help="How to ask the server for JSON; auto uses the strictest way that the server supports.",
        choices=STRUCTURED_OUTPUT,
        group="Endpoint",
    )
    top_p: float | None = option(
        None, help="Nucleus sampling. Default: left to the server.", low=0.0, high=1.0, group="Endpoint"
    )
    seed: bool = option(True, help="Send a seed with each request, which differs for each sample.", group="Endpoint")
    extra_body: Mapping[str, Any] | None = option(
        None,
        help="Fields added to each request, as a JSON object such as '{\"top_k\": 20}'.",
        group="Endpoint",
    )

    def __post_init__(self) -> None:
        # The class is named, because a dataclass with slots is another class than the one that super() looks for.
        EndpointSettings.__post_init__(self)
        check_object("extra_body", self.extra_body)
