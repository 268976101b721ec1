"""Flags and variables: every setting and every parameter of every technique."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from optillm.core.params import Param
from optillm.core.registry import Registry
from optillm.settings.model import Settings, SettingsError
from optillm.version import __version__


@dataclass(frozen=True)
class Option:
    """One setting: its names, its range, and its help. Its type is that of its default.

    Args:
        name: of the field of :class:`Settings`, of the flag and of the key in the config file.
        help: one line for people.
        env: its variable, if it is not ``OPTILLM_<NAME>``.
        choices: the only values.
        ge, le: the range of a number, both ends included.
        pattern: what a text must look like, and how to say so.
        secret: its value is never shown.
    """

    name: str
    help: str
    env: str = ""
    choices: tuple[str, ...] = ()
    ge: float | None = None
    le: float | None = None
    pattern: tuple[str, str] | None = None
    secret: bool = False

    @property
    def default(self) -> Any:
        """Its default."""
        return getattr(Settings, self.name)

    @property
    def kind(self) -> type:
        """Its type; a default of None leaves a switch open."""
        return bool if self.default is None else type(self.default)

    @property
    def flag_names(self) -> tuple[str, ...]:
        """All its flags."""
        return tuple(dict.fromkeys(("--" + self.name.replace("_", "-"), "--" + self.name)))

    @property
    def off_names(self) -> tuple[str, ...]:
        """The flags that switch it off."""
        return ("--no-" + self.name.replace("_", "-"),) if self.kind is bool else ()

    @property
    def env_name(self) -> str:
        """Its environment variable."""
        return self.env or f"OPTILLM_{self.name.upper()}"

    @property
    def accepts(self) -> str:
        """In words: type and range."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.pattern:
            return self.pattern[1]
        words = {int: "an integer", float: "a number", bool: "true, 1, yes, false, 0 or no"}
        bounds = [f"at least {self.ge:g}" if self.ge is not None else ""]
        bounds.append(f"at most {self.le:g}" if self.le is not None else "")
        return " ".join([words.get(self.kind, "text"), " and ".join(b for b in bounds if b)]).strip()

    def parse(self, text: str, where: str) -> Any:
        """The value of a flag or variable; raises SettingsError naming ``where`` and what it takes."""
        value: Any = text.lower() if self.choices else text
        if self.kind is bool:
            known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
            value = known.get(text.strip().lower(), text)
        elif self.kind in (int, float):
            try:
                value = self.kind(text)
            except ValueError:
                raise self._refused(text, where) from None
        return self.check(value, where)

    def check(self, value: Any, where: str) -> Any:
        """A value of the right type and in its range; raises SettingsError like :meth:`parse`."""
        if self.kind is float and type(value) is int:
            value = float(value)
        good = type(value) is self.kind
        if good and self.kind in (int, float):
            good = math.isfinite(value)
            good = good and (self.ge is None or value >= self.ge) and (self.le is None or value <= self.le)
        if good and self.choices:
            good = value in self.choices
        if good and self.pattern and value:
            good = re.fullmatch(self.pattern[0], value) is not None
        if not good:
            raise self._refused(value, where)
        return value

    def add_to(self, command_line: argparse._ActionsContainer) -> None:
        """Declare its flags."""
        shown = f"{self.help} [{self.env_name}; default {self.default!r}]".replace("%", "%%")
        if self.kind is bool:
            command_line.add_argument(
                *self.flag_names, dest=self.name, nargs="?", const="true", metavar="BOOL", help=shown
            )
            command_line.add_argument(
                *self.off_names, dest=self.name, action="store_const", const="false", help=argparse.SUPPRESS
            )
        else:
            metavar = "{" + ",".join(self.choices) + "}" if self.choices else "VALUE"
            command_line.add_argument(*self.flag_names, dest=self.name, metavar=metavar, help=shown)

    def _refused(self, value: Any, where: str) -> SettingsError:
        shown = "what was given" if self.secret else repr(value)
        return SettingsError(f"{where} must be {self.accepts}, not {shown}")


