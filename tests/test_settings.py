"""Settings: every flag, variable and key; which one wins; what stops the start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme

from optillm.core.usage import Price
from optillm.plugins import builtin_registry
from optillm.settings import OPTIONS, Key, Settings, SettingsError, load, parser, sha256

REGISTRY = builtin_registry()


def settings(*argv: str, has: Any = ("embedded",), **environ: Any) -> Settings:
    return load(argv, environ, REGISTRY, lambda what: what in has)


def refusal(*argv: str, has: Any = ("embedded",), **environ: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        settings(*argv, has=has, **environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(folder: Path, text: str) -> str:
    path = folder / "optillm.toml"
    path.write_text(text)
    return str(path)


# The table of the specification: flag and aliases, variable, text, name, value.
TABLE: list[tuple[tuple[str, ...], str, str, str, Any]] = [
    (("--approach",), "OPTILLM_APPROACH", "re2&bon", "approach", "re2&bon"),
    (("--model",), "OPTILLM_MODEL", "m", "model", "m"),
    (("--base-url", "--base_url"), "OPTILLM_BASE_URL", "http://h/v1", "base_url", "http://h/v1"),
    (("--host",), "OPTILLM_HOST", "0.0.0.0", "host", "0.0.0.0"),
    (("--port",), "OPTILLM_PORT", "9", "port", 9),
    (("--optillm-api-key",), "OPTILLM_API_KEY", "k", "optillm_api_key", "k"),
    (("--n",), "OPTILLM_N", "4", "n", 4),
    (("--log",), "OPTILLM_LOG", "debug", "log", "debug"),
    (("--launch-gui",), "OPTILLM_LAUNCH_GUI", "yes", "launch_gui", True),
    (("--log-conversations",), "OPTILLM_LOG_CONVERSATIONS", "TRUE", "log_conversations", True),
    (("--conversation-log-dir",), "OPTILLM_CONVERSATION_LOG_DIR", "/x", "conversation_log_dir", "/x"),
    (("--ssl-verify",), "OPTILLM_SSL_VERIFY", "false", "ssl_verify", False),
    (("--batch-mode",), "OPTILLM_BATCH_MODE", "1", "batch_mode", True),
    (("--batch-size",), "OPTILLM_BATCH_SIZE", "8", "batch_size", 8),
    (("--batch-wait-ms",), "OPTILLM_BATCH_WAIT_MS", "7", "batch_wait_ms", 7),
    (("--workers",), "OPTILLM_WORKERS", "3", "workers", 3),
    (("--max-body-mb",), "OPTILLM_MAX_BODY_MB", "1.5", "max_body_mb", 1.5),
    (("--max-upstream-calls",), "OPTILLM_MAX_UPSTREAM_CALLS", "5", "max_upstream_calls", 5),
    (("--max-concurrency",), "OPTILLM_MAX_CONCURRENCY", "2", "max_concurrency", 2),
    (("--upstream-concurrency",), "OPTILLM_UPSTREAM_CONCURRENCY", "2", "upstream_concurrency", 2),
    (("--request-timeout",), "OPTILLM_REQUEST_TIMEOUT", "30", "request_timeout", 30.0),
    (("--connect-timeout",), "OPTILLM_CONNECT_TIMEOUT", "0.5", "connect_timeout", 0.5),
    (("--store",), "OPTILLM_STORE", "sqlite:////x.db", "store", "sqlite:////x.db"),
    (("--stream-progress",), "OPTILLM_STREAM_PROGRESS", "comments", "stream_progress", "comments"),
    (("--forward-bearer",), "OPTILLM_FORWARD_BEARER", "no", "forward_bearer", False),
]
PARAMS: list[tuple[tuple[str, ...], tuple[str, ...], str, tuple[str, str], Any]] = [
    (
        ("--mcts-simulations", "--simulations", "--mcts_simulations"),
        ("OPTILLM_SIMULATIONS", "OPTILLM_MCTS_SIMULATIONS"), "5", ("mcts", "simulations"), 5,
    ),
    (
        ("--mcts-exploration", "--exploration"),
        ("OPTILLM_EXPLORATION", "OPTILLM_MCTS_EXPLORATION"), "0.7", ("mcts", "exploration"), 0.7,
    ),
    (("--mcts-depth", "--depth"), ("OPTILLM_DEPTH", "OPTILLM_MCTS_DEPTH"), "2", ("mcts", "depth"), 2),
    (("--best-of-n", "--best_of_n", "--bon-n"), ("OPTILLM_BEST_OF_N", "OPTILLM_BON_N"), "4", ("bon", "n"), 4),
    (
        ("--return-full-response", "--cot-reflection-return-full-response"),
        ("OPTILLM_RETURN_FULL_RESPONSE", "OPTILLM_COT_REFLECTION_RETURN_FULL_RESPONSE"),
        "true", ("cot_reflection", "return_full_response"), True,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "variable", "text", "name", "value"), TABLE, ids=lambda v: str(v))
def test_every_setting(flags: tuple[str, ...], variable: str, text: str, name: str, value: Any) -> None:
    for flag in (*flags, "--" + name):
        assert getattr(settings(flag, text), name) == value
        assert getattr(settings(f"{flag}={text}"), name) == value
    assert getattr(settings(**{variable: text}), name) == value


@pytest.mark.parametrize(("flags", "variables", "text", "place", "value"), PARAMS, ids=lambda v: str(v))
def test_every_old_parameter(
    flags: tuple[str, ...], variables: tuple[str, ...], text: str, place: tuple[str, str], value: Any
) -> None:
    slug, name = place
    for flag in flags:
        assert settings(flag, text).params[slug][name] == value
    for variable in variables:
        assert settings(**{variable: text}).params[slug][name] == value


def test_every_parameter_of_every_technique_has_a_flag_and_a_variable() -> None:
    for approach in REGISTRY:
        for param in approach.params:
            dashed = f"--{approach.slug}-{param.name}".replace("_", "-")
            variable = f"OPTILLM_{approach.slug}_{param.name}".upper()
            base = param.schema().get("anyOf", [param.schema()])[0]
            item = "x" if base.get("items", {}).get("type") == "string" else "0.5"
            items = ",".join([item] * base.get("minItems", 1))
            text = {"boolean": "true", "string": (base.get("enum") or ["x"])[0], "array": items}.get(
                base["type"], str(base.get("minimum", 1))
            )
            name = param.name
            if param.is_group:
                name = param.members[0].name
                text = json.dumps({name: param.members[0].default})
            assert name in settings(dashed, text).params[approach.slug]
            assert name in settings(**{variable: text}).params[approach.slug]


def test_switches_need_no_value_and_can_be_switched_off() -> None:
    assert settings("--log-conversations", "--port", "1").log_conversations
    assert settings("--return-full-response").params["cot_reflection"]["return_full_response"] is True
    assert not settings("--no-ssl-verify").ssl_verify
    assert not settings("--no-ssl-verify", OPTILLM_SSL_VERIFY="true").ssl_verify
    assert settings("--ssl-verify", OPTILLM_SSL_VERIFY="false").ssl_verify


def test_defaults_are_those_of_the_specification() -> None:
    s = settings()
    assert (s.approach, s.model, s.host, s.port, s.n) == ("auto", "gpt-4o-mini", "127.0.0.1", 8000, 1)
    assert (s.batch_size, s.batch_wait_ms, s.max_body_mb) == (4, 50, 32.0)
    assert (s.max_upstream_calls, s.max_concurrency, s.upstream_concurrency) == (256, 16, 256)
    assert (s.request_timeout, s.connect_timeout, s.stream_progress) == (600.0, 5.0, "reasoning")
    assert s.params == {}
    assert (s.guarded, s.forwards_bearer) == (False, True)


def test_an_object_of_parameters_is_another_way_to_write_them(tmp_path: Path) -> None:
    path = written(
        tmp_path, "[approaches.mars]\nmax_iterations = 1\n[approaches.mars.config]\nnum_agents = 4\n"
    )
    filed = settings("--config", path)
    assert filed.params["mars"] == {"max_iterations": 1, "num_agents": 4}
    flags = settings("--mars-config", '{"num_agents": 2, "max_iterations": 3}', "--mars-num-agents", "5")
    assert flags.params["mars"] == {"num_agents": 5, "max_iterations": 3}
    assert settings(OPTILLM_MARS_CONFIG='{"mars_preset": "lightweight"}').params["mars"] == {
        "preset": "lightweight"
    }
    for text in ("[1]", "{", "{'a': 1}", "x"):
        assert "must be an object of other parameters" in refusal("--mars-config", text)
    assert "'mars_config' has no field 'agents'; allowed: " in refusal("--mars-config", '{"agents": 2}')


def test_flag_beats_variable_beats_file_beats_default(tmp_path: Path) -> None:
    path = written(tmp_path, "n = 2\n[approaches.bon]\nn = 5\ntemperature = 0.5\n")
    file = settings("--config", path)
    assert (file.n, dict(file.params["bon"])) == (2, {"n": 5, "temperature": 0.5})
    variable = settings("--config", path, OPTILLM_N="3", OPTILLM_BEST_OF_N="6")
    assert (variable.n, dict(variable.params["bon"])) == (3, {"n": 6, "temperature": 0.5})
    flag = settings("--config", path, "--n", "4", "--best-of-n", "7", OPTILLM_N="3", OPTILLM_BEST_OF_N="6")
    assert (flag.n, dict(flag.params["bon"])) == (4, {"n": 7, "temperature": 0.5})
    assert settings(OPTILLM_CONFIG=path).n == 2
    assert settings("--config", path, OPTILLM_N="").n == 2


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("PORT", "x", "an integer at least 0 and at most 65535"),
        ("PORT", "70000", "at most 65535"),
        ("N", "0", "at least 1 and at most 128"),
        ("N", "1.5", "an integer"),
        ("LOG", "loud", "one of notset, debug, info, warning, error, critical"),
        ("LAUNCH_GUI", "maybe", "true, 1, yes, false, 0 or no"),
        ("SSL_VERIFY", "2", "true, 1, yes, false, 0 or no"),
        ("MAX_BODY_MB", "nan", "a number"),
        ("REQUEST_TIMEOUT", "inf", "a number"),
        ("BASE_URL", "localhost:8080", "a URL like http://"),
        ("STORE", "redis://x", "sqlite:///PATH"),
        ("STREAM_PROGRESS", "loud", "one of reasoning, comments, off"),
        ("SIMULATIONS", "0", "an integer from 1 to 64"),
        ("EXPLORATION", "nan", "a number from 0 to 10"),
        ("DEPTH", "deep", "an integer from 0 to 8"),
        ("BEST_OF_N", "65", "an integer from 1 to 64"),
        ("RETURN_FULL_RESPONSE", "perhaps", "true or false"),
    ],
)
def test_a_bad_value_names_its_variable_and_what_is_allowed(name: str, text: str, allowed: str) -> None:
    message = refusal(**{f"OPTILLM_{name}": text})
    assert message.startswith(f"OPTILLM_{name}")
    assert allowed in message
    assert refusal("--" + name.lower().replace("_", "-"), text).startswith("--")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--prot", "1"], "unknown argument '--prot'. Did you mean '--port'?"),
        (["stray"], "unknown argument 'stray'."),
        (["--port"], "--port: expected one argument"),
        (["--approach", "zzz"], "unknown approach 'zzz'"),
        (["--approach", "moa&zzz"], "zzz"),
        (["--approach", "none&re2"], "'none' cannot be part"),
        (["--approach", "bon(n=0)"], "1 to 64"),
        (["--config", "/nowhere.toml"], "--config: cannot read /nowhere.toml: No such file"),
        (["--ssl-cert-path", "/nowhere.pem"], "--ssl-cert-path: there is no file /nowhere.pem"),
        (["--ssl-cert-path", __file__], "is not a CA bundle"),
        (["--plugins-dir", "/nowhere"], "--plugins-dir: there is no folder /nowhere"),
    ],
)
def test_what_stops_the_start(argv: list[str], said: str) -> None:
    assert said in refusal(*argv)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "unknown key 'prot'; allowed: "),
        ('port = "8000"', "port must be an integer"),
        ("port = 1.5", "port must be an integer"),
        ("n = true", "n must be an integer"),
        ('ssl_verify = "false"', "ssl_verify must be true"),
        ("model = 5", "model must be text"),
        ("approach = 1979-05-27", "approach must be text"),
        ("request_timeout = nan", "request_timeout must be a number"),
        ('config = "other.toml"', "unknown key 'config'"),
        ("upstreams = 5", "upstreams must be a table, not an integer"),
        ("upstreams = []", "upstreams must be a table, not a list"),
        ("[upstreams]\nmain = 5", "upstreams.main must be a table"),
        (
            '[upstreams.a]\nbase_url = "http://h"\nurl = "x"',
            "upstreams.a: unknown key 'url'; allowed: kind, ",
        ),
        ("[upstreams.a]\nbase_url = 5", "upstreams.a.base_url must be text"),
        ('[upstreams.a]\nbase_url = "h"', "upstreams.a.base_url must be a URL"),
        ("[upstreams.a]", "upstreams.a needs 'base_url'"),
        ('[upstreams.a]\nkind = "azure"\nbase_url = "http://h"', "upstreams.a needs 'api_version'"),
        ('[upstreams.a]\nkind = "x"', "upstreams.a.kind must be one of openai, azure, litellm, llamacpp"),
        ('[upstreams.a]\nbase_url = "http://h"\nmodels = "m"', "upstreams.a.models must be a list, not text"),
        ('[upstreams.a]\nbase_url = "http://h"\nmodels = [1]', "upstreams.a.models[0] must be text"),
        ('[upstreams.a]\nbase_url = "http://h"\nkey_env = "NOPE"', "the variable NOPE, which is not set"),
        ('[upstreams.a]\nbase_url = "http://h"\n[routes]\nm = "b"', "routes.m: there is no upstream 'b'"),
        ("[routes]\nm = 5", "routes.m must be text"),
        ("keys = 5", "keys must be a list"),
        ("keys = [5]", "keys[0] must be a table"),
        ('[[keys]]\ntenant = "a"', "keys[0] needs 'sha256' or 'key'"),
        ('[[keys]]\nkey = "k"', "keys[0] needs 'tenant'"),
        ('[[keys]]\ntenant = "a"\nsha256 = "abc"', "keys[0].sha256 must be 64 hexadecimal digits"),
        ('[[keys]]\ntenant = "a"\nkey = 5', "keys[0].key must be text"),
        ('[[keys]]\ntenant = "a"\nkey = "k"\nname = "x"', "keys[0]: unknown key 'name'; allowed: tenant, "),
        ('[[keys]]\ntenant = "a"\nkey = "k"\nscopes = ["all"]', "keys[0].scopes may hold chat, models, runs"),
        ('[[keys]]\ntenant="a"\nkey="k"\n[[keys]]\ntenant="b"\nkey="k"', "keys[1] is the same key"),
        ("prices = 5", "prices must be a table"),
        ("[prices]\nm = 5", "prices.m must be a table"),
        ("[prices.m]\ninput = 1", "prices.m needs 'output'"),
        ('[prices.m]\ninput = "x"\noutput = 1', "prices.m.input must be a number, not text"),
        ("[prices.m]\ninput = -1\noutput = 1", "prices.m.input must be a number of at least 0"),
        ("[prices.m]\nin = 1", "prices.m: unknown key 'in'; allowed: input, output"),
        ("[approaches.zzz]", "unknown key 'approaches.zzz'; allowed: "),
        ("[approaches]\nbon = 5", "approaches.bon must be a table"),
        ("[approaches.bon]\nm = 5", "approaches.bon: unknown key 'm'; allowed: "),
        ('[approaches.bon]\nn = "5"', "approaches.bon.n: 'best_of_n' must be an integer from 1 to 64"),
        ("n = ", "is not TOML"),
    ],
)
def test_the_file_is_strict(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    message = refusal("--config", path)
    assert path in message
    assert said in message


def test_files_that_are_there(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(bundle)
    s = settings("--ssl-cert-path", str(bundle), "--plugins-dir", str(tmp_path))
    assert (s.ssl_cert_path, s.plugins_dir) == (str(bundle), str(tmp_path))
    s = settings(OPTILLM_SSL_CERT_PATH=str(bundle), OPTILLM_PLUGINS_DIR=str(tmp_path))
    assert (s.ssl_cert_path, s.plugins_dir) == (str(bundle), str(tmp_path))


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    assert "is not TOML" in refusal("--config", str(tmp_path / "x.toml"))


def test_everything_in_a_file(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        f"""
        approach = "re2"
        max_upstream_calls = 128
        request_timeout = 30

        [upstreams.main]
        base_url = "https://api.example.com/v1"
        key_env = "MAIN_KEY"

        [upstreams.local]
        base_url = "http://127.0.0.1:8080/v1"
        models = ["llama-*"]

        [routes]
        "qwen-*" = "local"

        [[keys]]
        tenant = "a"
        sha256 = "{sha256("key of a").upper()}"

        [[keys]]
        tenant = "b"
        key = "key of b"
        scopes = ["chat"]

        [prices."gpt-4o"]
        input = 1
        output = 2.5

        [approaches.mcts]
        simulations = 4
        mcts_depth = 0
        """,
    )
    s = settings("--config", path, MAIN_KEY="secret")
    assert (s.approach, s.max_upstream_calls, s.request_timeout) == ("re2", 128, 30.0)
    main, local = s.upstreams
    assert (main.name, main.kind, main.key, main.models) == ("main", "openai", "secret", ())
    assert (local.base_url, local.key, local.models) == (
        "http://127.0.0.1:8080/v1", None, ("llama-*", "qwen-*"),
    )  # fmt: skip
    assert s.keys == (Key("a", sha256("key of a")), Key("b", sha256("key of b"), ("chat",)))
    assert s.prices == {"gpt-4o": Price(1, 2.5)}
    assert s.params == {"mcts": {"simulations": 4, "depth": 0}}


OPENAI, CEREBRAS = "https://api.openai.com/v1", "https://api.cerebras.ai/v1"
AZURE = {"AZURE_API_VERSION": "v", "AZURE_API_BASE": "https://az"}


@pytest.mark.parametrize(
    ("environ", "base_url", "expected"),
    [
        ({"OPENAI_API_KEY": "o"}, "", ("openai", "openai", OPENAI, "o")),
        ({"OPENAI_API_KEY": "o"}, "http://h", ("openai", "openai", "http://h", "o")),
        ({"CEREBRAS_API_KEY": "c", "OPENAI_API_KEY": "o"}, "", ("cerebras", "openai", CEREBRAS, "c")),
        (
            {"OPENAI_API_KEY": "o", "AZURE_OPENAI_API_KEY": "a", **AZURE},
            "",
            ("openai", "openai", OPENAI, "o"),
        ),
        ({"AZURE_OPENAI_API_KEY": "a", **AZURE}, "", ("azure", "azure", "https://az", "a")),
        (AZURE, "", ("azure", "azure", "https://az", None)),
        ({"AZURE_API_VERSION": "v"}, "http://h", ("upstream", "openai", "http://h", None)),
        ({}, "http://h", ("upstream", "openai", "http://h", None)),
        ({"ANTHROPIC_API_KEY": "x"}, "", ("litellm", "litellm", "", None)),
        ({"ANTHROPIC_API_KEY": "x", "OPTILLM_API_KEY": "k"}, "", ("litellm", "litellm", "", None)),
        ({"OPENAI_API_KEY": "", "ANTHROPIC_API_KEY": ""}, "", ("embedded", "llamacpp", "", None)),
        ({"OPTILLM_API_KEY": "k"}, "", ("embedded", "llamacpp", "", None)),
        ({}, "", ("embedded", "llamacpp", "", None)),
        # It guards the server, and is not sent to anybody.
        ({"OPTILLM_API_KEY": "k"}, "http://h", ("upstream", "openai", "http://h", None)),
        ({"OPTILLM_API_KEY": "k", "OPENAI_API_KEY": "o"}, "", ("openai", "openai", OPENAI, "o")),
    ],
)
def test_the_first_provider_variable_wins(environ: dict[str, str], base_url: str, expected: Any) -> None:
    argv = ("--base-url", base_url) if base_url else ()
    s = settings(*argv, has=("embedded", "litellm"), **environ)
    (up,) = s.upstreams
    assert (up.name, up.kind, up.base_url, up.key) == expected
    assert s.guarded == ("OPTILLM_API_KEY" in environ)


def test_no_upstream_says_what_to_set() -> None:
    message = refusal(has=())
    for what in ("--base-url", "OPENAI_API_KEY", "CEREBRAS_API_KEY", "AZURE_OPENAI_API_KEY", "embedded"):
        assert what in message
    assert "GROQ_API_KEY would need LiteLLM" in refusal(has=(), GROQ_API_KEY="x")
    assert "AZURE_API_BASE" in refusal(AZURE_OPENAI_API_KEY="a")
    assert "AZURE_API_VERSION" in refusal("--base-url", "http://h", AZURE_OPENAI_API_KEY="a")


def test_upstreams_of_the_file_beat_provider_variables(tmp_path: Path) -> None:
    path = written(tmp_path, '[upstreams.a]\nbase_url = "http://a"\n')
    assert [u.name for u in settings("--config", path, OPENAI_API_KEY="o").upstreams] == ["a"]
    both = settings("--config", path, "--base-url", "http://h")
    assert [(u.name, u.base_url) for u in both.upstreams] == [("upstream", "http://h"), ("a", "http://a")]
    path = written(tmp_path, '[upstreams.upstream]\nbase_url = "http://a"\n')
    assert "upstreams.upstream" in refusal("--config", path, "--base-url", "http://h")


def test_keys_are_in_no_text(tmp_path: Path) -> None:
    path = written(tmp_path, '[upstreams.a]\nbase_url = "http://a"\nkey = "secret-1"\n')
    s = settings("--config", path, "--optillm-api-key", "secret-2")
    assert "secret" not in repr(s)
    path = written(tmp_path, "optillm_api_key = 12345")
    assert "12345" not in refusal("--config", path)


def test_strangers_are_not_let_in_to_what_the_server_pays_for() -> None:
    message = refusal("--forward-bearer", "--optillm-api-key", "k", AZURE_OPENAI_API_KEY="a", **AZURE)
    assert "azure does not" in message
    assert settings("--forward-bearer", "--optillm-api-key", "k", OPENAI_API_KEY="o").forwards_bearer
    assert not settings("--optillm-api-key", "k", OPENAI_API_KEY="o").forwards_bearer


def test_warnings() -> None:
    assert settings().warnings == ()
    assert "without a key" in settings("--host", "0.0.0.0").warnings[0]
    assert settings("--host", "0.0.0.0", "--optillm-api-key", "k").warnings == ()
    assert "NOT VERIFIED" in settings("--no-ssl-verify").warnings[0]


def test_old_flags_of_cepo() -> None:
    old = ["--cepo_bestofn_n", "4", "--cepo-planning-n=5", "--cepo_print_output", "--cepo_rating_model", "j"]
    s = settings(*old, OPTILLM_CEPO_PLANNING_TEMPERATURE_STEP1="0.7")
    assert s.params["cepo"] == {
        "bestofn_n": 4, "planning_n": 5, "print_output": True, "rating_model": "j",
        "planning_temperature_step1": 0.7,
    }  # fmt: skip
    assert settings("--cepo_print_output", "false").params["cepo"] == {"print_output": False}
    assert "'cepo_planning_temperature_direct_resp' must be a number from 0 to 2" in refusal(
        "--cepo_planning_temperature_direct_resp", "3"
    )
    assert "Did you mean '--cepo-planning-n'" in refusal("--cepo-planing-n", "3")


def cepo_yaml(folder: Path, text: str | bytes) -> str:
    path = folder / "cepo.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_the_yaml_file_of_cepo(tmp_path: Path) -> None:
    path = cepo_yaml(
        tmp_path, "preset: qwen3\nbestofn_n: 2\ncepo_planning_temperature_step1: 1\nlaunch: lazy\n"
    )
    expected = {"preset": "qwen3", "bestofn_n": 2, "planning_temperature_step1": 1.0, "launch": "lazy"}
    for flag in ("--cepo-config-file", "--cepo_config_file"):
        assert settings(flag, path).params["cepo"] == expected
    assert settings(OPTILLM_CEPO_CONFIG_FILE=path).params["cepo"] == expected
    assert isinstance(
        settings("--cepo-config-file", path).params["cepo"]["planning_temperature_step1"], float
    )
    assert "cepo" not in settings("--cepo-config-file", cepo_yaml(tmp_path, "# nothing\n")).params


def test_flags_and_variables_beat_the_yaml_file_and_it_beats_the_config_file(tmp_path: Path) -> None:
    path = cepo_yaml(tmp_path, "bestofn_n: 2\nplanning_m: 7\nplanning_n: 5\n")
    config = tmp_path / "optillm.toml"
    config.write_text(
        f"cepo_config_file = '{path}'\n"
        "[approaches.cepo]\nplanning_n = 6\nplanning_m = 9\nrating_model = 'r'\n"
    )
    s = settings("--config", str(config), "--cepo-bestofn-n", "1", OPTILLM_CEPO_PLANNING_M="8")
    assert s.params["cepo"] == {"bestofn_n": 1, "planning_m": 8, "planning_n": 5, "rating_model": "r"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "preset: best",
            "cepo.yaml: preset: 'preset' must be one of 'default', 'qwen3', 'gptoss', not 'best'",
        ),
        ("bestofn: 3", "cepo.yaml: unknown key 'bestofn'; allowed: preset, bestofn_n, "),
        ("7: 3", "cepo.yaml: unknown key 7; allowed: preset"),
        (
            "bestofn_n: three",
            "cepo.yaml: bestofn_n: 'bestofn_n' must be an integer from 1 to 32, not 'three'",
        ),
        ("bestofn_n: 99", "'bestofn_n' must be an integer from 1 to 32, not 99"),
        ("print_output: 1", "print_output: 'print_output' must be true or false or null, not 1"),
        ("planning_temperature_step1: .nan", "'planning_temperature_step1' must be a number from 0 to 2"),
        ("planning_n: 4\nplanning_m: 3", "cepo.yaml: 'cepo_planning_n' does not fit: 4 plans in at most 3"),
        ("bestofn_n: 3\ncepo_bestofn_n: 4", "'bestofn_n' is there twice"),
        ("- bestofn_n", "cepo.yaml: must be a mapping of parameters to values, not a list"),
        ("bestofn_n", "must be a mapping of parameters to values, not a single value"),
        ("a: [", "--cepo-config-file: "),
        ("a: 2024-99-99", "is not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML"),
        (b"a: \xff", "is not YAML"),
    ],
)
def test_a_bad_yaml_file_stops_the_start(tmp_path: Path, text: str | bytes, said: str) -> None:
    message = refusal("--cepo-config-file", cepo_yaml(tmp_path, text))
    assert said in message
    assert "\n" not in message


def test_a_yaml_file_that_is_not_there() -> None:
    assert "--cepo-config-file: cannot read /nowhere.yaml: No such file" in refusal(
        "--cepo-config-file", "/nowhere.yaml"
    )


def test_a_flag_is_real_once_its_technique_is_there(caplog: pytest.LogCaptureFixture) -> None:
    s = settings("--rstar-max-depth", "4", "--rstar-num-rollouts=7", OPTILLM_RSTAR_C="2")
    assert s.params["rstar"] == {"max_depth": 4, "num_rollouts": 7, "c": 2.0}
    variables = {"OPTILLM_RSTAR_MAX_DEPTH": "5", "OPTILLM_RSTAR_NUM_ROLLOUTS": "9"}
    s = settings("--rstar-c", "0.5", **variables)
    assert s.params["rstar"] == {"max_depth": 5, "num_rollouts": 9, "c": 0.5}
    assert caplog.records == []
    assert "from 2 to 10" in refusal("--rstar-max-depth", "11")
    assert "from 1 to 64" in refusal(OPTILLM_RSTAR_NUM_ROLLOUTS="65")


def test_help_names_every_setting_and_parameter() -> None:
    text = parser(REGISTRY).format_help()
    for option in OPTIONS:
        assert option.flag_names[0] in text
        assert option.env_name in text
    for approach in REGISTRY:
        for param in approach.params:
            assert param.flag_names[0] in text
            assert param.env_names[0] in "".join(text.split())


def test_the_working_directory_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "optillm.toml").write_text("this is not TOML")
    (tmp_path / "plugin.py").write_text("raise SystemExit('loaded')")
    (tmp_path / "optillm" / "plugins").mkdir(parents=True)
    (tmp_path / "optillm" / "plugins" / "plugin.py").write_text("raise SystemExit('loaded')")
    code = (
        "from optillm.settings import from_environment, plugins_of; from optillm.plugins import *\n"
        "assert plugins_of(()) == ('', False); from_environment(load_registry(*plugins_of(())[:1]))"
    )
    # The package is found as it is when installed: by its own path, not by the working directory.
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
