"""Training the router: what it reads, what it learns, and how good its choices are."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from optillm.approaches.routing.router import pick, price
from optillm.cli.main import main
from optillm.core.routing.features import features
from optillm.core.routing.model import load
from optillm.core.task import Task
from optillm.evals.routing.collect import collect, simulated
from optillm.evals.routing.problems import Problem, kinds, problems
from optillm.evals.routing.results import Result, ResultsError, read, write
from optillm.evals.routing.table import table
from optillm.evals.routing.train import rendered, train

pytestmark = pytest.mark.anyio

KINDS_OF_TEXT = {
    "sum": ("none", "What is {} + {}?"),
    "code": ("bon", "Write a Python function number {} that handles {} cases."),
    "poem": ("self_consistency", "Compose a poem with {} lines about {} birds."),
}
COSTS = {"none": 1, "self_consistency": 5, "bon": 6}


def by_type(count: int, seed: int = 1, noise: float = 0.0) -> list[Result]:
    """Results in which the type of a question decides the best technique."""
    rng = random.Random(seed)
    out = []
    for i in range(count):
        kind = list(KINDS_OF_TEXT)[i % 3]
        best, text = KINDS_OF_TEXT[kind]
        prompt = text.format(rng.randint(1, 99), rng.randint(100, 999))
        for approach, cost in COSTS.items():
            right = (0.95 if approach == best else 0.3) + rng.uniform(-noise, noise)
            out.append(
                Result(
                    prompt=prompt,
                    approach=approach,
                    score=min(max(right, 0), 1),
                    calls=cost,
                    tokens=100 * cost,
                    model="m",
                    kind=kind,
                )
            )
    return out


# -- what is read --------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "prompt": "What is 2+2?", "approach": "none", "score": 1, "calls": 1, "tokens": 20, "model": "m",
}  # fmt: skip


def file(folder: Path, *lines: Any) -> Path:
    path = folder / "results.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_results_are_read_as_they_are_written(tmp_path: Path) -> None:
    chat = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})
    some = [
        *by_type(3),
        Result(prompt=chat, approach="bon", score=0.5, calls=6, tokens=9, model="m", cost=0.1),
    ]
    write(tmp_path / "r", some)
    assert read([tmp_path / "r"]) == some
    assert some[-1].task.system == "Be brief."
    assert some[-1].task.text == "Why?"
    assert len(read([file(tmp_path, GOOD, "", GOOD)])) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": 1.5}, "'score': Expected `float` <= 1"),
        ({"score": None}, "'score': Expected `float`, got `null`"),
        ({"calls": -1}, "'calls': Expected `float` >= 0"),
        ({"tokens": "many"}, "'tokens': Expected `float`, got `str`"),
        ({"prompt": ""}, "'prompt': Expected `str` of length >= 1"),
        ({"prompt": [{"content": "Why?"}]}, "'prompt': every message needs a role"),
        ({"runs": 0}, "'runs': Expected `int` >= 1"),
        ({"aproach": "bon"}, "unknown field 'aproach'. Did you mean 'approach'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = file(tmp_path, GOOD, {**GOOD, **change})
    with pytest.raises(ResultsError) as caught:
        read([path])
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert said in str(caught.value)


def test_not_json_not_an_object_a_missing_field_and_no_file(tmp_path: Path) -> None:
    for line, said in (("{", "not JSON"), ("[1]", "not a JSON object"), ('{"prompt": "x"}', "`approach`")):
        with pytest.raises(ResultsError, match="line 3: ") as caught:
            read([file(tmp_path, GOOD, "", line)])
        assert said in str(caught.value)
    with pytest.raises(ResultsError, match="cannot read"):
        read([tmp_path / "absent"])


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([], "at least two techniques"),
        ([r for r in by_type(60) if r.approach == "none"], "at least two techniques"),
        (by_type(9), "at least 20 questions are needed, and there are 9"),
        ([r for i, r in enumerate(by_type(60)) if i < 30 or r.approach != "bon"], "of every technique"),
    ],
)
def test_too_few_results(results: Sequence[Result], said: str) -> None:
    with pytest.raises(ResultsError, match=said):
        train(results, when="today")


def test_costs_are_in_plain_replies() -> None:
    t = table(by_type(60))
    assert t.baseline == "none"
    assert t.cost[0].tolist() == [1, 5, 6]
    assert table(by_type(60), "tokens").cost[0].tolist() == [1, 5, 6]
    with pytest.raises(ResultsError, match="has no 'cost'"):
        table(by_type(60), "cost")


def test_the_same_question_twice_counts_by_its_runs() -> None:
    once = by_type(60)
    again = Result(prompt=once[0].prompt, approach="none", score=0, calls=4, tokens=1, model="m", runs=2)
    t = table([*once, again])
    assert t.score[0, 0] == pytest.approx(0.95 / 3)
    assert len(t.features) == 60
    # Another model's answer to it is another question.
    other = Result(prompt=once[0].prompt, approach="none", score=0, calls=1, tokens=1, model="other")
    assert len(table([*once, other]).features) == 61


# -- what is learned -----------------------------------------------------------------------------


def test_where_the_type_decides_it_comes_to_nine_tenths_of_the_oracle() -> None:
    trained = train(by_type(120, noise=0.05), when="today")
    report = trained.report
    assert report.of_oracle >= 0.9
    assert report.accuracy >= 0.9
    lines = {line.name: line for line in report.lines}
    always = max(line.score for name, line in lines.items() if name not in ("router", "oracle"))
    assert lines["router"].score > always + 0.3
    # On questions of another draw, by the model itself.
    right = 0.0
    fresh = by_type(60, seed=2)
    for result in fresh[::3]:
        seen = features(result.task)
        chosen = pick(trained.model.estimates(seen), trained.model.confidence, 1.0, price(0.7), 0.5).choice
        right += next(r.score for r in fresh if (r.prompt, r.approach) == (result.prompt, chosen.approach))
    assert right / 60 >= 0.9 * 0.95
    assert "oracle" in rendered(report)
    # At effort 0 the cheapest, whatever it is worth.
    assert report.efforts["0"].chosen == {"none": 1.0}


def test_what_it_expects_is_calibrated() -> None:
    trained = train(by_type(120), when="today")
    for kind, (best, text) in KINDS_OF_TEXT.items():
        task = Task.of([{"role": "user", "content": text.format(7, 321)}])
        for estimate in trained.model.estimates(features(task)):
            expected = 0.95 if estimate.approach == best else 0.3
            assert estimate.score == pytest.approx(expected, abs=0.12), (kind, estimate)
            assert estimate.cost == pytest.approx(COSTS[estimate.approach], rel=0.05)


def test_the_same_results_make_the_same_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "r.jsonl", by_type(60))
    for name in ("a", "b"):
        out, report = tmp_path / name, tmp_path / f"{name}.json"
        assert (
            main(["train-router", str(tmp_path / "r.jsonl"), "--out", str(out), "--report", str(report)]) == 0
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    said = capsys.readouterr().out
    assert "on held-out questions" in said
    assert "of the oracle's" in said
    told = json.loads((tmp_path / "a.json").read_text())
    assert [line["name"] for line in told["lines"]] == [*COSTS, "router", "oracle"]
    model = load(tmp_path / "a")
    assert model.approaches == tuple(COSTS)
    assert model.metadata["questions"] == 60
    assert model.metadata["kinds"] == {"code": 20, "poem": 20, "sum": 20}


def test_the_command_tells_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = file(tmp_path, {**GOOD, "score": 2})
    assert main(["train-router", str(bad), "--out", str(tmp_path / "m")]) == 2
    assert f"{bad}, line 1: 'score'" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_without_scikit_learn_the_command_says_what_to_install(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl", by_type(20))
    code = (
        "import sys; sys.modules.update(sklearn=None, scipy=None, numpy=None); "
        "from optillm.cli.main import main; "
        f"sys.exit(main(['train-router', {str(tmp_path / 'r.jsonl')!r}, '--out', 'x']))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "pip install 'optillm[train]'" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_serving_needs_none_of_it() -> None:
    code = (
        "import sys; import optillm.faces.app; from optillm.core.routing.model import ModelFile; "
        "ModelFile().loaded; print([m for m in ('numpy', 'scipy', 'sklearn') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# -- problems and their model --------------------------------------------------------------------


def test_problems_are_the_same_for_the_same_seed() -> None:
    some = problems(120, 1)
    assert some == problems(120, 1)
    assert some != problems(120, 2)
    assert len({p.text for p in some}) == 120
    assert {p.kind for p in some} == set(kinds())
    for p in some:
        assert p.open or p.is_right(f"Hm.\nThe answer is {p.answer}"), p
        assert not any(p.is_right(f"Hm.\nThe answer is {w}") for w in p.wrong), p


async def test_techniques_gain_where_they_should() -> None:
    """Voting where wrong answers differ, judging where judges are good, programs where they settle it."""
    some = [p for p in problems(360, 3) if p.kind in ("arithmetic", "planning", "fact")]

    async def score(kind: str, approach: str) -> float:
        mine: list[Problem] = [p for p in some if p.kind == kind]
        source = simulated(mine, seed=1, runs=4)
        scores = [r.score async for r in collect(source, mine, [approach])]
        return sum(scores) / len(scores)

    plain = await score("arithmetic", "none")
    assert await score("arithmetic", "adaptive_consistency") > plain + 0.1
    assert await score("arithmetic", "z3") > 0.85
    planned = await score("planning", "none")
    assert await score("planning", "bon") > planned + 0.15
    assert abs(await score("planning", "self_consistency") - planned) < 0.12
    known = await score("fact", "none")
    assert abs(await score("fact", "self_consistency") - known) < 0.12


async def test_results_of_the_simulated_model_repeat() -> None:
    some = problems(24, 5)

    async def results() -> list[Result]:
        source = simulated(some, seed=5, runs=2)
        return [r async for r in collect(source, some, ["none", "bon", "z3"])]

    first = await results()
    assert first == await results()
    assert len(first) == 72
    assert {r.calls for r in first if r.approach == "none"} == {1}
    assert {r.runs for r in first} == {2}
