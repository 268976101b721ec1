"""Random requests, each with a marker, and an upstream whose every word depends on what it was asked."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.fakes import Reply, Said, Seen

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
VOLATILE = frozenset({"run_id", "seconds", "id", "created", "started", "ended", "at"})
MARKER = re.compile(r"marker-(\d+)-")
DRAWING = ("rsa", "tournament", "rstar", "mars", "genselect")
"""Techniques that decide by the run's random numbers what to ask."""
NONCE = re.compile(r"(?<=-)[0-9a-f]{12}(?=>)|(?<=marks that end in )[0-9a-f]{12}")
"""The mark that a run draws to put around data in its prompts."""


def random_request(number: int, rng: random.Random) -> dict[str, Any]:
    """A request of a random technique with random parameters; its question carries ``marker-N-``.

    Some stream; some have no seed, so that their runs draw one.
    """
    text = f"marker-{number}- What is {rng.randint(1, 99)} plus {rng.randint(1, 99)}?"
    content: Any = [{"type": "text", "text": text}, IMAGE] if rng.random() < 0.2 else text
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if rng.random() < 0.5:
        messages.insert(0, {"role": "system", "content": f"Be brief, number {number}."})
    body: dict[str, Any] = {
        "messages": messages,
        "model": f"model-{rng.randint(1, 3)}",
        "seed": rng.randint(0, 10**6),
        "top_p": rng.choice([0.5, 0.9, 1.0]),
    }
    if rng.random() < 0.5:
        body["temperature"] = rng.choice([0.1, 0.7, 1.3])
    if rng.random() < 0.5:
        body[rng.choice(["max_tokens", "max_completion_tokens"])] = rng.randint(10, 500)
    if rng.random() < 0.3:
        body["tools"] = [TOOL]
    if rng.random() < 0.3:
        body["n"] = rng.randint(1, 3)
    if rng.random() < 0.2:
        body["stop"] = ["END"]
    if rng.random() < 0.4:
        body.update(stream=True, stream_options={"include_usage": rng.random() < 0.5})
    if rng.random() < 0.25:
        del body["seed"]
    body.update(_technique(number, rng))
    drawing = any(slug in body["optillm_approach"] for slug in DRAWING)
    if drawing or body.get("plansearch_mode") == "tree":
        # What it asks is a matter of the run's random numbers, so of its seed.
        body.setdefault("seed", number)
    if "optillm_budget" in body:
        # Which of several pipelines gets the last call of a budget is a matter of time.
        body.pop("n", None)
    return body


