"""The form of a pass: a callable from a model to the model and whether it was modified.

Passes are ``onnx_ir.passes.InPlacePass`` subclasses, so that they combine with those of onnx-ir and onnxscript. The
class docstring states the rule, and the test beside it shows the rule on a small graph.
"""

from collections.abc import Sequence

import onnx_ir as ir


def run_passes(model: ir.Model, passes: Sequence[ir.passes.PassBase]) -> ir.Model:
    """Apply passes in order."""
    return ir.passes.Sequential(*passes)(model).model
