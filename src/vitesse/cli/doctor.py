"""`vitesse doctor`."""

from __future__ import annotations

from vitesse.cli.options import Json


def run(as_json: Json = False) -> int:
    """Report versions, engines, processor and extras, and run each engine once: for bug reports.

    \b
    Examples:
      vitesse doctor
      vitesse doctor --json
    """
    from vitesse.cli.show import show_diagnosis
    from vitesse.doctor import diagnose

    return show_diagnosis(diagnose(), as_json=as_json)