def _technique(number: int, rng: random.Random) -> dict[str, Any]:
    """Each kind in turn, with parameters of its own."""
    budget = {"optillm_budget": {"max_calls": rng.randint(1, 6)}} if rng.random() < 0.3 else {}
    options: list[dict[str, Any]] = [
        {"optillm_approach": "none"},
        {"optillm_approach": "re2", "re2_times": rng.randint(2, 3)},
        {"optillm_approach": "cot_reflection", "cot_expose_reasoning": rng.random() < 0.5},
        {"optillm_approach": "bon", "best_of_n": rng.randint(2, 6), **budget},
        {
            "optillm_approach": "moa",
            "moa_proposers": rng.randint(2, 4),
            "moa_layers": rng.randint(1, 2),
            **budget,
        },
        {"optillm_approach": "self_consistency", "sc_samples": rng.randint(2, 7), **budget},
        {
            "optillm_approach": "mcts",
            "mcts_simulations": rng.randint(1, 5),
            "mcts_depth": rng.randint(0, 2),
            "mcts_exploration": rng.choice([0.1, 1.0, 2.5]),
        },
        {
            "optillm_approach": "mcts",
            "mcts_simulations": rng.randint(1, 4),
            "mcts_parallel": 1,
            **budget,
        },
        {"optillm_approach": "rto", "rto_equivalence": rng.choice(["text", "ast", "similarity"]), **budget},
        {
            "optillm_approach": "pvg",
            "pvg_rounds": rng.randint(1, 3),
            "pvg_solutions": rng.randint(1, 3),
            **budget,
        },
        {
            "optillm_approach": "leap",
            "leap_samples": rng.randint(1, 4),
            "leap_mode": rng.choice(["natural", "natural", "induced"]),
            **budget,
        },
        {"optillm_approach": "plansearch", "plansearch_observations": rng.randint(1, 4), **budget},
        {
            "optillm_approach": "plansearch",
            "plansearch_mode": "tree",
            "plansearch_leaves": rng.randint(3, 6),
            "plansearch_criticism": rng.random() < 0.3,
            **budget,
        },
        {
            "optillm_approach": "z3",
            "z3_attempts": rng.randint(1, 3),
            "z3_speculative": rng.random() < 0.3,
            **budget,
        },
        {
            "optillm_approach": "rstar",
            "rstar_max_depth": rng.randint(2, 4),
            "rstar_num_rollouts": rng.randint(1, 5),
            "rstar_votes": rng.randint(1, 2),
            "rstar_finalize": rng.random() < 0.7,
            # Which of several rollouts gets the last call of a budget is a matter of time.
            **({"rstar_parallel": 1, **budget} if budget else {}),
        },
        {
            "optillm_approach": "rlm",
            "rlm_rounds": rng.randint(1, 4),
            "rlm_calls": rng.randint(0, 4),
            "rlm_depth": rng.randint(1, 2),
            # Of two queries at once, which gets the last call of a budget is a matter of time.
            **({"rlm_calls": 1, **budget} if budget else {}),
        },
        {"optillm_approach": f"re2&bon(best_of_n={rng.randint(2, 3)})"},
        {"optillm_approach": f"self_consistency(samples={rng.randint(2, 4)})|moa"},
        {"optillm_approach": f"(re2|self_consistency(samples={rng.randint(2, 3)})|moa)>bon&cot_reflection"},
        {"optillm_approach": "bon&cot_reflection", "bon_judge_samples": rng.randint(1, 2)},
        *_helped(rng, budget),
        *_populations(rng, budget),
        *_selected(rng, budget),
        *_searched(rng, budget),
        *_long(number, rng, budget),
        *_planned(rng),
        *_agents(rng),
        *_routed(rng),
    ]
    return options[number % len(options)]


def _selected(rng: random.Random, budget: dict[str, Any]) -> list[dict[str, Any]]:
    """Techniques that choose by agreement or comparison, and one that runs programs with the model's help."""
    return [
        {"optillm_approach": "majority_voting", "k": rng.randint(1, 9), **budget},
        {
            "optillm_approach": "genselect",
            "num_candidates": rng.randint(2, 6),
            "comparison_mode": rng.choice(["batch", "tournament"]),
            "genselect_group_size": rng.randint(2, 4),
            "genselect_include_reasoning": rng.random() < 0.5,
            # Comparisons run side by side: which of them gets the last call of a budget is chance.
            "genselect_votes": rng.randint(1, 3),
        },
        {
            "optillm_approach": "deepthink",
            "deepthink_samples": rng.randint(1, 5),
            "confidence_threshold": rng.choice([0.3, 0.6, 1.0]),
            "enable_self_discover": rng.random() < 0.7,
            "reasoning_modules_limit": rng.randint(3, 6),
            **budget,
        },
        {
            "optillm_approach": "coc",
            "coc_fixes": rng.randint(0, 2),
            "coc_simulations": rng.randint(1, 4),
            "coc_mode": rng.choice(["interweave", "interweave", "python", "lm"]),
            "coc_finalize": rng.random() < 0.5,
            **budget,
        },
    ]


