"""Recipes as canonical JSON: what a run's name hashes, what is stored beside it, what a user may write by hand.

Classes with several kinds (input distributions, task families) carry a ``kind``. Reading is strict: an unknown field, a
wrong type or an unknown kind is an error that names the place.

    >>> from innerloop.training.recipe import Recipe
    >>> recipe_from_json(recipe_to_json(Recipe(num_steps=7))).num_steps
    7
"""

import json
from typing import Any

import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from innerloop.tasks import INPUT_DISTRIBUTIONS, TASKS, InputDistribution, Task
from innerloop.training.recipe import Recipe


def recipe_to_json(recipe: Recipe) -> str:
    """Canonical JSON: sorted keys, no spaces that could differ, every number written as its field's type.

    Recipes that are equal in Python (10 and 10.0, NumPy's numbers) have one text, hence one name.
    """
    typed = _LENIENT.structure(_STRICT.unstructure(recipe), Recipe)
    return json.dumps(_STRICT.unstructure(typed), sort_keys=True, separators=(",", ":"), allow_nan=False)


def recipe_from_json(text: str) -> Recipe:
    """Reads a recipe.

    Raises:
        ValueError: if the text is not JSON or not a recipe; the message names the field.
    """
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"a recipe must be a JSON object, got {text[:40]!r}")
    return structure(value, Recipe)


def structure(value: Any, cls: Any, *, path: str = "recipe") -> Any:
    """Builds ``cls`` from plain JSON values, strictly; ``path`` is what messages call the whole value.

    Raises:
        ValueError: naming every field that does not fit.
    """
    try:
        return _STRICT.structure(value, cls)
    except cattrs.BaseValidationError as error:
        messages = cattrs.transform_error(error, path=path, format_exception=_describe)
        raise ValueError("; ".join(messages)) from None


def _describe(error: BaseException, _: Any) -> str:
    if isinstance(error, KeyError):
        return f"missing field {error}"
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return f"unknown field(s) {', '.join(sorted(error.extra_fields))}"
    return str(error)


def _strict_hook(cls: type):
    def hook(value, _):
        wanted = (int, float) if cls is float else cls
        if not isinstance(value, wanted) or (isinstance(value, bool) and cls is not bool):
            raise ValueError(f"expected {cls.__name__}, got {value!r}")
        return cls(value)

    return hook


def _register_kinds(converter: cattrs.Converter, base: type, kinds: dict[str, type]) -> None:
    """Writes subclasses of ``base`` with a ``kind`` and reads them by it."""
    names = {cls: name for name, cls in kinds.items()}
    structure_fns = {}
    for name, cls in kinds.items():
        unstructure_fn = make_dict_unstructure_fn(cls, converter)
        structure_fns[name] = make_dict_structure_fn(cls, converter)
        converter.register_unstructure_hook(
            cls, lambda value, fn=unstructure_fn: {"kind": names[type(value)], **fn(value)}
        )

    def structure_hook(value, _):
        kind = value.get("kind") if isinstance(value, dict) else value
        if kind not in kinds:
            raise ValueError(f"kind must be one of {', '.join(kinds)}, got {kind!r}")
        fields = {key: item for key, item in value.items() if key != "kind"} if isinstance(value, dict) else {}
        return structure_fns[kind](fields, kinds[kind])

    for cls in (base, *kinds.values()):
        converter.register_structure_hook(cls, structure_hook)


def _make_converter(*, strict: bool) -> cattrs.Converter:
    """A converter that refuses values of another type than the field's, or one that converts them."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    if strict:
        for cls in (int, float, bool, str):
            converter.register_structure_hook(cls, _strict_hook(cls))
    for base in (InputDistribution, Task):
        converter.register_unstructure_hook(base, lambda value: converter.unstructure(value, type(value)))
    _register_kinds(converter, InputDistribution, INPUT_DISTRIBUTIONS)
    _register_kinds(converter, Task, TASKS)
    return converter


_STRICT, _LENIENT = _make_converter(strict=True), _make_converter(strict=False)
