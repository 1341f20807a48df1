"""URLs without their credentials. What is shown or written has the hidden form; this process alone knows the whole.

Settings hold the hidden form from the beginning (:func:`keep_back`), so that no file, log or tracker can show more.
What opens a URL asks for the whole of it (:func:`reveal`). Decoding processes are given what this process knows.
"""

import re
from collections.abc import Mapping
from typing import Any

# User and password before the host, the password perhaps with a slash in it; and the query, which holds tokens.
_USER = r'(?:[^\s/?#"]*@|[^\s/:?#@"]*:(?!\d*(?:[/?#"\s]|$))[^\s"]*@)'
_URL = re.compile(rf"""([A-Za-z][A-Za-z0-9+.\-]*://)({_USER}?)([^\s?"']*)(\?[^\s"']*)?""")
_whole: dict[str, str] = {}


def hide_credentials(text: str) -> str:
    """``text`` with every URL in it without user, password and query."""
    return _URL.sub(r"\1\3", text) if "://" in text else text


def keep_back(value: Any) -> Any:
    """``value`` with the URLs in its strings hidden; :func:`reveal` gives them back in this process.

    Args:
        value: A URL, or a mapping or list that may hold some; anything else is returned as it is.
    """
    if isinstance(value, str):
        hidden = hide_credentials(value)
        if hidden != value:
            _whole[hidden] = value
        return hidden
    return _each(value, keep_back)


def reveal(value: Any) -> Any:
    """``value`` with the URLs that this process was given with credentials as they were given."""
    return _whole.get(value, value) if isinstance(value, str) else _each(value, reveal)


def hidden(value: Any) -> Any:
    """``value`` with the URLs in its strings hidden, for what is compared or shown alone."""
    return hide_credentials(value) if isinstance(value, str) else _each(value, hidden)


def known() -> dict[str, str]:
    """The whole URLs by their hidden form, for a process that works for this one."""
    return dict(_whole)


def learn(whole: Mapping[str, str]) -> None:
    """Takes over what :func:`known` gave in another process."""
    _whole.update(whole)


def _each(value: Any, function: Any) -> Any:
    if isinstance(value, dict):
        return {key: function(item) for key, item in value.items()}
    return [function(item) for item in value] if isinstance(value, list) else value
