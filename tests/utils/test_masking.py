"""No message shows a password, however it is written in the store's URI."""

import pytest

from src.utils.masking import masked_text, masked_uri

SECRET = "Tr0ub4dor"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:{}@host:5432/db", "postgresql://***@host:5432/db"),
        ("postgresql+psycopg2://me:a/{}@host/db", "postgresql+psycopg2://***@host/db"),
        ("postgresql://me:a@{}@host/db", "postgresql://***@host/db"),
        ("postgresql://me:a@b/{}@host/db", "postgresql://***@host/db"),
        ("postgresql://me:a?{}#c@host/db", "postgresql://***@host/db"),
        ("mysql://me:a b {} c@host/db", "mysql://***@host/db"),
        ("postgresql://me:%2F{}%40@host/db", "postgresql://***@host/db"),
        ("postgresql://host/db?user=me&password={}", "postgresql://host/db?user=me&password=***"),
        ("postgresql:///db?host=h&password={}&sslmode=require", "postgresql:///db?host=h&password=***"),
        ("postgresql://host/db?password=a&{} b", "postgresql://host/db?password=***"),
        ("postgresql://host/db?password=a@{}@b", "postgresql://***@b"),
        ("postgresql://host/db?%70assword={}", "postgresql://host/db?%70assword=***"),
        ("postgresql://host/db?a=b;sslpassword={}", "postgresql://host/db?a=b;sslpassword=***"),
        ("http://host:5000/?access_token={}", "http://host:5000/?access_token=***"),
        ("https://me:{}@host:5000/base", "https://***@host:5000/base"),
        ("sqlite:///a b.db?key={}", "sqlite:///a b.db?key=***"),
    ],
)
def test_passwords_are_masked(uri: str, shown: str) -> None:
    assert masked_uri(uri.format(SECRET)) == shown
    error = f"(psycopg2.OperationalError) could not connect to {uri.format(SECRET)}: refused"
    assert SECRET not in masked_text(error, uri.format(SECRET))
    assert "could not connect to" in masked_text(error, uri.format(SECRET))


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///mlflow.db",
        "sqlite:////home/me@uni/mlflow.db",
        "file:///home/me@uni/mlruns",
        "/home/me@uni//mlruns",
        "./mlruns",
        "http://127.0.0.1:5000",
        "postgresql://host/db?sslmode=require",
        "databricks",
        "",
    ],
)
def test_all_else_is_shown_as_it_is(uri: str) -> None:
    assert masked_uri(uri) == uri


def test_messages_of_drivers() -> None:
    assert masked_text(f"bad dsn: host=h password={SECRET} user=me") == "bad dsn: host=h password=*** user=me"
    assert masked_text(f"bad dsn: password='a {SECRET}' x") == "bad dsn: password=*** x"
    assert masked_text("see https://sqlalche.me/e/20/e3q8") == "see https://sqlalche.me/e/20/e3q8"
    assert masked_text("no such table: runs") == "no such table: runs"
