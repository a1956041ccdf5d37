"""Completes the site that `mkdocs build` makes of this directory.

Adds pages made from files elsewhere in the repository: the README, the notebooks, and the source files that
pages link to. Points links between files, which work in the repository as they stand, at these pages. A link
to `FILE.py#NAME` leads to the line that defines NAME. Ships MathJax with the site.
"""

import ast
import posixpath
import re
from importlib import metadata
from pathlib import Path

import nbconvert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parent.parent

# File in the repository to page of the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/accelerator.md": "accelerator_benchmark.md",
    **{
        f"notebooks/{p.stem}.ipynb": f"notebooks/{p.stem}.md"
        for p in ROOT.glob("notebooks/*.ipynb")
    },
}
_ORIGIN = {page: path for path, page in PAGES.items()}

# Markdown links, outside of code.
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)


def on_files(files, config):
    """Adds the pages, the source files and MathJax."""
    for path, page in PAGES.items():
        if path.endswith(".ipynb"):
            _add_notebook(files, config, path, page)
        else:
            files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    for path in sorted(set(_linked_sources(files))):
        page = File.generated(
            config,
            _source_page(path),
            content=_show_source(path),
            inclusion=InclusionLevel.NOT_IN_NAV,
        )
        files.append(page)
    for file in metadata.files("sphinx-mathjax-offline"):
        inside = str(file).partition("static/mathjax/")[2]
        if inside == "tex-chtml.js" or inside.startswith("output/chtml/fonts/"):
            files.append(File.generated(config, f"mathjax/{inside}", content=file.read_binary()))
    if "mathjax/tex-chtml.js" not in files.src_uris:
        raise PluginError("sphinx-mathjax-offline does not hold tex-chtml.js")
    return files


def on_page_markdown(markdown, page, config, files):
    """Points the page's links at pages of the site."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown
    if config.repo_url:
        markdown = markdown.replace("git clone REPOSITORY", f"git clone {config.repo_url}")
    return _outside_code(markdown, lambda text: _LINK.sub(lambda m: _relink(m, uri, files), text))


def on_page_content(html, page, config, files):
    """Tells mkdocs, which checks links, of the lines of source files."""
    page.present_anchor_ids |= set(re.findall(r'id="(__codelineno-[^"]+)"', html))
    return html


def _outside_code(markdown, change):
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])


def _origin(uri):
    """Returns the file of the repository that a page is made from."""
    return _ORIGIN.get(uri, f"docs/{uri}")


def _target(uri, link):
    """Returns (file of the repository, anchor) that a page links to, or None for other links."""
    path, _, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:", link):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(_origin(uri)), path)), anchor


def _relink(match, uri, files):
    found = _target(uri, match[2])
    here = posixpath.dirname(uri)
    if found is None or (match[0].startswith("!") and f"{here}/{match[2]}" in files.src_uris):
        return match[0]
    path, anchor = found
    if path.startswith("docs/"):
        page = path.removeprefix("docs/")
    elif path in PAGES:
        page = PAGES[path]
    else:
        page = _source_page(path)
        anchor = anchor and f"__codelineno-0-{find_line(path, anchor)}"
    text = match[1]
    if page in files.src_uris and text.strip("[](").endswith(posixpath.basename(path)):
        heading = re.search(r"^# (.*)", files.src_uris[page].content_string, re.MULTILINE)
        text = f"[{heading[1]}]("
    link = posixpath.relpath(page, here or ".") + (f"#{anchor}" if anchor else "")
    return f"{text}{link}{match[3]}"


def _linked_sources(files):
    for file in files.documentation_pages():
        text = _FENCE.sub("", file.content_string)
        for _, link, _ in _LINK.findall(text):
            found = _target(file.src_uri, link)
            if found is None or found[0].startswith("docs/") or found[0] in PAGES:
                continue
            path = ROOT / found[0]
            if path.exists():  # mkdocs reports a dead link
                yield found[0]
            if path.is_dir():
                yield from (str(p.relative_to(ROOT)) for p in path.rglob("*.py"))


def _source_page(path):
    return f"source/{path}.md"


def _show_source(path):
    """Returns a page with a file, or with the list of a directory's Python files."""
    file = ROOT / path
    head = f"---\nsearch: {{exclude: true}}\nhide: [navigation, toc]\n---\n\n# `{path}`\n\n"
    if file.is_dir():
        inside = [str(p.relative_to(ROOT)) for p in sorted(file.rglob("*.py"))]
        here = posixpath.dirname(_source_page(path))
        links = (f"- [`{p}`]({posixpath.relpath(_source_page(p), here)})\n" for p in inside)
        return head + "".join(links)
    language = {".py": "python"}.get(file.suffix, "text")
    return f'{head}``````{language} linenums="1"\n{file.read_text()}\n``````\n'


def find_line(path, name):
    """Returns the number of the line on which a Python file defines a name: `f`, or `Class.f`."""
    nodes = ast.parse((ROOT / path).read_text()).body
    for part in name.split("."):
        node = next((n for n in nodes if part in _names(n)), None)
        if node is None:
            raise PluginError(f"a page links to {path}#{name}, which {path} does not define")
        nodes = getattr(node, "body", [])
    return node.lineno


def _names(node):
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return [getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)]


def _add_notebook(files, config, path, page):
    names = {"unique_key": Path(path).stem}  # of the pictures
    text, resources = nbconvert.MarkdownExporter().from_filename(str(ROOT / path), resources=names)
    files.append(File.generated(config, page, content=text))
    for name, content in resources["outputs"].items():
        files.append(File.generated(config, f"notebooks/{name}", content=content))
