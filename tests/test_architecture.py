"""docs/architecture.md lists every file of the package, each with its role."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tools import architecture


def test_the_page_is_that_of_the_files() -> None:
    assert architecture.PAGE.read_text(encoding="utf-8") == architecture.render(), "run `make architecture`"


def test_every_file_and_no_other_is_on_the_page() -> None:
    page = architecture.PAGE.read_text(encoding="utf-8")
    listed = []
    for section in page.partition("\n## Every file\n")[2].split("\n## ")[1:]:
        folder = Path("" if section.startswith("localora\n") else section.split("\n")[0])
        listed += [folder / name for name in re.findall(r"^- `([^`]*)`:", section, re.MULTILINE)]
    there = [path.relative_to(architecture.SOURCE) for path in architecture.SOURCE.rglob("*.py")]
    assert sorted(listed) == sorted(path for path in there if path.name != "__init__.py")


def test_a_file_that_does_not_say_what_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text('"""A package."""\n')
    (tmp_path / "silent.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"silent.py has no docstring"):
        architecture.render(tmp_path)
    (tmp_path / "silent.py").unlink()
    (tmp_path / "attic").mkdir()
    (tmp_path / "attic" / "__init__.py").write_text('"""Old."""\n')
    with pytest.raises(ValueError, match="does not say where attic belongs"):
        architecture.render(tmp_path)
