"""`python -m vitesse.bench.probe FILE ENGINE`: run an artefact once, so that a crash stays in here."""

from __future__ import annotations

import sys

from vitesse.runtime.artefact import read_artefact
from vitesse.runtime.autoselect import sample_batch
from vitesse.runtime.engines import create_engine

if __name__ == "__main__":
    artefact = read_artefact(sys.argv[1])
    create_engine(artefact, sys.argv[2], 1).run(sample_batch(artefact, 1))
