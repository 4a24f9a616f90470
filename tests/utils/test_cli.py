"""The parser of the commands."""

import pytest

from src.utils.cli import CommandParser, counted


@pytest.mark.parametrize("given", [["--model="], ["--model", ""], ["--model=", "--epochs", "3"]])
def test_an_option_with_an_empty_value_counts_as_not_given(given: list[str]) -> None:
    parser = CommandParser("command")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--epochs", type=int, default=3)
    assert vars(parser.parse_args(given)) == {"model": "resnet18", "epochs": 3}


def test_a_number_and_its_noun_agree() -> None:
    words = [counted(1, "group"), counted(0, "group"), counted(2, "image is", "images are")]
    assert words == ["1 group", "0 groups", "2 images are"]