def _helped(rng: random.Random, budget: dict[str, Any]) -> list[dict[str, Any]]:
    """Techniques that plan, verify, criticise or debate before they answer."""
    return [
        {"optillm_approach": "cod", "cod_words": rng.randint(2, 9), "cod_expose_drafts": rng.random() < 0.5},
        # It does not learn: what one request teaches is meant to be in the prompts of the next.
        {"optillm_approach": rng.choice(["spl", "spl&re2"]), **budget},
        {"optillm_approach": "step_back", "step_back_temperature": rng.choice([0, 0.5]), **budget},
        {"optillm_approach": "least_to_most", "least_to_most_subquestions": rng.randint(1, 4), **budget},
        {"optillm_approach": "self_discover", "self_discover_modules": rng.randint(1, 9), **budget},
        {"optillm_approach": "self_refine", "self_refine_iterations": rng.randint(1, 3), **budget},
        {
            "optillm_approach": "reflexion",
            "reflexion_trials": rng.randint(1, 4),
            "reflexion_memory": rng.randint(1, 3),
            **rng.choice([{}, {"reflexion_reference": "2"}]),
            **budget,
        },
        {
            "optillm_approach": "cove",
            "cove_mode": rng.choice(["joint", "two_step", "factored", "factor_revise"]),
            "cove_questions": rng.randint(1, 4),
            **budget,
        },
        {
            "optillm_approach": "debate",
            "debate_agents": rng.randint(2, 4),
            "debate_rounds": rng.randint(1, 2),
            # Summaries run side by side: which of them gets the last call of a budget is chance.
            **({"debate_summarize": True} if rng.random() < 0.3 else budget),
        },
    ]


def _searched(rng: random.Random, budget: dict[str, Any]) -> list[dict[str, Any]]:
    """Tree searches. Those that draw random numbers have a seed."""
    return [
        {
            "optillm_approach": "ab_mcts",
            "ab_mcts_simulations": rng.randint(1, 6),
            # Within a wave, who gets the last call of a budget is a matter of time.
            "ab_mcts_parallel": 1 if budget else rng.randint(1, 3),
            "ab_mcts_prior": rng.choice(["gaussian", "beta"]),
            "ab_mcts_models": rng.choice([[], ["model-7", "model-8"]]),
            "seed": rng.randint(0, 10**6),
            **budget,
        },
        {
            "optillm_approach": "tot",
            "tot_steps": rng.randint(1, 3),
            "tot_generate": rng.choice(["propose", "sample"]),
            "tot_votes": rng.randint(1, 2),
            **rng.choice([{"tot_evaluate": "vote"}, {"tot_search": "dfs", "tot_expansions": 3}, {}]),
        },
        {
            "optillm_approach": "beam",
            "beam_mode": rng.choice(["beam", "dvts", "particle"]),
            "beam_n": rng.choice([2, 4]),
            "beam_steps": rng.randint(1, 4),
            "beam_select": rng.choice(["last", "vote"]),
            "seed": rng.randint(0, 10**6),
        },
    ]


def _long(number: int, rng: random.Random, budget: dict[str, Any]) -> list[dict[str, Any]]:
    """Techniques for contexts that are too long; every paragraph of them carries the marker."""
    said = f"marker-{number}- was told about {rng.randint(1, 99)} again. " * 12
    turns = [{"role": r, "content": said} for _ in range(rng.randint(4, 9)) for r in ("user", "assistant")]
    question = {"role": "user", "content": f"marker-{number}- And now?"}
    document = {"role": "user", "content": f"{said}\n\n" * 6 + f"<CONTEXT_END>marker-{number}- And now?"}
    return [
        {
            "optillm_approach": rng.choice(["memory", "memory&self_consistency(samples=2)"]),
            "messages": [*turns, question],
            "memory_context_window": 2048,
            "memory_chunk_tokens": rng.randint(150, 600),
            "memory_notes": rng.randint(1, 5),
            "max_tokens": 1000,
            **budget,
        },
        {
            "optillm_approach": rng.choice(["compact", "compact&re2&bon"]),
            "messages": [*turns, question],
            "compact_context_window": 2048,
            "compact_threshold": 0.4,
            "compact_keep_recent": rng.randint(1, 4),
        },
        {
            "optillm_approach": "longcepo",
            "messages": [document],
            "longcepo_chunk_size": rng.randint(200, 400),
            "longcepo_max_context_window": 2048,
            "longcepo_max_output_tokens": 128,
            "longcepo_num_neighbor_summaries": rng.randint(0, 2),
        },
    ]


