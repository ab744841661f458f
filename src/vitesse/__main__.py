"""`python -m vitesse`: the command."""

from vitesse.cli import main

main()
