"""Give every rtgen node its function body."""

import onnx_ir as ir

from rtgen.plugins.base import DOMAIN, DOMAIN_VERSION
from rtgen.plugins.registry import PLUGINS


class AttachFunctions(ir.passes.InPlacePass):
    """1. For each rtgen node in the graph, the plugin's function is added to the model once.

    2. The domain is imported at the version of the schemas.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        wanted = {node.op_type for node in model.graph if node.domain == DOMAIN}
        for name in sorted(wanted):
            function = ir.serde.deserialize_function(PLUGINS[name].function())
            model.functions[function.identifier()] = function  # rule 1
        if wanted:
            model.graph.opset_imports[DOMAIN] = DOMAIN_VERSION  # rule 2
        return ir.passes.PassResult(model, modified=bool(wanted))