def _planned(rng: random.Random) -> list[dict[str, Any]]:
    """Planners, without surplus attempts: what runs of them is a matter of time."""
    plans = rng.randint(1, 3)
    return [
        {
            "optillm_approach": "cepo",
            "cepo_bestofn_n": rng.randint(1, 3),
            "cepo_planning_n": plans,
            "cepo_planning_m": plans,
            "cepo_launch": rng.choice(["eager", "lazy"]),
            "cepo_preset": rng.choice(["default", "qwen3", "gptoss"]),
            "cepo_bestofn_rating_type": rng.choice(["absolute", "pairwise", "majority"]),
            "cepo_use_plan_diversity": rng.random() < 0.3,
            "cepo_planning_temperature_step1": rng.choice([0.2, 0.9]),
        },
    ]


def _agents(rng: random.Random) -> list[dict[str, Any]]:
    """Agents that verify and improve. Who of them gets the last call of a budget is a matter of time."""
    return [
        {
            "optillm_approach": "mars",
            "mars_config": {
                "num_agents": rng.randint(2, 4),
                "max_iterations": rng.randint(0, 2),
                "population_size": rng.randint(3, 6),
                "aggregation_loops": rng.randint(0, 2),
                "enable_strategy_network": rng.random() < 0.5,
            },
            **rng.choice([{}, {"mars_preset": "lightweight"}, {"mars_num_agents": 3}]),
        }
    ]


LISTS = ("plan how to verify", "break a problem down")
"""Helpers that are to write a list of questions."""
READERS = (
    "clear words",
    "margin of a long text",
    "summarise conversations",
    "part of a document",
    "findings",
)
"""Helpers that read what is too long to be shown."""


def _populations(rng: random.Random, budget: dict[str, Any]) -> list[dict[str, Any]]:
    """Techniques that vote, compare or recombine."""
    stop = rng.choice(["beta", "dirichlet", "window"])
    return [
        {
            "optillm_approach": f"adaptive_consistency(stop={stop},stop_window=2)",
            "adaptive_consistency_samples": rng.randint(3, 9),
            "adaptive_consistency_stop_threshold": rng.choice([0.6, 0.8, 0.95]),
            **budget,
        },
        {"optillm_approach": f"self_consistency(samples=8,stop={stop},stop_threshold=0.7)", **budget},
        {"optillm_approach": "usc", "usc_samples": rng.randint(2, 5), **budget},
        {
            "optillm_approach": "ranked_vote",
            "ranked_vote_samples": rng.randint(2, 6),
            "ranked_vote_method": rng.choice(["irv", "borda", "mrr"]),
            **budget,
        },
        {
            "optillm_approach": "rsa",
            "rsa_population": rng.randint(3, 4),
            "rsa_steps": rng.randint(1, 3),
            "rsa_final": rng.choice(["majority", "random", "aggregated"]),
            **budget,
        },
        {"optillm_approach": "sets", "sets_samples": rng.randint(1, 4), "sets_rounds": rng.randint(0, 2)},
        {
            "optillm_approach": "tournament",
            "tournament_n": rng.randint(2, 6),
            "tournament_mode": rng.choice(["knockout", "league"]),
            "tournament_opponents": rng.randint(1, 3),
            **budget,
        },
        {
            "optillm_approach": "mixture",
            "mixture_models": ["model-1", "model-2", "model-3"][: rng.randint(0, 3)],
            "mixture_proposers": rng.randint(2, 3),
            "mixture_layers": rng.randint(2, 3),
            **budget,
        },
        {"optillm_approach": f"(re2|cot_reflection)>{rng.choice(['usc', 'tournament', 'sets', 'mixture'])}"},
    ]


