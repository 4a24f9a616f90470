"""A promotion meets models that somebody has tampered with: it refuses them, and runs nothing of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.promote import main
from tests import hostile
from tests.hostile import CANARY
from tests.promotion.conftest import actions, champion_run
from tests.promotion.runs import make_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("sqlite")]


def tamper(npz: Path, kind: Callable[..., Any]) -> str:
    """A run with a hostile archive as its model; its id."""
    made = make_run(npz, 1.0)
    (archive,) = Path().glob("mlruns/0/models/m-*/artifacts/data/model.pt2")
    content = hostile.make(archive, kind)
    archive.unlink()
    archive.write_bytes(content)
    return made.run_id


@pytest.mark.parametrize(("kind", "said"), [*hostile.CONTENTS, *hostile.LAYOUTS])
def test_a_hostile_archive(
    npz: Path, capsys: pytest.CaptureFixture[str], kind: Callable[..., Any], said: str
) -> None:
    tamper(npz, kind)
    assert main([]) == 1
    shown = capsys.readouterr()
    assert "resnet18_A: refused: " in shown.out
    assert said in shown.out
    assert "Traceback" not in shown.err
    assert actions() == [("refusal", None)]
    assert not CANARY.exists()


def test_the_next_best_run_is_promoted(npz: Path) -> None:
    tamper(npz, hostile.two_directories)
    honest = make_run(npz, 0.7)
    assert main([]) == 1
    assert champion_run() == honest.run_id
    assert actions() == [("refusal", None), ("promotion", 1)]
    assert not CANARY.exists()


def test_code_that_the_description_brings(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MLflow would import it for everybody who loads the champion by its name."""
    make_run(npz, 1.0)
    (model,) = Path().glob("mlruns/0/models/m-*/artifacts")
    (model / "code").mkdir()
    (model / "code/evil.py").write_text(f"open({str(CANARY)!r}, 'w')")
    description = yaml.safe_load((model / "MLmodel").read_text())
    description["flavors"]["python_function"] |= {"code": "code", "loader_module": "evil"}
    (model / "MLmodel").write_text(yaml.safe_dump(description))
    assert main([]) == 1
    assert "python_function.code is 'code'" in capsys.readouterr().out
    assert not CANARY.exists()