OPTIONS = (
    Option("approach", "technique when the request names none: a slug, a composition, or auto"),
    Option("model", "model when the request names none"),
    Option(
        "base_url",
        "base URL of the upstream, up to /v1",
        pattern=(r"https?://[^\s/]\S*", "a URL like http://127.0.0.1:8080/v1"),
    ),
    Option("host", "address to listen on"),
    Option("port", "port to listen on", ge=0, le=65535),
    Option("optillm_api_key", "key that clients must send as Bearer", env="OPTILLM_API_KEY", secret=True),
    Option("n", "answers per request when the request does not say", ge=1, le=128),
    Option(
        "log",
        "log level",
        choices=("notset", "debug", "info", "warning", "error", "critical"),
    ),
    Option("launch_gui", "open the web page after the start"),
    Option("plugins_dir", "folder with plugin files"),
    Option("allow_override", "let plugins replace built-in techniques of the same name"),
    Option("log_conversations", "write every request with its calls to a JSON Lines file"),
    Option("conversation_log_dir", "folder of the conversation log"),
    Option("ssl_verify", "verify the certificates of upstreams; --no-ssl-verify does not"),
    Option("ssl_cert_path", "CA bundle for upstreams"),
    Option("batch_mode", "old batching switch: limits calls in flight to the batch size"),
    Option("batch_size", "calls in flight at once in batch mode", ge=1, le=4096),
    Option("batch_wait_ms", "accepted for compatibility; nothing waits", ge=0),
    Option("config", "TOML file: upstreams, routes, keys, limits, prices, defaults per technique"),
    Option("cepo_config_file", "YAML file: defaults of the parameters of cepo"),
    Option("workers", "server processes", ge=1, le=256),
    Option("max_body_mb", "largest request body in MiB", ge=0.001, le=4096),
    Option("max_upstream_calls", "most upstream calls that one request may take", ge=1),
    Option("max_concurrency", "upstream calls of one request in flight at once", ge=1, le=4096),
    Option("upstream_concurrency", "calls in flight at once per upstream", ge=1),
    Option("request_timeout", "seconds until a request is ended", ge=0.01),
    Option("connect_timeout", "seconds to connect to an upstream", ge=0.01),
    Option("shutdown_timeout", "seconds that running requests get at shutdown", ge=0),
    Option(
        "sandbox",
        "where techniques run model-written code: the best wall that this machine has, one wall, or nowhere",
        choices=("auto", "namespaces", "wasm", "off"),
    ),
    Option(
        "reward_url",
        "reward model for judge=reward: where conversations are posted",
        pattern=(r"https?://[^\s/]\S*", "a URL like http://127.0.0.1:8080/pooling"),
    ),
    Option("reward_key", "key of the reward model", secret=True),
    Option("reward_model", "name that is sent to the reward model"),
    Option("router_model", "file by which router chooses; empty for the one that comes with the package"),
    Option(
        "embedding_url",
        "embedding model for retrieval: where texts are posted; without one, words are compared",
        pattern=(r"https?://[^\s/]\S*", "a URL like http://127.0.0.1:8080/v1/embeddings"),
    ),
    Option("embedding_key", "key of the embedding model", secret=True),
    Option(
        "embedding_model",
        "name that is sent to the embedding model; without --embedding-url a GGUF file to embed with",
    ),
    Option(
        "store",
        "where runs, and what techniques remember, are kept: empty for memory, sqlite:///PATH, or "
        "postgresql://USER:PASSWORD@HOST/DATABASE",
        pattern=(
            r"(sqlite:///|postgres(ql)?(\+psycopg)?://).+",
            "empty, sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE",
        ),
        secret=True,
    ),
    Option(
        "stream_progress",
        "how a streaming client sees what a technique does",
        choices=("reasoning", "comments", "off"),
    ),
    Option("forward_bearer", "pass clients' own tokens upstream (default: when no key is set)"),
    Option("n_mode", "how several samples are asked for", choices=("auto", "native", "fanout")),
    Option("retries", "further tries after a failed upstream call", ge=0, le=20),
    Option("default_max_tokens", "token limit when the client gives none; 0 sends none", ge=0),
    Option("helper_max_tokens", "token limit of judges and critics", ge=1),
    Option("intermediate_max_tokens", "token limit of plans and steps", ge=1),
)


class CommandLine(argparse.ArgumentParser):
    """A parser whose errors are one sentence, like those of all settings."""

    def error(self, message: str) -> NoReturn:
        """Raise SettingsError."""
        raise SettingsError(message)

    def near(self, flag: str) -> str:
        """A question whether a flag like this one was meant, or nothing."""
        known = [name for action in self._actions for name in action.option_strings]
        meant = get_close_matches(flag, known, n=1, cutoff=0.6)
        return f" Did you mean '{meant[0]}'?" if meant else ""


def parser(registry: Registry, prog: str = "optillm serve") -> CommandLine:
    """The command line of the server: every setting and every parameter of every technique."""
    out = CommandLine(
        prog=prog,
        description="OpenAI-compatible optimizing inference proxy.",
        epilog="Other commands: optillm ask QUESTION; optillm approaches; optillm strategies; "
        "optillm train-router RESULTS.",
        allow_abbrev=False,
    )
    out.add_argument("--version", action="version", version=__version__)
    for option in OPTIONS:
        option.add_to(out)
    taken = {flag for option in OPTIONS for flag in (*option.flag_names, *option.off_names)}
    for approach in registry:
        group = out.add_argument_group(f"{approach.slug}: {approach.title}".replace("%", "%%"))
        for param in approach.params:
            names = [f for f in param.flag_names if f not in taken]
            taken.update(names)
            if names:
                _add_param(group, param, names)
    return out


def param_key(param: Param) -> str:
    """Where the parsed flags hold a parameter."""
    return f"param {param.slug} {param.name}"


def flags_of(command_line: CommandLine, argv: Sequence[str]) -> dict[str, Any]:
    """The parsed flags; what was not given is None.

    Raises:
        SettingsError: an unknown flag, or one without its value.
        SystemExit: --help or --version.
    """
    namespace, unknown = command_line.parse_known_args(list(argv))
    if unknown:
        near = command_line.near(unknown[0].partition("=")[0])
        raise SettingsError(f"unknown argument '{unknown[0]}'.{near}")
    return vars(namespace)


def _add_param(group: argparse._ActionsContainer, param: Param, names: Sequence[str]) -> None:
    described = f"{param.rule.help}; {param.accepts} [{param.env_names[0]}; default {param.default!r}]"
    switch = param.is_switch
    group.add_argument(
        *names,
        dest=param_key(param),
        metavar="BOOL" if switch else "VALUE",
        nargs="?" if switch else None,
        const="true" if switch else None,
        help=described.replace("%", "%%"),
    )
