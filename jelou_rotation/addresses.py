"""Which hosts are public: judged by name and by address, in every spelling a resolver takes."""

import socket
import unicodedata
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

# RFC 6052: where only IPv6 is routed, an IPv4 address is reached through this prefix.
_NAT64 = IPv6Network("64:ff9b::/96")


def host_name(host: str) -> str:
    """As a resolver would read it: full-width letters are letters, and a dot at the end changes nothing."""
    return unicodedata.normalize("NFKC", host).replace("\u3002", ".").lower().removesuffix(".")


def address_of(name: str) -> IPv4Address | IPv6Address | None:
    """An IP address in any spelling a resolver takes, such as 127.1 or 0x7f000001; None for a real name."""
    try:
        if ":" not in name:
            return IPv4Address(socket.inet_aton(name))
        address = IPv6Address(name)
    except (OSError, ValueError):
        return None
    if address in _NAT64:
        return IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour or address


def is_private(host: str) -> bool:
    """Whether a host name or address literal is not for the public; names are not resolved."""
    name = host_name(host)
    if name == "localhost" or name.endswith((".localhost", ".local", ".internal")):
        return True
    address = address_of(name)
    return address is not None and not _is_public(address)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    is_site_local = isinstance(address, IPv6Address) and address.is_site_local
    return address.is_global and not (address.is_multicast or address.is_reserved or is_site_local)


def is_loopback(host: str) -> bool:
    """Whether a host name or address literal means this machine; names are not resolved."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
