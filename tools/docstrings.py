"""An extension of Griffe, which reads docstrings for the site: it makes Markdown of them.

An example becomes code. Sections that Google's style does not have, such as shapes, become lists.
Products such as D*H keep their asterisks: Markdown would take these for italics.
"""

import re

import griffe

SECTIONS = {"Args:", "Attributes:", "Example:", "Raises:", "Returns:", "Warns:"}
PRODUCT = re.compile(r"(?<=[\w)])\*(?=[\w(])")


def markdown(text: str) -> str:
    lines, known, listed = [], False, False
    for line in text.split("\n"):
        before = lines[-1] if lines else ""
        if line and not line.startswith(" "):
            known, listed = line in SECTIONS, False
            line = "Examples:" if line == "Example:" else line
        elif not known and not listed and before.endswith(":"):
            listed = bool(line)
            lines += [""] * listed
        if listed and (entry := re.match(r"    (?! )(?:([\w, ]+): )?(.*)", line)):
            line = f"- **{entry[1]}** – {entry[2]}" if entry[1] else f"- {entry[2]}"
        elif listed:
            line = line[4:]
        code = line.lstrip().startswith((">>> ", "... ")) or (
            line.startswith("    ") and not (known or listed)
        )
        lines.append(line if code else PRODUCT.sub(r"\\*", line))
    return "\n".join(lines)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
