"""Where a webhook may go: public addresses only, unless the operator allows others.

A tenant chooses the URL, so without this it could reach what only this machine can reach. Names
are judged by the address that is connected to, each time: a name may mean another one by then.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

MAX_URL = 2048
#: IPv6 ranges that lead to an IPv4 address, so to any, and the old site-local one. Nobody's
#: webhook needs them.
_UNWANTED = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        *("::/96", "::ffff:0:0/96", "64:ff9b::/96"),
        *("64:ff9b:1::/48", "2001::/32", "2002::/16", "fec0::/10"),
    )
)


class WebhookURLError(ValueError):
    """This can't be a webhook's URL; the message says why."""


def is_public(address: str) -> bool:
    """Whether this IP address is one of the public internet's; False for what is no address."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and any(ip in network for network in _UNWANTED):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def check_url(url: str, *, allow_private: bool) -> None:
    """Judges what can be judged before connecting. Raises WebhookURLError.

    allow_private: the operator's setting, which also allows plain HTTP.
    """
    if len(url) > MAX_URL or not (url.isascii() and url.isprintable()) or " " in url:
        raise WebhookURLError(f"A URL is at most {MAX_URL} printable ASCII characters.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise WebhookURLError("This is not a URL.") from None
    schemes = ("https", "http") if allow_private else ("https",)
    if parts.scheme not in schemes:
        raise WebhookURLError("The URL must begin with https://.")
    if not host or port == 0:
        raise WebhookURLError("The URL has no host, or no port that can be.")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise WebhookURLError("The URL must have no user, no password and no fragment.")
    if not allow_private and ((_is_address(host) and not is_public(host)) or _is_local(host)):
        raise WebhookURLError("The URL's host is not on the public internet.")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _is_local(host: str) -> bool:
    return host.rstrip(".").rpartition(".")[2] == "localhost"
