"""A model with known accuracy, to check techniques against theory.

It knows a set of questions. Asked one of them, it is right with the question's own probability, else it
gives one of the question's wrong answers, each equally likely. Asked to rate, compare or verify a reply,
it looks whether the reply ends in the right answer, and gives the judgement of a judge with known chances
of error. All draws are independent of each other: what a technique then gains over one reply can be
calculated, and a technique that gains something else has a bug.

No draw is hidden: the same model object, given the same calls in the same order, says the same, and equal
calls get draws of their own. To repeat a whole run, give its request a ``seed``: without one the prompts
differ by their random marks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from random import Random
from types import MappingProxyType
from typing import Any, Literal

from optillm.approaches.search.mcts import END
from optillm.core.answers import final_answer, same_answer
from optillm.core.frozen import to_json
from optillm.core.task import SYSTEM_ROLES, Message
from optillm.core.upstream import Call
from optillm.protocol.errors import UpstreamError

Role = Literal["rate", "value", "compare", "verify", "list", "mark", "forge", "coach", "user"]

ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "impartial rater of replies": "rate",
        "You verify solutions. You give a score": "rate",
        "impartial judge of dialogues": "value",
        "impartial referee who compares": "compare",
        "verifier who checks one aspect": "verify",
        "strict examiner of solutions": "verify",
        "write checklists for judging": "list",
        "mark replies by a checklist": "mark",
        "write test cases for a checker of solutions": "forge",
        "coach solvers": "coach",
        "play the user of an assistant": "user",
    }
)
"""What the model is asked to be, by words of the system message; without any of them it answers."""

_BLOCK = re.compile(r"<(?P<name>[\w-]+)-(?P<mark>[0-9a-f]{8,})>\n(?P<text>.*?)\n</(?P=name)-(?P=mark)>", re.S)
_TURN = re.compile(r"(?:\A|\n\n)\[(system|developer|user|assistant|tool|function)\]\n")
_ITEM = re.compile(r"^\d+\. ", re.M)
_GO_ON = "Please go on."


@dataclass(frozen=True)
class Question:
    """A question with known answers.

    Args:
        text: what is asked; found as it stands here in the user's messages.
        answer: the right final answer.
        wrong: the wrong final answers, one or more, each equally likely.
        accuracy: the chance of one reply to be right, 0 to 1.
    """

    text: str
    answer: str
    wrong: tuple[str, ...]
    accuracy: float

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise ValueError(f"accuracy must be from 0 to 1, not {self.accuracy}")
        if not self.wrong or any(same_answer(w, self.answer) for w in self.wrong):
            raise ValueError(f"wrong answers must be some, and wrong: {self.wrong!r}")

    def is_right(self, text: str) -> bool:
        """Whether a reply ends in the right answer."""
        given = final_answer(text)
        if given is None or given in self.wrong:
            return False
        return given == self.answer or same_answer(given, self.answer)


@dataclass(frozen=True)
class Judge:
    """How the model judges.

    Args:
        right: the chances of each grade for a right reply, from the worst grade to the best; the grades
            lie evenly on the scale that is asked for. ``(0.2, 0.8)`` is a judge that says either 0 or 10,
            and 10 to a right reply in 8 of 10 cases. A yes-or-no question is answered yes by the upper
            half of the grades.
        wrong: the same for a wrong reply.
        better: the chance that a right reply wins one comparison with a wrong one. Between two right or
            two wrong ones a coin decides.
        position: the chance that a comparison is won by the reply shown first, whatever it says.
    """

    right: tuple[float, ...] = (0.2, 0.8)
    wrong: tuple[float, ...] = (0.7, 0.3)
    better: float = 0.75
    position: float = 0.0

    def __post_init__(self) -> None:
        if len(self.right) != len(self.wrong) or len(self.right) < 2:
            raise ValueError("right and wrong need the same number of grades, two or more")
        for chances in (self.right, self.wrong):
            if any(c < 0 for c in chances) or abs(sum(chances) - 1) > 1e-9:
                raise ValueError(f"chances of grades must be 0 or more and sum to 1: {chances}")
        if not (0 <= self.better <= 1 and 0 <= self.position <= 1):
            raise ValueError("better and position must be from 0 to 1")

    def grade(self, right: bool, rng: Random) -> float:
        """A grade, 0 to 1."""
        grades = range(len(self.right))
        return rng.choices(grades, self.right if right else self.wrong)[0] / (len(grades) - 1)

    def prefers_first(self, first: bool, second: bool, rng: Random) -> bool:
        """Which of two wins, given whether each is right."""
        if rng.random() < self.position:
            return True
        if first == second:
            return rng.random() < 0.5
        return (rng.random() < self.better) == first


def sums(count: int, *, accuracy: float | Sequence[float], wrong: int = 1) -> tuple[Question, ...]:
    """Questions for a simulated model: different sums of two numbers.

    Args:
        count: how many, 1 or more.
        accuracy: of all, or several that take turns.
        wrong: wrong answers of each, 1 or more.
    """
    chances = (accuracy,) if isinstance(accuracy, int | float) else tuple(accuracy)
    return tuple(
        Question(
            f"Sum {i}: what is {i} + {100 + i % 97}?",
            str(right := 100 + i + i % 97),
            tuple(str(right + k) for k in range(1, wrong + 1)),
            chances[i % len(chances)],
        )
        for i in range(count)
    )


class SimulatedModel:
    """An upstream that answers, rates, compares and verifies with known chances of error.

    It honours ``n`` and streams. No two of its replies have the same text.

    Args:
        questions: what it knows; it refuses any other with a 404.
        judge: how it judges.
        keeps: the chance that a reply later in a dialogue holds on to the answer of the assistant's turn
            before; otherwise it is drawn anew.
        leaves: the chance that a simulated user has nothing more to say.
        seed: of its draws.
        name: of the upstream.

    Raises:
        ValueError: two questions with the same text, or a chance that is none.
    """

    def __init__(
        self,
        questions: Iterable[Question],
        *,
        judge: Judge | None = None,
        keeps: float = 1.0,
        leaves: float = 0.0,
        seed: int = 0,
        name: str = "simulated",
    ) -> None:
        self.questions = tuple(questions)
        self.judge = judge or Judge()
        self.keeps, self.leaves, self.seed, self.name = keeps, leaves, seed, name
        if not (0 <= keeps <= 1 and 0 <= leaves <= 1):
            raise ValueError("keeps and leaves must be from 0 to 1")
        self._by_text = {q.text.strip(): q for q in self.questions}
        if len(self._by_text) < len(self.questions):
            raise ValueError("two questions have the same text")
        self._asked: Counter[bytes] = Counter()

    async def complete(self, call: Call) -> bytes:
        """Answer as a model would; see :class:`optillm.core.upstream.Upstream`.

        Raises:
            UpstreamError: none of the questions stands in the call.
        """
        texts = self._replies(call.body)
        return to_json(
            {
                "id": "chatcmpl-simulated",
                "object": "chat.completion",
                "created": 0,
                "model": call.body["model"],
                "choices": [
                    {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                    for i, text in enumerate(texts)
                ],
                "usage": _usage(call.body, texts),
            }
        )

    async def stream(self, call: Call) -> AsyncIterator[bytes]:
        """The same answers in pieces, a word each; see :class:`optillm.core.upstream.Upstream`.

        Raises:
            UpstreamError: none of the questions stands in the call.
        """
        head = {
            "id": "chatcmpl-simulated",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": call.body["model"],
        }
        texts = self._replies(call.body)
        for i, text in enumerate(texts):
            for word in re.findall(r"\s*\S+", text):
                delta = {"role": "assistant", "content": word}
                yield to_json({**head, "choices": [{"index": i, "delta": delta, "finish_reason": None}]})
            yield to_json({**head, "choices": [{"index": i, "delta": {}, "finish_reason": "stop"}]})
        yield to_json({**head, "choices": [], "usage": _usage(call.body, texts)})

    async def models(self) -> Sequence[Mapping[str, Any]]:
        """The one model; any other name is answered as well."""
        return ({"id": self.name, "object": "model", "created": 0, "owned_by": "optillm"},)

    async def aclose(self) -> None:
        """Nothing to close."""

    def _replies(self, body: Mapping[str, Any]) -> list[str]:
        key = _key(body)
        self._asked[key] += 1
        rng = Random(f"{self.seed}/{key.hex()}/{self._asked[key]}")
        messages = [Message(raw) for raw in body["messages"]]
        return [self._reply(messages, rng) for _ in range(body.get("n") or 1)]

    def _reply(self, messages: Sequence[Message], rng: Random) -> str:
        role = _role(messages)
        if role is None or role == "forge":
            turns = [(m.role, m.text) for m in messages if m.role not in SYSTEM_ROLES]
            return self._answered(turns, rng, wrong=role == "forge")
        shown = {b["name"]: b["text"] for b in reversed([*_BLOCK.finditer(messages[-1].text)])}
        turns = _turns(shown.get("conversation", ""))
        said = f"Considered {rng.getrandbits(48):012x}."
        if role == "user":
            return END if rng.random() < self.leaves else f"{said} {_GO_ON}"
        if role == "coach":
            return f"{said}\n1. Check every step."
        if role == "list":
            return f"{said}\n1. Is the result right?\n2. Is every step right?"
        return f"{said}\n{self._judgement(role, self._question(turns), turns, shown, rng)}"

    def _answered(self, turns: Sequence[tuple[str, str]], rng: Random, *, wrong: bool) -> str:
        question = self._question(turns)
        before = [final_answer(text) for who, text in turns if who == "assistant"]
        if wrong:
            answer = rng.choice(question.wrong)
        elif before and before[-1] is not None and rng.random() < self.keeps:
            answer = before[-1]
        else:
            right = rng.random() < question.accuracy
            answer = question.answer if right else rng.choice(question.wrong)
        return self.write(question, answer, rng)

    def write(self, question: Question, answer: str, rng: Random) -> str:
        """A reply that ends in an answer."""
        return f"Attempt {rng.getrandbits(48):012x}.\nThe answer is {answer}"

    def judge_of(self, question: Question) -> Judge:
        """How replies to a question are judged."""
        return self.judge

    def _judgement(
        self,
        role: Role,
        question: Question,
        turns: Sequence[tuple[str, str]],
        shown: Mapping[str, str],
        rng: Random,
    ) -> str:
        judge = self.judge_of(question)
        if role == "compare":
            first, second = (question.is_right(shown.get(name, "")) for name in ("first", "second"))
            winner = "first" if judge.prefers_first(first, second, rng) else "second"
            return f"Verdict: {winner}"
        if role == "value":
            right = question.is_right(next((t for who, t in reversed(turns) if who == "assistant"), ""))
            return f"Score: {judge.grade(right, rng):g}"
        right = question.is_right(shown.get("candidate") or shown.get("solution", ""))
        if role == "rate":
            return f"Score: {10 * judge.grade(right, rng):g}"
        items = len(_ITEM.findall(shown.get("checklist", ""))) if role == "mark" else 1
        verdicts = ["yes" if judge.grade(right, rng) >= 0.5 else "no" for _ in range(items)]
        if role == "mark":
            return "\n".join(f"{i}: {v}" for i, v in enumerate(verdicts, 1))
        return f"Verdict: {verdicts[0]}"

    def _question(self, turns: Sequence[tuple[str, str]]) -> Question:
        asked = [text.strip() for who, text in turns if who == "user"]
        for text in asked:
            if text in self._by_text:
                return self._by_text[text]
        within = [known for known in self._by_text if any(known in text for text in asked)]
        if not within:
            raise UpstreamError(
                "the simulated model knows no such question",
                upstream_status=404,
                body={"error": {"message": "no such question", "type": "invalid_request_error"}},
            )
        return self._by_text[max(within, key=len)]


def _key(body: Mapping[str, Any]) -> bytes:
    """What a call says, without how it is sent."""
    said = {k: v for k, v in body.items() if k not in ("stream", "stream_options")}
    return blake2b(to_json(said), digest_size=16).digest()


def _role(messages: Sequence[Message]) -> Role | None:
    text = "\n".join(m.text for m in messages if m.role in SYSTEM_ROLES)
    return next((role for words, role in ROLES.items() if words in text), None)


def _turns(conversation: str) -> list[tuple[str, str]]:
    """The turns of a conversation as a helper prompt shows it; a single question has no label."""
    labels = list(_TURN.finditer(conversation))
    if not labels:
        return [("user", conversation)]
    ends = [*(label.start() for label in labels), len(conversation)]
    return [
        (label[1], conversation[label.end() : end])
        for label, (_, end) in zip(labels, pairwise(ends), strict=True)
    ]


def _tokens(text: str) -> int:
    return len(text.split())


def _usage(body: Mapping[str, Any], texts: Sequence[str]) -> dict[str, int]:
    asked = sum(_tokens(Message(raw).text) for raw in body["messages"])
    said = sum(map(_tokens, texts))
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
