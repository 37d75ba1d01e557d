"""The answer that a generated text gives: a final number, a letter, or one of several words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

_MARKED_ANSWER = re.compile(r"####[ \t]*(\S[^\n]*)")
# A minus after a digit takes away: 10-5 holds 10 and 5. A fraction is one number, and .5 is a half.
_NUMBER = re.compile(r"(?:(?<!\d)-)?\$?(?:\d[\d,]*(?:/[1-9]\d*|\.\d+)?|(?<!\w)\.\d+)")
_EXACT = re.compile(r"-?(?:\d+(?:/[1-9]\d*|\.\d+)?|\.\d+)")
_LETTER = re.compile(r"(?<![A-Za-z'])[A-E](?![A-Za-z'])")


def final_answer(text: str) -> str | None:
    """What follows the last "####" of the text, or else its last number; None if it has neither.

    From a marked line with a number in it ("#### 12 apples"), the number.
    """
    marked = _MARKED_ANSWER.findall(text)
    if marked:
        number = _NUMBER.search(marked[-1])
        return number.group() if number else marked[-1].strip()
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def final_letter(text: str) -> str | None:
    """The first of the letters A to E after the last "####", or else the last one that stands alone; or None."""
    marked = _MARKED_ANSWER.findall(text)
    if marked:
        found = _LETTER.search(marked[-1])
        return found.group() if found else None
    letters = _LETTER.findall(text)
    return letters[-1] if letters else None


def matches(text: str, expected: str) -> bool:
    """Whether the text's final answer is `expected`: a letter where that is one of A to E, else a number or a text."""
    if _LETTER.fullmatch(expected):
        return final_letter(text) == expected
    return same_answer(final_answer(text), expected)


def same_answer(found: str | None, expected: str) -> bool:
    """Equal as numbers ("$1,200." is "1200.0", "3/4" is "0.75"), or else as texts without regard to case."""
    return found is not None and _canonical(found) == _canonical(expected)


def first_word(text: str, words: Sequence[str]) -> int | None:
    """Position in `words` of the one that stands first in the text, as a word and in any case; None if none does."""
    found = re.search(word_pattern(words), text)
    return None if found is None else [word.casefold() for word in words].index(found.group().casefold())


def word_pattern(words: Sequence[str]) -> str:
    """A regular expression for any of the words. A word that ends in a digit is not the start of a longer number."""
    return rf"(?i)\b(?:{'|'.join(map(re.escape, words))})(?!\w)"


def _canonical(answer: str) -> str | Fraction:
    text = answer.strip().rstrip(".").replace(",", "").replace("$", "").rstrip("%").strip()
    return Fraction(text) if _EXACT.fullmatch(text) else text.casefold()
