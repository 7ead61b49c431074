"""Graph rewrites that change no answer: one file each, run in the order of ``PASSES``.

They know the operators as they are since opset 13; an older graph is left as it is.
"""

from __future__ import annotations

from onnx import ModelProto

from optimize.fuse.activations import fuse_activations
from optimize.fuse.attention import fuse_attention
from optimize.fuse.casts import merge_casts
from optimize.fuse.editing import Rewrite
from optimize.fuse.fold import fold
from optimize.fuse.layer_norm import fuse_layer_norm
from optimize.fuse.names import name_weighted_nodes
from optimize.fuse.picks import pick_before_transposing
from optimize.fuse.pointwise import pointwise_to_matmul
from optimize.fuse.rearrange import rearrange
from optimize.fuse.residual_norm import keep_residuals_apart
from optimize.fuse.rnn_state import drop_zero_states
from optimize.fuse.row_wise import move_past_rows
from optimize.fuse.scales import fold_scales
from optimize.fuse.slices import slices_to_split
from optimize.fuse.static_shapes import static_shapes
from optimize.fuse.tables import fold_tables
from optimize.fuse.unpack import unpack

OLDEST_OPSET = 13

PASSES: list[tuple[str, Rewrite]] = [
    ("constants folded, no-ops removed", fold),
    ("zero RNN states dropped", drop_zero_states),
    ("shapes made constant", static_shapes),
    ("constants folded, no-ops removed", fold),
    ("casts merged", merge_casts),
    ("layer norms fused", fuse_layer_norm),
    ("activations fused", fuse_activations),
    ("slices made splits", slices_to_split),
    ("pointwise convolutions made products", pointwise_to_matmul),
    ("steps picked before transposing", pick_before_transposing),
    ("reshapes and transposes merged", rearrange),
    ("reshapes and transposes moved past rows", move_past_rows),
    ("packed projections taken apart", unpack),
    ("reshapes and transposes merged", rearrange),
    ("attentions fused", fuse_attention),
    ("reshapes and transposes merged", rearrange),
    ("constant factors folded", fold_scales),
    ("tables multiplied once", fold_tables),
    ("residual sums kept apart from norms", keep_residuals_apart),
    ("left-overs folded", fold),
    ("weighted nodes named", name_weighted_nodes),
]


def fuse(model: ModelProto) -> tuple[ModelProto, dict[str, int]]:
    """Run every pass; returns the new model and, by the pass's words, how many nodes it removed or rewrote."""
    counts = {name: 0 for name, _ in PASSES}
    if next((entry.version for entry in model.opset_import if entry.domain == ""), OLDEST_OPSET) < OLDEST_OPSET:
        return model, counts
    for name, rewrite in PASSES:
        model, count = rewrite(model)
        counts[name] += count
    return model, counts
