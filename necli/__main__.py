"""`python -m necli` is `necli`."""

from necli.cli.app import main

main()
