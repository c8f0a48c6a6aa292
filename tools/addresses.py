"""Writes the address of the public repository into what is published from it: `project.urls`, and
the links of the README, which are relative and would lead nowhere on a package index.

    python tools/addresses.py https://example.org/owner/fastrnn v0.1.0

Only the workflow that publishes calls it, since a checkout does not know where it is published.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RELATIVE = re.compile(r'(\]\(|src=")(?![a-z]+:|#)([^)"\s]+)')


def readme(text: str, url: str, tag: str) -> str:
    """With links to the files of a tag, and with pictures from there."""

    def absolute(match: re.Match) -> str:
        kind = "raw" if match[2].endswith((".png", ".svg")) else "blob"
        return f"{match[1]}{url}/{kind}/{tag}/{match[2]}"

    return RELATIVE.sub(absolute, text)


def pyproject(text: str, url: str, tag: str) -> str:
    """With a table of addresses."""
    urls = {
        "Repository": url,
        "Documentation": f"{url}/blob/{tag}/docs/index.md",
        "Changelog": f"{url}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{url}/issues",
    }
    table = "".join(f'{name} = "{address}"\n' for name, address in urls.items())
    before = "[project.optional-dependencies]\n"
    return text.replace(before, f"[project.urls]\n{table}\n{before}", 1)


if __name__ == "__main__":
    url, tag = sys.argv[1:]
    for name, write in {"README.md": readme, "pyproject.toml": pyproject}.items():
        path = ROOT / name
        path.write_text(write(path.read_text(), url.rstrip("/"), tag))
