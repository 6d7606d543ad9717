"""The variants: each has an id of the catalogue, replaces an operation of the formula, and computes something else."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

import harness.diagnosis
from harness.core.sizes import SIZES
from harness.faults import catalogue
from harness.faults.catalogue import read_catalogue, read_catalogue_file
from harness.oracle.deviations import kind
from harness.oracle.formula import OPERATIONS, Formula, Replacement
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.oracle.variants import in_parts, variants
from harness.subjects.weight_map import published_shapes

DEBUG = SIZES["debug"]
CATALOGUE = read_catalogue()


def test_every_id_of_a_variant_is_in_the_catalogue():
    assert sorted({variant.fault for variant in variants()} - CATALOGUE.ids) == []


def test_every_id_that_the_diagnosis_names_is_in_the_catalogue_and_can_be_declared():
    """Its tables are read as data; ids in a call of Finding(where, fault, ...) are read from the source."""
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(harness.diagnosis.__path__, "harness.diagnosis.")
    ]
    found = {fault for module in modules for value in vars(module).values() for fault in ids_in_table(value)}
    tables = [table for module in modules for name, table in vars(module).items() if name.endswith("FAULTS")]
    found |= {fault for table in tables for fault in table.values()}
    found |= {fault for module in modules for fault in ids_in_findings(Path(module.__file__))}
    # What is put together at run time: see `_merged`, `overflow` and `_score_factor`.
    found |= {"mask-missing-last-layer", "softmax-unstable", "scale-wrong", *(v.fault for v in variants())}
    assert {"mask-polarity-inverted-padding", "residual-detached", "bias-free"} <= found
    assert sorted(found - CATALOGUE.ids - {""}) == []
    of_gpts = read_catalogue_file(catalogue.CATALOGUE).ids  # of a technique nothing can be declared
    assert [fault for fault in sorted(found & of_gpts) if kind(fault) is None] == []


def ids_in_table(value) -> Iterator[str]:
    """The ids of the rows of a table, where a row has the attribute `fault`."""
    rows = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return (row.fault for row in rows if isinstance(getattr(row, "fault", None), str))


def ids_in_findings(path: Path) -> Iterator[str]:
    """The strings in the second argument of each call of Finding, both branches of a conditional expression."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Finding", "_finding"):
            second = node.args[1] if len(node.args) > 1 else ast.Constant("")
            choices = [second.body, second.orelse] if isinstance(second, ast.IfExp) else [second]
            yield from (choice.value for choice in choices if isinstance(choice, ast.Constant))


def test_the_ids_that_no_specimen_has_are_used():
    """An id under [[named]] that nothing names any more is removed from the catalogue."""
    written = {variant.fault for variant in variants()}
    rooms = [Path(harness.__path__[0], room) for room in ("diagnosis", "oracle", "measures")]
    source = "\n".join(path.read_text(encoding="utf-8") for room in rooms for path in room.rglob("*.py"))
    assert [name for name in CATALOGUE.named if name not in written and f'"{name}"' not in source] == []


def test_no_variant_computes_what_gpt2_computes():
    """A variant that did would fit every correct model. Some differ for large numbers only: the extreme weights."""
    ids, _ = batch(DEBUG, "random", rows=2, length=DEBUG.context)
    gates = {name: torch.ones(shape) for name, shape in published_shapes(replace(DEBUG, gated=True)).items()}
    kinds = [{n: t.double() for n, t in {**gates, **state("debug", kind)}.items()} for kind in ("probe", "extreme")]
    right = [Formula(DEBUG, weights)(ids) for weights in kinds]
    silent = []
    for variant in (each for each in variants() if not each.harmless):
        in_blocks = variant.operation not in ("embedding", "embedding.position", "blocks", "ln_f", "head")
        gaps = []
        for layer in (0, 2) if in_blocks else (None,):
            for weights, expected in zip(kinds, right, strict=True):
                # A variant that raises here would fit nothing: the search skips it silently.
                found = Formula(DEBUG, weights, [Replacement(variant.operation, variant.function, layer)])(ids)
                gaps.append(float((found - expected).abs().nan_to_num(1.0).max()))
        if max(gaps) < 1e-9:
            silent.append(f"{variant.fault}: {variant.says}")
    assert not silent


def test_every_variant_replaces_an_operation_of_the_formula():
    assert {variant.operation for variant in variants()} <= set(OPERATIONS)
    assert all(variant.says and variant.fault for variant in variants())


def test_a_partial_variant_changes_the_values_of_its_part_only():
    variant = next(each for each in variants() if each.fault == "scale-missing")
    weights = state("debug", "probe")
    ids, _ = batch(DEBUG, "random", rows=2, length=DEBUG.context)
    right = Formula(DEBUG, weights)
    right(ids)
    parts = {each.says.split(":")[0]: each for each in in_parts(variant, heads=DEBUG.heads)}
    changed = Formula(DEBUG, weights, [Replacement("attn.scale", parts["in head 1 only"].function, 0)])
    changed(ids)
    differs = (changed.taps["h.0.attn.scale"] != right.taps["h.0.attn.scale"]).flatten(2).any(-1).any(0)
    assert differs.tolist() == [head == 1 for head in range(DEBUG.heads)]
