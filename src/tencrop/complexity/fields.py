"""Track receptive fields through the operations of a forward pass, by the rules of field_rules.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tencrop.complexity.field_rules import RULES, UNCHANGED
from tencrop.complexity.receptive_field import Field, NoReceptiveField, image_field, pointwise


class FieldTracker:
    """Receptive fields of all tensors in a forward pass; unknown tensors (weights) do not depend on the image."""

    def __init__(self, images: Tensor):
        self._fields: dict[int, Field | None] = {id(images): image_field(images)}
        # keeps every tensor alive: Python would give the id of a freed tensor to a new one
        self._alive: list[Any] = [images]

    def field(self, tensor: Tensor) -> Field | None:
        """Field of a tensor; None if it does not depend on the image, or if no window describes the dependence."""
        return self._fields.get(id(tensor))

    def follow(self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
        """Derive and store the fields of an operation's outputs."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if id(leaf) in self._fields]
        if not inputs:
            return
        # stored as None from here on: everything computed from it has no window either
        try:
            if any(self._fields[id(tensor)] is None for tensor in inputs):
                raise NoReceptiveField
            fields = self._outputs(operation, args, kwargs, output)
        except NoReceptiveField:
            fields = None
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        for number, tensor in enumerate(outputs):
            # a rule gives one field for all outputs or a list; a shape that does not agree is a rule's mistake
            field = fields[number] if isinstance(fields, list) else fields
            self._fields[id(tensor)] = field if field is None or field.shape == tuple(tensor.shape) else None
        self._alive.append(output)

    def _outputs(self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> Any:
        packet = operation.overloadpacket
        if packet in RULES:
            return RULES[packet](self._known, output, *args, **kwargs)
        # torch tags its elementwise operations, so that no list of all activations is needed
        if torch.Tag.pointwise in operation.tags or packet in UNCHANGED:
            known = [self._known(leaf) for leaf in tree_leaves(args)]
            first = output if isinstance(output, Tensor) else output[0]
            return pointwise([field for field in known if field], tuple(first.shape))
        raise NoReceptiveField  # an operation without a rule: no field rather than a wrong one

    def _known(self, tensor: Any) -> Field | None:
        return self._fields.get(id(tensor))
