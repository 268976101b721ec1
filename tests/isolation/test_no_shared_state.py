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
    found = problems(
        path.read_text(),
        settings=name == "settings/load.py",
        pure=name.startswith(("core/", "approaches/")),
        # A run without a seed gets one there, and its record tells it.
        draws_seeds=name == "core/run.py",
        own_process=name in ("sandbox/zygote.py", "sandbox/program.py"),
    )
    assert found == []


STATE = [
    "cache = {}",
    "seen = []",
    "names = {1, 2}",
    "table = {k: 1 for k in 'ab'}",
    "made = (x for x in 'ab')",
    "pair = ([], 1)",
    "either = [] if DEBUG else ()",
    "either = GIVEN or {}",
    "table: dict = {}",
    "counter = Counter()",
    "index = defaultdict(list)",
    "order = OrderedDict()",
    "recent = collections.deque(maxlen=3)",
    "names = list('ab')",
    "buffer = bytearray(8)",
    "queue = asyncio.Queue()",
    "lock = threading.Lock()",
    "config = load()",
    "frozen = MappingProxyType({'a': []})",
    "frozen = tuple([[], 1])",
    "current = ContextVar('current', default={})",
    "class A:\n    shared = []",
    "class A:\n    shared: dict = {}",
    "class A:\n    shared: dict = {'a': 1}",
    "class A:\n    class B:\n        shared = set()",
    "class S(Struct):\n    x: list[int] = [1]",
    "if True:\n    cache = {}",
    "try:\n    import a\nexcept ImportError:\n    a = []",
    "with x:\n    cache = {}",
    "for x in 'ab':\n    cache = {}",
    "match 1:\n    case 1:\n        cache = {}",
    "if (cache := {}):\n    pass",
    "count = 0\ncount += 1",
    "import os\nos.x = 1",
]
ANYWHERE = [
    "def f():\n    global x\n    x = 1",
    "def f(a=[]):\n    pass",
    "def f(*, a={}):\n    pass",
    "def f(a=dict()):\n    pass",
    "f = lambda a=[]: a",
    "from functools import lru_cache\n@lru_cache\ndef f(): pass",
    "from functools import cache as c\n@c\ndef f(): pass",
    "import functools\n@functools.lru_cache(maxsize=None)\ndef f(): pass",
    "import functools\nclass A:\n    @functools.cache\n    def f(self): pass",
    "import json\ndef f():\n    json.x = 1",
    "import json\ndef f():\n    json.x += 1",
    "import json\ndef f():\n    json.x['a'] = 1",
    "import json\ndef f():\n    del json.x",
    "import json\ndef f():\n    setattr(json, 'x', 1)",
    "from optillm.core import run\ndef f():\n    run.x = 1",
    "class A:\n    def f(self):\n        type(self).x = 1",
    "class A:\n    def f(self):\n        self.__class__.x = 1",
    "class A:\n    @classmethod\n    def f(cls):\n        cls.x = 1",
    "class A:\n    pass\ndef f():\n    A.x = 1",
    "def f():\n    f.calls = 1",
    "def f():\n    globals()['x'] = 1",
]
ENVIRONMENT = [
    "import os\nx = os.getenv('A')",
    "import os\ndef f():\n    return os.environ['A']",
    "import os\ndef f():\n    return os.environ.get('A')",
    "import os as system\ndef f():\n    return system.environ",
    "from os import environ\ndef f():\n    return environ['A']",
    "from os import getenv as get\ndef f():\n    return get('A')",
]
HIDDEN = [
    "import time\ndef f():\n    return time.time()",
    "import time\ndef f():\n    return time.monotonic()",
    "from time import monotonic\ndef f(clock=monotonic):\n    return clock()",
    "import datetime\ndef f():\n    return datetime.datetime.now()",
    "from datetime import datetime\ndef f():\n    return datetime.now()",
    "from datetime import date\ndef f():\n    return date.today()",
    "import random\ndef f():\n    return random.random()",
    "import random\ndef f():\n    random.seed(1)",
    "import random\ndef f():\n    return random.Random()",
    "import random\ndef f():\n    return random.SystemRandom().random()",
    "from random import choice\ndef f():\n    return choice('ab')",
    "import secrets\ndef f():\n    return secrets.token_hex()",
    "import uuid\ndef f():\n    return uuid.uuid4()",
    "import os\ndef f():\n    return os.urandom(8)",
]


@pytest.mark.parametrize("bad", [*STATE, *ANYWHERE, *ENVIRONMENT])
def test_bad_code_is_found(bad: str) -> None:
    assert problems(bad)


@pytest.mark.parametrize("bad", HIDDEN)
def test_hidden_inputs_are_found_where_they_are_forbidden(bad: str) -> None:
    assert problems(bad, pure=True)
    assert problems(bad) == []


@pytest.mark.parametrize(
    "good",
    [
        "__all__ = ['a']",
        "A = 1\nB = ('a', 'b')\nC = frozenset({1})",
        "A = tuple(x for x in 'ab')\nB = A if A else ()",
        "P = re.compile('a')",
        "T = MappingProxyType({'a': 1})",
        "log = logging.getLogger('a')\nV: ContextVar[int] = ContextVar('v', default=0)",
        "class A:\n    x: int = field(1, 'help')\n    y: list = field(default_factory=list)",
        "class A:\n    def __init__(self):\n        self.x = []\n        self.x += [1]",
        "class S(Struct):\n    x: list[int] = []",
        "class S(msgspec.Struct):\n    pass\nclass T(S):\n    x: dict[str, int] = {}",
        "def f():\n    cache = {}\n    cache['a'] = 1\n    return cache",
        "def f(a=(), b=None, c=frozenset()):\n    pass",
        "import random\ndef f(seed):\n    return random.Random(seed).random()",
        "import json\ndef f():\n    return json.loads('1')",
        "class A:\n    @cached_property\n    def f(self): return 1",
    ],
)
def test_good_code_passes(good: str) -> None:
    assert problems(good, pure=True) == []


def test_settings_may_read_the_environment() -> None:
    assert all(problems(source, settings=True) == [] for source in ENVIRONMENT if "x =" not in source)


def test_only_a_process_of_its_own_may_set_up_its_interpreter() -> None:
    source = "import sys\ndef f(x):\n    sys.stdout = x"
    assert problems(source)
    assert problems(source, own_process=True) == []
    assert problems("import json\ndef f():\n    json.x = 1", own_process=True)


def test_only_a_run_may_draw_its_seed() -> None:
    source = "import random\ndef f():\n    return random.SystemRandom().getrandbits(63)"
    assert problems(source, pure=True)
    assert problems(source, pure=True, draws_seeds=True) == []
    assert problems("import random\nx = random.random", pure=True, draws_seeds=True)