def _routed(rng: random.Random) -> list[dict[str, Any]]:
    """Whichever the shipped model chooses; what runs must depend on the request alone."""
    names = ["none", "self_consistency", "adaptive_consistency", "bon", "mcts"]
    return [
        {
            "optillm_approach": rng.choice(["router", "auto"]),
            "router_effort": rng.choice([0.3, 0.7, 1.0]),
            "router_approaches": rng.sample(names, rng.randint(1, 5)),
            "best_of_n": rng.randint(2, 4),
            "sc_samples": rng.randint(2, 4),
            "adaptive_consistency_samples": rng.randint(3, 6),
            "mcts_simulations": rng.randint(1, 3),
        },
        {"optillm_approach": f"re2&router(effort={rng.choice([0.3, 1])})", "router_approaches": ["bon"]},
    ]


def echo_script(call: Seen) -> Said:
    """Replies that are a function of the whole call: a leak from another request changes them."""
    body = {k: v for k, v in call.body.items() if k not in ("stream", "stream_options")}
    digest = hashlib.sha256(unmarked(body).encode()).hexdigest()
    if call.stage == "rate":
        return f"Score: {int(digest[:4], 16) % 101 / 10}"
    if call.stage == "eval":
        return f"Score: {int(digest[:4], 16) % 101 / 100}"
    if "select ways of reasoning" in call.system:
        return f"Modules: {int(digest[:2], 16) % 39 + 1}, {int(digest[2:4], 16) % 39 + 1}"
    if "feedback on a reply" in call.system:
        return f"said {digest[:12]}\nScore: {int(digest[:2], 16) % 11}\nRefine: yes"
    if "several ways to go on" in call.system:
        return "\n".join(f"Proposal {i}: say {digest[4 * i : 4 * i + 4]}" for i in (1, 2, 3))
    if "partial solutions" in call.system:
        verdict = ("sure", "maybe", "impossible")[int(digest[:4], 16) % 3]
        return f"Verdict: {verdict}\nChoice: {int(digest[4:8], 16) % 4 + 1}"
    if re.search(r"Write step \d+ and nothing else\.", call.last) and int(digest[0], 16) % 4:
        return [Reply(f"so {digest[:6]} {i}\n\nand on") for i in range(call.n)]
    if any(words in call.system for words in LISTS):
        return "\n".join(f"{i}. What is {digest[4 * i : 4 * i + 4]}?" for i in (1, 2, 3))
    if "verify answers" in call.system:
        return f"said {digest[:12]}\nVerdict: {'correct' if digest[0] < '8' else 'incorrect'}"
    if "verify solutions that other agents" in call.system:
        verdict = ("CORRECT", "INCORRECT", "INCOMPLETE")[int(digest[:4], 16) % 3]
        return f"Issues: said {digest[:12]}\nVerdict: {verdict}"
    if "impartial referee" in call.system:
        return f"Verdict: {'first' if digest[0] < '8' else 'second'}"
    if "name different approaches" in call.system:
        return json.dumps({i: f"way {digest[4 * i : 4 * i + 4]}" for i in range(3)})
    if "making a plan first" in call.system and digest[0] < "4":
        return Reply(f"said {digest[:12]}", finish="length")
    if "correct and accurate" in call.system:
        return f"Rating: [[{int(digest[0] < '8')}]]"
    if "which is more correct" in call.system:
        return f"Better Response: [[{int(digest[0] < '8')}]]"
    if call.stage == "select":
        return f"Choice: {int(digest[:2], 16) % 4 + 1}"
    if "explore a long text" in call.system:
        return _exploring(digest)
    if "programs for solvers" in call.system or "into programs" in call.system:
        return f"<solver>yes</solver>\n```python\nprint('{digest[:12]}'){failing(digest)}\n```"
    if "select the best of several" in call.system:
        return f"said {digest[:12]}\nBEST CANDIDATE: {int(digest[:2], 16) % 4 + 1}"
    if "single lines of Python" in call.system:
        return json.dumps({"x": digest[:8], "value": digest[:6]})
    if "repair Python programs" in call.system:
        return f"```python\nanswer = '{digest[:12]}'{failing(digest)}\n```"
    if "step-by-step structure" in call.system:
        return f'{{"said {digest[:8]}": ""}}' if digest[0] < "c" else f"said {digest[:12]}"
    if call.stage != "sample":
        return f"said {digest[:12]}"
    # What is made of a reply alone, as a description of it, carries the marker too.
    found = MARKER.search(call.text)
    marker = found[0] if found else ""
    if "question about a document that can only" in call.system:
        questions = [f"{marker} why {digest[4 * i : 4 * i + 4]}?" for i in range(int(digest[0], 16) % 3)]
        return "\n".join(["<SUB-QUESTIONS>", *questions, "</SUB-QUESTIONS>"])
    if "margin of a long text" in call.system and digest[0] < "4":
        return "Nothing relevant."
    if any(words in call.system for words in READERS):
        return f"{marker} said {digest[:12]}"
    if "worked examples in prompts" in call.system:
        return json.dumps([[f"{marker} {digest[:4]} {i}?", str(i)] for i in range(int(digest[0], 16) % 4)])
    if "\nRanking:\n" in call.last:
        return [f"{marker} {digest[:8]} {i}\nRanking:\n1. {digest[i]}\n2. 3" for i in range(call.n)]
    if "Write one Python program" in call.last:
        code = f"x = judge('{digest[:6]}')\nif tell(x): print(x)\nanswer = '{marker} ' + str(x)"
        return f"```python\n{code}{failing(digest)}\n```"
    return [_sample(digest, i, marker) for i in range(call.n)]


