"""No file of the package may hold state that two requests could share."""

from __future__ import annotations

from pathlib import Path

import pytest

import optillm
from tests.isolation.purity import problems

ROOT = Path(optillm.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_shares_nothing(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    pure = name.startswith(("core/", "approaches/"))
    assert problems(path.read_text(), settings=name == "settings.py", pure=pure) == []


@pytest.mark.parametrize(
    "bad",
    [
        "cache = {}",
        "seen = []",
        "names = {1, 2}",
        "table = {k: 1 for k in 'ab'}",
        "pair = ([], 1)",
        "counter = Counter()",
        "queue = asyncio.Queue()",
        "lock = threading.Lock()",
        "config = load()",
        "class A:\n    shared = []",
        "class A:\n    shared: dict = {'a': 1}",
        "if True:\n    cache = {}",
        "count = 0\ncount += 1",
        "import os\nos.environ['A'] = '1'",
        "def f():\n    global x\n    x = 1",
        "def f(a=[]):\n    pass",
        "def f(*, a={}):\n    pass",
        "@lru_cache\ndef f(): pass",
        "@functools.cache\ndef f(): pass",
        "import os\nx = os.getenv('A')",
        "import os\ndef f():\n    return os.environ['A']",
        "from os import environ",
        "import json\ndef f():\n    json.x = 1",
    ],
)
def test_bad_code_is_found(bad: str) -> None:
    assert problems(bad)


@pytest.mark.parametrize("bad", ["import time\ndef f():\n    return time.time()", "x = random.random()"])
def test_hidden_inputs_are_found(bad: str) -> None:
    assert problems(bad, pure=True)


@pytest.mark.parametrize(
    "good",
    [
        "__all__ = ['a']",
        "A = 1\nB = ('a', 'b')\nC = frozenset({1})",
        "P = re.compile('a')",
        "class A:\n    x: int = field(1, 'help')",
        "def f():\n    cache = {}\n    return cache",
        "class S(Struct):\n    x: list[int] = []",
        "T = MappingProxyType({'a': 1})",
    ],
)
def test_good_code_passes(good: str) -> None:
    assert problems(good, pure=True) == []


def test_settings_may_read_the_environment() -> None:
    assert problems("import os\nx = lambda: os.environ", settings=True) == []
