"""Lines of JSON that Python's own parser stumbles over are refused with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from localora.lab.data.example import DataError
from localora.lab.data.rows import read_jsonl

HOSTILE = {
    "half a surrogate pair": (r'{"prompt": "a \ud800 b", "completion": "c"}', "half of a surrogate pair"),
    "the same in a key": (r'{"\uDEAD": 1}', "half of a surrogate pair"),
    "nested deeply": ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    "a key twice": ('{"prompt": "a", "completion": "b", "prompt": "c"}', "the key 'prompt' is given twice"),
    "a key twice, inside": ('{"prompt": {"a": 1, "a": 1}}', "the key 'a' is given twice"),
    "a number of 5,000 digits": ('{"prompt": ' + "1" * 5000 + "}", "a number that is too long"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_with_its_line(tmp_path: Path, name: str) -> None:
    line, said = HOSTILE[name]
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "fine \\ud83d\\ude00", "completion": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"rows.jsonl:2: .*{said}"):
        read_jsonl(path)


def test_a_whole_pair_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(r'{"prompt": "\ud83d\ude00", "completion": "c"}')
    assert read_jsonl(path)[0].values["prompt"] == "\N{GRINNING FACE}"
