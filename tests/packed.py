"""The layout of the bundles' JSON: short things on one line, a component's arguments in as few lines as they need.

``python tests/packed.py FILE ...`` lays files out; blank lines between groups of ids stay where they are.
"""

import json
import sys
from pathlib import Path

WIDTH = 120
OWN = ("_target_", "_disabled_", "_desc_")


def packed(value, before: str = "", after: str = "", indent: int = 0) -> list[str]:
    """Return the lines of a JSON value.

    Args:
        value: What ``json.loads`` returned.
        before: What stands before it on its first line, such as its key.
        after: What stands behind it on its last line, such as a comma.
        indent: Spaces before each line.
    """
    line = " " * indent + before + json.dumps(value, ensure_ascii=False) + after
    if not value or not isinstance(value, dict | list) or (indent and len(line) <= WIDTH):
        return [line]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    pairs = value.items() if isinstance(value, dict) else ((None, entry) for entry in value)
    component = isinstance(value, dict) and "_target_" in value
    lines, last = [" " * indent + before + opening], None
    for number, (key, entry) in enumerate(pairs, 1):
        name, comma = "" if key is None else f'"{key}": ', "," if number < len(value) else ""
        found, kind = packed(entry, name, comma, indent + 2), key in OWN
        together = f"{lines[-1]} {found[0].strip()}"
        if component and last == kind and len(found) == 1 and len(together) <= WIDTH:
            lines[-1] = together
        else:
            lines += found
        last = kind if len(found) == 1 else None
    return [*lines, " " * indent + closing + after]


def laid_out(text: str) -> str:
    """Return a JSON file laid out, with a blank line before each top-level id that had one."""
    lines = text.splitlines()
    first = {line.split('": ')[0] for blank, line in zip(lines, lines[1:]) if not blank}
    spaced = []
    for line in packed(json.loads(text)):
        spaced += [""] if line.split('": ')[0] in first and line.startswith('  "') else []
        spaced.append(line)
    return "\n".join(spaced) + "\n"


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(laid_out(path.read_text()))
