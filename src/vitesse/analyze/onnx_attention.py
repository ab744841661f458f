"""Attention maps of an artefact: what its softmax operators give becomes an output."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitesse.analyze.attention import Take
from vitesse.analyze.head_similarity import as_heads
from vitesse.analyze.onnx_profile import Origins
from vitesse.export.onnx import as_proto
from vitesse.runtime.artefact import Artefact
from vitesse.runtime.engines import OnnxRuntimeEngine, onnxruntime_session, usable_cpus

_OF_ONE_HEAD = re.compile(r"\.\w+\.\d+(\.[a-z_]\w*)?$")
"""What distinguishes the parts of a module's heads, such as `.query_convs.1.conv`."""


class WatchedArtefact:
    """An artefact as an engine that tells `take` of all attention in its passes; ONNX Runtime runs it.

    Attention is a softmax over the last of three or more dimensions. In a file that does not say whose an
    operator is, it belongs to the module of the nearest weights before it.
    """

    name = OnnxRuntimeEngine.name

    def __init__(self, artefact: Artefact, take: Take) -> None:
        proto = as_proto(artefact)
        self._take, self._owners = take, _owners(proto)
        outputs = {output.name for output in proto.graph.output}
        for tensor in self._owners.keys() - outputs:
            proto.graph.output.add(name=tensor)
        self._session = onnxruntime_session(proto.SerializeToString(), usable_cpus())
        self._input = self._session.get_inputs()[0].name

    def run(self, batch_BCHW: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """One pass; see `Engine.run`. Its outputs are not given."""
        if not self._owners:
            return ()
        found = self._session.run(list(self._owners), {self._input: batch_BCHW})
        maps = [(owner, value) for owner, value in zip(self._owners.values(), found, strict=True)]
        for owner, calls in groupby((pair for pair in maps if pair[1].ndim > 2), lambda pair: pair[0]):
            for block, maps_BAQK in as_heads(owner, [call for _, call in calls]):
                self._take(block, maps_BAQK)
        return ()


def _owners(proto: Any) -> dict[str, str]:
    """The output of each softmax over the last dimension, with the module that it belongs to."""
    origins = Origins(proto)
    makers = {output: node for node in proto.graph.node for output in node.output}
    return {
        node.output[0]: _owner(node, origins, makers)
        for node in proto.graph.node
        if node.op_type == "Softmax" and all(a.i == -1 for a in node.attribute if a.name == "axis")
    }


def _owner(node: Any, origins: Origins, makers: dict[str, Any]) -> str:
    """The module that a node says, or without its last number that of the nearest node with weights."""
    if (said := origins.module(node.name)) is not None:
        return said
    near, seen = [node], set()
    while near:
        found = [module for before in near if (module := origins.module(before.name)) is not None]
        if found:
            return _OF_ONE_HEAD.sub("", found[0])
        seen |= {before.name for before in near}
        tensors = [tensor for before in near for tensor in before.input if tensor in makers]
        near = [makers[tensor] for tensor in tensors if makers[tensor].name not in seen]
    return str(node.output[0])