def failing(digest: str) -> str:
    """The last line of a program that fails, for one in three."""
    return "\n1/0" if int(digest[0], 16) % 3 == 0 else ""


def _exploring(digest: str) -> str:
    """Code that looks, asks, fails or answers."""
    code = (
        "print(context)",
        "print(llm_queries([context, context + '?']))",
        "print(rlm_query('Which? ' + context, context))",
        "seen = globals().get('seen', '') + context\nprint(seen)",
        "1 / 0",
        "FINAL('said ' + context)",
    )[int(digest[:4], 16) % 6]
    return f"{digest[:6]}\n```repl\n{code}\n```"


def _sample(digest: str, i: int, marker: str) -> Reply:
    value = int(digest[i : i + 2], 16) % 4
    said = f"{marker} {digest[:8]} {i}\nThe answer is {value}"
    text = f"<thinking>{digest[:6]}</thinking><output>{said}</output>"
    return Reply(text, usage={"completion_tokens": int(digest[:3], 16)})


def by_marker(calls: Sequence[Seen]) -> dict[int, list[Seen]]:
    """The calls of each request, told by the marker they carry; with the words of two it fails."""
    out: dict[int, list[Seen]] = {}
    for call in calls:
        (owner,) = set(MARKER.findall(json.dumps(call.body)))
        out.setdefault(int(owner), []).append(call)
    return out


def asked(calls: Sequence[Seen], request: dict[str, Any]) -> Counter[str]:
    """What was asked upstream: to the letter, or but for the mark when the request has no seed."""
    if "seed" in request:
        return Counter(json.dumps(c.body, sort_keys=True) for c in calls)
    return Counter(unmarked(c.body) for c in calls)


def marks(calls: Sequence[Seen]) -> set[str]:
    """The marks around data in these calls."""
    return {mark for c in calls for mark in NONCE.findall(json.dumps(c.body))}


def unmarked(value: Any) -> str:
    """JSON text in which all runs have the same mark around data."""
    return NONCE.sub("NONCE", json.dumps(value, sort_keys=True))


def stable(value: Any) -> Any:
    """A JSON value without ids and times, and with the records of concurrent calls in one order."""
    if isinstance(value, dict):
        out = {k: stable(v) for k, v in value.items() if k not in VOLATILE}
        if "records" in out:
            # Calls of one wave begin together; which one is written down first says nothing.
            out["records"] = sorted(json.dumps(r, sort_keys=True) for r in out["records"])
        return out
    return [stable(v) for v in value] if isinstance(value, list) else value
