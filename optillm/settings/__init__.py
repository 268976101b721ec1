"""Settings: the only reader of flags, environment variables and configuration files.

A flag beats its variable, which beats the config file, which beats the default.
"""

from optillm.settings.load import (
    from_command_line,
    from_environment,
    from_flags,
    load,
    plugins_of,
    store_of,
)
from optillm.settings.model import SCOPES, Key, Settings, SettingsError, UpstreamSettings, sha256
from optillm.settings.options import OPTIONS, flags_of, parser

__all__ = [
    "OPTIONS",
    "SCOPES",
    "Key",
    "Settings",
    "SettingsError",
    "UpstreamSettings",
    "flags_of",
    "from_command_line",
    "from_environment",
    "from_flags",
    "load",
    "parser",
    "plugins_of",
    "sha256",
    "store_of",
]
