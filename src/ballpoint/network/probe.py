"""What on this host would stop the instances' packets although the node's own rules let them through.

A drop is final in nftables, whichever table makes it. Docker sets the policy of FORWARD to drop, ufw and firewalld that
of INPUT too, which cuts instances off from the node's DNS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ballpoint.host import nft, process
from ballpoint.network.rules import LINK_PREFIX

_LEGACY_TABLES = Path("/proc/thread-self/net/ip_tables_names")
_NEEDED = {"forward": "leave this host", "input": "reach the node's DNS"}
_MEND = (
    "iptables -I FORWARD -i bp+ -j ACCEPT; iptables -I FORWARD -o bp+ -m conntrack --ctstate ESTABLISHED,RELATED "
    "-j ACCEPT; iptables -I INPUT -i bp+ -j ACCEPT (with Docker, in the chain DOCKER-USER instead of FORWARD)"
)


def forward_policy_problem() -> str | None:
    """One sentence with a hint about a firewall whose policy drops what instances send, or None.

    A chain is taken to have been mended where it, or a chain it jumps to, has an accepting rule for `bp*` links.

    Raises:
        UnavailableError: nft(8) is missing.
    """
    items = nft.ruleset("ruleset")
    rules = [item["rule"] for item in items if "rule" in item]
    for chain in (item["chain"] for item in items if "chain" in item):
        hook = str(chain.get("hook"))
        if hook in _NEEDED and chain.get("policy") == "drop" and not _mended(chain, rules):
            return _sentence(f"chain {chain['name']} of the {chain['family']} table {chain['table']}", hook)
    return _legacy_problem()


def _sentence(what: str, hook: str) -> str:
    return f"{what} drops by default, so instances cannot {_NEEDED[hook]}; let their links through: {_MEND}"


def _mended(chain: dict[str, Any], rules: list[dict[str, Any]]) -> bool:
    """Whether an accepting rule for our links is in `chain` or in any chain reached from it."""
    seen: set[str] = set()
    queue = [str(chain["name"])]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        for rule in rules:
            if (rule["family"], rule["table"], rule["chain"]) != (chain["family"], chain["table"], name):
                continue
            ours = any(_names_our_links(statement) for statement in rule["expr"])
            for statement in rule["expr"]:
                if "accept" in statement and ours:
                    return True
                jump = statement.get("jump") or statement.get("goto")
                if jump:
                    queue.append(str(jump["target"]))
    return False


def _names_our_links(statement: dict[str, Any]) -> bool:
    match = statement.get("match", {})
    return (match.get("left"), match.get("right")) == ({"meta": {"key": "iifname"}}, f"{LINK_PREFIX}*")


def _legacy_problem() -> str | None:
    """The same for the kernel's older packet filter, which nft(8) does not show."""
    try:
        # Asking the tool would load a table that is not there.
        loaded = _LEGACY_TABLES.read_text().split()
    except FileNotFoundError:
        return None
    if "filter" not in loaded:
        return None
    rules = process.run(["iptables-legacy-save", "-t", "filter"], timeout=20).splitlines()
    for hook in _NEEDED:
        dropped = any(rule.startswith(f":{hook.upper()} DROP") for rule in rules)
        if dropped and not any(f"-i {LINK_PREFIX}+" in rule and rule.endswith("-j ACCEPT") for rule in rules):
            return _sentence(f"chain {hook.upper()} of the legacy filter table", hook)
    return None
