"""Renders the table of the configuration's fields as `docs/configuration.md`."""

import ml_collections

from ncsn_jax.app import schema


def reference(defaults: ml_collections.ConfigDict) -> str:
    """Returns the table in Markdown: each field's default, allowed values, and meaning."""
    flat = schema.flatten(defaults)
    lines = [
        "# Configuration",
        "",
        "Each field with the default of `configs/default.py`. Override one on the command line, as in",
        "`--config.training.batch_size=64`. Fields marked * may change when a run is resumed.",
    ]
    for section, (meaning, fields) in schema.SECTIONS.items():
        if section:
            lines += ["", f"## {section}", "", meaning]
        lines += ["", "| Field | Default | Meaning | Values |", "|---|---|---|---|"]
        for short, field in fields.items():
            name = f"{section}.{short}".lstrip(".")
            default = tuple(flat[name]) if isinstance(flat[name], list) else flat[name]
            mark = " *" if name.startswith(schema.CHANGEABLE) else ""
            words = dict.fromkeys((field.kind, *(allowed for _, allowed in field.limits)))
            words.pop(f"at most {schema.MAX_INTEGER}", None)
            lines.append(
                f"| `{name}`{mark} | `{default!r}` | {field.meaning} | {', '.join(words)} |"
            )
    return "\n".join(lines) + "\n"
