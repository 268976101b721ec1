"""The algebra of approaches: what is read, what is printed, what is refused and where."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from optillm.core.params import Param
from optillm.core.plan import (
    MAX_DEPTH,
    MAX_UNITS,
    Chain,
    Par,
    Plan,
    Reduce,
    Unit,
    check_unambiguous,
    parse_spec,
    pipelines,
    split_model,
    units,
    width,
)
from optillm.plugins import builtin_registry
from optillm.protocol.errors import InvalidRequest

REGISTRY = builtin_registry()
A, B, C, D = Unit("bon"), Unit("moa"), Unit("mcts"), Unit("re2")
SC = Unit("self_consistency")


def parse(text: str) -> Plan:
    return parse_spec(text, REGISTRY)


def refused(text: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(text)
    return caught.value


MEANINGS = [
    ("bon", A),
    ("bon&moa", Chain((A, B))),
    ("bon|moa", Par((A, B))),
    # | binds tightest, then >, then &.
    ("bon&moa|mcts", Chain((A, Par((B, C))))),
    ("bon|moa&mcts|re2", Chain((Par((A, B)), Par((C, D))))),
    ("moa|mcts>bon", Reduce(Par((B, C)), A)),
    ("(moa|mcts)>bon", Reduce(Par((B, C)), A)),
    ("mcts>bon", Reduce(C, A)),
    ("re2&moa|mcts>bon", Chain((D, Reduce(Par((B, C)), A)))),
    ("re2&(moa|mcts)>bon", Chain((D, Reduce(Par((B, C)), A)))),
    ("(moa|mcts)>bon&re2", Chain((Reduce(Par((B, C)), A), D))),
    ("(re2&moa|mcts)>bon", Reduce(Chain((D, Par((B, C)))), A)),
    ("(((moa|mcts)>bon)|re2)>self_consistency", Reduce(Par((Reduce(Par((B, C)), A), D)), SC)),
    ("((moa>bon)>self_consistency)", Reduce(Reduce(B, A), SC)),
    ("(bon|moa)|mcts", Par((Par((A, B)), C))),
    ("(bon&moa)&mcts", Chain((Chain((A, B)), C))),
    ("((bon))", A),
    (" \t(\n moa |mcts ) > bon ( n = 2 ) ", Reduce(Par((B, C)), Unit("bon", (("n", 2),)))),
    ("bon(best_of_n=2)", Unit("bon", (("n", 2),))),
    ('bon(judge_model="a|b&(c)>d, \\"e\\" \\\\")', Unit("bon", (("judge_model", 'a|b&(c)>d, "e" \\'),))),
    ("bon(judge_model=4-turbo)", Unit("bon", (("judge_model", "4-turbo"),))),
    ("bon(judge_model=1e5x)", Unit("bon", (("judge_model", "1e5x"),))),
    ('bon(judge_model="true")', Unit("bon", (("judge_model", "true"),))),
    ('bon(judge_model="12")', Unit("bon", (("judge_model", "12"),))),
    ("moa(critique=FALSE,temperature=.5)", Unit("moa", (("critique", False), ("temperature", 0.5)))),
    ("bon(temperature=1e-1)", Unit("bon", (("temperature", 0.1),))),
]


@pytest.mark.parametrize(("text", "plan"), MEANINGS)
def test_what_a_text_means(text: str, plan: Plan) -> None:
    assert parse(text) == plan
    assert parse(str(plan)) == plan


@pytest.mark.parametrize(
    "text",
    ["(moa|mcts)>bon", "re2&(moa|mcts)>bon", "(moa|mcts)>bon&re2", "(re2&bon)|moa", "mcts>bon(n=2)"],
)
def test_the_usual_way_of_writing_is_printed(text: str) -> None:
    assert str(parse(text)) == text


def test_units_stand_in_the_order_written() -> None:
    plan = parse("re2&(moa|(bon&mcts))>self_consistency")
    assert [u.slug for u in units(plan)] == ["re2", "moa", "bon", "mcts", "self_consistency"]


@pytest.mark.parametrize(
    ("text", "choices", "at_once"),
    [
        ("bon", 1, 1),
        ("bon|moa|re2", 3, 3),
        ("(bon|moa)&re2", 1, 2),
        ("re2&(bon|moa)", 2, 2),
        ("(bon|moa)>bon", 1, 2),
        ("((bon|moa)>bon)|(re2&bon|moa)", 3, 4),
    ],
)
def test_how_many_choices_and_how_many_at_once(text: str, choices: int, at_once: int) -> None:
    assert (width(parse(text)), pipelines(parse(text))) == (choices, at_once)


# text, 1-based position, words of the message, code
REFUSED: list[tuple[str, int, str, str]] = [
    ("", 1, "expected the name of an approach", "invalid_approach"),
    ("   ", 4, "expected the name of an approach", "invalid_approach"),
    ("&bon", 1, "expected the name of an approach", "invalid_approach"),
    ("bon&", 5, "expected the name of an approach", "invalid_approach"),
    ("bon||moa", 5, "expected the name of an approach", "invalid_approach"),
    ("bon moa", 5, "expected '&', '|', '>' or the end", "invalid_approach"),
    ("(bon|moa", 9, "expected ')'", "invalid_approach"),
    ("bon)", 4, "expected '&', '|', '>' or the end", "invalid_approach"),
    ("()", 2, "expected the name of an approach", "invalid_approach"),
    ("bon()", 5, "expected the name of a parameter", "invalid_approach"),
    ("bon(n)", 6, "expected '='", "invalid_approach"),
    ("bon(n=)", 7, "expected a value", "invalid_approach"),
    ("bon(n=2", 8, "expected ',' or ')'", "invalid_approach"),
    ("bon(n=2,)", 9, "expected the name of a parameter", "invalid_approach"),
    ('bon(judge_model="x)', 17, "expected a value", "invalid_approach"),
    ("bon(n=2,n=3)", 9, "'n' given twice", "invalid_approach"),
    ("bon(n=2,best_of_n=3)", 9, "'n' given twice", "invalid_approach"),
    ("bon(n=0)", 7, "from 1 to 64", "invalid_parameter"),
    ("re2&bon( n = two )", 14, "an integer", "invalid_parameter"),
    ("bon(temperature=1e999)", 17, "a number", "invalid_parameter"),
    ("moa|bon(temprature=1)", 9, "Did you mean 'temperature'", "unknown_parameter"),
    ("re2&mtcs", 5, "Did you mean 'mcts'", "unknown_approach"),
    ("none&bon", 1, "'none' cannot be part", "invalid_approach"),
    ("bon|none", 5, "'none' cannot be part", "invalid_approach"),
    ("(bon&none|moa)>bon", 6, "'none' cannot be part", "invalid_approach"),
    ("none>bon", 1, "'none' cannot be part", "invalid_approach"),
    ("bon>", 5, "expected the name of an approach", "invalid_approach"),
    (">bon", 1, "expected the name of an approach", "invalid_approach"),
    ("moa|bon>(bon)", 9, "one approach that reduces", "invalid_approach"),
    ("(moa|bon)>mcts", 11, "These can: ", "cannot_reduce"),
    ("moa>bon>bon", 8, "parentheses", "invalid_approach"),
    ("moa>bon|re2", 8, "parentheses", "invalid_approach"),
    ("moa>bom", 5, "Did you mean 'bon'", "unknown_approach"),
]


@pytest.mark.parametrize(("text", "position", "words", "code"), REFUSED)
def test_errors_tell_where_and_what(text: str, position: int, words: str, code: str) -> None:
    error = refused(text)
    assert error.message.startswith(f"position {position} of '{text[: position - 1]}^{text[position - 1 :]}'")
    assert words in error.message
    assert error.code == code


def test_an_error_about_a_parameter_names_the_parameter() -> None:
    assert refused("bon(n=0)").param == "best_of_n"
    assert refused("bon|").param == "optillm_approach"


def test_the_error_in_a_long_text_is_short_and_shows_the_place() -> None:
    error = refused("|".join(["bon(judge_model=" + "x" * 500 + ")"] * 18 + ["oops"]) + "|bon" * 250)
    assert "|^oops|bon" in error.message
    assert len(error.message.partition(" Known: ")[0]) < 200


@pytest.mark.parametrize("sign", "&|")
def test_number_of_approaches_is_bounded(sign: str) -> None:
    assert len(list(units(parse(sign.join(["bon"] * MAX_UNITS))))) == MAX_UNITS
    error = refused(sign.join(["bon"] * 2500))
    assert f"more than {MAX_UNITS} approaches" in error.message
    assert error.message.startswith(f"position {4 * MAX_UNITS + 1} of")


@pytest.mark.parametrize("text", ["(" * 10_000, "(" * 5_000 + "bon" + ")" * 5_000])
def test_ten_thousand_parentheses(text: str) -> None:
    assert "too many open parentheses" in refused(text).message


def nested(levels: int) -> str:
    return "bon" if levels == 0 else f"bon{'&|'[levels % 2]}({nested(levels - 1)})"


def test_nesting_is_bounded_and_what_is_accepted_can_be_printed() -> None:
    deepest = parse(nested(MAX_DEPTH))
    assert parse(str(deepest)) == deepest
    error = refused(nested(MAX_DEPTH + 1))
    assert "inside one another" in error.message
    assert parse("(" * 40 + "bon" + ")" * 40) == A


@pytest.mark.parametrize(
    "text", ["bon(judge_model=" + "x" * 9_984, "x" * 10_000, "bon(" + "n" * 9_990, " " * 10_000]
)
def test_ten_thousand_characters_are_refused_briefly(text: str) -> None:
    assert len(refused(text).message.partition(" Known: ")[0]) < 200


def test_a_value_may_be_long() -> None:
    name = "m" * 10_000
    assert parse(f'bon(judge_model="{name}")') == Unit("bon", (("judge_model", name),))


# -- model names --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spec", "model"),
    [
        ("(moa|mcts)>bon-model", "(moa|mcts)>bon", "model"),
        ("moa|mcts>bon-gpt-4o", "(moa|mcts)>bon", "gpt-4o"),
        ("re2&(moa|mcts)>bon(judge_model=4-turbo)-a>b", "re2&(moa|mcts)>bon(judge_model=4-turbo)", "a>b"),
        ("mcts>bon-bon", "mcts>bon", "bon"),
        ("bon-" + "x" * 10_000, "bon", "x" * 10_000),
    ],
)
def test_a_model_name_with_a_composition(name: str, spec: str, model: str) -> None:
    plan, rest = split_model(name, REGISTRY)
    assert (str(plan), rest) == (spec, model)


@pytest.mark.parametrize(
    "name", ["gpt-4o", "moa", "moa-", "(moa)", "-x", "a b", "meta/llama-3", "", "gpt(beta)"]
)
def test_a_model_name_without_one(name: str) -> None:
    assert split_model(name, REGISTRY) == (None, name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zzz>bon-x", "position 1 of '^zzz>bon-x'"),
        ("moa>zzz-x", "position 5 of 'moa>^zzz-x'"),
        ("moa>bon", "expected '-' and the name of a model"),
        ("moa>bon-", "expected '-' and the name of a model"),
        ("(moa|mcts>bon-x", "expected ')'"),
    ],
)
def test_a_model_name_that_is_refused(name: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(words)) as caught:
        split_model(name, REGISTRY)
    assert caught.value.param == "model"


@pytest.mark.parametrize("name", ["moa-bon-x", "(moa|mcts)>bon-re2-x", "(moa&re2)-bon|re2-x"])
def test_both_readings_of_an_ambiguous_name_can_be_written(name: str) -> None:
    plan, rest = split_model(name, REGISTRY)
    assert plan is not None
    with pytest.raises(InvalidRequest) as caught:
        check_unambiguous(plan, rest, REGISTRY)
    readings = re.findall(r"'([^']+)' to run", caught.value.message)
    chain, par = (split_model(reading, REGISTRY)[0] for reading in readings)
    assert isinstance(chain, Chain)
    assert isinstance(par, Par)
    assert chain.steps == par.branches == (plan, split_model(rest, REGISTRY)[0])


# -- properties ---------------------------------------------------------------------------------

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 2, allow_nan=False),
    "judge_model": st.one_of(
        st.text(),
        st.sampled_from(["true", "FALSE", "1", "-1.5e3", "4-turbo", "", " ", '"', "\\", "a\nb", "None"]),
    ),
    "critique": st.booleans(),
}


def values_of(param: Param) -> st.SearchStrategy[Any] | None:
    """Its choices, where it has some; else by its name."""
    if get_origin(param.kind) is Literal:
        return st.sampled_from(get_args(param.kind))
    if param.name == "n":
        low, high = param.rule.ge or 1, param.rule.le or 64
        return st.integers(int(low), int(high))
    return VALUES.get(param.name)


def args_of(slug: str) -> st.SearchStrategy[tuple[tuple[str, Any], ...]]:
    values = {p.name: v for p in REGISTRY[slug].params if (v := values_of(p)) is not None}
    chosen = st.lists(st.sampled_from([*values]), unique=True) if values else st.just([])
    return chosen.flatmap(lambda given: st.tuples(*(st.tuples(st.just(n), values[n]) for n in given)))


def units_of(slugs: list[str]) -> st.SearchStrategy[Unit]:
    return st.sampled_from(slugs).flatmap(lambda slug: st.builds(Unit, st.just(slug), args_of(slug)))


UNITS = units_of([a.slug for a in REGISTRY if a.slug != "none"])
REDUCERS = units_of([a.slug for a in REGISTRY if a.reduces])


def composed(inner: st.SearchStrategy[Plan]) -> st.SearchStrategy[Plan]:
    several = st.lists(inner, min_size=2, max_size=4).map(tuple)
    return st.one_of(st.builds(Par, several), st.builds(Chain, several), st.builds(Reduce, inner, REDUCERS))


PLANS: st.SearchStrategy[Plan] = st.recursive(UNITS, composed, max_leaves=12)
SPACE = st.sampled_from(["", " ", "\n\t "])
SIGNS = tuple('&|>()=,- "\\n2²٣\x00\ud800')
FRAGMENTS = st.sampled_from((*SIGNS, "bon", "moa", "re2", "none", "zzz", "true", "judge_model", "1e999"))
# Speed is not what is tested, and the first text that is drawn takes a second.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@UNHURRIED
@given(PLANS)
def test_a_plan_that_is_printed_and_read_is_the_same_plan(plan: Plan) -> None:
    assert parse(str(plan)) == plan
    model = f"{plan}-some-model"
    assert split_model(model, REGISTRY) == (plan, "some-model")


@UNHURRIED
@given(PLANS, st.data())
def test_space_around_operators_changes_nothing(plan: Plan, data: st.DataObject) -> None:
    quoted_or_sign = re.compile(r'"(?:[^"\\]|\\.)*"|[&|>(),=]', re.S)

    def spaced(match: re.Match[str]) -> str:
        return data.draw(SPACE) + match.group() + data.draw(SPACE)

    assert parse(quoted_or_sign.sub(spaced, str(plan))) == plan


@UNHURRIED
@given(st.one_of(st.text(), st.lists(FRAGMENTS, max_size=30).map("".join)))
@example("bon(n=" + "9" * 5000 + ")")
@example("bon(temperature=" + "9" * 400 + ")")
@example("bon(n=²)")
@example("bon(n=٣)")
def test_any_other_text_is_refused_with_its_position(text: str) -> None:
    for read in (parse, lambda t: split_model(t, REGISTRY)):
        message = refusal(read, text)
        if message is not None:
            position = re.match(r"position (\d+) of ", message)
            assert position is not None, message
            assert 1 <= int(position.group(1)) <= len(text) + 1


def refusal(read: Callable[[str], Any], text: str) -> str | None:
    """Why a text is refused; None if it is not. Any other exception is a bug, and is raised."""
    try:
        read(text)
    except InvalidRequest as error:
        return error.message
    return None
