"""A hook of MkDocs: notebooks as pages of the site, with the outputs that are stored in them.

A notebook becomes Markdown, so that its links, headings and code are those of every other page. The
notebook itself is copied beside it, to download. Formulas, of any page, become MathML: a browser
shows it without a script.
"""

import base64
import html
import json
import re

from latex2mathml.converter import convert
from mkdocs.structure.files import File

FORMULA = re.compile(r'<(?:div|span) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:div|span)>', re.S)


def on_files(files, config):
    for file in [each for each in files if each.src_uri.endswith(".ipynb")]:
        stem = file.src_uri.removesuffix(".ipynb")
        text, pictures = page(json.loads(file.content_string), stem.rsplit("/", 1)[-1])
        files.append(File.generated(config, f"{stem}.md", content=text))
        for name, content in pictures.items():
            uri = f"{stem.rpartition('/')[0]}/{name}"
            files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown, **_):
    """Links between notebooks lead to their pages."""
    return re.sub(r"\.ipynb(?=[)#])", ".md", markdown)


def on_page_content(content, **_):
    return FORMULA.sub(
        lambda m: convert(html.unescape(m[2]), display="inline" if m[1] == "(" else "block"),
        content,
    )


def page(notebook: dict, stem: str) -> tuple[str, dict[str, bytes]]:
    """The Markdown of a notebook, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", [])})
            text = "".join(data["text/plain"]).rstrip("\n")
            if "image/png" in data:
                name = f"{stem}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![{text}]({name})")
            else:
                parts.append(f"```text\n{text}\n```")
    parts.append(f'<a href="{stem}.ipynb" download>Download this notebook</a>')
    return "\n\n".join(parts) + "\n", pictures
