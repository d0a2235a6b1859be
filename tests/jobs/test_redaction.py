"""Secrets in texts that errors and logs quote."""

from __future__ import annotations

import pytest

from airflow_provider_rayjobs.jobs.redaction import raise_unchained, redact, redact_chain, redact_urls, url_secrets

GITHUB_TOKEN = "ghp_16C7e42F292c6912E7710c838347Ae178B4a"


@pytest.mark.parametrize(
    ("text", "shown", "secrets"),
    [
        ("--index-url https://me:s3cret@host/simple", "--index-url https://me:***@host/simple", {"s3cret"}),
        ("https://me:a%40b@host", "https://me:***@host", {"a%40b", "a@b"}),
        ("https://me:a@b@host", "https://me:***@host", {"a@b"}),
        ("https://me@corp.com:s3cret@host", "https://me@corp.com:***@host", {"s3cret"}),
        ("https://:s3cret@host", "https://:***@host", {"s3cret"}),
        (f"a @ git+https://{GITHUB_TOKEN}@github.com/b.git", "a @ git+https://***@github.com/b.git", {GITHUB_TOKEN}),
        (
            f"https://{GITHUB_TOKEN}:x-oauth-basic@github.com", "https://***:***@github.com",
            {GITHUB_TOKEN, "x-oauth-basic"},
        ),
        ("https://a.net/c.zip?sv=1&sig=a%2Bb&se=2", "https://a.net/c.zip?sv=1&sig=***&se=2", {"a%2Bb", "a+b"}),
        ("https://b/c?X-Amz-Signature=0a1b#d", "https://b/c?X-Amz-Signature=***#d", {"0a1b"}),
        ("https://conda.host/t/ab-12345678-1234-1234/main", "https://conda.host/t/***/main", {"ab-12345678-1234-1234"}),
        ("https://me:s3/cr#et@host/simple", "https://me:***@host/simple", {"s3/cr#et"}),
        ("'https://a:s3cret@b/', 'http:/c:0ther@d/'", "'https://a:***@b/', 'http:/c:***@d/'", {"s3cret", "0ther"}),
    ],
)  # fmt: skip
def test_credentials_in_urls_are_found(text: str, shown: str, secrets: set[str]):
    """Passwords, tokens in the place of a user, signatures and Anaconda's tokens are credentials."""
    assert redact_urls(text) == shown
    assert redact(text, ()) == shown
    assert set(url_secrets({"a": [{"b": (text,)}], "c": 1})) == secrets


@pytest.mark.parametrize(
    "text",
    [
        "https://host/simple", "git+ssh://git@github.com/a/b.git", "a @ git+https://github.com/a/b@v1.0",
        "s3://conn_id@bucket/prefix", "abfss://container@account.dfs.core.windows.net/a", "https://me:${PASSWORD}@host",
        "https://$USER:$PASSWORD@host", "gcs://_ray_pkg_0123456789abcdef.zip", "me@example.com", "http://127.0.0.1:8265",
        "https://host/a?page=2&name=b", "https://me:@host", "https://host:8443/a@v1.0", "http://[::1]:8265/a@b",
        "https://host/a:b@c", "https://host:8443, me@example.com", '{"a":"https://host","b":"c@d"}', "torch==2.9.0", "",
    ],
)  # fmt: skip
def test_urls_without_credentials_stay_readable(text: str):
    """Users, buckets, variables that pip expands, versions and parameters are no credentials."""
    assert redact_urls(text) == text
    assert [*url_secrets(text)] == []


def test_chain_is_redacted():
    """Causes and contexts are redacted, also in a circle; other arguments are kept."""
    outer, cause, context = ValueError("outer s3cret-a", 1), KeyError("cause s3cret-a"), OSError(2, "s3cret-a")
    outer.__cause__, outer.__context__, cause.__context__ = cause, context, outer

    redact_chain(outer, ["s3cret-a"])

    assert (outer.args, cause.args, context.args) == (("outer ***", 1), ("cause ***",), (2, "***"))


def test_unchained_error_has_neither_cause_nor_context():
    """Nothing is chained to the error, and nothing is added while it propagates."""

    def fail() -> None:
        try:
            raise KeyError("s3cret")
        except KeyError:
            raise_unchained(ValueError("new"))

    with pytest.raises(ValueError, match="new") as caught:
        fail()

    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


@pytest.mark.parametrize(
    "quoted",
    [
        pytest.param("ab/cd+ef'Gh", id="as it is"),
        pytest.param("ab%2Fcd%2Bef%27Gh", id="URL"),
        pytest.param("ab/cd%2Bef%27Gh", id="URL with slashes"),
        pytest.param("ab%2fcd%2bef%27Gh", id="URL in lower case"),
        pytest.param("ab/cd+ef&#x27;Gh", id="HTML"),
        pytest.param("ab/cd+ef&#39;Gh", id="HTML of Jinja"),
        pytest.param(r"ab\/cd+ef'Gh", id="JSON with escaped slashes"),
        pytest.param(r"ab/cd\u002Bef\u0027Gh", id="JSON of .NET"),
        pytest.param(r"ab/cd+ef\'Gh", id="Python, in quotes"),
        pytest.param("\0".join("ab/cd+ef'Gh"), id="UTF-16 as UTF-8"),
    ],
)
def test_secret_is_redacted_in_each_encoding(quoted: str):
    """An answer may quote a secret as a URL, HTML or JSON, as various programs write them."""
    assert redact(f"no {quoted} here", ["ab/cd+ef'Gh"]) == "no *** here"


@pytest.mark.parametrize(
    ("secret", "quoted"),
    [
        pytest.param("pässwörd", r"p\xe4ssw\xf6rd", id="Python, ASCII"),
        pytest.param("pässwörd", "pässwörd".encode().decode("latin-1"), id="UTF-8 as Latin-1"),
        pytest.param("pass<&>word", r"pass\u003c\u0026\u003eword", id="JSON of Go"),
        pytest.param('{"user": "Jürgen"}', r"{\"user\": \"Jürgen\"}", id="JSON that keeps Unicode"),
        pytest.param("password\n", "password", id="without the newline at its end"),
    ],
)
def test_special_characters_are_redacted_in_each_encoding(secret: str, quoted: str):
    """Characters that programs escape are recognised in the escaped form."""
    assert redact(f"no {quoted} here", [secret]) == "no *** here"
