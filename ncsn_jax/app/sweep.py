"""Reads `config.evaluation.sweep`: the configurations that an evaluation goes through."""

import ast
import itertools

from ncsn_jax.app import samplers, schema
from ncsn_jax.errors import UserError

_STEP = "sampling.step"


def expand(config) -> list:
    """Returns a configuration for every combination of the sweep's values, or the one given.

    `"sampling.num_steps=10,20 sampling.churn=0,10"` makes four. Each gets its values as its
    `config.sampling.name`, after the name it has; a step needs none, since every directory is named for it.

    Raises:
      UserError: if a field does not determine the samples, or cannot have a value.
    """
    choices = {}
    for word in config.evaluation.sweep.split():
        field, _, values = word.partition("=")
        if field in choices:
            raise UserError(
                f"config.evaluation.sweep={config.evaluation.sweep!r} names {field} twice"
            )
        choices[field] = [(field, _value(field, text)) for text in values.split(",")]
    configs = []
    for combination in itertools.product(*choices.values()):
        one = config.copy_and_resolve_references()
        for field, value in combination:
            try:
                one.update_from_flattened_dict({field: value})
            except (TypeError, ValueError):
                allowed = schema.FIELDS[field].kind
                raise UserError(f"config.{field}={value!r} must be {allowed}") from None
        effective = {_STEP, *samplers.settings(one)} - {"seed"}
        if idle := [field for field, _ in combination if field not in effective]:
            raise UserError(
                f"config.evaluation.sweep: {idle[0]} has no effect on the samples of "
                f"config.sampling.method={one.sampling.method!r}; {', '.join(sorted(effective))} have"
            )
        named = [f"{f.rpartition('.')[2]}={value}" for f, value in combination if f != _STEP]
        one.sampling.name = "_".join(filter(None, [config.sampling.name, *named]))
        schema.check(one)
        samplers.check(one)
        configs.append(one)
    return configs


def _value(field: str, text: str) -> object:
    """Returns the value that a text stands for."""
    if "." in field and field not in schema.FIELDS:
        raise UserError(f"config.evaluation.sweep: config.{field} is not a field")
    if field not in schema.FIELDS or not text:
        raise UserError(
            f"config.evaluation.sweep: {field}={text} must be a field and its value, without spaces, as in "
            "'sampling.num_steps=10,20 sampling.churn=0,10'"
        )
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
