"""Multiple choice over made-up facts: who is whose friend, and who lives where.

    Facts: Zuvel lives in Kirtan. Bamor's friend is Zuvel. ...
    Question: Where does Bamor's friend live?
    Answer: Kirtan

The facts are in the prompt: nothing is to be memorised, so a test question asks for reasoning that training can
teach, about facts it cannot have shown. Difficulty is the largest number of facts to combine (hops); a question
needs 1 to `difficulty`. The key is the chain of facts the answer rests on, so no such chain is in two splits.
"""

from __future__ import annotations

from random import Random

from localora.lab.data.example import Example
from localora.lab.data.generated.problem import Problem

_PEOPLE = 4  # and as many choices
FIRST = tuple(["Ba", "Do", "Fe", "Gu", "Ki", "La", "Mo", "Ne", "Pi", "Ru", "Sa", "To", "Ve", "Wi", "Yo", "Zu"])
LAST = tuple(["bel", "dan", "fir", "gan", "kor", "lin", "mor", "nek", "pal", "rim", "sun", "tan", "vel", "wick", "zar"])
_RELATIONS = ("friend", "teacher", "neighbour", "cousin", "boss")
_ATTRIBUTES = {  # name: (fact, question, values; none: places with made-up names)
    "home": ("{who} lives in {what}.", "Where does {who} live?", ()),
    "job": (
        "{who} works as a {what}.",
        "What does {who} work as?",
        ("baker", "doctor", "farmer", "judge", "miner", "nurse", "pilot", "sailor", "singer", "tailor"),
    ),
    "pet": (
        "{who} owns a {what}.",
        "What does {who} own?",
        ("cat", "dog", "goat", "horse", "mouse", "parrot", "rabbit", "snake", "turtle", "wolf"),
    ),
    "taste": (
        "{who} likes {what}.",
        "What does {who} like?",
        ("bread", "cake", "cheese", "fish", "grapes", "honey", "nuts", "plums", "rice", "soup"),
    ),
}


def problem(random: Random, difficulty: int) -> Problem:
    """One question over the facts of four people: hops - 1 relations, then an attribute."""
    hops = random.randint(1, difficulty)
    names = random.sample([first + last for first in FIRST for last in LAST], 2 * _PEOPLE)
    people, places = names[:_PEOPLE], names[_PEOPLE:]
    attribute = random.choice(tuple(_ATTRIBUTES))
    fact, question, values = _ATTRIBUTES[attribute]
    of = dict(zip(people, random.sample(values, _PEOPLE) if values else places, strict=True))
    facts = [fact.format(who=who, what=what) for who, what in of.items()]

    relations = random.choices(_RELATIONS, k=hops - 1)
    related: dict[str, dict[str, str]] = {}
    for relation in sorted(set(relations)):
        circle = random.sample(people, _PEOPLE)  # each one's relation is the next, so nobody's is oneself
        related[relation] = dict(zip(circle, circle[1:] + circle[:1], strict=True))
        facts += [f"{who}'s {relation} is {whom}." for who, whom in related[relation].items()]

    person = random.choice(people)
    chain, phrase = [person], person
    for relation in relations:
        person, phrase = related[relation][person], f"{phrase}'s {relation}"
        chain += [relation, person]
    random.shuffle(facts)

    choices = list(of.values())
    random.shuffle(choices)
    answer = choices.index(of[person])
    completions = tuple(f" {choice}" for choice in choices)
    prompt = f"Facts: {' '.join(facts)}\nQuestion: {question.format(who=phrase)}\nAnswer:"
    key = "facts:" + "/".join([*chain, attribute, of[person]])
    return Problem(key, Example("", prompt, completions[answer], choices=completions, answer_index=answer))
