"""The words of generated problems: each function makes one, its right answer, wrong ones, and its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from random import Random

from optillm.evals.routing import words

OPEN = ("good", ("poor",))
"""The answers of a problem whose replies are texts: only how good they are is known."""


@dataclass(frozen=True)
class Posed:
    """A problem as it is put.

    Args:
        text: the question.
        answer: the right answer.
        wrong: wrong ones; the fewer, the more wrong replies agree.
        size: 0 or more; the larger, the harder.
        invented: there is no such thing in the world, so that only a simulated model can answer.
    """

    text: str
    answer: str
    wrong: tuple[str, ...]
    size: float
    invented: bool = False


def arithmetic(rng: Random) -> Posed:
    """Sums, differences and products of several numbers."""
    terms, digits = rng.randint(2, 8), rng.randint(1, 4)
    numbers = [rng.randint(10 ** (digits - 1), 10**digits - 1) for _ in range(terms)]
    signs = [rng.choice("++--*" if digits < 3 else "++-") for _ in numbers[1:]]
    sentence = str(numbers[0]) + "".join(f" {s} {n}" for s, n in zip(signs, numbers[1:], strict=True))
    value = numbers[0]
    total, sign = 0, 1
    for s, n in zip(signs, numbers[1:], strict=True):
        if s == "*":
            value *= n
            continue
        total, value, sign = total + sign * value, n, 1 if s == "+" else -1
    total += sign * value
    form = rng.choice(
        ("What is {}?", "Compute {}.", "Calculate {}", "{} = ?", "Please work out {}.", "How much is {}?")
    )
    return Posed(form.format(sentence), str(total), _near(total, rng), terms * digits + 4 * signs.count("*"))


def word_problem(rng: Random) -> Posed:
    """A story of one to six steps about things that come and go."""
    name, thing, steps = rng.choice(words.NAMES), rng.choice(words.THINGS), rng.randint(1, 6)
    have = rng.randint(8, 40)
    story = [rng.choice(("{} has {} {}.", "{} starts with {} {}.", "In the morning {} owns {} {}."))]
    told = [story[0].format(name, have, thing)]
    for _ in range(steps):
        kind = rng.choice(("gain", "lose", "double", "bags"))
        if kind == "lose" and have > 5:
            k = rng.randint(2, min(have - 1, 20))
            have -= k
            told.append(rng.choice((f"Then {k} of them are given away.", f"After that {name} loses {k}.")))
        elif kind == "double" and have < 200:
            have *= 2
            told.append("The next day the number doubles.")
        elif kind == "bags":
            bags, each = rng.randint(2, 6), rng.randint(2, 9)
            have += bags * each
            told.append(f"{name} buys {bags} bags with {each} {thing} each.")
        else:
            k = rng.randint(2, 30)
            have += k
            told.append(rng.choice((f"A friend brings {k} more.", f"{name} finds another {k}.")))
    ask = rng.choice((f"How many {thing} does {name} have now?", f"How many {thing} are there in the end?"))
    return Posed(" ".join([*told, ask]), str(have), _near(have, rng), steps)


def equation(rng: Random) -> Posed:
    """A linear equation, or two with two unknowns."""
    x, y = rng.randint(-12, 12), rng.randint(-12, 12)
    a, b = rng.randint(2, 9), rng.randint(1, 30)
    if rng.random() < 0.5:
        c = rng.randint(1, a - 1) if a > 2 else 1
        right = (a - c) * x + b
        text = f"Solve for x: {a}x + {b} = {c}x + {right}."
        return Posed(text, str(x), _near(x, rng), 1.5)
    c, d = rng.randint(2, 9), rng.randint(1, 9)
    while a * d == b * c:
        d += 1
    text = (
        f"Solve the system of equations {a}x + {b}y = {a * x + b * y} and {c}x + {d}y = {c * x + d * y}. "
        "What is x?"
    )
    return Posed(text, str(x), _near(x, rng), 3.5)


def letters(rng: Random) -> Posed:
    """Counting, joining and reversing letters: models do not see them."""
    word = rng.choice(words.LONG_WORDS)
    kind = rng.choice(("count", "reverse", "last"))
    if kind == "count":
        letter = rng.choice(word)
        right = word.count(letter)
        form = rng.choice(
            ('How many times does the letter "{}" occur in "{}"?', 'How many {}\'s are in the word "{}"?')
        )
        return Posed(form.format(letter, word), str(right), (str(right + 1), str(right - 1)), len(word) / 2)
    if kind == "reverse":
        wrong = (word[::-1][:-2] + word[1::-1][::-1], word[::-1][1:])
        return Posed(f'Spell the word "{word}" backwards.', word[::-1], wrong, len(word) * 0.8)
    some = rng.sample(words.LONG_WORDS, rng.randint(2, 5))
    joined = "".join(w[-1] for w in some)
    text = f'Take the last letters of the words in "{" ".join(some)}" and join them.'
    return Posed(text, joined, (joined[:-1], joined[::-1] + "e"), 2.0 * len(some))


def logic(rng: Random) -> Posed:
    """Who stands where in an order that the sentences fix."""
    count = rng.randint(3, 7)
    people = rng.sample(words.NAMES, count)
    more, most, least = rng.choice(words.ORDERS)
    facts = [f"{a} is {more} than {b}." for a, b in pairwise(people)]
    rng.shuffle(facts)
    at = rng.choice((0, count - 1, count // 2))
    asked = {0: f"Who is the {most}?", count - 1: f"Who is the {least}?"}.get(
        at, f"Who comes at place {at + 1} if they are lined up from the {most} to the {least}?"
    )
    text = f"There are {count} people. {' '.join(facts)} {asked}"
    return Posed(
        text, people[at], tuple(p for p in people if p != people[at]), count - 2 + (at == count // 2)
    )


def planning(rng: Random) -> Posed:
    """Plans that are hard to find and easy to check."""
    size = rng.randint(3, 6)
    if rng.random() < 0.5:
        numbers = [rng.randint(1, 13) for _ in range(size)]
        goal = rng.randint(10, 100)
        text = (
            f"Use each of the numbers {', '.join(map(str, numbers))} exactly once with + - * / to reach "
            f"{goal}. Give the expression."
        )
        return Posed(text, *OPEN, size - 2)
    jobs = rng.sample(words.JOBS, size)
    before = "; ".join(f"{a} must be done before {b}" for a, b in zip(jobs, jobs[2:], strict=False))
    hours = ", ".join(f"{j} takes {rng.randint(1, 4)} hours" for j in jobs)
    text = (
        f"Plan a schedule for one worker from 9:00 to {rng.randint(15, 20)}:00. {hours}. {before}. No job "
        "may be split. Write the schedule."
    )
    return Posed(text, *OPEN, size - 2)


def code(rng: Random) -> Posed:
    """A function to be written."""
    simple = rng.random() < 0.5
    what = rng.choice(words.EASY_FUNCTIONS if simple else words.HARD_FUNCTIONS)
    demands = rng.sample(words.DEMANDS, rng.randint(0, 3))
    language = rng.choice(words.LANGUAGES_OF_CODE)
    form = rng.choice(
        (
            "Write a {0} function that {1}.",
            "Implement in {0} a function which {1}.",
            "In {0}, {1}. Give the code.",
        )
    )
    text = " ".join([form.format(language, what), *demands])
    return Posed(text, *OPEN, (0.5 if simple else 2.0) + 0.6 * len(demands))


def choice(rng: Random) -> Posed:
    """One of four answers is right."""
    if rng.random() < 0.5:
        fractions = {Fraction(rng.randint(1, 11), rng.randint(12, 29)) for _ in range(9)}
        options = rng.sample(sorted(fractions), 4)
        right = options.index(max(options))
        return _options(
            "Which of these fractions is the largest?", [str(o) for o in options], right, 2.0, rng
        )
    asked, answer, others = rng.choice(words.CHOICES)
    shown = [answer, *others]
    rng.shuffle(shown)
    about = rng.choice(("Choose the right answer.", "Which option is correct?", "Answer with a letter."))
    return _options(f"{asked} {about}", shown, shown.index(answer), rng.choice((0.5, 1.5, 2.5)), rng)


def fact(rng: Random) -> Posed:
    """Known or not known: thinking does not help."""
    kind = rng.choice(("capital", "symbol", "author", "year"))
    if kind == "capital":
        tier = rng.randrange(3)
        country, city = rng.choice(words.CAPITALS[tier])
        wrong = rng.choice([c for t in words.CAPITALS for _, c in t if c != city])
        form = rng.choice(("What is the capital of {}?", "Which city is the capital of {}?"))
        return Posed(form.format(country), city, (wrong,), tier * 0.9)
    if kind == "symbol":
        element, symbol = rng.choice(words.ELEMENTS)
        wrong = rng.choice([s for _, s in words.ELEMENTS if s != symbol])
        return Posed(f"What is the chemical symbol of {element}?", symbol, (wrong,), 0.3)
    if kind == "author":
        book, author = rng.choice(words.BOOKS)
        wrong = rng.choice([a for _, a in words.BOOKS if a != author])
        return Posed(f'Who wrote "{book}"?', author, (wrong,), 0.8)
    place, trade, year = rng.choice(words.PLACES), rng.choice(words.TRADES), rng.randint(1640, 1930)
    text = f"In which year was the {trade} of {place} founded?"
    return Posed(text, str(year), (str(year + rng.randint(3, 20)),), 2.4, invented=True)


def creative(rng: Random) -> Posed:
    """Texts of which there is no right one."""
    form, topic, tone = rng.choice(words.FORMS), rng.choice(words.TOPICS), rng.choice(words.TONES)
    start = rng.choice(("Write", "Compose", "Please write", "Can you write"))
    return Posed(f"{start} {form} about {topic}, {tone}.", *OPEN, 0)


def language(rng: Random) -> Posed:
    """Translations, summaries, corrections."""
    sentence = rng.choice(words.SENTENCES)
    other = rng.choice(words.SENTENCES)
    kind = rng.choice(("translate", "summarise", "rewrite", "foreign"))
    if kind == "translate":
        tongue = rng.choice(words.TONGUES)
        return Posed(f'Translate into {tongue}: "{sentence}"', *OPEN, 0)
    if kind == "foreign":
        text, request = rng.choice(words.FOREIGN), rng.choice(words.FOREIGN_REQUESTS)
        return Posed(f"{request} {text} {rng.choice(words.FOREIGN)}", *OPEN, 0)
    if kind == "summarise":
        return Posed(
            f"Summarize this in one sentence: {sentence} {other} {rng.choice(words.SENTENCES)}", *OPEN, 0
        )
    tone = rng.choice(words.TONES)
    return Posed(f"Rewrite this {tone}: {sentence} {other}", *OPEN, 0)


def talk(rng: Random) -> Posed:
    """Small talk, advice, explanations."""
    form, topic = rng.choice(words.ASKS), rng.choice(words.TOPICS)
    opening = rng.choice(("", "Hi! ", "Hello, ", "Hey, quick question: ", "Good morning. "))
    return Posed(f"{opening}{form.format(topic)}", *OPEN, 0)


def _near(value: int, rng: Random) -> tuple[str, ...]:
    """Six wrong numbers, as slips make them."""
    offsets = rng.sample([1, -1, 2, -2, 3, 9, -9, 10, -10, 11, 20, -20, 90, 100, -100], 6)
    return tuple(str(value + o) for o in offsets)


def _options(asked: str, options: Sequence[str], right: int, size: float, rng: Random) -> Posed:
    mark = rng.choice(("{}) {}", "{}. {}", "({}) {}"))
    lines = [mark.format("ABCD"[i], option) for i, option in enumerate(options)]
    return Posed("\n".join([asked, *lines]), "ABCD"[right], tuple("ABCD".replace("ABCD"[right], "")), size)
