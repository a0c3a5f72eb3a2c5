from base64 import b64encode
from typing import Any

import pytest

from curate.endpoints.addresses import find_endpoint
from curate.endpoints.settings import EndpointSettings
from store.errors import InputError, TeacherError

KEY = "sk-0123456789abcdef"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def sent(**settings: Any) -> str | None:
    return find_endpoint(EndpointSettings(**settings)).headers.get("Authorization")


@pytest.mark.parametrize(
    "url", [None, "https://api.openai.com/v1", "https://eu.api.openai.com/v1/", "https://API.OpenAI.com:443/v1"]
)
def test_openais_key_goes_to_openai(url: str | None) -> None:
    assert sent(base_url=url) == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/v1",
        "http://api.openai.com/v1",
        "https://api.openai.com.example.org/v1",
        "https://notapi.openai.com/v1",
        "https://openrouter.ai/api/v1",
        "https://example.org/api.openai.com/v1",
    ],
)
def test_openais_key_goes_to_nobody_else_unless_it_is_named(url: str) -> None:
    assert sent(base_url=url) is None
    assert sent(base_url=url, api_key_env="OPENAI_API_KEY") == f"Bearer {KEY}"


def test_openais_key_goes_to_the_host_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "https://gateway.example.org:8443/v1")
    assert sent() == f"Bearer {KEY}"
    assert sent(base_url="https://gateway.example.org:8443/other") == f"Bearer {KEY}"
    for other in ("https://gateway.example.org/v1", "http://gateway.example.org:8443/v1", "https://example.org/v1"):
        assert sent(base_url=other) is None


def test_credentials_in_the_address_are_sent_and_not_shown() -> None:
    endpoint = find_endpoint(EndpointSettings(base_url="https://me:s%40cret-123@host.example:1/v1?key=0123456789"))
    assert endpoint.headers["Authorization"] == f"Basic {b64encode(b'me:s@cret-123').decode()}"
    assert endpoint.url("chat/completions") == "https://host.example:1/v1/chat/completions?key=0123456789"
    assert (endpoint.shown, endpoint.host) == ("https://host.example:1/v1", "host.example:1")
    assert endpoint.secrets.mask("s@cret-123 0123456789") == "[key] [key]"
    # With a look-alike of OpenAI's host as the user, the key stays at home.
    assert sent(base_url="https://api.openai.com@evil.example/v1") != f"Bearer {KEY}"


def test_a_named_key_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTHER_KEY", raising=False)
    with pytest.raises(TeacherError, match="set the variable OTHER_KEY"):
        sent(base_url="http://127.0.0.1:8000/v1", api_key_env="OTHER_KEY")
    for typed in (KEY, "0123456789abcdef", "ab=c"):
        with pytest.raises(TeacherError, match="set the variable that `api_key_env` names") as caught:
            sent(api_key_env=typed)
        assert typed not in str(caught.value)
    monkeypatch.setenv("OTHER_KEY", "two\nlines")
    with pytest.raises(TeacherError, match="OTHER_KEY contains characters that no key has"):
        sent(api_key_env="OTHER_KEY")


def test_headers_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_KEY", "0123456789")
    endpoint = find_endpoint(EndpointSettings(headers={"api-key": "$AZURE_KEY", "X-Title": "recommendations"}))
    assert endpoint.headers["api-key"] == "0123456789"
    # Only what names itself a secret is one: answers must not lose their words.
    assert endpoint.secrets.mask("0123456789 recommendations") == "[key] recommendations"


@pytest.mark.parametrize(
    "headers", [{"a b": "c"}, {"a": "ü"}, {"a": "x\r\ny: z"}, {"a": 3}, {"a": "$NOT_SET_ANYWHERE"}]
)
def test_a_header_that_cannot_be_sent_is_refused(headers: Any) -> None:
    with pytest.raises(InputError, match="`headers`"):
        find_endpoint(EndpointSettings(headers=headers))


@pytest.mark.parametrize("url", ["http://user:secret-password@:80/v1", "http://a b/v1", "http://h\x00/v1", "//h/v1"])
def test_an_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(TeacherError, match="is not a valid address") as caught:
        sent(base_url=url)
    assert "password" not in str(caught.value)
